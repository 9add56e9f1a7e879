"""The operator `patch_match`: for every space-time patch of one video, a nearest one of another (Barnes et al. 2009).

A jump flood over whole numbers, so that the field is the same on every device: in each step all patches look at once at
what their neighbours some `stride` away had found, at random places beside that, and at two around their own best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import require, require_tensor
from .dispatch import native_or_reference
from .native import run, why_no_library
from .philox import uniform_bits
from .registration import define, implement, takes
from .videos import BEHIND, check_videos, places, quantize

STRIDES = (8, 4, 2, 1)  # of the steps of a round, as in VGPNN
STREAM = 0x50617463  # of random numbers
NEAR_LEVEL = 3  # of random places: within an eighth of the key's size


class PatchMatch(NamedTuple):
    query: Tensor  # (T, H, W, C) floating, finite
    key: Tensor  # (T', H', W', C) floating; or int16, made by `key_in_steps` for this patch and value_range
    patch: Sequence[int] = (3, 7, 7)  # frames, rows, columns
    rounds: int = 5  # of steps with these strides
    seed: int = 0
    start: Tensor | None = None  # offsets as returned, to begin with; None: random ones
    weight: Tensor | None = None  # fp32, one above 0 for each place in the key: distances are multiplied by it;
    # infinite: never chosen
    strides: Sequence[int] = STRIDES
    value_range: Sequence[float] = ()  # low and high of both videos, which are cut off there; (): looked for


@takes(PatchMatch)
def patch_match(a: PatchMatch) -> tuple[Tensor, Tensor]:
    """Offsets (T - pt + 1, H - ph + 1, W - pw + 1, 3) int16 in frames, rows and columns: place of the match minus that
    of the query's patch; and the (weighted) sums of squared differences there, as fp32 without the last dimension.

    A place is that of a patch's first pixel; patches lie wholly inside. An image is a video of one frame. Both videos
    are rounded to steps of their common range, as fine as lets a sum of squares stay below 2^31: for 3x7x7 patches in
    RGB 1/2206 of it. With a `value_range` nothing waits for the device.
    """
    offsets, distances = torch.ops.sinfusion.patch_match(*a)
    return offsets, distances


def _check(a: PatchMatch) -> None:
    query, key = a.query, a.key
    require(all(stride > 0 for stride in a.strides), lambda: f"strides are above 0, not {tuple(a.strides)}")
    in_steps = key.dtype == torch.int16
    check_videos(query, key, a.patch, in_steps)
    require(not in_steps or bool(a.value_range), lambda: "a key in steps needs the value_range that it was made with")
    require_tensor("start", a.start, query.device, [(*places(query, a.patch), 3)], torch.int16)
    require_tensor("weight", a.weight, query.device, [places(key, a.patch)], torch.float32)
    require(
        not a.value_range or (len(a.value_range) == 2 and -math.inf < a.value_range[0] < a.value_range[1] < math.inf),
        lambda: f"value_range is (low, high), finite, or empty, not {tuple(a.value_range)}",
    )


def _quantize(a: PatchMatch) -> tuple[Tensor, Tensor, float]:
    """As `quantize`; weights have to be above 0."""
    if a.weight is not None and a.weight.device.type == "cpu":  # reading it would wait for a GPU
        require(bool((a.weight > 0).all()), lambda: "weight is above 0 everywhere")
    query, key, unit = quantize(a.query, a.key, a.patch, a.value_range)
    behind = key.untyped_storage().nbytes() // key.element_size() - key.storage_offset() - key.numel()
    if not key.is_contiguous() or behind < BEHIND:  # not as `key_in_steps` has made it
        memory = key.new_zeros(key.numel() + BEHIND)
        key = memory[: key.numel()].view(key.shape).copy_(key)
    return query, key, unit


def _reference(a: PatchMatch) -> tuple[Tensor, Tensor]:
    _check(a)
    patch, seed, weight = a.patch, a.seed, a.weight
    query, key, unit = _quantize(a)
    query, key = query.long(), key.long()
    counts = torch.tensor(places(key, patch), device=query.device)
    axes = [torch.arange(count, device=query.device) for count in places(query, patch)]
    own = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def score(match: Tensor) -> Tensor:
        """Distances, in steps, to the key's patches at `match` (T, H, W, 3)."""
        total = own.new_zeros(own.shape[:3])
        for t, y, x in torch.cartesian_prod(*(torch.arange(side) for side in patch)).view(-1, 3).tolist():
            from_query = query[t : t + own.shape[0], y : y + own.shape[1], x : x + own.shape[2]]
            from_key = key[match[..., 0] + t, match[..., 1] + y, match[..., 2] + x]
            total += (from_query - from_key).square().sum(-1)
        if weight is None:
            return total.float()
        factor = weight[match.unbind(-1)]
        return torch.where(factor.isinf(), factor, total.float() * factor)

    def words(step: int) -> Tensor:
        """Four random words for each place."""
        bits = uniform_bits([seed], STREAM, step, 4 * own[..., 0].numel())
        return bits.view(*own.shape[:3], 4).to(query.device)

    def around(centre: Tensor, reach: Tensor, word: Tensor) -> Tensor:
        low, high = (centre - reach).clamp(min=0), torch.minimum(centre + reach, counts - 1)
        random = torch.stack((word >> 24 << 4, word >> 12 & 0xFFF, word & 0xFFF), -1)
        return low + ((high - low + 1) * random >> 12)

    def inside(match: Tensor) -> Tensor:
        return torch.minimum(match.clamp(min=0), counts - 1)

    best = words(0)[..., :3] * counts >> 32 if a.start is None else inside(own + a.start)
    least = score(best)

    def improve(match: Tensor) -> None:
        nonlocal best, least
        found = score(match)
        closer = found < least
        best, least = torch.where(closer[..., None], match, best), torch.where(closer, found, least)

    levels = max(1, int(counts.max()).bit_length() - NEAR_LEVEL)
    for step, stride in enumerate(_all_strides(a), 1):
        offsets, beside = best - own, []
        for axis in range(3):
            for move in (-stride, stride):
                # Where there is no neighbour a patch looks at what it had itself, which changes nothing.
                neighbour = axes[axis] + move
                there = (neighbour >= 0) & (neighbour < len(neighbour))
                beside.append(inside(own + offsets.index_select(axis, torch.where(there, neighbour, axes[axis]))))
        for match in beside:
            improve(match)
        near = NEAR_LEVEL + step % levels
        reaches = [torch.ones_like(counts)] * len(beside)
        reaches += [(counts >> level).clamp(min=1) for level in (step % NEAR_LEVEL, near)]
        random = torch.cat((words(2 * step), words(2 * step + 1)), -1)
        centres = (*beside, best, best)
        for match in [
            around(c, reach, random[..., i]) for i, (c, reach) in enumerate(zip(centres, reaches, strict=True))
        ]:
            improve(match)
    return (best - own).to(torch.int16), least * unit**2


