"""Where to compute and in which dtype, decided once and said aloud."""

from __future__ import annotations

import torch

from . import ops
from .errors import SinfusionError


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU; anything else is taken at its word or refused."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise SinfusionError(f"device must be auto, cpu or cuda, not {device!r}.") from None
    if chosen.type not in ("cpu", "cuda"):
        raise SinfusionError(f"device must be auto, cpu or cuda, not {device!r}.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SinfusionError("CUDA was asked for, but PyTorch sees no GPU; use --device cpu or install a CUDA build.")
    return chosen


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 activations where the hardware is fast at them, fp32 otherwise; `bf16` and `fp32` force."""
    if precision not in ("auto", "bf16", "fp32"):
        raise SinfusionError(f"precision must be auto, bf16 or fp32, not {precision!r}.")
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = ops.cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32
