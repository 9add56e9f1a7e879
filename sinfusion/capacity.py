"""What this machine can train in the time given: its speed, the largest frames that get there, and whether any do.

How many steps a model needs before what it makes is worth watching, for several clips and sizes, was measured:
benchmarks/results/steps-needed.json, made by benchmarks/steps_needed.py.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .recipe import Recipe
from .roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, Role
from .run import Run
from .trainer import Trainer

# Steps of `tiny` after which what a model makes is clean and moves as the clip does: worth watching.
WATCHABLE = {PREDICTOR.name: 1000, PROJECTOR.name: 500, INTERPOLATOR.name: 500, IMAGE.name: 1000}
GOOD = 2  # times as many steps: objects keep their shapes for longer. Also what a machine that gets busy can lose

# Longer side of the frames, depth and filters to choose from, each costlier than the one before.
CHOICES = (
    (48, 12, 32), (64, 12, 32), (80, 12, 32), (96, 12, 32), (112, 12, 32), (128, 12, 32), (160, 12, 32), (192, 12, 32),
    (224, 12, 32), (256, 12, 32), (256, 12, 48), (256, 16, 48),
)  # fmt: skip
MEASURED_SIZE = (36, 64)  # height and width of the frames of a step that is measured
MEASURING_SECONDS = 1.0
BUSY = 0.5  # share of the cores that may go to other work without that being taken to last


def watchable_steps(recipe: Recipe, role: Role) -> int:
    """Steps after which what a model makes is worth watching; 0 where that was not measured."""
    return WATCHABLE[role.name] if recipe.name == "tiny" else 0


@dataclass(frozen=True)
class Speed:
    """How fast this machine trains one recipe, measured on small frames."""

    recipe: Recipe
    seconds: float  # of all threads together, that a step takes
    share: float  # of the threads' time that the machine gave, in (0, 1]
    threads: int

    def step(self, size: tuple[int, int], recipe: Recipe, share: float | None = None) -> float:
        """Seconds that a step on frames of `size` will take; share: of the cores; None: as measured."""
        pixels = size[0] * size[1] / (MEASURED_SIZE[0] * MEASURED_SIZE[1])
        # Measured: 2.0 times from 32 to 48 filters, 2.5 to 64, of both kinds of dense convolutions.
        network = recipe.depth / self.recipe.depth * (recipe.filters / self.recipe.filters) ** 1.5
        return self.seconds * pixels * network / self.threads / (self.share if share is None else share)

    @property
    def lasting_share(self) -> float:
        """The share of the cores to plan with: a load that takes up to half of them may be over soon."""
        return min(1.0, self.share / BUSY)


def measure_speed(recipe: Recipe, device: torch.device, dtype: torch.dtype, graph: bool) -> Speed:
    """Train a few steps on small random frames, in about a second."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, *MEASURED_SIZE, 3), np.uint8)
    spreads = [0.5] * recipe.max_frame_offset
    models = {PREDICTOR.name: {"steps": 1, "minutes": None, "spreads": spreads}}
    run = Run(Path(), "video", recipe, frames, 20.0, 0, models, device=device, dtype=dtype, graph=graph)
    trainer = Trainer(run, PREDICTOR, 10_000)
    walls: list[float] = []
    works: list[float] = []
    began = time.monotonic()
    while len(walls) < 6 or (time.monotonic() - began < MEASURING_SECONDS and len(walls) < 1000):
        wall, work = time.monotonic(), time.process_time()
        trainer.step()
        walls.append(time.monotonic() - wall)
        works.append(time.process_time() - work)
    threads = torch.get_num_threads()
    # The first steps record; of the others a typical one's work, and what the machine gave for all of them.
    work, share = float(np.median(works[2:])), sum(works[2:]) / (sum(walls[2:]) * threads)
    return Speed(recipe, max(work, 1e-6), min(1.0, max(share, 0.01)), threads)


@dataclass(frozen=True)
class Outlook:
    """What a training on frames of one size will come to."""

    size: tuple[int, int]  # height and width
    recipe: Recipe
    step: float  # seconds that a step takes on a machine as busy as this one is now
    reached: float  # the least of all models' steps in the time given, in units of those worth watching
    minutes: float  # after which all models are worth watching

    def __str__(self) -> str:
        height, width = self.size
        speed = f"{1 / self.step:.1f}" if self.step > 0.02 else f"{1 / self.step:.0f}"
        return f"frames of {width}x{height}, about {speed} steps a second"


def outlook(
    speed: Speed,
    size: tuple[int, int],
    recipe: Recipe,
    minutes: Mapping[str, float],  # of each model, by the name of its role
    share: float | None = None,
) -> Outlook:
    """What models of `recipe` on frames of `size` will come to; share: of the cores; None: as measured."""
    step = speed.step(size, recipe, share)
    parts = {name: 60 * given / step / WATCHABLE[name] for name, given in minutes.items()}
    least = min(parts.values())
    return Outlook(size, recipe, speed.step(size, recipe), least, sum(minutes.values()) / least)


def choose(
    speed: Speed,
    native: tuple[int, int],  # height and width of the input
    recipe: Recipe,
    fixed: Collection[str],  # names of settings that the user made
    minutes: Mapping[str, float],  # of each model, by the name of its role
) -> Outlook:
    """The largest frames, and network, with which all models become good in the time given.

    Where none become good: the largest worth watching; where none are even that: the smallest.
    """
    found = []
    for side, depth, filters in CHOICES:
        scale = min(1.0, side / max(native))
        size = (max(1, round(native[0] * scale)), max(1, round(native[1] * scale)))
        wanted = {name: value for name, value in (("depth", depth), ("filters", filters)) if name not in fixed}
        found.append(outlook(speed, size, recipe.replace(**wanted), minutes, speed.lasting_share))
    for least in (GOOD, 1):
        if reached := [choice for choice in found if choice.reached >= least]:
            return reached[-1]
    return found[0]
