"""The nearest-neighbour field of a generated image or video in its original: diversity, error, an image to look at.

field, distance = nnf(generated, original)          # where each patch comes from, and how well it fits
nnfdiv(field), nnfdist(distance)                    # diversity; error
field_image(field)                                  # colours for the offsets
Images are (H, W, 3), videos (T, H, W, 3), all uint8; distances are between values in [-1, 1].
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from .. import ops
from ..pixels import fractions_to_uint8, to_unit
from ..precision import choose_device
from ..seeds import check_seed
from .stacks import as_stack, fit_patch

ROUNDS, STRIDES = 5, (8, 4, 2, *[1] * 17)  # of PatchMatch: 100 steps, as many as the released code of NNFDIV takes


def nnf(
    generated: np.ndarray,  # (T, H, W, 3) or (H, W, 3) uint8
    original: np.ndarray,  # (T', H', W', 3) or (H', W', 3) uint8
    patch: Sequence[int] = (3, 3, 3),  # frames, rows, columns; for an image the first is taken as 1
    seed: int = 0,
    device: torch.device | str = "auto",  # auto, cpu, cuda or one of several GPUs, such as cuda:1
    rounds: int = ROUNDS,  # of the search, 20 steps each; two give distances of 3x7x7 patches to 1%
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest-neighbour field: for every patch of `generated` the place of its nearest patch in `original`.

    Returns the field, (T - pt + 1, H - ph + 1, W - pw + 1, 3) int16: frames, rows and columns from the patch to its
    neighbour; and the distances, (T - pt + 1, H - ph + 1, W - pw + 1) fp32: sums of squared differences over the patch
    and its three colours, rounded as `ops.patch_match` does, to about 0.1%. Found by PatchMatch (Barnes et al. 2009)
    from a random start: nearly always one of the nearest, not always the nearest.
    """
    seed, chosen = check_seed(seed), choose_device(device)
    stacks = {"generated": as_stack("generated", generated), "original": as_stack("original", original)}
    patch_size = fit_patch(patch, stacks)
    query, key = (to_unit(stack.to(chosen)).movedim(-3, -1) for stack in stacks.values())
    field, distance = ops.patch_match(query, key, patch=patch_size, rounds=rounds, seed=seed, strides=STRIDES)
    return field.cpu().numpy(), distance.cpu().numpy()


def nnfdiv(field: np.ndarray) -> float:
    """Diversity: how badly a field compresses, near 0 for a translation, up to about 1 for a field without order.

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
    """A field as images: (T, H, W, 3) int16 -> (T, 2 H, W, 3) uint8; the field of an image -> (1, H, W, 3).

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
        return fractions_to_uint8(space)
    grey = (0.5 + 0.5 * time / max(1, np.abs(time).max()))[..., None].repeat(3, -1)
    return fractions_to_uint8(np.concatenate((space, grey), 1))


def _is_of_images(field: np.ndarray) -> bool:
    return len(field) == 1 and not field[..., 0].any()
