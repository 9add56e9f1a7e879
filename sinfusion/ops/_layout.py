"""Activations channels-last, and inputs that come in two tensors whose channels follow each other."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


def last(value: Tensor) -> Tensor:
    """(B, C, H, W), channels-last in memory."""
    return value.contiguous(memory_format=torch.channels_last)


def like(x: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) for x (B, C, H, W), channels-last, not yet written."""
    batch, _, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided((batch, channels, height, width), strides)


def channels_of(x: Tensor, skip: Tensor | None) -> int:
    """Channels of x (B, C, H, W) and of skip, which has to be like it in all else."""
    if skip is None:
        return x.shape[1]
    if (
        skip.ndim != 4
        or skip.shape != (x.shape[0], skip.shape[1], x.shape[2], x.shape[3])
        or skip.dtype != x.dtype
        or skip.device != x.device
    ):
        raise RuntimeError(
            f"skip is {tuple(skip.shape)} {skip.dtype} on {skip.device}, x {tuple(x.shape)} {x.dtype} on {x.device}"
        )
    return x.shape[1] + skip.shape[1]


@overload
def fp32(value: Tensor) -> Tensor: ...
@overload
def fp32(value: Tensor | None) -> Tensor | None: ...
def fp32(value: Tensor | None) -> Tensor | None:
    """A parameter as kernels read it: fp32, without gaps."""
    if value is None or (value.dtype == torch.float32 and value.is_contiguous()):
        return value
    return value.float().contiguous()


def both(x: Tensor, skip: Tensor | None) -> Tensor:
    """One tensor of the channels of x and of skip."""
    return x if skip is None else torch.cat((x, skip), 1)


def parts(grad: Tensor | None, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of x and skip in that of both; empty where there is none."""
    if grad is None:
        return x.new_empty(0), x.new_empty(0)
    if skip is None:
        return last(grad), x.new_empty(0)
    first, second = grad.split([x.shape[1], skip.shape[1]], 1)
    return last(first), last(second)
