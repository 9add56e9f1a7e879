"""Checks of an operator's arguments.

A small network checks thousands of arguments a second, so torch._check, which takes ten times as long, is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Shape = tuple[int, ...]


def require(holds: bool, message: Callable[[], str]) -> None:
    """RuntimeError unless it holds."""
    if not holds:
        raise RuntimeError(message())


def require_tensor(
    name: str, value: Tensor | None, device: torch.device, shapes: Sequence[Shape], *dtypes: torch.dtype
) -> None:
    """None, or a tensor on this device with one of these shapes and of these dtypes (none given: of any)."""
    if value is None:
        return
    if value.shape in shapes and value.device == device and (not dtypes or value.dtype in dtypes):
        return
    wanted = " or ".join(map(str, dict.fromkeys(map(tuple, shapes))))
    kinds = " or ".join(map(str, dict.fromkeys(dtypes)))
    found = f"{tuple(value.shape)} {value.dtype}" if dtypes else f"{tuple(value.shape)}"
    raise RuntimeError(f"{name} is {wanted}{kinds and ' ' + kinds} on {device}, not {found} on {value.device}")


def require_channels_last(name: str, value: Tensor | None) -> None:
    """None, or a tensor that is channels-last in memory, because an operator writes it."""
    if value is not None and not value.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError(f"{name} is written, so it has to be channels-last in memory")


def require_patch(patch: Sequence[int]) -> None:
    """Three sizes above 0."""
    require(len(patch) == 3 and min(patch) > 0, lambda: f"patch is three sizes above 0, not {tuple(patch)}")
