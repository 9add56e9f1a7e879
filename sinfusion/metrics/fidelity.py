"""How close generated frames are to the original by their pixels: PSNR, sliced Wasserstein, motion, sharpness.

Images are (H, W, 3), videos (T, H, W, 3), all uint8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import SinfusionError
from ..pixels import to_unit
from ..seeds import check_seed
from .stacks import as_stack, fit_patch

STREAM_PROJECTION = 32  # of the random number generator
PROJECTIONS_AT_ONCE = 8  # bounds the memory
ROUNDING_ERROR = 1 / 12  # the mean squared error of rounding to whole numbers


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images or videos of one shape, uint8; infinite for equal ones."""
    one, other = as_stack("a", a), as_stack("b", b)
    if one.shape != other.shape:
        raise SinfusionError(f"PSNR needs two of the same shape, not {tuple(one.shape)} and {tuple(other.shape)}.")
    pairs = zip(one.numpy(), other.numpy(), strict=True)  # a frame at a time, for the memory
    error = sum(int(np.square(x.astype(np.int32) - y).sum(dtype=np.int64)) for x, y in pairs) / one.numel()
    return 10 * math.log10(255**2 / error) if error else math.inf


def mean_psnr(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> float:
    """The mean PSNR of frames (T, H, W, 3) in dB; values in [0, 255] that need not be whole numbers.

    At most 58.9, the PSNR of a frame whose only error is rounding.
    """
    errors = [np.square(one - other).mean() for one, other in zip(map(np.float64, a), map(np.float64, b), strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, ROUNDING_ERROR))))


def change(frames: np.ndarray) -> float:
    """Mean RMS difference of neighbouring frames (T, H, W, 3), of values in [0, 255]."""
    return float(np.mean([np.sqrt(np.square(b - a).mean()) for a, b in pairwise(map(np.float64, frames))]))


def high_frequency(frames: np.ndarray) -> float:
    """RMS of frames (..., H, W, 3) minus their 3x3 mean, of values in [0, 255]."""
    squares = []
    for frame in frames.reshape(-1, *frames.shape[-3:]):
        x = torch.from_numpy(frame.astype(np.float32, order="C")).movedim(-1, 0)
        squares.append((x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).square().mean().item())
    return float(np.sqrt(np.mean(squares)))


def relative_statistics(generated: np.ndarray, original: np.ndarray) -> dict[str, float]:
    """`change` (videos) and `high_frequency` divided by the original's; a statistic that is 0 there is left out."""
    ratios = {}
    if original.ndim == 4 and (original_change := change(original)):
        ratios["change"] = change(generated) / original_change
    if original_detail := high_frequency(original):
        ratios["high_frequency"] = high_frequency(generated) / original_detail
    return ratios


def sliced_wasserstein(
    generated: np.ndarray,  # (T, H, W, 3) or (H, W, 3) uint8
    original: np.ndarray,  # (T', H', W', 3) or (H', W', 3) uint8
    patch: Sequence[int] = (3, 7, 7),  # frames, rows, columns; for an image the first is taken as 1
    projections: int = 64,
    scales: int = 3,  # of the pyramid: full size, half height and width, a quarter and so on; all frames in each
    seed: int = 0,
) -> list[float]:
    """Sliced Wasserstein-2 distances between the patches of two images or videos, one for each scale.

    All patches of a video, wherever they are, are one distribution; it is compared along random directions (Rabin et
    al. 2011), where the distance is that of sorted numbers. A projection of all patches is a convolution with a kernel
    of unit norm. In units of the values in [-1, 1]: adding c to every value gives about c.
    """
    if projections < 1 or scales < 1:
        raise SinfusionError(f"projections and scales must be 1 or more, not {projections} and {scales}.")
    seed = check_seed(seed)
    stacks = {"generated": as_stack("generated", generated), "original": as_stack("original", original)}
    patch_size = fit_patch(patch, stacks, 2 ** (scales - 1))
    left, right = (to_unit(stack).transpose(0, 1)[None] for stack in stacks.values())  # (1, 3, T, H, W)
    distances = []
    for scale in range(scales):
        if scale:
            left, right = (F.avg_pool3d(video, (1, 2, 2)) for video in (left, right))
        kernels = ops.normal([seed], STREAM_PROJECTION, scale, (projections, 3, *patch_size))[0]
        kernels /= kernels.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        squares = [_squared_distances(left, right, some) for some in kernels.split(PROJECTIONS_AT_ONCE)]
        distances.append(float(np.sqrt(np.mean(np.concatenate(squares)))))
    return distances


def _squared_distances(left: Tensor, right: Tensor, kernels: Tensor) -> np.ndarray:
    """(P,): squared Wasserstein-2 distances of the patches of two videos (1, 3, T, H, W) along P directions."""
    a, b = (np.sort(F.conv3d(video, kernels)[0].flatten(1).numpy()) for video in (left, right))
    count = min(a.shape[1], b.shape[1])
    return np.square(_quantiles(a, count) - _quantiles(b, count)).mean(1, dtype=np.float64)


def _quantiles(ordered: np.ndarray, count: int) -> np.ndarray:
    """(P, count) from sorted (P, N): the values in the middle of each of `count` equal shares."""
    length = ordered.shape[1]
    if length == count:
        return ordered
    at = (np.arange(count) + 0.5) * (length / count) - 0.5
    return np.stack([np.interp(at, np.arange(length), row) for row in ordered])
