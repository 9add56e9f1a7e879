"""Loops from a trained run: a rollout whose places jump back in time where that shows least, drawn anew all around."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import SinfusionError
from ..patches.cuts import LEAST_LENGTH, choose_length, cut_loop
from ..pixels import check_size, to_uint8, to_unit
from ..progress import OnProgress
from ..roles import PREDICTOR
from ..run import Run
from .video import Frames, NextFrame, followed_by, next_frame, report, require_video, seeds_of, stream

LONGER = 1.6  # times the loop's length, that a rollout is, for cuts to choose from
LONGER_THAN_CLIP = 1.5  # times the clip's length, where the loop's is chosen, too
LEAD = 4  # frames before the first that are drawn as well, so that it follows the last
SIGMA_START = 1.0  # of a drawn frame's noise, in units of the change between frames: more keeps less of its target


def loop(
    run: Run,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    start: int | Frames | None = None,
    seed: int = 0,
    steps: int | None = None,
    projection: float | None = None,
    on_progress: OnProgress | None = None,
) -> Frames:
    """A new video that loops, from a video run: (frames, H, W, 3) uint8, whose first frame follows its last.

    frames: length, 4 or more; None: at most the clip's, after which a rollout goes on best from its own frames. The
    other arguments are those of `generate`. A longer rollout is cut, each place where that shows least, and blended;
    then the Predictor draws each frame anew after the one before, once around. on_progress: called after each frame.
    """
    require_video(run)
    if frames is not None and frames < LEAST_LENGTH:
        raise SinfusionError(f"a loop has at least {LEAST_LENGTH} frames, not {frames}.")
    seeds, size = seeds_of(run, seed, 1), check_size(size or run.size)
    length = max(LEAST_LENGTH, round(LONGER_THAN_CLIP * len(run.frames) if frames is None else LONGER * frames))
    rolled: list[np.ndarray] = []
    for images in stream(run, length, 1, size, start, 1, seed, steps, projection):
        rolled.append(images[0])
        report(on_progress, len(rolled), 2 * length, images[0])
    rollout = to_unit(torch.from_numpy(np.stack(rolled)).to(run.device)).movedim(1, -1)
    targets = cut_loop(rollout, choose_length(rollout) if frames is None else frames).movedim(-1, 1)
    sigma_start = SIGMA_START * run.denoiser(PREDICTOR).sigma_data_at(1)
    drawn = []
    for image in _drawn(next_frame(run, 1, steps, sigma_start, projection), targets, seeds, length):
        drawn.append(image)
        report(on_progress, length + round(length * len(drawn) / len(targets)), 2 * length, image)
    return np.stack(drawn)


def _drawn(advance: NextFrame, targets: Tensor, seeds: Tensor, first_index: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 for each of the targets (N, 3, H, W) of a loop: the frame after the one before, drawn to it.

    advance: starts from the image it is given.
    """
    count = len(targets)
    before = [targets[(-LEAD - 1 - i) % count] for i in range(advance.needed)]
    previous = advance.begin(torch.cat(before)[None])
    for number in range(-LEAD, count):
        # The same noise in both rounds, so that the frames before the first are nearly those of the end.
        image = advance(previous, seeds, first_index + number % count, targets[number % count][None])
        previous = followed_by(previous, image)
        if number >= 0:
            yield to_uint8(image)[0].cpu().numpy()
