"""The operator `nearest_patches`: for every space-time patch of one video, the k nearest of another, exactly.

In whole numbers, as `patch_match`, so that every backend finds the same ones; two that are as near are told apart by
their place. On a GPU the reference serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import require
from .dispatch import native_or_reference
from .native import run, why_no_library
from .registration import define, implement, takes
from .videos import check_videos, places, quantize

DISTANCES_AT_ONCE = 2**24  # of the reference
PADDING = 256  # int16 behind the last of a video, which the kernels read


class NearestPatches(NamedTuple):
    query: Tensor  # (T, H, W, C) floating, finite
    key: Tensor  # (T', H', W', C)
    patch: Sequence[int] = (1, 3, 3)  # frames, rows, columns
    k: int = 64  # at most as many as the key has patches


@takes(NearestPatches)
def nearest_patches(a: NearestPatches) -> tuple[Tensor, Tensor]:
    """For each of the query's N patches, row by row: (N, k) int32, the numbers of the key's nearest patches, counted as
    well row by row and frame by frame; (N, k) fp32, the sums of squared differences. Sorted by these, then by number.

    Patches lie wholly inside. Values are rounded as for `patch_match`: for 3x3 patches of 3 channels to 1/8918 of their
    range, of 6 channels to 1/6306.
    """
    index, distance = torch.ops.sinfusion.nearest_patches(*a)
    return index, distance


def _check(a: NearestPatches) -> None:
    check_videos(a.query, a.key, a.patch)
    count = math.prod(places(a.key, a.patch))
    require(0 < a.k <= count, lambda: f"k is from 1 to the {count} patches of key, not {a.k}")


def _rows(video: Tensor, patch: Sequence[int]) -> Tensor:
    """(places, values of a patch) float64."""
    unfolded = video.double().unfold(0, patch[0], 1).unfold(1, patch[1], 1).unfold(2, patch[2], 1)
    return unfolded.reshape(unfolded.shape[:3].numel(), -1)


def _reference(a: NearestPatches) -> tuple[Tensor, Tensor]:
    _check(a)
    query, key, unit = quantize(a.query, a.key, a.patch)
    keys = _rows(key, a.patch)
    numbers = torch.arange(len(keys), device=keys.device)
    found = []
    for rows in _rows(query, a.patch).split(max(1, DISTANCES_AT_ONCE // len(keys))):
        squares = rows.square().sum(1)[:, None] + keys.square().sum(1)  # whole numbers below 2^53: exact
        ranks = (squares - 2 * rows @ keys.T).long() << 31 | numbers
        found.append(ranks.topk(a.k, largest=False).values)
    nearest = torch.cat(found)
    return (nearest & 2**31 - 1).int(), (nearest >> 31).float() * unit**2


def unsupported(a: NearestPatches) -> list[str]:
    """Why the native kernel cannot run."""
    if a.query.device.type != "cpu":
        return [f"there is no kernel for {a.query.device.type}"]
    return why_no_library(a.query.device)


def _channel_pairs(video: Tensor) -> Tensor:
    """(T, H, W, C) int16 -> (ceil(C / 2), T, H, W, 2): planes of two channels each, of which the last may be 0."""
    planes = (video.shape[3] + 1) // 2
    memory = video.new_zeros(planes * math.prod(video.shape[:3]) * 2 + PADDING)
    pairs = memory[:-PADDING].view(planes, *video.shape[:3], 2)
    for channel in range(video.shape[3]):
        pairs[channel // 2, ..., channel % 2] = video[..., channel]
    return pairs


def _native(a: NearestPatches) -> tuple[Tensor, Tensor]:
    query, key, unit = quantize(a.query, a.key, a.patch)
    index, distance = _fake(a)
    run(
        "nearest_patches", a.query, query=_channel_pairs(query), query_size=query.shape[:3], key=_channel_pairs(key),
        key_size=key.shape[:3], channel_pairs=(query.shape[3] + 1) // 2, patch=a.patch, k=a.k,
        norms=torch.empty(math.prod(key.shape[:3]) + PADDING, dtype=torch.int32), index=index, distance=distance,
    )  # fmt: skip
    return index, distance.mul_(unit**2)


def _fake(a: NearestPatches) -> tuple[Tensor, Tensor]:
    _check(a)
    shape = math.prod(places(a.query, a.patch)), a.k
    return a.query.new_empty(shape, dtype=torch.int32), a.query.new_empty(shape, dtype=torch.float32)


_on_device = native_or_reference("nearest_patches", _native, _reference, unsupported, _check)
define("nearest_patches", NearestPatches, "(Tensor, Tensor)")
implement("nearest_patches", NearestPatches, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_fake)
