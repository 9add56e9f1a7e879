"""A Triton kernel that adds up the partial sums which programs of other kernels left: many sums in one launch.

reduce_partials((Partial(partial, out), ...))

What programs add up in no order of their own they leave one by one; here they are added in an order that the shapes
alone decide, so results repeat to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, NUMBERS = 16, 128  # that a program adds at a time; gradients of weights have few rows of many numbers
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


class Partial(NamedTuple):
    partial: Tensor  # (groups, rows, ...) fp32 or bf16, contiguous
    out: Tensor  # (groups, ...) fp32, as many numbers as the last dimensions have; written in the order of its memory


@triton.jit
def add_rows(
    partials,  # of each sum (groups, rows, numbers)
    outs,  # of each (groups, numbers) fp32, written
    groups,  # of each
    rows,
    numbers,
    ROWS: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """A program: NUMBERS of a group of one of the sums, all rows. Grid: as many as these are."""
    first = 0
    for i in tl.static_range(len(partials)):
        blocks = tl.cdiv(numbers[i], NUMBERS)
        program = tl.program_id(0) - first
        first += groups[i] * blocks
        if (program >= 0) & (tl.program_id(0) < first):
            group = program // blocks
            number = program % blocks * NUMBERS + tl.arange(0, NUMBERS)[None, :]
            sums = tl.zeros((ROWS, NUMBERS), tl.float32)
            for start in range(0, rows[i], ROWS):
                row = start + tl.arange(0, ROWS)[:, None]
                place = (group * rows[i] + row).to(tl.int64) * numbers[i] + number
                mask = (row < rows[i]) & (number < numbers[i])
                sums += tl.load(partials[i] + place, mask=mask, other=0.0).to(tl.float32)
            place = group * numbers[i] + number
            tl.store(outs[i] + place, tl.sum(sums, 0, keep_dims=True), mask=number < numbers[i])


def reduce_partials(sums: Sequence[Partial]) -> None:
    """Every `out` becomes the sum over the rows of its `partial`."""
    partials, outs = zip(*sums, strict=True)
    groups, rows = ([partial.shape[i] for partial in partials] for i in (0, 1))
    numbers = [out.numel() // count for out, count in zip(outs, groups, strict=True)]
    programs = sum(count * triton.cdiv(n, NUMBERS) for count, n in zip(groups, numbers, strict=True))
    with torch.cuda.device_of(outs[0]):
        add_rows[(programs,)](
            partials, outs, tuple(groups), tuple(rows), tuple(numbers), ROWS=ROWS, NUMBERS=NUMBERS, **OPTIONS
        )
