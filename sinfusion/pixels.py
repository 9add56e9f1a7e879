"""Pixels: uint8 to [-1, 1] and back, resizing, means around pixels, which are light, and the smallest image of use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import SinfusionError

LEAST_SIDE = 8  # pixels; in a smaller image there is nothing that a 7x7 kernel could learn


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) as plain ints; SinfusionError if a side is below `LEAST_SIDE`."""
    height, width = size
    if min(height, width) < LEAST_SIDE:
        raise SinfusionError(f"size {width}x{height} is too small: each side must be at least {LEAST_SIDE} pixels.")
    return int(height), int(width)


def middle(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns in the middle of a canvas for an image of this size, both (height, width).

    SinfusionError where the canvas is smaller.
    """
    (height, width), (rows, columns) = size, canvas
    if rows < height or columns < width:
        raise SinfusionError(
            f"the canvas {columns}x{rows} is smaller than the {width}x{height} that it has to hold; make it larger."
        )
    top, left = (rows - height) // 2, (columns - width) // 2
    return slice(top, top + height), slice(left, left + width)


def to_unit(frames: Tensor) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) fp32 in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded to the nearest."""
    return to_pixel_values(images).round().to(torch.uint8)


def to_pixel_values(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) of the same dtype in [0, 255], not rounded."""
    return ((images.clamp(-1, 1) + 1) * 127.5).movedim(-3, -1)


def mean_around(values: Tensor, side: int) -> Tensor:
    """(B, C, H, W): the mean of the values around each pixel, in a square of an odd side, as far as it is inside."""
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)


def fractions_to_uint8(values: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8 in [0, 255], rounded to the nearest; of any shape."""
    return np.round(values * 255).astype(np.uint8)


def is_light(frames: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 -> (..., H, W) bool: where the mean of the colours is in the upper half of the range."""
    return frames.mean(-1) > 127.5


def resize(frame: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(H, W, 3) uint8 resized to (height, width) by a Lanczos filter; the frame itself where it has that size."""
    if frame.shape[:2] == tuple(size):
        return frame
    return np.array(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def fit_longer_side(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) scaled down so that the longer side is at most `longest`; 0 keeps it."""
    longer = max(size)
    if not longest or longer <= longest:
        return size
    return max(1, round(size[0] * longest / longer)), max(1, round(size[1] * longest / longer))
