"""Space-time pyramids: how large the levels are, and videos at other sizes."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, int, int]  # frames, height, width
Scale = tuple[float, float]  # in time, in space


def level_scales(shape: Shape, factors: tuple[float, float], coarsest: tuple[int, int]) -> list[Scale]:
    """Scales in time and in space of each level, coarsest first, the last (1, 1).

    factors: what a level is to the next finer one, in time and in space. coarsest: frames and shorter side that no
    level goes below; a video that begins below keeps its size.
    """
    least = (min(1.0, coarsest[0] / shape[0]), min(1.0, coarsest[1] / min(shape[1:])))
    scales: list[Scale] = [(1.0, 1.0)]
    while scales[-1] != least:
        n = len(scales)
        scales.append((max(factors[0] ** n, least[0]), max(factors[1] ** n, least[1])))
    return scales[::-1]


def scaled_shape(shape: Shape, scale: Scale, least: Shape) -> Shape:
    """A shape at a scale in time and in space, rounded up, with no side below `least`."""
    by = (scale[0], scale[1], scale[1])
    t, y, x = (max(math.ceil(side * s - 1e-6), low) for side, s, low in zip(shape, by, least, strict=True))
    return t, y, x


def resized(video: Tensor, shape: Shape) -> Tensor:
    """(T, H, W, C) fp32 at another size: cubic, antialiased where it shrinks."""
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
