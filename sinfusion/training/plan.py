"""How far a training is at each of its steps: a plan, as data.

Step n is a function of (seed, n, plan). A training of a fixed number of steps has a plan of one segment; one by the
clock gets a new segment whenever the machine turns out to be faster or slower than expected (`budget.Clock`). The
segments are stored in every checkpoint and in plan.jsonl, so that a training can be resumed or repeated to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import SinfusionError
from ..files import atomic_write

JOURNAL = "plan.jsonl"
MOST_STEPS = 10**7  # the total of a plan while the speed is not known yet


class Segment(NamedTuple):
    """From `step` on, at `progress`, a training advances evenly so that it ends after `total` steps."""

    step: int
    progress: float
    total: int


@dataclass
class Plan:
    """The progress of a training at each step, from 0 to 1: linear in each segment."""

    segments: list[Segment]

    @classmethod
    def even(cls, total: int) -> Plan:
        """A number of steps, each as much progress as any other."""
        return cls([Segment(0, 0.0, total)])

    @classmethod
    def parse(cls, rows: Sequence[Sequence[float]]) -> Plan:
        """From its stored form. Raises ValueError, TypeError or OverflowError for what is no plan."""
        segments = [Segment(int(step), float(progress), int(total)) for step, progress, total in rows]
        steps = [segment.step for segment in segments]
        if not segments or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"a plan of segments from {steps[:8]}")
        if not all(0 <= segment.progress <= 1 and segment.step <= segment.total < 10**8 for segment in segments):
            raise ValueError("a plan that ends before it begins")
        return cls(segments)

    @property
    def total(self) -> int:
        """Steps after which the training ends, as far as is known."""
        return self.segments[-1].total

    def progress(self, step: np.ndarray) -> np.ndarray:
        """(n,) float64 in [0, 1]: how far the training is before each of `step` (n,) int64."""
        starts, at, totals = (np.array(column) for column in zip(*self.segments, strict=True))
        segment = np.searchsorted(starts, step, side="right") - 1
        share = (step - starts[segment]) / np.maximum(totals - starts, 1)[segment]
        return np.minimum(at[segment] + (1 - at[segment]) * share, 1.0)

    def at(self, step: int) -> float:
        """The progress before one step."""
        return float(self.progress(np.array([step]))[0])

    def end_after(self, total: int, step: int, progress: float | None = None) -> None:
        """From `step` on, end after `total` steps. progress: where to go on from; None: where `step` is."""
        segment = Segment(step, self.at(step) if progress is None else progress, total)
        self.segments = [before for before in self.segments if before.step < step] + [segment]


def stored_plan(metadata: dict[str, str], checkpoint: Path) -> Plan | None:
    """The plan in the metadata of a checkpoint's weights file; None in those of older versions."""
    try:
        rows = json.loads(metadata["sinfusion"])["plan"]
        return Plan.parse(rows) if rows else None
    except KeyError:
        return None
    except (ValueError, TypeError, OverflowError) as error:
        raise SinfusionError(f"{checkpoint} is damaged: {error!s:.100}") from error


def write_journal(folder: Path, plan: Plan, ended: bool) -> None:
    """Write plan.jsonl, a segment a line, for people and for `read_journal`. ended: the training is over."""
    rows: list[dict[str, float]] = [segment._asdict() for segment in plan.segments]
    if ended:
        rows.append({"ended": plan.total})
    with atomic_write(folder / JOURNAL) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_journal(folder: Path) -> Plan | None:
    """The plan of a training that has ended; None where there is none."""
    try:
        rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
        plan = Plan.parse([(row["step"], row["progress"], row["total"]) for row in rows[:-1]])
        return plan if rows[-1]["ended"] == plan.total else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return None
