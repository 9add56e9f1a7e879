"""How far a training is at each of its steps: a plan, as data, and the clock that makes one.

Step n is a function of (seed, n, plan). A training of a fixed number of steps has a plan of one piece; one by the clock
gets a new piece whenever the machine turns out to be faster or slower than thought. The pieces are stored in every
checkpoint and in plan.jsonl, so that a training can be resumed or repeated to the bit.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import SinfusionError
from ..files import atomic_write

JOURNAL = "plan.jsonl"
SPEED_SECONDS = 2.0  # over which at least the speed is measured
CLOSING_STEPS = 40  # as long as so many steps, by estimate, a model takes to be saved and shown at its end
LANDING_STEPS = 20  # of a model that no time is left for
MOST_STEPS = 10**7  # planned while no speed is known


class Piece(NamedTuple):
    """From `step` on, at `progress`, a training advances evenly so that it ends after `total` steps."""

    step: int
    progress: float
    total: int


@dataclass
class Plan:
    """The progress of a training at each step, from 0 to 1: linear in pieces."""

    pieces: list[Piece]

    @classmethod
    def of(cls, total: int) -> Plan:
        """A number of steps, evenly."""
        return cls([Piece(0, 0.0, total)])

    @classmethod
    def parse(cls, rows: Sequence[Sequence[float]]) -> Plan:
        """From its stored form. Raises ValueError, TypeError or OverflowError where that is no plan."""
        pieces = [Piece(int(step), float(progress), int(total)) for step, progress, total in rows]
        steps = [piece.step for piece in pieces]
        if not pieces or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"a plan of pieces from {steps[:8]}")
        if not all(0 <= piece.progress <= 1 and piece.step <= piece.total < 10**8 for piece in pieces):
            raise ValueError("a plan that ends before it begins")
        return cls(pieces)

    @property
    def total(self) -> int:
        """Steps after which the training ends, as far as is known."""
        return self.pieces[-1].total

    def progress(self, step: np.ndarray) -> np.ndarray:
        """(n,) float64 in [0, 1]: how far the training is before each of `step` (n,) int64."""
        starts, at, totals = (np.array(column) for column in zip(*self.pieces, strict=True))
        piece = np.searchsorted(starts, step, side="right") - 1
        share = (step - starts[piece]) / np.maximum(totals - starts, 1)[piece]
        return np.minimum(at[piece] + (1 - at[piece]) * share, 1.0)

    def at(self, step: int) -> float:
        """The progress before one step."""
        return float(self.progress(np.array([step]))[0])

    def end_after(self, total: int, step: int, progress: float | None = None) -> None:
        """From `step` on, end after `total` steps. progress: where to go on from; None: where `step` is."""
        piece = Piece(step, self.at(step) if progress is None else progress, total)
        self.pieces = [before for before in self.pieces if before.step < step] + [piece]


def planned(metadata: dict[str, str], checkpoint: Path) -> Plan | None:
    """The plan that the weights file of a checkpoint tells of; None in those of older versions."""
    try:
        rows = json.loads(metadata["sinfusion"])["plan"]
        return Plan.parse(rows) if rows else None
    except KeyError:
        return None
    except (ValueError, TypeError, OverflowError) as error:
        raise SinfusionError(f"{checkpoint} is damaged: {error!s:.100}") from error


def write_journal(folder: Path, plan: Plan, ended: bool) -> None:
    """The plan so far as plan.jsonl, a piece a line, for people and for `read_journal`."""
    rows: list[dict[str, float]] = [piece._asdict() for piece in plan.pieces]
    if ended:
        rows.append({"ended": plan.total})
    with atomic_write(folder / JOURNAL) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_journal(folder: Path) -> Plan | None:
    """The plan of a training that came to its end; None where there is none."""
    try:
        rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
        plan = Plan.parse([(row["step"], row["progress"], row["total"]) for row in rows[:-1]])
        return plan if rows[-1]["ended"] == plan.total else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None


@dataclass
class Budget:
    """The time that the models of a run have together, over all sessions."""

    seconds: float  # in all, `used` among them
    used: float = 0.0  # by earlier sessions
    started: float = field(default_factory=time.monotonic)

    def spent(self) -> float:
        """Seconds used until now."""
        return self.used + time.monotonic() - self.started

    @property
    def grace(self) -> float:
        """Seconds by which a training may end later than promised."""
        return max(10.0, 0.05 * self.seconds)


class Clock:
    """Says after how many steps a model has to end, of the time that is left and the speed of its last steps."""

    def __init__(
        self,
        budget: Budget,
        share: float,  # of this model in the time of all, which is 1
        later: Sequence[float] = (),  # those of the models after it
        begun: float = 0.0,  # its progress when the budget began: of a finished model that is trained further
        least: int = 0,  # steps that it gets even if there is no time for them
        late: Callable[[float], object] = lambda _: None,  # told once, of the seconds that this will then take longer
    ):
        self.budget, self.share, self.later, self.least = budget, share, sum(later), least
        self.begun = begun
        self.on_late = late
        self.models = 1 + len(later)
        self.closing = 1.0  # seconds that a model takes at its end
        self._seen: deque[tuple[float, int]] = deque()

    def speed(self, step: int) -> float | None:
        """Seconds that one of the last steps took, `step` of them being done now; None at first.

        The median between the looks of some seconds, so that neither a pause nor a preview counts as slowness.
        """
        now = time.monotonic()
        self._seen.append((now, step))
        span = SPEED_SECONDS + 0.1 * (now - self.budget.started)
        while len(self._seen) > 4 and now - self._seen[1][0] > span:
            self._seen.popleft()
        paces = [(t - before) / (n - first) for (before, first), (t, n) in pairwise(self._seen) if n > first]
        return statistics.median(paces) if paces else None

    def total(self, step: int, plan: Plan) -> int | None:
        """After how many steps to end, when `step` of them are done; None while no speed is known."""
        speed = self.speed(step)
        if speed is None:
            return None
        self.closing = min(CLOSING_STEPS * speed, max(2.0, 0.1 * self.share * self.budget.seconds))
        landing = min(LANDING_STEPS, plan.total - step, int(max(SPEED_SECONDS, self.late()) / speed))
        total = step + max(1, landing, int(self.seconds(plan.at(step)) / speed))
        if total < 0.9 * self.least and step > LANDING_STEPS:
            self.on_late((self.least - total) * speed)
            self.on_late = lambda _: None
        return max(total, self.least)

    def left(self) -> float:
        """Seconds until the promised end."""
        return self.budget.seconds - self.budget.spent() - self.models * self.closing

    def late(self) -> float:
        """Seconds until an end that is later, but not too late."""
        return self.left() + 0.6 * self.budget.grace

    def seconds(self, progress: float) -> float:
        """What is left for this model at this progress, all that is left being divided as planned."""
        ahead = self.share * (1 - progress) / (1 - self.begun)
        # Where a pause took nearly all of it, a part of the grace is used, so that schedules still come to their ends.
        least = min(self.late(), 0.25 * (ahead + self.later) * self.budget.seconds)
        return max(self.left(), least, 0.0) * ahead / max(ahead + self.later, 1e-9)
