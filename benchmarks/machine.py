"""The facts that every result carries: device, instruction sets, threads, versions, commit."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from sinfusion import ops
from sinfusion.precision import choose_device

CPUINFO = Path("/proc/cpuinfo")  # Linux has it

# Those that decide which kernels run, as Linux names them: x86-64, then ARM (64-bit ARM calls neon asimd).
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "asimd")

CODE = ("sinfusion", "csrc", "kernels", "CMakeLists.txt")  # what results depend on

# Beginnings of environment variables that change threads, memory or kernels.
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "MALLOC_", "GLIBC_TUNABLES", "SINFUSION_")


def machine(device: torch.device | None = None) -> dict[str, str | int]:
    """What the figures are measured on; device: None: the GPU if there is one."""
    gpu = (device or choose_device()).type == "cuda"
    native = ops.status()["cpu"]
    return {
        **cpu(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "settings": ", ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)) or "none",
        "freed_memory": "kept" if native.endswith("kernels") and platform.libc_ver()[0] == "glibc" else "given back",
        "native": native,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none",
        "commit": commit(),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "architecture": "{}{}".format(*torch.cuda.get_device_capability()) if gpu else "none",
    }


CHANGED = "-with-changes"  # follows a commit whose package or native code was changed and not yet committed


def commit() -> str:
    """Of this checkout; empty where there is none."""
    root = Path(__file__).resolve().parents[1]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    changes = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", *CODE], cwd=root, check=False, capture_output=True
    )
    return head.stdout.strip() + CHANGED * (changes.returncode == 1)


def cpu() -> dict[str, str | int]:
    """Its name, and which of INSTRUCTION_SETS it has (`unknown` where the system does not say)."""
    lines = CPUINFO.read_text().replace("\t", "").splitlines() if CPUINFO.exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    flags = facts.get("flags", facts.get("Features"))  # x86-64, ARM
    known = "unknown" if flags is None else ", ".join(name for name in INSTRUCTION_SETS if name in flags.split())
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()).strip(),
        "instruction_sets": known or "none",
    }


IN_NAME = ("cpu", "device", "native", "threads")


def name_of(facts: dict[str, Any]) -> str:
    """`AMD EPYC, 2 threads, avx2 kernels`, or the name of the GPU."""
    of_cpu = f"{facts['cpu']}, {facts['threads']} threads, {facts['native']}"
    return of_cpu if facts["device"] == "cpu" else str(facts["device"])


def describe(facts: dict[str, Any]) -> str:
    """All that is known of a machine in a line."""
    in_name = IN_NAME if facts["device"] == "cpu" else ("device",)
    said = {name: value for name, value in facts.items() if name not in in_name and value != "none"}
    return f"{name_of(facts)}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())
