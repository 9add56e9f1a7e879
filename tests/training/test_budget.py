"""The clock: a training ends when it was promised to, whatever the machine does meanwhile."""

import contextlib

import numpy as np
import pytest

from sinfusion.recipe import TINY
from sinfusion.roles import PREDICTOR, PROJECTOR
from sinfusion.run import Run
from sinfusion.training import budget as budget_module
from sinfusion.training import trainer as trainer_module
from sinfusion.training.budget import Budget, Clock
from sinfusion.training.plan import MOST_STEPS, Plan
from sinfusion.training.trainer import Trainer

RECIPE = TINY.replace(filters=4, depth=2, batch_size=1)
SHARES = {PREDICTOR: 0.7, PROJECTOR: 0.3}


class Machine:
    """Stands for time: a step takes what `pace` says of the time of day. A preview takes its time now and then."""

    def __init__(self, pace):
        self.pace, self.now, self.worked = pace, 1000.0, 0.0
        self.read_at = self.now

    def monotonic(self):
        return self.now

    def work(self, steps=1.0):
        self.now += steps * self.pace(self.now - 1000.0)

    def preview(self, most):
        before = self.now
        self.work(25)
        self.now = min(self.now, before + most)

    # As TrainingLogger:
    def step(self, step, loss, rate):
        if self.now - self.read_at < 1.0:
            return None
        if self.now % 30 < self.read_at % 30:
            self.preview(1.5)
        self.read_at = self.now
        return 0.5

    attempt = contextlib.nullcontext

    def save_plan(self, plan, ended=False):
        self.journal = plan if ended else None


@pytest.fixture
def train(clip, tmp_path, monkeypatch):
    """Train both models of a run with a time budget on a machine of some pace; returns seconds, steps, last rates."""

    def make(pace, seconds, least=0):
        machine = Machine(pace)
        monkeypatch.setattr(budget_module, "time", machine)
        monkeypatch.setattr(trainer_module, "time", machine)
        monkeypatch.setattr(Trainer, "save", lambda self: None)

        def step(self):
            machine.work()
            self.done += 1

        monkeypatch.setattr(Trainer, "step", step)
        models = {role.name: {"steps": 0, "minutes": 1, "sigma_data": [0.1] * 3} for role in SHARES}
        run = Run(tmp_path / "run", "video", RECIPE, clip, 20.0, 0, models).to("cpu", "fp32")
        budget = Budget(seconds, 0.0, machine.now)
        trainers = []
        for role, share in SHARES.items():
            trainer = Trainer(run, role, MOST_STEPS, budget=budget)
            later = [SHARES[PROJECTOR]] if role is PREDICTOR else []
            trainer.train(machine, clock=Clock(budget, share, later, min_steps=least))
            machine.preview(max(2.0, 0.1 * share * seconds))
            trainers.append(trainer)
            assert machine.journal is trainer.plan
        for trainer in trainers:  # at the end of their schedules, down a slope without steps
            last = trainer.plan.progress(np.arange(trainer.total - 10, trainer.total))
            assert trainer.done == trainer.total and 1 - last[-1] <= 0.05 + 1e-9
        return machine.now - 1000.0, [trainer.total for trainer in trainers]

    return make


PACES = {
    "steady": lambda t: 0.03,
    "fast": lambda t: 0.0003,
    "slow": lambda t: 0.5,
    "busy at first": lambda t: 0.3 if t < 10 else 0.03,
    "busy later": lambda t: 0.03 if t < 20 else 0.2,
    "busy now and then": lambda t: 0.03 if t % 14 < 7 else 0.15,
    "stopped for half a minute": lambda t: 30.0 if 20 <= t < 21 else 0.03,
    "stopped for half a minute near the end": lambda t: 30.0 if 50 <= t < 51 else 0.03,
    "a slow first step": lambda t: 4.0 if t < 1 else 0.03,
}


@pytest.mark.parametrize("seconds", [60, 600])
@pytest.mark.parametrize("pace", PACES)
def test_a_training_ends_when_it_was_promised_to(train, pace, seconds):
    used, steps = train(PACES[pace], seconds)
    late = 20.0 if (pace, seconds) == ("stopped for half a minute near the end", 60) else 0.0
    assert -0.05 * seconds - 1 <= used - seconds <= max(10, 0.05 * seconds) + late
    assert min(steps) >= 20


def test_time_is_shared_as_planned_and_a_pause_is_shared_too(train):
    _, (predictor, projector) = train(PACES["steady"], 60)
    assert predictor / projector == pytest.approx(0.7 / 0.3, rel=0.15)
    _, (predictor, projector) = train(PACES["stopped for half a minute"], 60)
    assert predictor > 700 and projector > 90


def test_a_patient_training_goes_on_after_its_time(train):
    used, steps = train(PACES["slow"], 60, least=200)
    assert steps == [200, 200] and used > 190


def test_what_is_left_of_a_training_that_goes_on_further_is_shared_like_any_other():
    budget = Budget(900, used=600)  # ten minutes, then five more
    first = Clock(budget, 0.7 * 300 / 900, [0.3 * 300 / 900], start_progress=2 / 3)
    assert first.seconds(2 / 3) == pytest.approx(0.7 * 300, rel=0.02)
    assert first.seconds(5 / 6) == pytest.approx(300 * 0.35 / 0.65, rel=0.02)


def test_a_late_end_of_a_patient_training_is_told_once():
    told = []
    clock = Clock(Budget(10), 1.0, min_steps=10_000, on_overrun=told.append)
    plan = Plan.even(100)
    clock.speed(0, now=clock.budget.started - 60.0)
    assert clock.total(50, plan) == clock.total(60, plan) == 10_000 and len(told) == 1 and told[0] > 1000
