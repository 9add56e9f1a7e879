"""What is asked of an operator's arguments.

A small network asks for thousands of things a second, so torch._check, which takes ten times as long, is not used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def require(holds: bool, message: Callable[[], str]) -> None:
    if not holds:
        raise RuntimeError(message())


def require_shape(name: str, value: Tensor | None, shape: tuple[int, ...], device: torch.device) -> None:
    """None, or a tensor of this shape on this device."""
    if value is not None and (value.shape != shape or value.device != device):
        raise RuntimeError(f"{name} is {tuple(value.shape)} on {value.device}, not {tuple(shape)} on {device}")
