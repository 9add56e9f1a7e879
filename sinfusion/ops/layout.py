"""Channels-last activations, and inputs that are two tensors whose channels follow each other."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor


@overload
def channels_last(value: Tensor) -> Tensor: ...
@overload
def channels_last(value: Tensor | None) -> Tensor | None: ...
def channels_last(value: Tensor | None) -> Tensor | None:
    """(B, C, H, W), channels-last in memory."""
    return None if value is None else value.contiguous(memory_format=torch.channels_last)


@overload
def aligned(value: Tensor) -> Tensor: ...
@overload
def aligned(value: Tensor | None) -> Tensor | None: ...
def aligned(value: Tensor | None) -> Tensor | None:
    """The same numbers, beginning at a multiple of 16 bytes, as all that PyTorch allocates."""
    return value if value is None or value.data_ptr() % 16 == 0 else value.clone()


def empty_like(x: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) for x (B, C, H, W), channels-last, not yet written."""
    batch, _, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided((batch, channels, height, width), strides)


def total_channels(x: Tensor, skip: Tensor | None) -> int:
    """Channels of x (B, C, H, W) and of skip, which differs from x in nothing else."""
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
    """A parameter as kernels read it: fp32 and contiguous."""
    if value is None or (value.dtype == torch.float32 and value.is_contiguous()):
        return value
    return value.float().contiguous()


def input_fields(x: Tensor, skip: Tensor | None) -> dict[str, Any]:
    """The fields of csrc/cpu that describe an input of x and skip."""
    batch, channels, height, width = x.shape
    return {
        "batch": batch,
        "height": height,
        "width": width,
        "channels": channels,
        "skip_channels": 0 if skip is None else skip.shape[1],
        "bf16": x.dtype == torch.bfloat16,
        "x": channels_last(x),
        "skip": channels_last(skip),
    }


def concatenate(x: Tensor, skip: Tensor | None) -> Tensor:
    """One tensor of the channels of x and of skip."""
    return x if skip is None else torch.cat((x, skip), 1)


def split(grad: Tensor | None, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of x and of skip, of that of their concatenation; empty where there is none."""
    if grad is None:
        return x.new_empty(0), x.new_empty(0)
    if skip is None:
        return channels_last(grad), x.new_empty(0)
    of_x, of_skip = grad.split([x.shape[1], skip.shape[1]], 1)
    return channels_last(of_x), channels_last(of_skip)


def weight_order(shape: torch.Size, on_gpu: bool) -> tuple[int, ...]:
    """In which order a weight's dimensions lie in memory, as kernels read it.

    Convolutions are channels-last; on a GPU the channels of depthwise ones, (C, 1, 7, 7), are innermost.
    """
    if len(shape) != 4:
        return tuple(range(len(shape)))
    return (2, 3, 1, 0) if on_gpu and shape[1:] == (1, 7, 7) else (0, 2, 3, 1)


def taps_first(weight: Tensor) -> Tensor:
    """(49, C) fp32 of a depthwise weight (C, 1, 7, 7): itself if it lies in a GPU's `weight_order`, else a copy."""
    return fp32(weight.detach().permute(2, 3, 1, 0).reshape(49, -1))


def empty_taps_first(weight: Tensor) -> Tensor:
    """(C, 1, 7, 7) fp32 as a depthwise weight, in a GPU's `weight_order`, not yet written."""
    return weight.new_empty(7, 7, 1, len(weight), dtype=torch.float32).permute(3, 2, 0, 1)
