"""When frames are shown, and how a clip whose frames last differently is put on a steady grid.

times = FrameTimes(seconds=[0.0, 0.033, 0.067, 3.1, 3.133], rates=[30.0], rounding=1e-3)
steady = times.steady()         # fps 30; which frame is shown at each step; the pause lasts one step
steady = times.steady(fps=15)   # the same at a rate that was asked for
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import SinfusionError

# A frame that lasts as long as the median, give or take this share, lasts one step: phones record at 29.5 to 30.3.
SAME_DURATION = 0.1
# Where all frames are this close to a line, in steps, only their time stamps jitter (webcams; 33 and 50 ms in turn).
JITTER, JITTER_FRAMES = 0.25, 8
# A frame that lasts longer than this many medians is a pause: repeated so often it would teach a model stillness.
PAUSE = 5
SAME_RATE = 0.002  # rates that differ by a smaller share are the same: 29.97 and 30
UNKNOWN_FPS = 20.0  # of videos whose file does not say


@dataclass(frozen=True)
class Steady:
    """A clip on a steady grid."""

    fps: float
    order: np.ndarray | None  # (T',) which of the frames is shown at each step; None: each at its own
    note: str  # what was done, in one line; empty: nothing
    keeps_time: bool  # whether it still runs beside the clock of its source


@dataclass
class FrameTimes:
    """When the frames of a clip are shown, as its source says."""

    seconds: Sequence[float | None]  # when each is shown; None: nobody knows
    rates: Sequence[float] = ()  # frames per second as the header has it, likeliest first
    rounding: float = 0.0  # seconds to which the times are rounded
    last: float | None = None  # how long the last frame lasts, in seconds; None: as long as the others

    def steady(self, fps: float | None = None, most: int = sys.maxsize) -> Steady:
        """The frames at one rate: the median's, or `fps`. SinfusionError where they would be more than `most`.

        Frames that last equally stay as they are, to the bit. "Equally" is within a tenth of the median, which covers
        the rounding of containers and phones; and from 8 frames on, with times within a quarter of a step of a steady
        clock, however they jitter. Else each frame moves to the step nearest to its time and is shown until the next
        one; of several at one step the nearest stays. A frame that lasts longer than 5 medians is a pause, and counts
        as one. Times that are missing or repeat lie evenly between their neighbours; where time goes back
        (concatenated files), it goes on with the next step.
        """
        steps, period = self._steps()
        own = self._rate(period)
        fps = None if fps is not None and abs(fps / own - 1) < 1e-9 else fps
        pauses = steps > PAUSE
        cut = np.where(pauses, 1.0, steps)
        ratio = 1.0 if fps is None else fps / own
        if cut.sum() * ratio > most + 1:
            raise SinfusionError(
                f"{len(cut)} frames at {own:.4g} a second are {cut.sum() * ratio:.0f} at {fps or own:g}, which do not "
                "fit in memory; choose a lower --fps."
            )
        order = None if abs(ratio - 1) < SAME_RATE and (cut == 1).all() else _nearest(cut * ratio)
        if order is not None and np.array_equal(order, np.arange(len(self.seconds))):
            order = None
        keeps_time = not pauses[:-1].any() and not self._goes_back()
        lost = period * float(steps[pauses].max(initial=0))
        return Steady(fps or own, order, self._note(fps, own, order, int(pauses.sum()), lost), keeps_time)

    def _steps(self) -> tuple[np.ndarray, float]:
        """How many medians each frame lasts, (T,); and the median, or rather the mean of those near it, in seconds."""
        times = _filled(self.seconds)
        durations = np.append(np.diff(times), np.nan if self.last is None else self.last)
        known = durations[durations > 0]
        if not len(known):
            return np.ones(len(times)), 0.0
        median = float(np.median(known))
        # A clock that ticks once a frame, as AVI's, rounds nothing: what lasts two ticks is two frames.
        rounding = self.rounding if self.rounding < median / 2 else 0.0
        tolerance = max(SAME_DURATION * median, 1.01 * rounding)
        near = np.abs(durations - median) <= tolerance
        period = float(durations[near].mean()) if near.any() else median
        steps = np.where(near | ~(durations > 0), 1.0, durations / period)
        if (steps != 1).any() and len(times) >= JITTER_FRAMES and not np.isnan(times).any():
            slope, start = np.polyfit(np.arange(len(times)), times, 1)
            off = np.abs(times - (start + slope * np.arange(len(times)))).max()
            if off <= JITTER * slope and steps[-1] <= 1 + JITTER:
                return np.ones(len(times)), float(slope)
        return steps, period

    def _rate(self, period: float) -> float:
        """Frames per second: of the header, which is exact, where that agrees with the times."""
        if not period:
            return next((rate for rate in self.rates if rate > 0), UNKNOWN_FPS)
        rounding = self.rounding if self.rounding < period / 2 else 0.0
        near = period * 1e-4 + 2 * rounding / max(1, len(self.seconds) - 1)
        return next((rate for rate in self.rates if rate > 0 and abs(1 / rate - period) <= near), 1 / period)

    def _goes_back(self) -> bool:
        known = [time for time in self.seconds if time is not None]
        return any(after < before for before, after in pairwise(known))

    def _note(self, fps: float | None, own: float, order: np.ndarray | None, pauses: int, longest: float) -> str:
        parts = []
        if order is not None:
            left_out = len(self.seconds) - len(np.unique(order))
            repeated = len(order) - len(self.seconds) + left_out
            counts = [f"{repeated} repeated"] * (repeated > 0) + [f"{left_out} left out"] * (left_out > 0)
            parts.append(f"{len(self.seconds)} became {len(order)} ({', '.join(counts)})")
        if pauses:
            what = "1 pause" if pauses == 1 else f"{pauses} pauses, the longest"
            parts.append(f"{what} of {longest:.2g} s was cut to one frame" if pauses == 1 else
                         f"{what} of {longest:.2g} s, were cut to one frame each")  # fmt: skip
        if not parts:
            return ""
        rate = f"{own:.4g} frames a second resampled to {fps:.4g}" if fps else f"steady {own:.4g} frames a second"
        why = "" if fps else "its frames last differently: "
        hint = "" if fps else "; --fps for another rate"
        return f"{why}{rate}: {'; '.join(parts)}{hint}"


def _filled(seconds: Sequence[float | None]) -> np.ndarray:
    """(T,) times; those that are unknown or repeat lie evenly between their neighbours, or are NaN without both."""
    times = np.array([np.nan if time is None else time for time in seconds], np.float64)
    times[1:][times[1:] == times[:-1]] = np.nan
    known = np.flatnonzero(~np.isnan(times))
    for a, b in pairwise(known):
        if b > a + 1 and times[b] > times[a]:
            times[a : b + 1] = np.linspace(times[a], times[b], b - a + 1)
    return times


def _nearest(steps: np.ndarray) -> np.ndarray:
    """(T',) which frame is shown at each step, for frames that last so many, (T,)."""
    ends = np.cumsum(steps)
    starts = np.append(0.0, ends[:-1])
    nearest = np.floor(starts + 0.5 + 1e-6).astype(int)  # step of each frame
    clock = np.arange(max(1, int(ends[-1] + 0.5 + 1e-6)))
    first, after = (np.searchsorted(nearest, clock, side) for side in ("left", "right"))
    order = after - 1  # the last frame that has come
    for step in np.flatnonzero(after - first > 1):
        order[step] = first[step] + np.argmin(np.round(np.abs(starts[first[step] : after[step]] - step), 6))
    return order
