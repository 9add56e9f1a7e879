"""Patch projection: each frame of a rollout is drawn to the patches of the clip that it resembles.

A rollout's errors add up: what no frame of the clip looks like, the Predictor was not trained on. So each predicted
frame is replaced, in part or wholly, by the mean of what its patches' nearest neighbours in the clip have there, as in
VGPNN (Haim et al. 2022). Patches are several frames deep: they end in the predicted frame and begin in the ones before
it, so that what is chosen moves as the rollout does. Coarse scales come first, where a patch holds a whole object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..patches.engine import Effort, Level, coarse_to_fine
from ..patches.pyramid import level_scales, resample
from ..patches.videos import plain_levels
from ..pixels import mean_around
from .border import Border, change_around
from .framing import Framing
from .renewal import Renewal
from .reverse_process import Multiples

SIDE = 7  # rows and columns of a patch, as in VGPNN
VOTING = 3  # rows and columns in the middle of a patch that count: more blur what is small until it is gone
COARSEST_SIDE = 32  # scales are halved while the shorter side stays at least this long
# One scale more, where a patch holds a whole object, serves clips whose patches recur there: what moves in one part of
# the clip is found in the rest but for this share of its contrast. In other clips what is small would be lost.
RECURRING = 0.45
PART_QUERIES = 4  # moments of that part
# What flows, as lava does, has no shape that could fall apart, and projection takes its motion and diversity: from this
# `fluidity` on the tolerance grows, by so many sigma_data for each unit, and up to so many (lava's, at which it was
# tried). FLUID_SIDE: rows at which fluidity is as it is measured.
FLUID, FLUID_TOLERANCE, FLUID_MOST, FLUID_SIDE = 0.75, 9.0, 4.3, 36
# Multiple of each clean estimate's change from the last frame: a rollout's errors and its projection take motion, and
# what is small fades.
GAIN = 1.08
# What is added to the sampler's noise for each unit by which that share is smaller, for motion and diversity: the
# coarser scale mends what it spoils.
RECURRING_SURPRISE = 1.1
TINY = 1e-6  # in place of a change or of an error of 0
FIRST_ROUNDS, ROUNDS = 20, 4  # of the search: from a random field; from that of the frame before
SEED = 0  # of the search: its random numbers matter little
VALUES = (-1.0, 1.0)  # their range
STREAM_FRAMES = 0x46697273  # of the random number generator: which frames a first frame's patches come from
# Of a first frame's repair: the pyramid's factor and its coarsest shorter side; passes a level; frames of the clip that
# patches come from; and how much all of these should appear (`Effort.completeness`), which keeps small things.
REPAIR_FACTOR, REPAIR_SIDE, REPAIR_PASSES, REPAIR_FRAMES, REPAIR_COMPLETENESS = 0.75, 18, 3, 12, 0.05
WHOLLY = 0.99  # share of a pixel of a small level that is known, from which on it is kept


class PatchProjection:
    """Projects the frames of one rollout, in order; `begin` takes the frames before them.

    It keeps the last fields in memory of its own, always the same, so that a CUDA graph can replay it; nothing waits
    for the device.
    """

    def __init__(
        self,
        clip: Tensor,  # (T, H, W, 3) in [-1, 1]: where patches come from
        weight: float,  # in (0, 1]: of the projected frame, the rest is the predicted one
        depth: int = 3,  # frames of a patch
        tolerance: float = 0.0,  # RMS error of a pixel's surroundings at which half the weight is left
        frame_offset: int = 1,  # of the rollout: patches have frames so far apart
        border: int = 0,  # width in pixels of the border where things enter and leave as in the clip; 0: as they may
        sigma_data: float = 1.0,  # RMS change between frames of the rollout
    ):
        self.weight = weight
        self.depth = min(depth, -(-len(clip) // abs(frame_offset)))
        pyramid = [clip]
        while min(pyramid[-1].shape[1:3]) >= 2 * COARSEST_SIDE:
            pyramid.append(_half_video(pyramid[-1]))
        if tolerance > 0:
            more = FLUID_TOLERANCE * max(0.0, fluidity(pyramid[-1], self.depth) - FLUID)
            tolerance += min(more, FLUID_MOST) * sigma_data
        coarser = _half_video(pyramid[-1])
        spare = max(0.0, RECURRING - not_recurring(coarser, self.depth))
        if spare > 0:
            pyramid.append(coarser)
        # Of the process whose frames it projects.
        self.multiples = Multiples(noise=1 + weight * RECURRING_SURPRISE * spare, change=1 + weight * (GAIN - 1))
        order = _order(len(clip), frame_offset)
        follows, pairs = (_follow(order, frame_offset, depth).to(clip.device) for depth in (self.depth, 2))
        videos = [video[order.to(clip.device)].contiguous() for video in pyramid]
        self.border = Border(videos[0], pairs, border, sigma_data) if border else None
        self.framing = Framing(videos[0], pairs, border, sigma_data) if border else None
        self.renewal = Renewal(videos[0]) if self.framing is not None and self.framing.active else None
        # What is near is nearer at coarser scales, where less changes from frame to frame.
        changes = [_change(video, pairs) for video in videos]
        self.scales = [
            _Scale(video, self.depth, follows, tolerance * change / changes[0])
            for video, change in zip(videos, changes, strict=True)
        ]  # finest first

    def first(self, images: Tensor, seeds: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, 3 depth, H, W), the last frame first: images (B, 3, H, W) in [-1, 1] and frames that may have led there.

        Images keep their layout, all else is patches of the clip, motion too: generated as VGPNN does, but from a small
        version of the image in place of noise. seeds: (B,) int64. known: a mask (H, W) bool, and frames (depth, H, W,
        3) in [-1, 1], in the order of time, whose pixels in the mask are kept.
        """
        whole, (depth, rows, columns) = self.scales[0].clip, self.scales[0].patch
        patch = depth, min(rows, images.shape[2]), min(columns, images.shape[3])
        effort = Effort(patch, REPAIR_PASSES, REPAIR_PASSES, completeness=REPAIR_COMPLETENESS)
        count = min(len(whole), REPAIR_FRAMES)
        scales = level_scales((count, *whole.shape[1:3]), (1.0, REPAIR_FACTOR), (count, REPAIR_SIDE))
        found = []
        for image, seed in zip(images.movedim(1, -1), seeds.tolist(), strict=True):
            at = int(ops.uniform_bits([seed], STREAM_FRAMES, 0, 1)) * (len(whole) - count + 1) >> 32
            shape = depth, image.shape[0], image.shape[1]
            shapes, level_at = plain_levels(whole[at : at + count], shape, scales, patch)
            if known is not None:
                level_at = _with_known(level_at, *known)
            still = image.expand(depth, -1, -1, -1)
            found.append(coarse_to_fine(shapes, level_at, resample(still, shapes[0]), effort, seed))
        return torch.stack(found).flip(1).movedim(-1, 2).flatten(1, 2)

    def begin(self, previous: Tensor) -> None:
        """Start after these frames, (B, 3 m, H, W) in [-1, 1], the last one first; at least one."""
        missing = max(0, self.depth - previous.shape[1] // 3)
        frames = torch.cat([previous, *[previous[:, -3:]] * missing], 1)[:, : 3 * self.depth]
        self.levels = 0  # scales at which these frames hold a patch
        for scale in self.scales:
            if not scale.fits(frames):
                break
            scale.begin(frames)
            self.levels += 1
            frames = _half(frames)
        if self.border is not None and self.framing is not None:
            self.border.begin(previous[:, :3])
            self.framing.begin(previous[:, :3])
            if self.renewal is not None and self.border.active:
                self.renewal.begin(previous[:, :3])

    def __call__(self, image: Tensor, previous: Tensor, framed: bool = True) -> Tensor:
        """(B, 3, H, W) in [-1, 1], like the image: the next frame after `previous`, projected.

        previous: (B, 3 m, H, W) in [-1, 1], the last frame first; m is at least `depth - 1`. framed: what moves is kept
        in view, and what is gone comes back, see `Framing` and `Renewal`.
        """
        last = previous[:, :3]
        if self.framing is not None and framed:
            image = self.framing(image, last)
        if self.levels:
            projected = self._project(torch.cat((image, previous[:, : 3 * self.depth - 3]), 1), 0)
            image = image + self.weight * (projected - image)
        if self.border is not None and self.framing is not None:
            coming = self.border.coming() if self.border.active else image
            image = self.border(image, last)
            if framed:
                if self.renewal is not None and self.border.active:
                    image = self.renewal(image, coming)
                self.framing.follow(image, last)
        return image.contiguous(memory_format=torch.channels_last)

    def _project(self, frames: Tensor, level: int) -> Tensor:
        """(B, 3, H, W): the first of the frames (B, 3 depth, H, W), the last in time, projected from this scale up."""
        image = frames[:, :3]
        if level + 1 < self.levels:
            small = _half(frames)
            change = self._project(small, level + 1) - small[:, :3]
            image = image + F.interpolate(change, image.shape[2:], mode="bilinear", align_corners=False)
        return self.scales[level](torch.cat((image, frames[:, 3:]), 1))


class _Scale:
    """The clip at one size, and where the patches of a rollout's last frames were found in it."""

    def __init__(self, clip: Tensor, depth: int, follows: Tensor, tolerance: float | Tensor = 0.0):
        self.clip, self.tolerance = clip, tolerance  # (T, H, W, 3)
        self.patch = depth, min(SIDE, clip.shape[1]), min(SIDE, clip.shape[2])
        self.key = ops.key_in_steps(clip, self.patch, VALUES)
        self.fields: Tensor  # (B, 1, H', W', 3) int16
        self.weight = None  # of the clip's patches: infinite where their frames do not follow each other
        if not follows.all():
            weight = torch.where(follows.to(clip.device), 1.0, torch.inf)[:, None, None]
            self.weight = weight.expand(ops.places(clip, self.patch)).contiguous()

    def fits(self, frames: Tensor) -> bool:
        """Whether frames (B, C, H, W) are as large as a patch."""
        return frames.shape[2] >= self.patch[1] and frames.shape[3] >= self.patch[2]

    def begin(self, frames: Tensor) -> None:
        """Find the patches of frames (B, 3 depth, H, W), the last one first."""
        self.fields = torch.stack([self._search(query, None) for query in _videos(frames)])

    def __call__(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W): the last one of frames (B, 3 depth, H, W), the last one first, drawn to its nearest patches."""
        for query, field in zip(_videos(frames), self.fields, strict=True):
            field.copy_(self._search(query, field))
        image, found = frames[:, :3], self.found()
        error = change_around(found, image) + TINY**2
        return image + error / (error + self.tolerance**2) * (found - image)

    def found(self) -> Tensor:
        """(B, 3, H, W): what the nearest patches that were found have in place of the last frame."""
        return torch.stack([self._vote(field) for field in self.fields]).movedim(-1, 1)

    def _vote(self, field: Tensor) -> Tensor:
        """(H, W, 3): the mean of what the middles of patches have in the last of their frames; at a border, of all."""
        last, (_, rows, columns) = self.clip[self.patch[0] - 1 :], self.patch
        middle = 1, min(VOTING, rows), min(VOTING, columns)
        image: Tensor = ops.vote(last, field, (1, rows, columns), mean=True, middle=middle)[0]
        return image

    def _search(self, query: Tensor, start: Tensor | None) -> Tensor:
        """(1, H', W', 3) int16, of a query (depth, H, W, 3)."""
        rounds = FIRST_ROUNDS if start is None else ROUNDS
        return ops.patch_match(query, self.key, self.patch, rounds, SEED, start, self.weight, value_range=VALUES)[0]


def _with_known(level_at: Callable[[int], Level], mask: Tensor, video: Tensor) -> Callable[[int], Level]:
    """The levels with what is known of their outputs: mask (H, W) bool, video (T, H, W, 3)."""
    whole = mask.expand(video.shape[:3])[..., None].float()

    def with_known(n: int) -> Level:
        level = level_at(n)
        inside = resample(whole, level.shape)[..., 0] > WHOLLY
        return replace(level, known_mask=inside, known_video=resample(video, level.shape))

    return with_known


def _videos(frames: Tensor) -> Tensor:
    """(B, n, H, W, 3), the last frame last, from (B, 3 n, H, W), the last frame first."""
    return frames.unflatten(1, (-1, 3)).flip(1).movedim(2, -1).contiguous()


def not_recurring(clip: Tensor, depth: int) -> float:
    """How far what moves in a part of the clip (T, H, W, 3) is from what the rest holds, in patches of this size.

    It is the RMS error as a share of the contrast; infinite where the clip does not tell.
    """
    if (known := _part_in_rest(clip, depth)) is None:
        return math.inf
    image, previous, found = known
    moving = change_around(image, previous) if depth > 1 else 1.0
    missed = (moving * change_around(found, image)).mean()
    contrast = mean_around(image.square(), SIDE) - mean_around(image, SIDE).square()
    whole = (moving * contrast.mean(1, keepdim=True)).mean()
    return math.sqrt(float(missed) / float(whole)) if whole > 0 else math.inf


def fluidity(clip: Tensor, depth: int) -> float:
    """How far a part of the clip (T, H, W, 3) is from the rest, in patches, times how much of the frame moves at once.

    The distance is in units of the RMS change between frames; of the share that moves, mean(c)^2 / mean(c^2) of the
    squared change c around each pixel, it is the root. 0 where the clip does not tell.
    """
    if (known := _part_in_rest(clip, depth)) is None:
        return 0.0
    image, _, found = known
    changes = (clip[1:] - clip[:-1]).square().mean(-1)
    around = mean_around(changes[:, None], SIDE).flatten(1)
    share = (around.mean(1).square() / around.square().mean(1).clamp(min=TINY**4)).median()
    distance = (found - image).square().mean() / changes.mean().clamp(min=TINY**2)
    return math.sqrt(float(distance * share)) * min(clip.shape[1:3]) / FLUID_SIDE


def _part_in_rest(clip: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Some frames of the clip's first third, those before them, and what their nearest patches in the rest have there:
    each (n, 3, H, W); None where the clip is too short or too small to tell."""
    part = len(clip) // 3
    rest = clip[part + depth - 1 :]  # nothing of which was next to it
    if part < depth or len(rest) < depth or min(clip.shape[1:3]) < SIDE:
        return None
    scale = _Scale(rest.contiguous(), depth, torch.ones(len(rest) - depth + 1, dtype=torch.bool, device=clip.device))
    queries = torch.linspace(depth - 1, part - 1, PART_QUERIES).long().unique().tolist()
    frames = torch.stack([clip[n - depth + 1 : n + 1].flip(0).movedim(-1, 1).flatten(0, 1) for n in queries])
    scale.begin(frames)
    return frames[:, :3], frames[:, 3:6], scale.found()


def _change(clip: Tensor, pairs: Tensor) -> Tensor:
    """() RMS change between frames of a clip (T, H, W, 3) that follow each other: pairs (T - 1,) bool."""
    changes = clip[1:] - clip[:-1]
    if not pairs.all():
        changes = changes[pairs]
    squares = changes.square_()  # in place: a clip may be large
    return squares.mean().sqrt().clamp(min=TINY) if len(squares) else torch.ones((), device=clip.device)


def _half_video(video: Tensor) -> Tensor:
    """A video (T, H, W, 3) at half the size, rounded up."""
    return _half(video.movedim(-1, 1)).movedim(1, -1).contiguous()


def _half(images: Tensor) -> Tensor:
    """Images (..., H, W) at half the size, rounded up."""
    return F.interpolate(images, [-(-side // 2) for side in images.shape[-2:]], mode="area")


def _order(count: int, frame_offset: int) -> Tensor:
    """(T,) int64: frames of a clip as a rollout with this offset sees them. With an offset of 2: all even frames, then
    all odd ones."""
    step = abs(frame_offset)
    parts = [torch.arange(first, count, step) for first in range(min(step, count))]
    return torch.cat([part.flip(0) if frame_offset < 0 else part for part in parts])


def _follow(order: Tensor, frame_offset: int, depth: int) -> Tensor:
    """(T - depth + 1,) bool: whether `depth` frames of this order, from here on, follow each other."""
    return order.unfold(0, depth, 1).diff(dim=1).eq(frame_offset).all(1)
