"""What every compiled GPU kernel uses; needs no GPU.

python benchmarks/compiled_kernels.py --out OUT.json

CUDA kernels, of the library that is built: for each architecture in it registers of a thread, bytes of its stack (what
is spilled, and arrays) and bytes of shared memory of a block. Triton kernels, compiled for sm_80, sm_90 and sm_100 as a
training step and a reverse step launch them: registers, spilled bytes, shared memory, and which tensor-core
instruction multiplies matrices.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ahead_of_time
import tyro
from kernel_variants import LAUNCHED
from machine import machine

import sinfusion
from sinfusion import ops

CAPABILITIES = (80, 90, 100)

Row = dict[str, Any]


@dataclass
class Settings:
    out: Path | None = None


def demangled(names: list[str]) -> list[str]:
    """vote.cu: vote_kernel<float>; names as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None:
        return names
    output = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    kernels = [re.sub(r"^.*::(\w+(<[^()]*>)?)\(.*$", r"\1", line) for line in output.splitlines()]
    # nvcc names an unnamed namespace after the file: ..._11_adam_ema_cu_b9cf7e74...
    files = [re.search(r"_\d+_([a-z]\w*?)_cu_[0-9a-f]{8}", name) for name in names]
    return [f"{file[1]}.cu: {kernel}" if file else kernel for file, kernel in zip(files, kernels, strict=True)]


def cuda_kernels(library: Path) -> list[Row]:
    """One row for each kernel and architecture, by name."""
    found = ahead_of_time.resources(library)
    rows = [
        {
            "kernel": name,
            "architecture": f"sm_{used.architecture}",
            "registers": used.registers,
            "stack_bytes": used.stack_bytes + used.local_bytes,
            "shared_bytes": used.shared_bytes,
        }
        for name, used in zip(demangled([used.name for used in found]), found, strict=True)
    ]
    return sorted(rows, key=lambda row: (row["kernel"], int(row["architecture"][3:])))


def triton_kernels() -> list[Row]:
    """One row for each variant and architecture."""
    rows = []
    for function, all_arguments in LAUNCHED.items():
        for arguments in all_arguments:
            for name, variant in function(*arguments).items():
                label = ", ".join((f"{function.__name__}({', '.join(map(str, arguments))})", name))
                for capability in CAPABILITIES:
                    used = ahead_of_time.compile_variant(*variant, capability)
                    rows.append(
                        {
                            "kernel": label,
                            "architecture": f"sm_{capability}",
                            "registers": used.registers,
                            "spill_bytes": used.spill_bytes,
                            "shared_bytes": used.shared_bytes,
                            "tensor_cores": used.tensor_cores,
                        }
                    )
    return rows


def table(title: str, rows: list[Row]) -> str:
    """A line a kernel, a column an architecture."""
    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        figures = [str(value) for key, value in row.items() if key not in ("kernel", "architecture") and value != ""]
        cells.setdefault(row["kernel"], {})[row["architecture"]] = " ".join(figures)
    lines = [(title, *architectures)]
    lines += [(name, *(of_kernel.get(a, "") for a in architectures)) for name, of_kernel in cells.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def versions() -> Row:
    """What compiled them."""
    import triton

    nvcc = shutil.which("nvcc")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout if nvcc else ""
    release = re.search(r"release ([\d.]+)", said)
    return {
        "commit": machine()["commit"],
        "nvcc": release[1] if release else "unknown",
        "triton": triton.__version__,
    }


def main(settings: Settings) -> None:
    """Compile, print, write."""
    if why_not := ahead_of_time.why_not():
        raise SystemExit(f"Nothing can be compiled here: {why_not}.")
    library = next(Path(sinfusion.__file__).parent.glob("_cuda.*.so"), None)
    if library is None:
        raise SystemExit(f"There is no CUDA library: {ops.status()['cuda']}.")
    of_cuda, of_triton, compilers = cuda_kernels(library), triton_kernels(), versions()
    print(table("CUDA: registers, stack, shared memory", of_cuda), end="\n\n")
    print(table(f"Triton {compilers['triton']}: registers, spilled, shared memory", of_triton))
    if settings.out:
        result = {"command": "python benchmarks/compiled_kernels.py", "compilers": compilers}
        settings.out.write_text(json.dumps(result | {"cuda": of_cuda, "triton": of_triton}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
