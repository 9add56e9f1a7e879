"""VGPNN's engine (Haim et al. 2022): coarse to fine, each patch replaced by its nearest neighbour in the original."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..progress import OnProgress, Progress
from ..seeds import part_key
from .pyramid import Shape, Wraps, resample, shape_of

LARGE, HUGE = 3_000_000, 7_500_000  # pixels; a larger level gets one pass, and above HUGE also smaller patches


@dataclass(frozen=True)
class Level:
    """One level of the pyramid. Videos are (T, H, W, C) fp32, all on one device."""

    source: Tensor  # (T', H', W', 3): the original
    shape: Shape  # of the output
    guides: tuple[Tensor, Tensor] | None = None  # further channels of the output and of the source, of their shapes
    weight: Tensor | None = (
        None  # (T', H', W') fp32 for each pixel of the source: 1, or infinite to exclude its patches
    )
    known_mask: Tensor | None = None  # (T, H, W) bool: True where the output is that of `known_video`
    known_video: Tensor | None = None  # (T, H, W, 3)


@dataclass(frozen=True)
class Effort:
    """How much work is done on each level."""

    patch: Shape = (3, 7, 7)
    passes: int = 5  # on a level; 1 on large ones
    coarsest_passes: int = 1
    first_rounds: int = 20  # of search on the coarsest level, from a random field
    rounds: int = 2  # of every other search, from the field of the one before
    completeness: float | None = None  # small values make all of the original appear (bidirectional similarity)

    def patch_and_passes(self, shape: Shape, coarsest: bool) -> tuple[Shape, int]:
        """Patch size and number of passes for a level."""
        pixels = math.prod(shape)
        patch = (self.patch[0], min(self.patch[1], 5), min(self.patch[2], 5)) if pixels > HUGE else self.patch
        passes = self.coarsest_passes if coarsest else 1 if pixels > LARGE else self.passes
        return patch, passes


def coarse_to_fine(
    shapes: Sequence[Shape],
    level_at: Callable[[int], Level],
    first: Tensor | None,
    effort: Effort,
    seed: int = 0,  # as `seeds.check_seed` returns it
    on_progress: OnProgress | None = None,
    wraps: Wraps = (False, False, False),
) -> Tensor:
    """The output of the finest level, (T, H, W, 3) fp32.

    shapes: of the output on each level, coarsest first. level_at: returns level n, when it is needed. first: the query
    of the coarsest level, of its shape; None: only its guides are compared. on_progress: called after each pass with
    the share of all pixels of all passes. wraps: in time, in height and in width: whether the output's end meets its
    beginning, so that it loops or tiles; patches that lie across are searched and vote like all others.
    """
    plan = [effort.patch_and_passes(shape, n == 0) for n, shape in enumerate(shapes)]
    total = sum(passes * math.prod(shape) for shape, (_, passes) in zip(shapes, plan, strict=True))
    done = 0
    output, coarser_source = first, None
    search = _Search(effort, seed)
    for n, (shape, (patch, passes)) in enumerate(zip(shapes, plan, strict=True)):
        level = level_at(n)
        if output is not None:
            output = _with_known(resample(output, shape, wraps), level)
        # Blurred like the query in the first pass of a level, sharp afterwards, when the query is sharp as well.
        key = level.source if coarser_source is None else resample(coarser_source, shape_of(level.source))
        weight = _patch_weight(level.weight, patch)
        for _ in range(passes):
            query, with_guides = _with_guides(output, key, level.guides)
            offsets = search.nearest(_with_ends(query, patch, wraps), with_guides, patch, weight)
            output = _with_known(_vote(level.source, offsets, patch, wraps), level)
            key = level.source
            done += math.prod(shape)
            if on_progress is not None:
                on_progress(Progress(done / total, 1.0, "share"))
        coarser_source = level.source
    assert output is not None
    return output


class _Search:
    """Finds nearest neighbours; each search begins with the field of the one before."""

    def __init__(self, effort: Effort, seed: int):
        self.effort = effort
        # Each search has a random number key of its own, shared with no other level, pass or seed.
        self.keys = (part_key(seed, part) for part in itertools.count())
        self.last: tuple[Tensor, Shape] | None = None  # the last field, and the number of patches of its key each way

    def nearest(self, query: Tensor, key: Tensor, patch: Shape, weight: Tensor | None) -> Tensor:
        """(t, y, x, 3) int16: the offset from each patch of the query to its nearest in the key.

        weight: (t', y', x') fp32 for each patch of the key, which multiplies distances to it.
        """
        effort = self.effort
        if effort.completeness is not None:
            _, distance = ops.patch_match(key, query, patch, effort.rounds, next(self.keys))
            appears = 1 / (effort.completeness + distance)  # patches that appear nowhere yet are preferred
            weight = appears if weight is None else appears * weight
        start = None if self.last is None else carry_field(*self.last, query, key, patch)
        rounds = effort.first_rounds if start is None else effort.rounds
        offsets, _ = ops.patch_match(query, key, patch, rounds, next(self.keys), start, weight)
        self.last = offsets, ops.places(key, patch)
        return offsets


def carry_field(offsets: Tensor, key_places: Shape, query: Tensor, key: Tensor, patch: Shape) -> Tensor:
    """A field found for other sizes of query and key, scaled to these; the field itself where the sizes are the same.

    offsets: (t, y, x, 3) int16. key_places: the number of patches each way of the key that it was found in.
    """
    new_query_places, new_key_places = ops.places(query, patch), ops.places(key, patch)
    if offsets.shape[:3] == new_query_places and key_places == new_key_places:
        return offsets
    for axis, count in enumerate(new_query_places):
        nearest = (torch.arange(count, device=offsets.device) + 0.5) * (offsets.shape[axis] / count)
        offsets = offsets.index_select(axis, nearest.long().clamp(max=offsets.shape[axis] - 1))
    scale = torch.tensor(
        [new / old for new, old in zip(new_key_places, key_places, strict=True)], device=offsets.device
    )
    return (offsets * scale).round().to(torch.int16)


def _with_ends(video: Tensor, patch: Shape, wraps: Wraps) -> Tensor:
    """The video with its beginning behind its end where it wraps, so that it has a patch from each place on."""
    for axis, (side, wrap) in enumerate(zip(patch, wraps, strict=True)):
        if wrap and side > 1:
            video = torch.cat((video, video.narrow(axis, 0, side - 1)), axis)
    return video


def _vote(value: Tensor, offsets: Tensor, patch: Shape, wraps: Wraps) -> Tensor:
    """As `ops.vote`, of a field that was found for a video `_with_ends`: of the size that this video has without."""
    inside = []
    for axis, (side, wrap) in enumerate(zip(patch, wraps, strict=True)):
        more = side - 1 if wrap else 0
        if more:
            # The last patches lie before the first ones, too. What they match stays; what moves is their own place.
            count = offsets.shape[axis]
            before, after = offsets.narrow(axis, count - more, more).clone(), offsets.clone()
            before[..., axis] += count - more
            after[..., axis] -= more
            offsets = torch.cat((before, after), axis)
        inside.append(slice(more, -more if more else None))
    return ops.vote(value, offsets, patch)[tuple(inside)].contiguous()


def _with_known(output: Tensor, level: Level) -> Tensor:
    """The output, with the known video where the mask says so."""
    if level.known_mask is None or level.known_video is None:
        return output
    return torch.where(level.known_mask[..., None], level.known_video, output)


def _with_guides(query: Tensor | None, key: Tensor, guides: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Query and key with their guides as further channels; the guides alone where there is no query yet."""
    if guides is None:
        assert query is not None
        return query, key
    if query is None:
        return guides
    return torch.cat((query, guides[0]), -1), torch.cat((key, guides[1]), -1)


def _patch_weight(weight: Tensor | None, patch: Shape) -> Tensor | None:
    """Weights of pixels -> of patches: infinite where the patch has an infinite pixel."""
    if weight is None:
        return None
    return torch.nn.functional.max_pool3d(weight[None, None], patch, stride=1)[0, 0].contiguous()
