"""New videos or images by nearest patches: generation, retargeting, analogies (VGPNN). `inpainting` has one more."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from .. import ops
from ..clip import as_pixels
from ..errors import SinfusionError
from ..precision import choose_device
from ..progress import OnProgress, Progress
from ..seeds import check_seed
from . import dynamics
from .engine import Effort, Level, coarse_to_fine
from .pyramid import level_scales, resample, shape_of
from .videos import Frames, as_video, like_input, output_shape, patch_size, plain_levels, to_frames, to_tensor, wraps_of

FACTORS = (0.85, 0.85)  # size of a level relative to the next finer one, in time and in space
COARSEST = (3, 15)  # frames and shorter side
GENERATED_LENGTH = 0.5  # of the input's: shorter, so that places can take their motions from different times
RETARGET_FACTORS = (0.87, 0.82)
# Shorter side of the coarsest level, and at most this share of the input's: larger than elsewhere, so that objects stay
# whole.
RETARGET_SIDE, RETARGET_SHARE = 40, 0.28
ANALOGY_FACTORS = (0.9, 0.9)
ANALOGY_COARSEST = (3, 20)
ANALOGY_PATCH = (3, 5, 5)
ANALOGY_PASSES = 2
GUIDED_SHARE = 0.7  # of an analogy's levels, from the coarsest on, that its dynamic structure guides
DYNAMICS_STEPS = 5  # that the dynamic structure is quantised to
MAX_NOISE = 1000.0  # far above what leaves anything of the original
STREAM_NOISE = 0x7661726E  # of the random number generator


def generate(
    video: Frames,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    scale: float = 1.0,
    noise: float = 5.0,
    count: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    tile: str | None = None,
) -> Frames:
    """Diverse new videos (count, frames, H, W, 3) uint8, or images (count, H, W, 3).

    frames: length; None: half of the video's. size: (height, width); None: `scale` times the video's. noise: amplitude
    on the coarsest level, where black and white are 2 apart; the same in all frames. Sample i is generated from seed
    + i. on_progress: called with the share of the work that is done. tile: "x", "y" or "x,y": the borders left and
    right, above and below, or all of them meet, so that copies side by side have no seam.
    """
    device = choose_device(device)
    video = as_pixels(video, "the input")
    source = as_video(video)
    half = max(patch_size(source)[0], math.ceil(GENERATED_LENGTH * len(source)))
    shape = output_shape(source, half if frames is None else frames, size, scale)
    if count < 1:
        raise SinfusionError(f"count must be at least 1, not {count}.")
    seed = check_seed(seed, count)
    if not 0 <= noise <= MAX_NOISE:
        raise SinfusionError(f"noise must be from 0 to {MAX_NOISE:g}, not {noise}.")
    wraps = wraps_of(tile)
    original, effort = to_tensor(source, device), Effort(patch_size(source))
    scales = level_scales(shape_of(source), FACTORS, COARSEST)
    shapes, level_at = plain_levels(original, shape, scales, effort.patch)
    outputs = []
    for number in range(count):
        first = resample(original, shapes[0])
        first = first + noise * ops.normal([seed + number], STREAM_NOISE, 0, first.shape[1:], device)
        of_all = _part_of(on_progress, number, count)
        outputs.append(to_frames(coarse_to_fine(shapes, level_at, first, effort, seed + number, of_all, wraps)))
    return like_input(video, np.stack(outputs))


def _part_of(on_progress: OnProgress | None, number: int, count: int) -> OnProgress | None:
    """Reports the progress of one of `count` equal parts as that of all."""
    if on_progress is None:
        return None
    return lambda progress: on_progress(Progress((number + progress.done) / count, 1.0, "share"))


def retarget(
    video: Frames,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    tile: str | None = None,
) -> Frames:
    """The video or image at another size or length, with objects and motions at their own scale.

    size: (height, width); frames: length; None: that of the input. tile: as for `generate`.
    Returns (frames, *size, 3) uint8, or (*size, 3).
    """
    seed, device, wraps = check_seed(seed), choose_device(device), wraps_of(tile)
    video = as_pixels(video, "the input")
    source = as_video(video)
    shape = output_shape(source, len(source) if frames is None else frames, size, 1.0)
    original, effort = to_tensor(source, device), Effort(patch_size(source))
    side = max(COARSEST[1], min(RETARGET_SIDE, round(RETARGET_SHARE * min(source.shape[1:3]))))
    scales = level_scales(shape_of(source), RETARGET_FACTORS, (COARSEST[0], side))
    shapes, level_at = plain_levels(original, shape, scales, effort.patch)
    output = coarse_to_fine(shapes, level_at, resample(original, shapes[0]), effort, seed, on_progress, wraps)
    return like_input(video, to_frames(output)[None])[0]


def analogy(
    content: Frames,
    style: Frames,
    sketch: bool = False,
    raft: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Frames:
    """The layout of `content` in space and time with the appearance and dynamics of `style`; of the shape of `content`.

    Two videos are matched by their dynamic structure, the speed of every pixel: from optical flow by OpenCV's DIS, or
    by RAFT with the weights in the file `raft`. sketch: the brightness of `content` says where there should be motion.
    Images are matched by brightness.
    """
    seed, device = check_seed(seed), choose_device(device)
    content, style = as_pixels(content, "the content"), as_pixels(style, "the style")
    layout, source = as_video(content), as_video(style)
    if (len(layout) == 1) != (len(source) == 1):
        raise SinfusionError("an analogy is between two videos or between two images, not one of each.")
    moving = len(source) > 1
    of_content = dynamics.motion(layout, raft, device) if moving and not sketch else dynamics.brightness(layout)
    of_style = dynamics.motion(source, raft, device) if moving else dynamics.brightness(source)
    structure = dynamics.quantise(of_content, DYNAMICS_STEPS)
    steps = len(structure.unique()) if sketch else DYNAMICS_STEPS  # a sketch in black and white has two
    guides = [guide[..., None].to(device) for guide in (structure, dynamics.quantise(of_style, steps))]
    frames = min(ANALOGY_PATCH[0], len(layout), len(source))
    effort = Effort((frames, *ANALOGY_PATCH[1:]), ANALOGY_PASSES, completeness=1.0)
    scales = level_scales(shape_of(layout), ANALOGY_FACTORS, ANALOGY_COARSEST)
    shapes, plain_level_at = plain_levels(to_tensor(source, device), shape_of(layout), scales, effort.patch)

    def level_at(n: int) -> Level:
        level = plain_level_at(n)
        if n >= max(1, round(GUIDED_SHARE * len(scales))):
            return level
        pair = resample(guides[0], level.shape), resample(guides[1], shape_of(level.source))
        return Level(level.source, level.shape, pair)

    output = coarse_to_fine(shapes, level_at, None, effort, seed, on_progress)
    return like_input(content, to_frames(output)[None])[0]
