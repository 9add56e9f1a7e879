"""What the metrics take: images and videos as stacks of frames, and a patch size that fits all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..clip import as_frames, format_size
from ..errors import SinfusionError


def as_stack(name: str, images: np.ndarray, min_side: int = 1) -> Tensor:
    """(N, H, W, 3) uint8 from what `as_frames` takes; `name` is what errors call it.

    Raises SinfusionError for anything else, and where a side has fewer than `min_side` pixels.
    """
    frames = as_frames(images, name)
    if min(frames.shape[1:3]) < min_side:
        raise SinfusionError(
            f"{name} must be {min_side}x{min_side} pixels or larger, not {format_size(frames.shape[1:])}."
        )
    return torch.from_numpy(np.ascontiguousarray(frames))


def fit_patch(patch: Sequence[int], stacks: dict[str, Tensor], downscale: int = 1) -> tuple[int, int, int]:
    """The patch size (frames, rows, columns), one frame deep if any of the stacks is an image.

    stacks: (N, H, W, 3) each, by the names that errors call them. Raises SinfusionError if one of them, with height and
    width divided by `downscale`, is smaller than the patch.
    """
    if len(patch) != 3 or min(patch) < 1:
        raise SinfusionError(f"a patch size is three whole numbers from 1 on, such as (3, 3, 3), not {tuple(patch)}.")
    depth = 1 if min(len(stack) for stack in stacks.values()) == 1 else patch[0]
    for name, stack in stacks.items():
        length, height, width = len(stack), stack.shape[1] // downscale, stack.shape[2] // downscale
        if length < depth or height < patch[1] or width < patch[2]:
            smallest = ", at its smallest scale," if downscale > 1 else ""
            raise SinfusionError(
                f"{name}{smallest} has {length} frames of {width}x{height}: too few or too small for patches of "
                f"{depth} frames of {patch[2]}x{patch[1]}."
            )
    return depth, patch[1], patch[2]
