"""`mean_square`: the mean squared error of a training, differentiable in the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import use_native
from .layout import channels_last


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """() fp32: the mean of (output - target)^2, both (B, C, H, W) fp32. A GPU makes its gradient in the same launch."""
    if runs_on_gpu(output) and use_native("mean_square", _unsupported(output, target)):
        mean: Tensor = _MeanSquare.apply(output, target)
        return mean
    return (output - target).square().mean()


def runs_on_gpu(output: Tensor) -> bool:
    return output.is_cuda


def _unsupported(output: Tensor, target: Tensor) -> list[str]:
    """Why the GPU's kernel cannot run."""
    from .. import kernels

    reasons = [kernels.why_not()] if kernels.why_not() else []
    if output.ndim != 4 or output.shape != target.shape or not 0 < output.numel() < 2**31:
        reasons.append(f"output is {tuple(output.shape)}, target {tuple(target.shape)}")
    return reasons + ["they are not fp32"] * (not output.dtype == target.dtype == torch.float32)


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        from ..kernels import loss

        mean, gradient = loss.mean_square(channels_last(output), channels_last(target))
        ctx.save_for_backward(gradient)
        return mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None
