"""Motion compensation: two frames, each moved to the moment half way between them along what moves. No training.

It asks the pixels of that moment where they came from and where they go (`half_motion`), so nothing is torn or covered
twice. Least squares in small surroundings (Lucas and Kanade 1981), from coarse to fine, weighted so that what cannot be
explained counts little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixels import mean_around

LEAST_SIDE = 8  # pixels of the shorter side of the coarsest level, at least
ITERATIONS = 5  # at each level
SURROUNDINGS = 3  # pixels across, averaged over twice: what moves alike
SMOOTH = 5  # pixels across, averaged over twice: where nothing shows how it moves, it moves as this does
DAMPING = 1e-2  # squared differences a pixel of motion, below which nothing shows
UNEXPLAINED = 1e-3  # squared difference from which on a pixel counts less
# From this many times the squared difference without motion to that with it all of it counts; and pixels across, in
# which that is averaged.
CERTAIN, NOISE_SIDE = 4.0, 5
TINY = 1e-6


def compensated(first: Tensor, second: Tensor) -> Tensor:
    """(B, 6, H, W): two frames (B, 3, H, W), both in [-1, 1], moved to the moment half way between them.

    Their mean is the frame between them, as far as motion explains it. Where nothing moves they are as they were, but
    for rounding.
    """
    motion = half_motion(first, second)
    return torch.cat((_moved(first, -motion, "bicubic"), _moved(second, motion, "bicubic")), 1).clamp(-1, 1)


def half_motion(first: Tensor, second: Tensor) -> Tensor:
    """(B, 2, H, W) in pixels to the right and down: how things that are here half way between two frames move until
    the second; they came as far from the first. The frames: (B, 3, H, W) in [-1, 1].
    """
    levels = [torch.stack((first, second))]
    while min(levels[-1].shape[3:]) >= 2 * LEAST_SIDE:
        levels.append(_half_size(levels[-1]))
    motion = first.new_zeros(len(first), 2, *levels[-1].shape[3:])
    for one, other in reversed(levels):
        motion = _enlarged(motion, one.shape[2:])
        slopes = _slopes(one), _slopes(other)
        for _ in range(ITERATIONS):
            motion = motion + _correction(motion, (one, other), slopes)
    return motion * _certainty(motion, first, second)


def _certainty(motion: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(B, 1, H, W) from 0, where motion explains hardly more than none at all (it would follow the noise), to 1."""
    still, moved = second - first, _moved(second, motion) - _moved(first, -motion)
    of_still, of_moved = (_twice_around(d.square().mean(1, keepdim=True), NOISE_SIDE) for d in (still, moved))
    return ((of_still + TINY) / (of_moved + TINY) - 1).div(CERTAIN - 1).clamp(0, 1)


def _correction(motion: Tensor, frames: tuple[Tensor, Tensor], slopes: tuple[Tensor, Tensor]) -> Tensor:
    """(B, 2, H, W): what brings the moved frames nearer to each other, at most a pixel; slopes: (B, 6, H, W) each."""
    difference = _moved(frames[1], motion) - _moved(frames[0], -motion)
    x, y = (_moved(slopes[1], motion) + _moved(slopes[0], -motion)).chunk(2, 1)
    weight = (difference.square().mean(1, keepdim=True) + UNEXPLAINED).rsqrt()
    products = (x * x, x * y, y * y, x * difference, y * difference)
    sums = torch.cat([weight * product.mean(1, keepdim=True) for product in products] + [DAMPING * weight], 1)
    xx, xy, yy, xd, yd, damping = _twice_around(sums, SURROUNDINGS).split(1, 1)
    towards = damping * (_twice_around(motion, SMOOTH) - motion)  # what it would be without anything to see
    xd, yd = xd - towards[:, :1], yd - towards[:, 1:]
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    correction = torch.cat((xy * yd - yy * xd, xy * xd - xx * yd), 1) / determinant
    return correction.clamp(-1, 1)


def _moved(images: Tensor, motion: Tensor, mode: str = "bilinear") -> Tensor:
    """(B, C, H, W): at each pixel what the images have this motion (B, 2, H, W) away; the border goes on outside."""
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device)[:, None] + motion[:, 1]
    x = torch.arange(width, device=images.device) + motion[:, 0]
    at = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    return F.grid_sample(images, at, mode, "border", align_corners=False)


def _slopes(images: Tensor) -> Tensor:
    """(B, 2 C, H, W): changes a pixel to the right, then down."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return torch.cat((x, y), 1)


def _twice_around(values: Tensor, side: int) -> Tensor:
    """(B, C, H, W): the mean around each pixel, and the mean of that: weights fall with the distance."""
    return mean_around(mean_around(values, side), side)


def _half_size(images: Tensor) -> Tensor:
    """(2, B, C, H / 2, W / 2), rounded up."""
    size = [-(-side // 2) for side in images.shape[3:]]
    smaller = F.interpolate(images.flatten(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return smaller.unflatten(0, images.shape[:2])


def _enlarged(motion: Tensor, size: torch.Size) -> Tensor:
    """(B, 2, *size): motion of a coarser level, in pixels of this one."""
    if motion.shape[2:] == size:
        return motion
    x, y = F.interpolate(motion, tuple(size), mode="bilinear", align_corners=False).split(1, 1)
    return torch.cat((x * (size[1] / motion.shape[3]), y * (size[0] / motion.shape[2])), 1)
