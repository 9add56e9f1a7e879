"""Space-time pyramids: the sizes of their levels, and videos resampled to these."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, int, int]  # frames, height, width
Scale = tuple[float, float]  # in time, in space
Wraps = tuple[bool, bool, bool]  # frames, height, width: whether the end meets the beginning


def level_scales(shape: Shape, factors: tuple[float, float], coarsest: tuple[int, int]) -> list[Scale]:
    """The scale in time and in space of each level, coarsest first; the last is (1, 1).

    factors: the size of a level relative to the next finer one, in time and in space. coarsest: frames and shorter side
    of the coarsest level; a video that is smaller keeps its size.
    """
    smallest = (min(1.0, coarsest[0] / shape[0]), min(1.0, coarsest[1] / min(shape[1:])))
    scales: list[Scale] = [(1.0, 1.0)]
    while scales[-1] != smallest:
        n = len(scales)
        scales.append((max(factors[0] ** n, smallest[0]), max(factors[1] ** n, smallest[1])))
    return scales[::-1]


def scaled_shape(shape: Shape, scale: Scale, smallest: Shape) -> Shape:
    """A shape at a scale in time and in space, rounded up, with no side below that of `smallest`."""
    factors = (scale[0], scale[1], scale[1])
    t, y, x = (max(math.ceil(side * f - 1e-6), low) for side, f, low in zip(shape, factors, smallest, strict=True))
    return t, y, x


def shape_of(video: Tensor | np.ndarray) -> Shape:
    """(T, H, W) of a video (T, H, W, C)."""
    return video.shape[0], video.shape[1], video.shape[2]


def resample(video: Tensor, shape: Shape, wraps: Wraps = (False, False, False)) -> Tensor:
    """(T, H, W, C) fp32 at another (T, H, W): bicubic, antialiased where it shrinks.

    Beyond its border a video goes on as it ends there; along axes that wrap, as it begins at the other side.
    """
    for axis, wrap in enumerate(wraps):
        if wrap and video.shape[axis] != shape[axis]:
            t, y, x = (3 * shape[axis] if i == axis else side for i, side in enumerate(shape_of(video)))
            video = resample(torch.cat([video] * 3, axis), (t, y, x)).narrow(axis, shape[axis], shape[axis])
    frames, _, _, channels = video.shape
    if video.shape[1:3] != shape[1:]:
        planes = video.permute(0, 3, 1, 2)
        planes = F.interpolate(planes, size=shape[1:], mode="bicubic", antialias=True, align_corners=False)
        video = planes.permute(0, 2, 3, 1)
    if frames != shape[0]:
        lines = video.reshape(1, 1, frames, -1)
        lines = F.interpolate(
            lines, size=(shape[0], lines.shape[3]), mode="bicubic", antialias=True, align_corners=False
        )
        video = lines.view(shape[0], *shape[1:], channels)
    return video.contiguous()
