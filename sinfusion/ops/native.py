"""Loads the native libraries, and calls their functions with tensors that stay alive until the call returns.

A library that is missing is a stand-in that says why when it is called; the references serve instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SinfusionError


class Library:
    """A native module, or the reason why there is none.

    Its operators take fields by name: tensors, of which they use the addresses, None, numbers and booleans. A field
    that is missing, unknown or of the wrong kind is a TypeError.
    """

    def __init__(self, name: str):
        self.name = name
        self.why_not = ""
        self.module: Any = None
        try:
            self.module = importlib.import_module(f"sinfusion.{name}")
        except ImportError as error:
            self.why_not = f"sinfusion.{name} is not there ({error}); install with: pip install ."

    @property
    def loaded(self) -> bool:
        return self.module is not None

    def __getattr__(self, function: str) -> Any:
        if self.module is None:
            raise SinfusionError(f"{function} is not available: {self.why_not}")
        return getattr(self.module, function)

    def call(self, function: str, /, *arguments: Any, **fields: Any) -> Any:
        return getattr(self.module or self, function)(*arguments, **fields)

    def prepare(self, function: str, /, **fields: Any) -> Callable[[], Any]:
        """The same call, for as long as the tensors live: its fields are read once, here."""
        prepared: Callable[[], Any] = getattr(self.module or self, f"prepare_{function}")(**fields)
        return prepared


def openmp_runtimes() -> list[str]:
    """Names of the OpenMP runtimes loaded into this process (Linux). There should be one, PyTorch's."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if ".so" in line}
    names = sorted(Path(file).name for file in files)
    return [name for name in names if any(known in name for known in ("libgomp", "libiomp", "libomp"))]


cpu = Library("_cpu")
cuda = Library("_cuda")
if cpu.loaded:
    cpu.count_threads_by(torch.get_num_threads)


def why_no_library(device: torch.device) -> list[str]:
    """Why native code cannot run on a device; empty where it can."""
    library = {"cpu": cpu, "cuda": cuda}.get(device.type)
    if library is None:
        return [f"no native library for {device.type}"]
    return [] if library.loaded else [library.why_not]


def run(function: str, on: Tensor, /, **fields: Any) -> None:
    """Call a function of the library for the device of `on`; on a GPU, on that device and its current stream."""
    if on.device.type == "cpu":
        cpu.call(function, **fields)
        return
    with torch.cuda.device(on.device):
        error = cuda.call(function, torch.cuda.current_stream(on.device).cuda_stream, **fields)
    if error:
        raise RuntimeError(f"CUDA error {error} in {function}")


def mark_written(*tensors: Tensor | None) -> None:
    """Tells autograd that a native call changed these in place, which the dispatcher leaves to the operator."""
    written = (value for value in tensors if value is not None and not value.is_inference())
    torch.autograd.graph.increment_version(written)


def wrong_dtype(name: str, dtype: torch.dtype, *supported: torch.dtype) -> list[str]:
    """Why native code cannot run on a tensor of this dtype; empty where it can."""
    if dtype in supported:
        return []
    return [f"{name} is {dtype}, not {' or '.join(str(one).removeprefix('torch.') for one in supported)}"]


def _cuda_status() -> str:
    if hasattr(cuda.module, "convolve_sm90"):
        return "library loaded, with kernels for Hopper GPUs"
    return "library loaded, without kernels for Hopper GPUs (they need nvcc 12.5)"


def status() -> dict[str, str]:
    """What native code is active, and why not, in words."""
    from .. import kernels

    return {
        "cpu": f"{cpu.isa()} kernels" if cpu.loaded else cpu.why_not,
        "cuda": _cuda_status() if cuda.loaded else cuda.why_not,
        "triton": kernels.why_not() or "ready",
        "openmp": ", ".join(openmp_runtimes()) or "unknown",
    }
