"""How far some work is: what every `on_progress` is called with, and how any caller sees or stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Progress:
    """The work so far."""

    done: float  # of `total`, in `unit`
    total: float | None  # None: not known yet
    unit: str = "frame"  # or "step", "share"
    task: str = ""  # what is worked on: "predictor", the name of a result
    loss: float | None = None  # of a training: the mean of the last steps
    image: np.ndarray | None = None  # (H, W, 3) uint8: the newest frame there is to show


OnProgress = Callable[[Progress], object]  # called by the thread that works; it may raise to stop the work


class ProgressCounter:
    """Counts frames that are done in several places, and reports their sum."""

    def __init__(self, total: int, on_progress: OnProgress | None):
        self.done, self.total, self.on_progress = 0, total, on_progress

    def add(self, frames: int, image: np.ndarray | None = None) -> None:
        """Report so many more frames; image: as in `Progress`."""
        self.done += frames
        if self.on_progress is not None:
            self.on_progress(Progress(self.done, self.total, image=image))
