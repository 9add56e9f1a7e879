"""A Triton kernel of the mean squared error, and its gradient at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reduce import Partial, reduce_partials

NUMBERS = 1024  # of a program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["count"])
def square(
    output,  # (count,) fp32
    target,  # (count,) fp32
    gradient,  # (count,) fp32, written: of the mean by the output
    partial,  # (programs,) fp32, written: sums for the mean
    count,
    share,  # 1 / count
    NUMBERS: tl.constexpr,
):
    """A program: NUMBERS of the numbers."""
    place = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    mask = place < count
    difference = tl.load(output + place, mask=mask, other=0.0) - tl.load(target + place, mask=mask, other=0.0)
    tl.store(gradient + place, 2.0 * share * difference, mask=mask)
    tl.store(partial + tl.program_id(0), share * tl.sum(difference * difference, 0))


def mean_square(
    output: Tensor,  # (B, C, H, W) fp32, channels-last
    target: Tensor,  # as output
) -> tuple[Tensor, Tensor]:
    """The mean squared difference () fp32, and its gradient as output. Below 2^31 numbers."""
    gradient, programs = torch.empty_like(output), triton.cdiv(output.numel(), NUMBERS)
    partial, mean = output.new_empty(1, programs, 1), output.new_empty(())
    with torch.cuda.device_of(output):
        square[(programs,)](
            output, target, gradient, partial, output.numel(), 1 / output.numel(), NUMBERS=NUMBERS, **OPTIONS
        )
    reduce_partials([Partial(partial, mean.view(1, 1))])
    return mean, gradient
