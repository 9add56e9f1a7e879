"""The time that a training may take, and the clock that says after how many steps a model has to end."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .plan import Plan

SPEED_SECONDS = 2.0  # the speed is measured over at least so many
SHUTDOWN_STEPS = 40  # a model takes as long as so many steps, by estimate, to be saved and shown at its end
COOLDOWN_STEPS = 20  # of a model that no time is left for, so that its learning rate still comes down


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
    """Says after how many steps a model has to end, from the time that is left and the speed of its last steps."""

    def __init__(
        self,
        budget: Budget,
        share: float,  # of this model in the time of all, which is 1
        later_shares: Sequence[float] = (),  # of the models after it
        start_progress: float = 0.0,  # of this model when the budget began: above 0 where it is trained further
        min_steps: int = 0,  # that it gets even if there is no time for them
        on_overrun: Callable[[float], object] = lambda _: None,  # called once, with the seconds beyond the budget
    ):
        self.budget, self.share, self.later_share = budget, share, sum(later_shares)
        self.start_progress, self.min_steps, self.on_overrun = start_progress, min_steps, on_overrun
        self.models = 1 + len(later_shares)
        self.shutdown_seconds = 1.0  # that a model takes at its end
        self._looks: deque[tuple[float, int]] = deque()  # time and steps done

    def speed(self, step: int, now: float | None = None) -> float | None:
        """Seconds that one of the last steps took, `step` of them being done now; None at first.

        The median between the looks of some seconds, so that neither a pause nor a preview counts as slowness.
        """
        now = time.monotonic() if now is None else now
        self._looks.append((now, step))
        span = SPEED_SECONDS + 0.1 * (now - self.budget.started)
        while len(self._looks) > 4 and now - self._looks[1][0] > span:
            self._looks.popleft()
        paces = [(t - before) / (n - first) for (before, first), (t, n) in pairwise(self._looks) if n > first]
        return statistics.median(paces) if paces else None

    def total(self, step: int, plan: Plan) -> int | None:
        """After how many steps to end, when `step` of them are done; None while no speed is known."""
        speed = self.speed(step)
        if speed is None:
            return None
        self.shutdown_seconds = min(SHUTDOWN_STEPS * speed, max(2.0, 0.1 * self.share * self.budget.seconds))
        cooldown = min(COOLDOWN_STEPS, plan.total - step, int(max(SPEED_SECONDS, self.left_with_grace()) / speed))
        total = step + max(1, cooldown, int(self.seconds(plan.at(step)) / speed))
        if total < 0.9 * self.min_steps and step > COOLDOWN_STEPS:
            self.on_overrun((self.min_steps - total) * speed)
            self.on_overrun = lambda _: None
        return max(total, self.min_steps)

    def left(self) -> float:
        """Seconds until the promised end."""
        return self.budget.seconds - self.budget.spent() - self.models * self.shutdown_seconds

    def left_with_grace(self) -> float:
        """Seconds until an end that is later than promised, but not too late."""
        return self.left() + 0.6 * self.budget.grace

    def seconds(self, progress: float) -> float:
        """What is left for this model at this progress: all that is left, divided as planned."""
        ahead = self.share * (1 - progress) / (1 - self.start_progress)
        # Where a pause took nearly all of it, use a part of the grace, so that schedules still come to their ends.
        least = min(self.left_with_grace(), 0.25 * (ahead + self.later_share) * self.budget.seconds)
        return max(self.left(), least, 0.0) * ahead / max(ahead + self.later_share, 1e-9)
