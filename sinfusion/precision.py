"""Choice of device and dtype."""

from __future__ import annotations

import re

import torch

from . import ops
from .errors import SettingError


def choose_device(device: torch.device | str = "auto") -> torch.device:
    """The device named auto (CUDA where there is a GPU, else the CPU), cpu, cuda or, of several GPUs, cuda:1.

    Raises SettingError for any other name, and for a device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", str(device))
    if not match:
        raise SettingError(f"{{device}} must be auto, cpu or cuda, or cuda:1 of several GPUs, not {str(device)!r:.40}.")
    if match[0] == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingError("{device} cuda was asked for, but PyTorch sees no GPU; use cpu or install a CUDA build.")
    if match[1] and int(match[1]) >= (count := torch.cuda.device_count()):
        raise SettingError(f"{{device}} {match[0]} does not exist: PyTorch sees {count} GPU(s), numbered from cuda:0.")
    return torch.device(match[0])


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """dtype of the activations: bf16, fp32, or with auto bf16 where the hardware is fast at it."""
    if precision not in ("auto", "bf16", "fp32"):
        raise SettingError(f"{{precision}} must be auto, bf16 or fp32, not {precision!r}.")
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = ops.cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32
