"""What can be made of one video or image without training: new ones, other sizes, analogies, fillings (VGPNN)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..clip import as_mask, as_pixels
from ..errors import SinfusionError
from ..pixels import to_uint8, to_unit
from ..precision import choose_device
from ..progress import OnProgress, Progress
from ..seeds import check_seed
from . import dynamics
from .engine import Effort, Level, coarse_to_fine
from .pyramid import Scale, Shape, level_scales, resized, scaled_shape

Frames = np.ndarray  # (T, H, W, 3) uint8, or (H, W, 3) for an image; as input also what `as_pixels` takes

FACTORS = (0.85, 0.85)  # of a level to the next finer one, in time and in space
COARSEST = (3, 15)  # frames and shorter side
SHORTER = 0.5  # a generated video is half as long, so that its places take their motions from different times
RETARGET_FACTORS = (0.87, 0.82)
RETARGET_SIDE, RETARGET_SHARE = 40, 0.28  # shorter side of the coarsest level, and what part of a small video's it may
# be: larger than elsewhere, for objects must stay whole
ANALOGY_FACTORS = (0.9, 0.9)
ANALOGY_COARSEST = (3, 20)
ANALOGY_PATCH = (3, 5, 5)
GUIDED = 0.7  # share of an analogy's levels, from the coarsest on, that its dynamic structure guides
STEPS = 5  # of the dynamic structure
ANALOGY_PASSES = 2
INPAINT_PASSES = 10  # of the coarsest level, which begins with a smooth filling
EDGE = 0.25  # a difference of colours, black and white being 2 apart on each channel, that is an edge of its own
WHOLE = 0.1  # share of patches that a hole must leave whole on the coarsest level
MOST_NOISE = 1000.0  # far above what leaves anything of the original
MOST_SCALE = 100.0
MOST_SIDE, MOST_PIXELS = 2**15 - 1, 2**31 - 1  # offsets are int16, counts of pixels int32
NOISE_STREAM = 0x7661726E  # "varn"


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
) -> Frames:
    """Diverse new videos (count, frames, H, W, 3) uint8, or images (count, H, W, 3).

    frames: length; None: half of the video's. size: (height, width); None: `scale` times the video's. noise: amplitude
    on the coarsest level, where black and white are 2 apart; the same in all frames. Sample i is made from seed + i.
    on_progress: called with the share of the whole that is done.
    """
    device = choose_device(device)
    video = as_pixels(video, "the input")
    source = _source(video)
    shorter = max(_patch(source)[0], math.ceil(SHORTER * len(source)))
    shape = _target(source, shorter if frames is None else frames, size, scale)
    if count < 1:
        raise SinfusionError(f"count must be at least 1, not {count}.")
    seed = check_seed(seed, count)
    if not 0 <= noise <= MOST_NOISE:
        raise SinfusionError(f"noise must be from 0 to {MOST_NOISE:g}, not {noise}.")
    original, effort = _tensor(source, device), Effort(_patch(source))
    scales = level_scales(_shape(source), FACTORS, COARSEST)
    shapes, level_at = _levels(original, shape, scales, effort.patch)
    outputs = []
    for number in range(count):
        first = resized(original, shapes[0])
        first = first + noise * ops.normal([seed + number], NOISE_STREAM, 0, first.shape[1:], device)
        report = None if on_progress is None else _part_of(on_progress, number, count)
        sample = coarse_to_fine(shapes, level_at, first, effort, seed + number, report)
        outputs.append(_images(sample))
    return _like(video, np.stack(outputs))


def retarget(
    video: Frames,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Frames:
    """The video or image at another size or length, its objects and motions at their own: (frames, *size, 3) uint8,
    or (*size, 3). size: (height, width). None: as it is.
    """
    seed, device = check_seed(seed), choose_device(device)
    video = as_pixels(video, "the input")
    source = _source(video)
    shape = _target(source, len(source) if frames is None else frames, size, 1.0)
    original, effort = _tensor(source, device), Effort(_patch(source))
    side = max(COARSEST[1], min(RETARGET_SIDE, round(RETARGET_SHARE * min(source.shape[1:3]))))
    scales = level_scales(_shape(source), RETARGET_FACTORS, (COARSEST[0], side))
    shapes, level_at = _levels(original, shape, scales, effort.patch)
    outputs = coarse_to_fine(shapes, level_at, resized(original, shapes[0]), effort, seed, on_progress)
    return _like(video, _images(outputs)[None])[0]


def analogy(
    content: Frames,
    style: Frames,
    sketch: bool = False,
    raft: str | Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Frames:
    """The layout of `content` in space and time with the appearance and dynamics of `style`; shape of `content`.

    Two videos are compared by how fast everything moves: optical flow by OpenCV's DIS, or by RAFT with the weights in
    the file `raft`. sketch: the brightness of `content` says where there should be motion. Images are compared by
    brightness.
    """
    seed, device = check_seed(seed), choose_device(device)
    content, style = as_pixels(content, "the content"), as_pixels(style, "the style")
    laid, source = _source(content), _source(style)
    if (len(laid) == 1) != (len(source) == 1):
        raise SinfusionError("an analogy is between two videos or between two images, not one of each.")
    moving = len(source) > 1
    of_content = dynamics.motion(laid, raft, device) if moving and not sketch else dynamics.brightness(laid)
    of_style = dynamics.motion(source, raft, device) if moving else dynamics.brightness(source)
    structure = dynamics.stepped(of_content, STEPS)
    steps = len(structure.unique()) if sketch else STEPS  # black and white are two
    guides = [guide[..., None].to(device) for guide in (structure, dynamics.stepped(of_style, steps))]
    frames = min(ANALOGY_PATCH[0], len(laid), len(source))
    effort = Effort((frames, *ANALOGY_PATCH[1:]), ANALOGY_PASSES, completeness=1.0)
    scales = level_scales(_shape(laid), ANALOGY_FACTORS, ANALOGY_COARSEST)
    shapes, plain_level_at = _levels(_tensor(source, device), _shape(laid), scales, effort.patch)

    def level_at(n: int) -> Level:
        level = plain_level_at(n)
        if n >= max(1, round(GUIDED * len(scales))):
            return level
        pair = resized(guides[0], level.shape), resized(guides[1], _shape(level.value))
        return Level(level.value, level.shape, pair)

    return _like(content, _images(coarse_to_fine(shapes, level_at, None, effort, seed, on_progress))[None])[0]


def inpaint(
    video: Frames,
    mask: np.ndarray,
    hints: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Frames:
    """The video or image with the masked places made anew from what is around them; the rest stays as it is.

    mask: (T, H, W), or (H, W) for all frames, bool or what `as_mask` takes, True where to fill.
    hints: the colours under the mask say roughly what should be there.
    """
    seed, device = check_seed(seed), choose_device(device)
    video = as_pixels(video, "the input")
    source = _source(video)
    mask = as_mask(mask)
    if mask.shape not in (source.shape[:3], source.shape[1:3]):
        wanted = " or ".join(map(str, (source.shape[:3], source.shape[1:3])))
        raise SinfusionError(f"the mask is {wanted} bool, not {mask.shape}.")
    if not mask.any():
        raise SinfusionError("the mask is empty: there is nothing to fill.")
    hole = torch.from_numpy(np.broadcast_to(mask, source.shape[:3]).copy()).to(device)
    given, effort = _tensor(source, device), Effort(_patch(source), coarsest_passes=INPAINT_PASSES)
    filled = _filled(given, hole)
    shape = _shape(source)

    def hole_at(scale: Scale) -> Tensor:
        """Every pixel that the hole has a part in."""
        part = resized(hole[..., None].float(), scaled_shape(shape, scale, effort.patch))[..., 0]
        return part.abs() > 0.01

    def whole(scale: Scale) -> float:
        """Share of patches that the hole does not touch."""
        touched = F.max_pool3d(hole_at(scale)[None, None].float(), effort.patch, stride=1)
        return 1 - float(touched.mean())

    scales = level_scales(shape, FACTORS, COARSEST)
    while len(scales) > 1 and whole(scales[0]) < WHOLE:
        scales = scales[1:]
    if whole(scales[0]) < WHOLE:
        raise SinfusionError("the mask leaves too little of the video to fill it from; make it smaller.")
    shapes, plain_level_at = _levels(filled, shape, scales, effort.patch)

    def level_at(n: int) -> Level:
        level, here = plain_level_at(n), hole_at(scales[n])
        weight = torch.where(here, torch.inf, 1.0)
        return Level(level.value, level.shape, None, weight, (here, level.value))

    first = resized(given if hints else filled, shapes[0])
    outputs = _mended(coarse_to_fine(shapes, level_at, first, effort, seed, on_progress), hole, given)
    return _like(video, np.where(hole.cpu().numpy()[..., None], _images(outputs), source)[None])[0]


def _mended(outputs: Tensor, hole: Tensor, known: Tensor) -> Tensor:
    """What was made for the hole, without steps at its border: how far its outermost pixels are from their neighbours
    outside is spread smoothly inwards, but for true edges, where they are very far.
    """
    outside = (~hole)[..., None].float()
    count = _sum_of_neighbours(outside)
    step = torch.where(count > 0, _sum_of_neighbours(known * outside) / count.clamp(min=1) - outputs, 0.0)
    small = hole[..., None] * (count > 0) / (1 + (step.norm(dim=-1, keepdim=True) / EDGE) ** 4)
    blocks = (len(step), -(-step.shape[1] // 4), -(-step.shape[2] // 4))
    total, share = _pooled(step * small, blocks), _pooled(small, blocks)
    smooth = _filled(total / (share + 0.02), (share == 0)[..., 0])
    return outputs + resized(smooth, _shape(step))


def _sum_of_neighbours(video: Tensor) -> Tensor:
    """Over the four neighbours of each pixel, none beyond the edge."""
    wide = F.pad(video, (0, 0, 1, 1, 1, 1))
    return wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]


def _filled(video: Tensor, hole: Tensor) -> Tensor:
    """The video with its hole filled smoothly from around: means of what is known, from ever larger blocks."""
    known = (~hole)[..., None].float()
    colours, parts = [video * known], [known]
    while bool((parts[-1] == 0).any()) and max(parts[-1].shape[:3]) > 1:
        t, y, x = (-(-side // 2) for side in _shape(parts[-1]))
        colours.append(_pooled(colours[-1], (t, y, x)))
        parts.append(_pooled(parts[-1], (t, y, x)))
    result = colours[-1] / parts[-1].clamp(min=1e-6)
    for colour, part in zip(colours[-2::-1], parts[-2::-1], strict=True):
        below = resized(result, _shape(colour))
        result = torch.where(part > 0, colour / part.clamp(min=1e-6), below)
    return result


def _pooled(video: Tensor, shape: Shape) -> Tensor:
    """Means over blocks, to another (T, H, W)."""
    return F.adaptive_avg_pool3d(video.permute(3, 0, 1, 2)[None], shape)[0].permute(1, 2, 3, 0)


def _part_of(on_progress: OnProgress, number: int, count: int) -> OnProgress:
    """What is told of the progress of one of several samples: `on_progress` hears of that of all."""
    return lambda progress: on_progress(Progress((number + progress.done) / count, 1.0, "share"))


def _levels(
    original: Tensor, shape: Shape, scales: list[Scale], patch: Shape
) -> tuple[list[Shape], Callable[[int], Level]]:
    """Shapes of what is made on each level, and the levels."""
    shapes = [scaled_shape(shape, scale, patch) for scale in scales]
    return shapes, lambda n: Level(resized(original, scaled_shape(_shape(original), scales[n], patch)), shapes[n])


def _source(video: Frames) -> Frames:
    """(T, H, W, 3) uint8, of a size that serves; an image as a video of one frame."""
    source = video[None] if video.ndim == 3 else video
    _check_size("the input is", _shape(source), _patch(source))
    return source


def _patch(source: Frames) -> Shape:
    return min(Effort.patch[0], len(source)), *Effort.patch[1:]


def _check_size(subject: str, shape: Shape, patch: Shape) -> None:
    frames, height, width = shape
    words = f"{subject} {frames} frame(s) of {width}x{height}"
    if frames < patch[0] or min(height, width) < patch[1]:
        raise SinfusionError(f"{words}; at least {patch[0]} frame(s) of {patch[2]}x{patch[1]}, a patch, are needed.")
    if max(shape) > MOST_SIDE or math.prod(shape) > MOST_PIXELS:
        raise SinfusionError(f"{words}; at most {MOST_SIDE} each way and {MOST_PIXELS} pixels in all are possible.")


def _target(source: Frames, frames: int, size: tuple[int, int] | None, scale: float) -> Shape:
    """The shape to make; SinfusionError if it is none."""
    if size is not None and scale != 1:
        raise SinfusionError("size and scale both say how large; give one of them.")
    if not 0 < scale <= MOST_SCALE:
        raise SinfusionError(f"scale must be above 0 and at most {MOST_SCALE:g}, not {scale}.")
    if len(source) == 1 and frames != 1:
        raise SinfusionError("an image has no length; leave frames out.")
    height, width = size or (max(1, round(scale * side)) for side in source.shape[1:3])
    _check_size("what is asked for is", (frames, height, width), _patch(source))
    return frames, height, width


def _shape(video: Frames | Tensor) -> Shape:
    return video.shape[0], video.shape[1], video.shape[2]


def _tensor(frames: Frames, device: torch.device | str) -> Tensor:
    return to_unit(torch.tensor(np.ascontiguousarray(frames), device=device)).movedim(-3, -1)


def _images(video: Tensor) -> Frames:
    return to_uint8(video.movedim(-1, -3)).cpu().numpy()


def _like(video: Frames, outputs: Frames) -> Frames:
    """(count, T, H, W, 3) without T where the input is an image."""
    return outputs[:, 0] if video.ndim == 3 else outputs
