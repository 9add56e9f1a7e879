"""Coverage: how much of what the original shows is still there, and as often; a scene that thins out falls below 1.

reference = Coverage.of(original)                   # 1000 of its patches, those with detail
counts = reference.counts(generated)                # how often each frame has something like them
reference.share(counts), reference.share(counts[-20:])
Images are (H, W, 3), videos (T, H, W, 3), all uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..pixels import to_unit
from ..precision import choose_device
from .stacks import as_stack, fit_patch

SIDE = 5  # of a patch, in pixels of the reduced frames
SHORTER_SIDE = 36  # that frames are reduced towards, by whole numbers: noise and grain are no content
PATCHES = 1000  # of the original, at most
LIKE = 0.2  # share of a patch's detail by which another may differ and still be like it
ROUNDING = 2 * (2 / 255) ** 2 / 12  # mean squared difference of two values that are rounded to 8 bits


@dataclass(frozen=True)
class Coverage:
    """Patches of the original, and how often its frames have their like.

    The patches are drawn by detail (their squared differences from their own mean), so that empty background does not
    count. Another patch is like one if their squared distance is below a fifth of its detail, plus what separates
    patches of neighbouring frames (the median over the patches).
    """

    patches: Tensor  # (N, 3 SIDE^2) fp32, values in [-1, 1]
    radius: Tensor  # (N,): squared distance of what is like it
    expected: np.ndarray  # (N,): how many places of a frame of the original are like it, in the mean over all frames
    downscale: int

    @classmethod
    def of(cls, original: np.ndarray, device: torch.device | str = "auto") -> Coverage:
        stack = as_stack("original", original)
        downscale = downscale_of(original)
        fit_patch((1, SIDE, SIDE), {"original": stack}, downscale)
        frames = list(_patches_of_frames(stack, downscale, choose_device(device)))
        details = torch.stack([_detail(patches) for patches in frames]).double()  # (T, P)
        chosen = _drawn(details)
        frame, place = chosen // details.shape[1], chosen % details.shape[1]
        patches = torch.stack([frames[t][p] for t, p in zip(frame.tolist(), place.tolist(), strict=True)])
        noise = torch.full_like(patches[:, 0], patches.shape[1] * ROUNDING)
        if len(frames) > 1:
            noise = noise.maximum(_to_neighbouring_frames(patches, frame, frames).median())
        radius = LIKE * _detail(patches) + noise
        expected = np.mean([_like(patches, radius, of_frame) for of_frame in frames], axis=0)
        return cls(patches, radius, expected, downscale)

    def counts(self, generated: np.ndarray) -> np.ndarray:
        """(T, N): how many places of each frame of (T, H, W, 3) or (H, W, 3) uint8 are like each of the patches.

        Raises SinfusionError for frames that are smaller than a patch, at the scale of the original's.
        """
        stack = as_stack("generated", generated)
        fit_patch((1, SIDE, SIDE), {"generated": stack}, self.downscale)
        frames = _patches_of_frames(stack, self.downscale, self.patches.device)
        return np.stack([_like(self.patches, self.radius, patches) for patches in frames])

    def share(self, counts: np.ndarray) -> float:
        """The coverage by frames with these counts, (T, N): 1 for the original, 0 where nothing is like it.

        Each patch counts by how often the frames have its like, over how often the original has it, and 1 at most:
        where half of the birds are gone, half of the birds' share is.
        """
        return float(np.minimum(1, counts.mean(0) / self.expected).mean())


def coverage(generated: np.ndarray, original: np.ndarray, device: torch.device | str = "auto") -> float:
    """The `Coverage` of an original by a generated video or image."""
    reference = Coverage.of(original, device)
    return reference.share(reference.counts(generated))


def downscale_of(original: np.ndarray) -> int:
    """By which frames (..., H, W, 3) are reduced, those of results as well."""
    return max(1, min(original.shape[-3:-1]) // SHORTER_SIDE)


def _patches_of_frames(stack: Tensor, downscale: int, device: torch.device) -> Iterator[Tensor]:
    """(P, 3 SIDE^2) for each frame of (T, H, W, 3) uint8, reduced."""
    for frame in stack:
        reduced = F.avg_pool2d(to_unit(frame[None].to(device)).float(), downscale)
        yield F.unfold(reduced, SIDE)[0].T.contiguous()


def _detail(patches: Tensor) -> Tensor:
    """(P,): squared differences of patches (P, 3 SIDE^2) from the mean of each colour."""
    colours = patches.unflatten(1, (3, -1))
    return (colours - colours.mean(2, keepdim=True)).square().sum((1, 2))


def _drawn(details: Tensor) -> Tensor:
    """Places of at most PATCHES in (T, P) flattened, each as probable as its detail is large, and evenly apart.

    Where there is no detail at all, any.
    """
    weights = details.flatten() if details.sum() > 0 else torch.ones_like(details).flatten()
    ends = weights.cumsum(0)
    count = min(PATCHES, len(ends))
    at = (torch.arange(count, dtype=ends.dtype, device=ends.device) + 0.5) * (ends[-1] / count)
    return torch.searchsorted(ends, at).clamp(max=len(ends) - 1)


def _distances(patches: Tensor, others: Tensor) -> Tensor:
    """(N, P): squared distances of patches (N, D) and others (P, D)."""
    squares = patches.square().sum(1)[:, None] + others.square().sum(1)
    return torch.addmm(squares, patches, others.T, alpha=-2)


def _like(patches: Tensor, radius: Tensor, others: Tensor) -> np.ndarray:
    """(N,): how many of the others (P, D) are like each of the patches (N, D)."""
    return (_distances(patches, others) < radius[:, None]).sum(1).cpu().numpy()


def _to_neighbouring_frames(patches: Tensor, frame: Tensor, frames: list[Tensor]) -> Tensor:
    """(N,): squared distance of each patch, of the frame of this number, to the nearest one before or after it."""
    nearest = torch.full_like(patches[:, 0], torch.inf)
    for t, others in enumerate(frames):
        beside = (frame - t).abs() == 1
        if beside.any():
            nearest[beside] = nearest[beside].minimum(_distances(patches[beside], others).amin(1))
    return nearest
