"""Triton kernels compiled without a GPU, and what the code that comes out uses."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

OLDEST = (3, 3)  # of Triton: before, compiling ahead of time has another interface


class Usage(NamedTuple):
    """What a compiled kernel uses."""

    registers: int  # of a thread
    spill_bytes: int  # of a thread, in memory: its stack, where ptxas spills to, and local arrays
    shared_bytes: int  # of a block
    ptx: str

    @property
    def tensor_cores(self) -> str:
        """What multiplies matrices: mma.sync (since Ampere), wgmma (Hopper), tcgen05 (Blackwell); empty if nothing."""
        found = re.findall(r"\b(mma\.sync|wgmma)\.|\b(tcgen05)\.mma\b", self.ptx)
        return ", ".join(sorted({name for names in found for name in names if name}))


Type = str | tuple[str, ...] | None  # "*bf16", "i32", "fp32", "i32:16": a multiple of 16; of a tuple, a tuple


class Variant(NamedTuple):
    """A kernel as it is launched; the arguments of compile_variant but the last."""

    kernel: Any  # of @triton.jit
    types: dict[str, Type]  # of every argument that is no constant; None: not given
    constants: dict[str, Any]
    options: dict[str, Any]  # num_warps, num_stages, ...


@functools.cache
def why_not() -> str:
    """Why nothing can be compiled here; empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if triton_version() < OLDEST:
        return f"Triton {'.'.join(map(str, triton_version()))} is older than {'.'.join(map(str, OLDEST))}"
    if cuobjdump() is None:
        return "there is no cuobjdump to read registers with"
    return ""


def triton_version() -> tuple[int, ...]:
    """Major and minor."""
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def cuobjdump() -> str | None:
    """Triton's own, which knows every architecture that Triton compiles for; else CUDA's."""
    package = importlib.util.find_spec("triton")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if bundled.exists():
            return str(bundled)
    return shutil.which("cuobjdump")


class Resources(NamedTuple):
    """A kernel in a file of device code."""

    name: str  # mangled
    architecture: int  # 90: sm_90
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int  # static


def resources(file: Path) -> list[Resources]:
    """Of every kernel in a cubin, a library or an executable, for every architecture in it."""
    command = [cuobjdump(), "--dump-resource-usage", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # type: ignore[arg-type]
    found, architecture, name = [], 0, ""
    for line in output.splitlines():
        if match := re.search(r"\barch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif " REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", line)}
            fields = (numbers[key] for key in ("REG", "STACK", "LOCAL", "SHARED"))
            found.append(Resources(name, architecture, *fields))
    return found


def compile_variant(
    kernel: Any,  # of @triton.jit
    types: dict[str, Type],  # of every argument that is no constant; None: a pointer that is not given
    constants: dict[str, Any],
    options: dict[str, Any],
    capability: int,  # 80, 90, 100
) -> Usage:
    """Compile a kernel as a launch would whose pointers are aligned to 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = constants | {name: None for name, kind in types.items() if kind is None}
    given = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    paths = {  # where Triton finds an argument, or a part of one
        path: kind
        for i, kinds in enumerate(given.values())
        for path, kind in ([((i,), kinds)] if isinstance(kinds, str) else [((i, j), k) for j, k in enumerate(kinds)])  # type: ignore[arg-type]
    }
    aligned = {path: [["tt.divisibility", 16]] for path, kind in paths.items() if kind[0] == "*" or ":16" in kind}
    signature = {
        name: kinds.removesuffix(":16") if isinstance(kinds, str) else tuple(kind.removesuffix(":16") for kind in kinds)  # type: ignore[union-attr]
        for name, kinds in given.items()
    }
    source = ASTSource(kernel, signature, constants, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        (used,) = resources(cubin)
    spilled = used.stack_bytes + used.local_bytes
    return Usage(used.registers, spilled, binary.metadata.shared, binary.asm["ptx"])


@contextmanager
def recorded_launches() -> Iterator[list[Variant]]:
    """The launches that are made inside the with block, of kernels that do not run; their tensors may lie anywhere."""
    from triton.runtime.jit import JITFunction

    launches: list[Variant] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        constants = {name: value for name, value in named.items() if name in kernel.arg_names}
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        types = {name: _type(value) for name, value in zip(kernel.arg_names, arguments, strict=False)}
        launches.append(Variant(kernel, types, constants, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = run


def _type(argument: Any) -> Type:
    """As Triton names it."""
    if argument is None:
        return None
    if isinstance(argument, tuple):
        return tuple(str(_type(part)) for part in argument)
    if isinstance(argument, int | float):
        return "i32" if isinstance(argument, int) else "fp32"
    return {"bfloat16": "*bf16", "float32": "*fp32"}[str(argument.dtype).removeprefix("torch.")]
