"""The facts that every result carries: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess

import torch

from sinfusion import ops


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    with open("/proc/cpuinfo") as file:
        facts = dict(line.split(":", 1) for line in file.read().replace("\t", "").splitlines() if ":" in line)
    flags = facts.get("flags", "").split()
    gpu = torch.cuda.is_available()
    return {
        "cpu": facts.get("model name", platform.processor()).strip(),
        "bf16": ", ".join(flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags) or "none",
        "threads": torch.get_num_threads(),
        "native": ops.status()["cpu"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none",
        "commit": commit,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "architecture": "{}{}".format(*torch.cuda.get_device_capability()) if gpu else "none",
    }
