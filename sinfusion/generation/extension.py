"""Outpainting of videos: a larger canvas on which a clip stays as it is in each frame; what lies around moves with it.

frames = extend(run, (108, 192))      # (T, 108, 192, 3) uint8, with the training clip in the middle
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import as_frames
from ..errors import SettingError, SinfusionError
from ..names import pasteable
from ..ops.cuda_graph import cuda_graphed
from ..pixels import check_size, middle, to_uint8
from ..progress import OnProgress
from ..run import Run
from .projector import Projector, projector
from .seam import Seam, SeamPatches
from .streaming import copy_to_host_async
from .video import Frames, NextFrame, as_tensor, followed_by, next_frame, on_device, report, seeds_of

JUMPS = 3  # of the first frame; the others begin with the one before
FITTED = 12  # number of the frame from which on the rollout has fitted what it makes to what is kept


def extend(
    run: Run,
    size: tuple[int, int],
    frames: Any = None,
    length: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    projection: float | None = None,
    jumps: int = JUMPS,
    on_progress: OnProgress | None = None,
) -> Frames:
    """A clip continued on all sides: (T, *size, 3) uint8, with the clip in the middle of each frame, to the bit.

    size: (height, width), at least that of the clip. frames: what is kept, (T, H, W, 3) or (H, W, 3) uint8, or what
    `as_pixels` takes, at the scale of the training clip; None: that clip. length: of the video around one picture,
    which all its frames keep; None: as long as the training clip. seed, steps, projection: as for `generate`. jumps:
    as for `edit`, of the first frame. on_progress: called after each frame.
    """
    if run.kind == "image":
        how = f"sinfusion edit {pasteable(run.path)} IMAGE --canvas {size[1]}x{size[0]}"
        raise SinfusionError(f"{run.path} is an image run; a picture is continued with: {how}")
    kept, size = _kept(run, frames, length), check_size(size)
    inside = middle(kept.shape[1:3], size)
    if size == kept.shape[1:3]:
        raise SettingError("{size} is that of the clip, so there is nothing around it; give a larger one.")
    seeds = seeds_of(run, seed, 1)
    forward, backward = (next_frame(run, offset, steps, projection=projection) for offset in (1, -1))
    canvas, begin = _Canvas(run, kept, size, inside), projector(run).resampling(jumps)
    begin = begin.guided(Seam(begin.known(canvas.known[None, None])[0, 0]))
    outputs: list[np.ndarray] = []
    rolled = _rolled(canvas, begin, (forward, backward), seeds, run.graph)
    for images in copy_to_host_async(map(to_uint8, rolled)):
        image = images[0].copy()
        image[inside] = kept[len(outputs)]
        outputs.append(image)
        report(on_progress, len(outputs), len(kept), image)
    return np.stack(outputs)


def _kept(run: Run, frames: Any, length: int | None) -> Frames:
    """(T, H, W, 3) uint8: what each frame of the result has in its middle."""
    kept = run.frames if frames is None else as_frames(frames)
    if length is not None and len(kept) > 1:
        raise SettingError("{length} is for one picture that all frames keep; leave it out: a clip has its own.")
    if length is not None and (isinstance(length, bool) or not isinstance(length, Integral) or length < 1):
        raise SettingError(f"{{length}} must be a whole number of at least 1, not {length!r:.40}.")
    return kept if len(kept) > 1 else kept.repeat(length or len(run.frames), 0)


class _Canvas:
    """The frames that are kept, in the middle of a larger canvas."""

    def __init__(self, run: Run, kept: Frames, size: tuple[int, int], inside: tuple[slice, slice]):
        self.run, self.kept, self.inside = run, kept, inside
        self.known = torch.zeros(size, dtype=torch.bool, device=run.device)  # (H, W): where the canvas has them
        self.known[inside] = True
        self.seam = Seam(self.known)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, number: int) -> Tensor:
        """(1, 3, H, W) in [-1, 1]: 0 where nothing is known."""
        image = torch.zeros(1, 3, *self.known.shape, device=self.known.device)
        image[0, :, self.inside[0], self.inside[1]] = as_tensor(self.run, self.kept[number])
        return image


def _rolled(
    canvas: _Canvas, begin: Projector, advances: tuple[NextFrame, NextFrame], seeds: Tensor, graph: bool
) -> Iterator[Tensor]:
    """(1, 3, H, W) in [-1, 1] for each frame of the canvas, overwritten by the next.

    The first ones are made again, backward in time, from one that the rollout has fitted to what is kept.
    """
    forward, backward = advances
    first, count = _first_frames(canvas, begin, forward, seeds)[: len(canvas)], len(canvas)
    rest = _continued(canvas, forward, first[::-1], range(len(first), count), seeds, graph)
    fitted = min(FITTED, count - 1)
    until = min(count, max(len(first), fitted + backward.needed))
    frames = first + [image.clone() for image in itertools.islice(rest, until - len(first))]
    again = _continued(canvas, backward, frames[fitted:], range(fitted - 1, -1, -1), seeds, graph)
    yield from reversed([image.clone() for image in again])
    yield from frames[fitted:]
    yield from rest


def _continued(
    canvas: _Canvas, advance: NextFrame, before: list[Tensor], numbers: range, seeds: Tensor, graph: bool
) -> Iterator[Tensor]:
    """(1, 3, H, W) in [-1, 1] for each of these frames of the canvas, overwritten by the next.

    before: the frames before them, the nearest first.
    """
    known = canvas.known[None, None]
    patches = None if advance.project is None else SeamPatches(canvas.known, advance.project.scales[0].clip)
    if patches is not None:
        patches.begin(before[0])

    def one(previous: Tensor, frame_index: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        image = canvas.seam.bridged(advance(previous, seeds, frame_index, None, (known, kept)))
        if patches is not None:
            image = patches(image)
        return followed_by(previous, image), image

    step, previous = cuda_graphed(one, known.device, graph), advance.begin(torch.cat(before, 1))
    for number in numbers:
        # What goes backward has noise of its own.
        frame_index = number if numbers.step > 0 else len(canvas) + number
        previous, image = step(previous, on_device(frame_index, known.device), canvas[number])
        yield image


def _first_frames(canvas: _Canvas, begin: Projector, advance: NextFrame, seeds: Tensor) -> list[Tensor]:
    """The frames that a rollout begins with, each (1, 3, H, W) in [-1, 1], in the order of time.

    The Projector generates what lies around the last of them. Patches of the clip repair it, and move as those before
    it did; without patches it is the only one.
    """
    count = 1 if advance.project is None else advance.project.depth
    kept = [canvas[min(number, len(canvas) - 1)] for number in range(count)]
    known = canvas.known[None, None]
    image = begin(seeds, 0, None, (canvas.known.shape[0], canvas.known.shape[1]), known, kept[-1])
    if advance.project is None:
        return [image]
    video = torch.cat(kept).movedim(1, -1)
    frames = advance.project.first(image, seeds, (canvas.known, video))  # the last one first
    return [torch.where(known, *pair) for pair in zip(kept, reversed(frames.split(3, 1)), strict=True)]
