"""7x7 depthwise convolutions and their norm on Hopper GPUs (csrc/cuda/depthwise_sm90.cu).

The functions are those of kernels/depthwise_norm.py, and take and give the same. Tensor cores multiply, so taps are
rounded to bf16; their gradient is fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import depthwise_norm as triton_kernels
from ..kernels.depthwise_norm import Epilogue, Input, Saved
from . import hopper
from .layout import empty_like
from .native import run

NORM_BLOCKS = 396  # that share the norm's gradient
TAPS_BLOCKS = {64: 66, 128: 33}  # that share the gradient of 32 channels' taps, by channels: 132 in all


def takes(given: Input) -> bool:
    return given.channels[0] in (64, 128) and len(given.x) < 2**16 and hopper.takes(*given)


def forward(given: Input, taps: Tensor, epilogue: Epilogue, eps: float, save: bool) -> tuple[Tensor, Saved]:
    (batch, _, height, width), (channels, of_skip) = given.x.shape, given.channels
    out, saved = empty_like(given.x, channels), Saved()
    if save and epilogue.gain is not None:
        statistics = (given.x.new_empty(batch, height, width, dtype=torch.float32) for _ in range(2))
        saved = Saved(empty_like(given.x, channels), *statistics)
    stride = 0 if epilogue.shift is None else epilogue.shift.stride(0)
    run(
        "depthwise_sm90", given.x, **given._asdict(), weight=taps, **epilogue._asdict(), out=out, **saved._asdict(),
        shift_stride=stride, batch=batch, height=height, width=width, channels=channels, skip_channels=of_skip, eps=eps,
    )  # fmt: skip
    return out, saved


def norm_gradient(
    grad_out: Tensor, saved: Saved, gain: Tensor | None, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if gain is None or not hopper.takes(grad_out, saved.u, other):
        return triton_kernels.norm_gradient(grad_out, saved, gain, other)
    batch, channels, height, width = grad_out.shape
    parts = max(1, NORM_BLOCKS // batch)
    kinds = 3 if other is None else 4
    du, partial = empty_like(grad_out, channels), grad_out.new_empty(kinds, batch, parts, channels, dtype=torch.float32)
    run(
        "norm_gradient_sm90", grad_out, grad=grad_out, **saved._asdict(), gain=gain, du=du, other=other,
        partial=partial, batch=batch, pixels=height * width, channels=channels, parts=parts,
    )  # fmt: skip
    return du, partial


def input_gradient(
    du: Tensor,
    taps: Tensor,
    skip_channels: int = 0,
    residual: Input | None = None,
    passed: Tensor | None = None,
) -> Input:
    batch, channels, height, width = du.shape
    of_x, of_skip = empty_like(du, channels - skip_channels), empty_like(du, skip_channels) if skip_channels else None
    add, add_skip = (None, None) if residual is None else residual
    run(
        "depthwise_gradient_sm90", du, grad=du, weight=taps, add=add, add_skip=add_skip, passed=passed, x=of_x,
        skip=of_skip, batch=batch, height=height, width=width, channels=channels, skip_channels=skip_channels,
    )  # fmt: skip
    return Input(of_x, of_skip)


def taps_gradient(given: Input, du: Tensor) -> Tensor:
    (batch, channels, height, width), parts = du.shape, TAPS_BLOCKS[du.shape[1]]
    partial = du.new_empty(1, parts, 49, channels, dtype=torch.float32)
    run(
        "depthwise_weight_gradient_sm90", du, **given._asdict(), grad=du, partial=partial, batch=batch, height=height,
        width=width, channels=channels, skip_channels=given.channels[1], parts=parts,
    )  # fmt: skip
    return partial
