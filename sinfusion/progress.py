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
    """Counts work that is done part by part, and reports the sum after each part."""

    def __init__(self, total: float, on_progress: OnProgress, unit: str = "frame"):
        self.done: float = 0
        self.total, self.on_progress, self.unit = total, on_progress, unit

    def add(self, amount: float, task: str = "") -> None:
        """Report `amount` more of the total as done."""
        self.done += amount
        self.on_progress(Progress(self.done, self.total, self.unit, task))
