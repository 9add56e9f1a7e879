"""How close a generated image or video is to its original, and how much it is more than a copy of it.

field, distance = nnf(generated, original)          # where each patch comes from, and how well it fits
nnfdiv(field), nnfdist(distance)                    # diversity; error
psnr(a, b); sliced_wasserstein(generated, original) # and SIFID, SVFID in features.py
Images are (H, W, 3), videos (T, H, W, 3), all uint8; values in sums and distances are in [-1, 1].
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import SinfusionError
from ..pixels import to_unit
from ..precision import choose_device
from ..seeds import check_seed
from .frechet import as_stack

ROUNDS, STRIDES = 5, (8, 4, 2, *[1] * 17)  # of PatchMatch: 100 steps, as fine as the released code of NNFDIV
STREAM_PROJECTION = 32  # of the generator of random numbers
_AT_ONCE = 8  # projections in memory


def nnf(
    generated: np.ndarray,  # (T, H, W, 3) or (H, W, 3) uint8
    original: np.ndarray,  # (T', H', W', 3) or (H', W', 3) uint8
    patch: Sequence[int] = (3, 3, 3),  # frames, rows, columns; for an image the first is taken as 1
    seed: int = 0,
    device: torch.device | str = "auto",  # auto, cpu, cuda or one of several GPUs, such as cuda:1
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest-neighbour field: for every patch of `generated` the place of its nearest patch in `original`.

    Returns the field, (T - pt + 1, H - ph + 1, W - pw + 1, 3) int16: frames, rows and columns from the patch to its
    neighbour; and the distances, (T - pt + 1, H - ph + 1, W - pw + 1) fp32: sums of squared differences over the patch
    and its three colours, rounded as `ops.patch_match` does, to about 0.1%. Found by PatchMatch (Barnes et al. 2009)
    from a random start: nearly always one of the nearest, not always the nearest.
    """
    seed, chosen = check_seed(seed), choose_device(device)
    frames = {"generated": as_stack("generated", generated), "original": as_stack("original", original)}
    sides = _patch_for(patch, frames)
    query, key = (to_unit(stack.to(chosen)).movedim(-3, -1) for stack in frames.values())
    field, distance = ops.patch_match(query, key, patch=sides, rounds=ROUNDS, seed=seed, strides=STRIDES)
    return field.cpu().numpy(), distance.cpu().numpy()


def nnfdiv(field: np.ndarray) -> float:
    """Diversity: how well a field compresses, near 0 for a translation, up to about 1 for a field without order.

    field: (T, H, W, 3) int16, as from `nnf`.

    As in the released code of the metric (Haim et al. 2023, for SinFusion): the offsets modulo 256 as bytes, all those
    of time first, then rows, then columns, compressed by zlib; compressed over raw size. The field of an image has no
    offsets in time: it counts as two planes instead of three. The code notes that the paper may have scaled the offsets
    to [0, 255] instead; such scores are not comparable.
    """
    planes = np.moveaxis(field, -1, 0)[1 if _is_of_images(field) else 0 :]
    raw = (planes & 255).astype(np.uint8).tobytes()
    return len(zlib.compress(raw)) / len(raw)


def nnfdist(distance: np.ndarray) -> float:
    """Error: the mean distance along a field, as from `nnf`.

    A distance is the sum of squared differences over the values of a patch in [-1, 1], 3x3x3x3 = 81 by default, as the
    released code of NNFDIV has it. That code has no NNFDIST; its own VGPNN and SinFusion samples give sums of the size
    of SinFusion's table 1, and means would be 81 times smaller.
    """
    return float(distance.mean(dtype=np.float64))


