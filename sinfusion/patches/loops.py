"""Loops by nearest patches: a video whose last frame goes on with its first."""

from __future__ import annotations

import torch

from ..clip import as_pixels
from ..errors import SinfusionError
from ..precision import choose_device
from ..progress import OnProgress
from ..seeds import check_seed
from .cuts import LEAST_LENGTH, choose_length, cut_loop
from .engine import Effort, coarse_to_fine
from .pyramid import level_scales, resample, shape_of
from .tasks import FACTORS
from .videos import Frames, as_video, output_shape, patch_size, plain_levels, to_frames, to_tensor, wraps_of

# Shorter side of the coarsest level, where the clip is cut: on a smaller one the patches of one moment cover the frame,
# and all places jump at once. Levels are as long as the loop, since a shorter one has no time for its motion.
CUT_SIDE = 54


def loop(
    video: Frames,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    tile: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Frames:
    """A video that loops: (frames, H, W, 3) uint8, whose first frame follows its last, and is not the same.

    frames: length, from 4 to that of the video; None: after which the video goes on best from frames of its own, from
    half its length on, or the period of one that repeats itself. size: (height, width); None: the video's. tile: "x",
    "y" or "x,y": make opposite borders meet, too. on_progress: called with the share of the work that is done.
    """
    seed, device = check_seed(seed), choose_device(device)
    video = as_pixels(video, "the input")
    if video.ndim == 3:
        raise SinfusionError("the input is an image, in which nothing moves; a loop needs a video.")
    source = as_video(video)
    if len(source) < LEAST_LENGTH:
        raise SinfusionError(f"the input has {len(source)} frames; a loop needs at least {LEAST_LENGTH}.")
    if frames is not None and not LEAST_LENGTH <= frames <= len(source):
        raise SinfusionError(
            f"a loop has from {LEAST_LENGTH} frames to as many as the input, {len(source)}, not {frames}."
        )
    wraps = wraps_of(tile, loops=True)
    output_shape(source, len(source), size, 1.0)
    original, effort = to_tensor(source, device), Effort(patch_size(source))
    scales = level_scales(shape_of(source), FACTORS, (len(source), CUT_SIDE))
    small = plain_levels(original, shape_of(source), scales, effort.patch)[1](0).source
    length = choose_length(small) if frames is None else frames
    shape = output_shape(source, length, size, 1.0)
    shapes, level_at = plain_levels(original, shape, scales, effort.patch)
    first = resample(cut_loop(small, length), shapes[0])
    return to_frames(coarse_to_fine(shapes, level_at, first, effort, seed, on_progress, wraps))
