"""What the patch tasks have in common: inputs as videos, checks of their size, the way to tensors and back."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import SinfusionError
from ..pixels import to_uint8, to_unit
from .engine import Effort, Level
from .pyramid import Scale, Shape, Wraps, resample, scaled_shape, shape_of

Frames = np.ndarray  # (T, H, W, 3) uint8, or (H, W, 3) for an image; as input also what `as_pixels` accepts

MAX_SCALE = 100.0
MAX_SIDE, MAX_PIXELS = 2**15 - 1, 2**31 - 1  # offsets are int16, counts of pixels int32


def as_video(pixels: Frames) -> Frames:
    """(T, H, W, 3) uint8; an image as a video of one frame. SinfusionError if it is too small or too large."""
    video = pixels[None] if pixels.ndim == 3 else pixels
    _check_shape("the input is", shape_of(video), patch_size(video))
    return video


def patch_size(video: Frames) -> Shape:
    """The engine's patch, with no more frames than the video."""
    return min(Effort.patch[0], len(video)), *Effort.patch[1:]


def output_shape(video: Frames, frames: int, size: tuple[int, int] | None, scale: float) -> Shape:
    """(T, H, W) of the output: `frames`, and `size` or `scale` times the video's. SinfusionError if it cannot be."""
    if size is not None and scale != 1:
        raise SinfusionError("size and scale both say how large; give one of them.")
    if not 0 < scale <= MAX_SCALE:
        raise SinfusionError(f"scale must be above 0 and at most {MAX_SCALE:g}, not {scale}.")
    if len(video) == 1 and frames != 1:
        raise SinfusionError("an image has no length; leave frames out.")
    height, width = size or (max(1, round(scale * side)) for side in video.shape[1:3])
    _check_shape("what is asked for is", (frames, height, width), patch_size(video))
    return frames, height, width


def wraps_of(tile: str | None, loops: bool = False) -> Wraps:
    """Along which axes an output wraps: in time if it `loops`, in space as `tile` says, "x", "y" or "x,y".

    SinfusionError for another word.
    """
    axes = [] if tile is None else tile.split(",")
    if tile is not None and not 0 < len(axes) == len(set(axes) & {"x", "y"}):
        raise SinfusionError(f"tile must be x, y or x,y, not {tile!r}.")
    return loops, "y" in axes, "x" in axes


def _check_shape(subject: str, shape: Shape, patch: Shape) -> None:
    frames, height, width = shape
    words = f"{subject} {frames} frame(s) of {width}x{height}"
    if frames < patch[0] or min(height, width) < patch[1]:
        raise SinfusionError(f"{words}; at least {patch[0]} frame(s) of {patch[2]}x{patch[1]}, a patch, are needed.")
    if max(shape) > MAX_SIDE or math.prod(shape) > MAX_PIXELS:
        raise SinfusionError(f"{words}; at most {MAX_SIDE} each way and {MAX_PIXELS} pixels in all are possible.")


def to_tensor(video: Frames, device: torch.device | str) -> Tensor:
    """(T, H, W, 3) uint8 -> fp32 in [-1, 1] on the device."""
    return to_unit(torch.tensor(np.ascontiguousarray(video), device=device)).movedim(-3, -1)


def to_frames(video: Tensor) -> Frames:
    """(T, H, W, 3) in [-1, 1] -> uint8 on the host."""
    return to_uint8(video.movedim(-1, -3)).cpu().numpy()


def like_input(pixels: Frames, outputs: Frames) -> Frames:
    """Outputs (count, T, H, W, 3); without T where the input is an image (H, W, 3)."""
    return outputs[:, 0] if pixels.ndim == 3 else outputs


def plain_levels(
    source: Tensor, shape: Shape, scales: list[Scale], patch: Shape
) -> tuple[list[Shape], Callable[[int], Level]]:
    """For `coarse_to_fine`: the shapes of the output, and the levels, with the source at each scale and nothing more.

    source: (T', H', W', 3). shape: (T, H, W) of the output on the finest level.
    """
    shapes = [scaled_shape(shape, scale, patch) for scale in scales]
    return shapes, lambda n: Level(resample(source, scaled_shape(shape_of(source), scales[n], patch)), shapes[n])
