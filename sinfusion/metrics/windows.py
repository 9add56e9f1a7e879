"""Windows of time: a video's figures over one stretch of frames after the other, which show whether it drifts.

for window in windows(len(video), 20):                   # frames 0-20, 20-40, ...
    nnfdist(patches_in(window, distance, depth=3))       # of a field of the whole video
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import SinfusionError


class Window(NamedTuple):
    """Frames from `start` on, before `stop`."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}"

    def of(self, frames: np.ndarray) -> np.ndarray:
        """Its frames of (T, ...)."""
        return frames[self.start : self.stop]


def windows(frames: int, length: int, depth: int = 1) -> list[Window]:
    """Windows of `length` frames, one after the other, of a video of `frames` frames.

    The last is shorter where less than a length is left, and left out where that is less than half a length or than
    `depth`, the frames of a patch. A video shorter than that is one window. Raises SinfusionError for a length below
    `depth`, and for such a video.
    """
    if length < depth:
        raise SinfusionError(f"windows of {length} frame(s) are shorter than patches of {depth}; take longer ones.")
    if frames < depth:
        raise SinfusionError(f"a video of {frames} frame(s) is shorter than patches of {depth} frames.")
    least = max(depth, length / 2)
    starts = [start for start in range(0, frames, length) if frames - start >= least] or [0]
    return [Window(start, min(start + length, frames)) for start in starts]


def patches_in(window: Window, field: np.ndarray, depth: int) -> np.ndarray:
    """What a field, or distances, (T - depth + 1, ...) as from `nnf`, has of the patches wholly inside a window."""
    if window.stop - window.start < depth:
        raise SinfusionError(f"frames {window} are fewer than the {depth} of a patch; take a longer window.")
    return field[window.start : window.stop - depth + 1]