def field_image(field: np.ndarray) -> np.ndarray:
    """A field to look at: (T, H, W, 3) int16 -> (T, 2 H, W, 3) uint8, of an image (1, H, W, 3).

    Above, offsets in space: hue is the direction (red right, yellow-green down, cyan left, violet up), from white for
    none to the full colour for the longest of the field. Below, offsets in time: mid grey for none, darker for earlier,
    brighter for later frames of the original.
    """
    time, rows, columns = np.moveaxis(field.astype(np.float32), -1, 0)
    length = np.hypot(rows, columns)
    phases = np.arctan2(rows, columns)[..., None] - 2 * np.pi / 3 * np.arange(3)
    hue = (1 + np.cos(phases)) / 2
    space = 1 - (length / max(1, length.max()))[..., None] * (1 - hue)
    if _is_of_images(field):
        return (space * 255).round().astype(np.uint8)
    grey = (0.5 + 0.5 * time / max(1, np.abs(time).max()))[..., None].repeat(3, -1)
    return (np.concatenate((space, grey), 1) * 255).round().astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images or videos of one shape, uint8; infinite for equal ones."""
    one, other = as_stack("a", a), as_stack("b", b)
    if one.shape != other.shape:
        raise SinfusionError(f"PSNR needs two of the same shape, not {tuple(one.shape)} and {tuple(other.shape)}.")
    pairs = zip(one.numpy(), other.numpy(), strict=True)  # a frame at a time
    error = sum(int(np.square(x.astype(np.int32) - y).sum(dtype=np.int64)) for x, y in pairs) / one.numel()
    return 10 * math.log10(255**2 / error) if error else math.inf


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
    frames = {"generated": as_stack("generated", generated), "original": as_stack("original", original)}
    sides = _patch_for(patch, frames, 2 ** (scales - 1))
    left, right = (to_unit(stack).transpose(0, 1)[None] for stack in frames.values())  # (1, 3, T, H, W)
    distances = []
    for scale in range(scales):
        if scale:
            left, right = (F.avg_pool3d(video, (1, 2, 2)) for video in (left, right))
        kernels = ops.normal([seed], STREAM_PROJECTION, scale, (projections, 3, *sides))[0]
        kernels /= kernels.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        squares = [_squared_distances(left, right, some) for some in kernels.split(_AT_ONCE)]
        distances.append(float(np.sqrt(np.mean(np.concatenate(squares)))))
    return distances


def _squared_distances(left: Tensor, right: Tensor, kernels: Tensor) -> np.ndarray:
    """(P,): squared Wasserstein-2 distances of the patches of two videos (1, 3, T, H, W) along P directions."""
    a, b = (np.sort(F.conv3d(video, kernels)[0].flatten(1).numpy()) for video in (left, right))
    count = min(a.shape[1], b.shape[1])
    return np.square(_quantiles(a, count) - _quantiles(b, count)).mean(1, dtype=np.float64)


def _quantiles(ordered: np.ndarray, count: int) -> np.ndarray:
    """(P, count) of sorted (P, N): the numbers at the middles of `count` equal shares."""
    have = ordered.shape[1]
    if have == count:
        return ordered
    at = (np.arange(count) + 0.5) * (have / count) - 0.5
    return np.stack([np.interp(at, np.arange(have), row) for row in ordered])


def _patch_for(patch: Sequence[int], frames: dict[str, Tensor], shrink: int = 1) -> tuple[int, int, int]:
    """The patch, one frame deep if either is an image; SinfusionError if frames shrunk by `shrink` are too small."""
    if len(patch) != 3 or min(patch) < 1:
        raise SinfusionError(f"a patch is three sizes from 1 on, as (3, 3, 3), not {tuple(patch)}.")
    depth = 1 if min(len(stack) for stack in frames.values()) == 1 else patch[0]
    for name, stack in frames.items():
        length, height, width = len(stack), stack.shape[1] // shrink, stack.shape[2] // shrink
        if length < depth or height < patch[1] or width < patch[2]:
            smallest = ", at its smallest scale," if shrink > 1 else ""
            raise SinfusionError(
                f"{name}{smallest} has {length} frames of {width}x{height}: too few or small for patches of "
                f"{depth} frames of {patch[2]}x{patch[1]}."
            )
    return depth, patch[1], patch[2]


def _is_of_images(field: np.ndarray) -> bool:
    return len(field) == 1 and not field[..., 0].any()
