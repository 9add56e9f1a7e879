"""Loads the native libraries; passes them tensors as addresses that stay alive until the call returns.

A library that is missing is a stand-in that says why when it is called; the references serve instead.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SinfusionError


class _Library:
    """A native module, or the reason why there is none."""

    def __init__(self, name: str):
        self.name = name
        self.why_not = ""
        self._module: Any = None
        try:
            self._module = importlib.import_module(f"sinfusion.{name}")
        except ImportError as error:
            self.why_not = f"sinfusion.{name} is not there ({error}); install with: pip install ."

    @property
    def loaded(self) -> bool:
        return self._module is not None

    def __getattr__(self, function: str) -> Any:
        if self._module is None:
            raise SinfusionError(f"{function} is not available: {self.why_not}")
        return getattr(self._module, function)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call with tensors replaced by their addresses, None by 0; `arguments` keeps every tensor alive meanwhile."""
        return getattr(self._module or self, function)(*_addresses(arguments))

    def prepared(self, function: str, *arguments: Any) -> Callable[[], Any]:
        """The same call, to be made while every tensor is alive."""
        return functools.partial(getattr(self._module or self, function), *_addresses(arguments))


def _addresses(arguments: tuple[Any, ...]) -> list[Any]:
    return [value.data_ptr() if isinstance(value, Tensor) else 0 if value is None else value for value in arguments]


def openmp_runtimes() -> list[str]:
    """Names of the OpenMP runtimes loaded into this process (Linux), which are PyTorch's; one is as it should be."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if ".so" in line}
    names = sorted(Path(file).name for file in files)
    return [name for name in names if any(known in name for known in ("libgomp", "libiomp", "libomp"))]


cpu = _Library("_cpu")
cuda = _Library("_cuda")
if cpu.loaded:
    cpu.count_threads_by(torch.get_num_threads)


def why_no_library(device: torch.device) -> list[str]:
    """Why native code cannot run on a device; empty where it can."""
    library = {"cpu": cpu, "cuda": cuda}.get(device.type)
    if library is None:
        return [f"no native library for {device.type}"]
    return [] if library.loaded else [library.why_not]


def run(function: str, on: Tensor, *arguments: Any) -> None:
    """Call a function of the library for the device of `on`: on a GPU there, on its current stream, passed last."""
    if on.device.type == "cpu":
        cpu.call(function, *arguments)
        return
    with torch.cuda.device(on.device):
        error = cuda.call(function, *arguments, torch.cuda.current_stream(on.device).cuda_stream)
    if error:
        raise RuntimeError(f"CUDA error {error} in {function}")


def status() -> dict[str, str]:
    """What native code is active, and why not, in words."""
    from .. import kernels

    return {
        "cpu": f"{cpu.isa()} kernels" if cpu.loaded else cpu.why_not,
        "cuda": "library loaded" if cuda.loaded else cuda.why_not,
        "triton": kernels.why_not() or "ready",
        "openmp": ", ".join(openmp_runtimes()) or "unknown",
    }
