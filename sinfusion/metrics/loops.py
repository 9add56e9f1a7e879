"""Whether a video loops: what changes from its last frame to its first, beside what changes elsewhere; and tiles.

figures = loop_figures(looped, clip)
figures.seam, figures.wrap          # at the end; 1 where the end is like any other moment
figures.largest, figures.farthest   # anywhere: the same wherever the loop begins
Videos are (T, H, W, 3) uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from .nearest_neighbors import nnf

PATCH, ROUNDS = (3, 7, 7), 2  # of the distances
MOST = 1.3  # times the usual, that a seam may have
LEAST_DISTANCE = 0.01  # of a patch; below it is rounding


@dataclass(frozen=True)
class LoopFigures:
    """Ratios; changes are RMS between neighbouring frames, distances those of patches to their nearest in the clip."""

    seam: float  # change from the last frame to the first, over the median change
    largest: float  # the largest change of all, that one among them, over the median
    wrap: float  # mean distance of patches across the end, over that of the others
    farthest: float  # mean distance of patches at the moment where it is largest, over the mean of all
    motion: float  # median change, over the clip's
    largest_of_clip: float  # as `largest`, of the clip as it is: without its end

    @property
    def loops(self) -> bool:
        """Whether no moment stands out: changes at most 1.3 times the median, or as large as the clip's own are."""
        return self.wrap <= MOST and self.largest <= max(MOST, self.largest_of_clip)

    def __str__(self) -> str:
        return (
            f"the seam: the last frame to the first changes {self.seam:.2f} times the median, patches across are "
            f"{self.wrap:.2f} times as far from the clip's as the others; anywhere, at most {self.largest:.2f} and "
            f"{self.farthest:.2f} times. Motion: {self.motion:.2f} of the clip's."
        )


def loop_figures(frames: np.ndarray, clip: np.ndarray, device: torch.device | str = "cpu") -> LoopFigures:
    """Of a loop, (T, H, W, 3) uint8, made from a clip of any length and size; each has at least 3 frames of 7x7."""
    changes = _changes(np.concatenate((frames[-1:], frames)))  # the first is that of the end
    of_clip = _changes(clip)
    across = PATCH[0] - 1
    _, distance = nnf(np.concatenate((frames, frames[:across])), clip, PATCH, device=device, rounds=ROUNDS)
    distances = distance.mean((1, 2), dtype=np.float64)  # of patches from each frame on
    inside = float(distances[:-across].mean()) if len(frames) > across else 0.0
    return LoopFigures(
        seam=_ratio(changes[0], np.median(changes[1:])),
        largest=_ratio(changes.max(), np.median(changes)),
        wrap=float(distances[-across:].mean()) / max(inside, LEAST_DISTANCE),
        farthest=float(distances.max()) / max(float(distances.mean()), LEAST_DISTANCE),
        motion=_ratio(np.median(changes), np.median(of_clip)),
        largest_of_clip=_ratio(of_clip.max(), np.median(of_clip)),
    )


def tile_seam(frames: np.ndarray, axis: str) -> float:
    """RMS change across the meeting borders of a tile, (..., H, W, 3) uint8, over the median of neighbouring lines.

    axis: "x", of the columns right and left; or "y", of the rows below and above.
    """
    lines = np.moveaxis(frames, -2 if axis == "x" else -3, 0)
    changes = _changes(np.concatenate((lines[-1:], lines)))
    return _ratio(changes[0], np.median(changes[1:]))


def _changes(frames: np.ndarray) -> np.ndarray:
    """(T - 1,): RMS difference of neighbours of (T, ...)."""
    return np.array([np.sqrt(np.square(np.float64(b) - a).mean()) for a, b in pairwise(frames)])


def _ratio(value: float, usual: float) -> float:
    return float(value / usual) if usual else 1.0 if value == 0 else float("inf")
