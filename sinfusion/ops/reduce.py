"""Sums of the partial sums that kernels leave, on a GPU: Triton's kernel, or csrc/cuda's on a Hopper GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import hopper
from .native import run

MOST = 16  # sums of a launch


def reduce_partials(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Every `out` (groups, ...) fp32 becomes the sum over the rows of its `partial` (groups, rows, ...)."""
    from ..kernels.reduce import Partial
    from ..kernels.reduce import reduce_partials as by_triton

    if len(sums) <= MOST and all(_fits(partial, out) for partial, out in sums):
        table = [(p.data_ptr(), out.data_ptr(), len(p), p.shape[1], out.numel() // len(p)) for p, out in sums]
        run("add_rows_sm90", sums[0][0], sums=torch.tensor(table, dtype=torch.int64), count=len(table))
    else:
        by_triton([Partial(partial, out) for partial, out in sums])


def _fits(partial: Tensor, out: Tensor) -> bool:
    return (
        hopper.available(partial.device)
        and partial.dtype == out.dtype == torch.float32
        and out.numel() // len(partial) % 4 == 0
        and partial.data_ptr() % 16 == 0
        and out.data_ptr() % 16 == 0
    )
