"""Activations channels-last, and inputs that come in two tensors whose channels follow each other."""

from __future__ import annotations

import torch
from torch import Tensor


def last(value: Tensor) -> Tensor:
    """(B, C, H, W), channels-last in memory."""
    return value.contiguous(memory_format=torch.channels_last)


def like(x: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) for x (B, C, H, W), channels-last, not yet written."""
    batch, _, *size = x.shape
    return x.new_empty(batch, *size, channels).permute(0, 3, 1, 2)


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
