"""The operator `posterior`: the mean of neighbours' values, each weighted by how likely it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import require, require_tensor
from .dispatch import native_or_reference
from .native import run, why_no_library
from .registration import define, implement, takes

VALUES_AT_ONCE = 2**24  # of the reference


class Posterior(NamedTuple):
    rows: Tensor  # (N, k) int32: of `values`, as the numbers that nearest_patches returns
    distance: Tensor  # (N, k) fp32
    values: Tensor  # (M, V) fp32
    of_distance: float  # factors of the distance, and of the squared difference between a value and what is observed
    observed: Tensor | None = None  # (N, V) fp32
    of_observed: float = 0.0


@takes(Posterior)
def posterior(a: Posterior) -> Tensor:
    """(N, V) fp32: sum_j w_j values[rows_j], with w = softmax_j of
    -of_distance * distance_j - of_observed * |observed - values[rows_j]|^2."""
    out: Tensor = torch.ops.sinfusion.posterior(*a)
    return out


def _check(a: Posterior) -> None:
    device = a.rows.device
    require(a.rows.ndim == 2 and a.values.ndim == 2, lambda: "rows are (N, k), values are (M, V)")
    require(a.rows.shape[1] > 0 and a.values.numel() > 0, lambda: "there are neighbours, and values")
    require_tensor("rows", a.rows, device, [tuple(a.rows.shape)], torch.int32)
    require_tensor("distance", a.distance, device, [tuple(a.rows.shape)], torch.float32)
    require_tensor("values", a.values, device, [tuple(a.values.shape)], torch.float32)
    require_tensor("observed", a.observed, device, [(len(a.rows), a.values.shape[1])], torch.float32)


def _check_values(a: Posterior) -> None:
    # The kernel computes addresses from them.
    inside = not a.rows.numel() or bool((a.rows.amin() >= 0) & (a.rows.amax() < len(a.values)))
    require(inside, lambda: f"rows are from 0 to {len(a.values) - 1}, the last of values")


def _reference(a: Posterior) -> Tensor:
    _check(a)
    _check_values(a)
    means = []
    for first in range(0, len(a.rows), step := max(1, VALUES_AT_ONCE // (a.rows.shape[1] * a.values.shape[1]))):
        some = slice(first, first + step)
        values = a.values[a.rows[some].long()]  # (n, k, V)
        logits = -a.of_distance * a.distance[some]
        if a.observed is not None:
            logits = logits - a.of_observed * (a.observed[some, None] - values).square().sum(-1)
        means.append((logits.softmax(1)[..., None] * values).sum(1))
    return torch.cat(means) if means else a.values.new_empty(0, a.values.shape[1])


def unsupported(a: Posterior) -> list[str]:
    """Why the native kernel cannot run."""
    if a.rows.device.type != "cpu":
        return [f"there is no kernel for {a.rows.device.type}"]
    return why_no_library(a.rows.device)


def _native(a: Posterior) -> Tensor:
    _check_values(a)
    out = _fake(a)
    run(
        "posterior", a.values, count=a.rows.shape[0], k=a.rows.shape[1], rows=a.rows.contiguous(),
        distance=a.distance.contiguous(), values=a.values.contiguous(), size=a.values.shape[1],
        of_distance=a.of_distance, observed=None if a.observed is None else a.observed.contiguous(),
        of_observed=a.of_observed, out=out,
    )  # fmt: skip
    return out


def _fake(a: Posterior) -> Tensor:
    _check(a)
    return a.values.new_empty(len(a.rows), a.values.shape[1])


_on_device = native_or_reference("posterior", _native, _reference, unsupported, _check)
define("posterior", Posterior, "Tensor")
implement("posterior", Posterior, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_fake)