def unsupported(a: PatchMatch) -> list[str]:
    """Why the native kernels cannot run."""
    return why_no_library(a.query.device)


def _native(a: PatchMatch) -> tuple[Tensor, Tensor]:
    query, key, unit = _quantize(a)
    if query.is_cuda and query.shape[3] < 4:  # a GPU reads pixels of four numbers at once
        query, key = (F.pad(video, (0, 4 - video.shape[3])) for video in (query, key))
    field, distances = _empty_results(a)
    if a.start is not None:
        field.copy_(a.start)
    strides = torch.tensor(_all_strides(a), dtype=torch.int32)
    run(
        "patch_match", a.query, query=query, query_size=query.shape[:3], key=key, key_size=key.shape[:3],
        channels=query.shape[3], patch=a.patch, weight=None if a.weight is None else a.weight.contiguous(),
        steps=len(strides), strides=strides, seed=a.seed % 2**64, has_initial_field=a.start is not None, field=field,
        scratch_field=torch.empty_like(field), tried=field.new_empty((2, *distances.shape), dtype=torch.int32),
        distances=distances,
    )  # fmt: skip
    return field, distances.mul_(unit**2)


def _all_strides(a: PatchMatch) -> list[int]:
    """Of each step of all rounds."""
    return list(a.strides) * a.rounds


def _fake(a: PatchMatch) -> tuple[Tensor, Tensor]:
    _check(a)
    return _empty_results(a)


def _empty_results(a: PatchMatch) -> tuple[Tensor, Tensor]:
    shape = places(a.query, a.patch)
    return a.query.new_empty((*shape, 3), dtype=torch.int16), a.query.new_empty(shape, dtype=torch.float32)


_on_device = native_or_reference("patch_match", _native, _reference, unsupported, _check)
define("patch_match", PatchMatch, "(Tensor, Tensor)")
implement("patch_match", PatchMatch, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_fake)
