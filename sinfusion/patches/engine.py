"""VGPNN's engine (Haim et al. 2022): coarse to fine, each patch replaced by its nearest among those of the original."""

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
from .pyramid import Shape, resized

LARGE, HUGE = 3_000_000, 7_500_000  # pixels of a level that gets one pass; that gets smaller patches


@dataclass(frozen=True)
class Level:
    """One level of the pyramid. Videos are (T, H, W, C) fp32 on one device; all but `value` may be left out."""

    value: Tensor  # the original's colours
    shape: Shape  # of what is made
    guides: tuple[Tensor, Tensor] | None = None  # further channels of query and key, of their shapes
    weight: Tensor | None = None  # (T, H, W) fp32, one for each pixel of `value`: 1, or infinite where patches may not
    # come from
    known: tuple[Tensor, Tensor] | None = None  # bool (T, H, W), where what is made stays; a video for everywhere else


@dataclass(frozen=True)
class Effort:
    """How much is done a level."""

    patch: Shape = (3, 7, 7)
    passes: int = 5  # of a level; 1 on large ones
    coarsest_passes: int = 1
    first_rounds: int = 20  # of search on the coarsest level, where nothing is known
    rounds: int = 2  # where the pass before, or the level before, says where to begin
    completeness: float | None = None  # small values make all of the original appear (bidirectional similarity)

    def of(self, shape: Shape, coarsest: bool) -> tuple[Shape, int]:
        """Patch and number of passes for a level."""
        pixels = shape[0] * shape[1] * shape[2]
        patch = (self.patch[0], min(self.patch[1], 5), min(self.patch[2], 5)) if pixels > HUGE else self.patch
        passes = self.coarsest_passes if coarsest else 1 if pixels > LARGE else self.passes
        return patch, passes


def coarse_to_fine(
    shapes: Sequence[Shape],
    level_at: Callable[[int], Level],
    first: Tensor | None,
    effort: Effort,
    seed: int = 0,  # as `seeds.check_seed` gives it
    on_progress: OnProgress | None = None,  # called after each pass, with the share of the whole work that is done
) -> Tensor:
    """(T, H, W, 3) fp32 of the last shape.

    shapes: of what is made on each level, from the coarsest on. level_at: level n, asked for when it is needed. first:
    the query of the coarsest level, of its shape; None: only its guides are compared.
    """
    plan = [effort.of(shape, n == 0) for n, shape in enumerate(shapes)]
    work = sum(passes * math.prod(shape) for shape, (_, passes) in zip(shapes, plan, strict=True))
    done = 0
    outputs, before = first, None
    # Each search has a key of its own: what searches of other levels, passes and seeds draw, this one does not.
    keys = (part_key(seed, part) for part in itertools.count())
    field: tuple[Tensor, Shape] | None = None
    for n, (shape, (patch, passes)) in enumerate(zip(shapes, plan, strict=True)):
        level = level_at(n)
        if outputs is not None:
            outputs = _composed(resized(outputs, shape), level)
        key = level.value if before is None else resized(before, _shape(level.value))
        allowed = _patch_weight(level.weight, patch)
        for number in range(passes):
            if number == 1:
                key = level.value  # from now on what is made is as sharp as the original
            query, compared = _joined(outputs, key, level.guides)
            weight = allowed
            if effort.completeness is not None:
                _, nearest = ops.patch_match(compared, query, patch, effort.rounds, next(keys))
                used = 1 / (effort.completeness + nearest)
                weight = used if allowed is None else used * allowed
            start = None if field is None else _carried(field, query, compared, patch)
            rounds = effort.first_rounds if start is None else effort.rounds
            offsets, _ = ops.patch_match(query, compared, patch, rounds, next(keys), start, weight)
            outputs = _composed(ops.vote(level.value, offsets, patch), level)
            field = offsets, ops.places(compared, patch)
            done += math.prod(shape)
            if on_progress is not None:
                on_progress(Progress(done / work, 1.0, "share"))
        before = level.value
    assert outputs is not None
    return outputs


def _shape(video: Tensor) -> Shape:
    return video.shape[0], video.shape[1], video.shape[2]


def _composed(outputs: Tensor, level: Level) -> Tensor:
    if level.known is None:
        return outputs
    new, elsewhere = level.known
    return torch.where(new[..., None], outputs, elsewhere)


def _joined(query: Tensor | None, key: Tensor, guides: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Query and key with their guides as further channels; the guides alone where there is no query yet."""
    if guides is None:
        assert query is not None
        return query, key
    if query is None:
        return guides
    return torch.cat((query, guides[0]), -1), torch.cat((key, guides[1]), -1)


def _patch_weight(weight: Tensor | None, patch: Shape) -> Tensor | None:
    """One weight for each place: infinite where the patch has an infinite pixel."""
    if weight is None:
        return None
    return torch.nn.functional.max_pool3d(weight[None, None], patch, stride=1)[0, 0].contiguous()


def _carried(field: tuple[Tensor, Shape], query: Tensor, key: Tensor, patch: Shape) -> Tensor:
    """The last field for the places of now: as it is within a level, scaled between levels."""
    offsets, key_places = field
    query_now, key_now = ops.places(query, patch), ops.places(key, patch)
    if offsets.shape[:3] == query_now and key_places == key_now:
        return offsets
    for axis, count in enumerate(query_now):
        nearest = (torch.arange(count, device=offsets.device) + 0.5) * (offsets.shape[axis] / count)
        offsets = offsets.index_select(axis, nearest.long().clamp(max=offsets.shape[axis] - 1))
    scale = torch.tensor([now / then for now, then in zip(key_now, key_places, strict=True)], device=offsets.device)
    return (offsets * scale).round().to(torch.int16)
