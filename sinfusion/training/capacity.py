"""What this machine can train in the time given: its speed, the largest frames that get there, and whether any do.

How many steps a model needs before what it makes is worth watching, for several clips and sizes, was measured:
benchmarks/results/steps-needed.json, made by benchmarks/steps_needed.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..media import LONGER_SIDE
from ..names import pasteable
from ..pixels import fit_longer_side
from ..precision import choose_dtype
from ..recipe import LARGE_CROP, Recipe
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, ROLES
from ..run import Run
from .request import TINY_MINUTES, Compute, TrainingRequest, divide_minutes, roles_for
from .trainer import Trainer

# Steps of `tiny` on frames of 64 and of 128 pixels after which what a model makes is clean and moves as the clip does,
# with crops of nearly the whole frame (LARGE_CROP); of smaller crops it takes as many pixels. Measured for Predictor
# and Projector; an image model is taken for a Projector, an Interpolator needs less.
WATCHABLE = {
    PREDICTOR.name: (1000, 1000),
    PROJECTOR.name: (500, 1000),
    INTERPOLATOR.name: (500, 500),
    IMAGE.name: (500, 1000),
}
GOOD = 1.75  # times as many steps: objects keep their shapes for longer; and a machine that gets busy may lose so much

SIDES = (48, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # longer sides of frames to choose from
MEASURED_SIZE = (36, 64)  # height and width of the frames of a step that is measured
MEASURING_SECONDS = 1.0
ENOUGH_FRAMES = max(role.least_frames for role in ROLES.values())
BUSY = 0.35  # share of the cores that is enough to plan with all of them: other work may be over soon


def watchable_steps(recipe: Recipe, role: str, size: tuple[int, int]) -> int:
    """Steps of a model on frames of `size` after which what it makes is worth watching; 0 where nobody measured it."""
    if recipe.name != "tiny":
        return 0
    at_64, at_128 = WATCHABLE[role]
    frame = recipe.frame_size(ROLES[role], *size)
    of_large_crops = at_64 + (at_128 - at_64) * max(0.0, max(frame) / 64 - 1)
    large = recipe.replace(crop=LARGE_CROP, unconditional_crop=LARGE_CROP, projector_span=0.0)
    return round(of_large_crops * crop_pixels(large, role, frame) / crop_pixels(recipe, role, size))


def crop_pixels(recipe: Recipe, role: str, size: tuple[int, int]) -> int:
    """Pixels of a crop of frames of `size` (height, width)."""
    height, width = recipe.crop_size(ROLES[role], *size)
    return height * width


def shortfall(run: Run) -> str | None:
    """A sentence on the models that were trained to their end and got too few steps, with what would do; or None."""
    short, times = [], [1.0]
    for name in run.models:
        done, least = run.steps_done(name), watchable_steps(run.recipe, name, run.size)
        if run.finished(name) and done < least:
            short.append(f"{name} {done} of about {least}")
            times.append(least / done)
    if not short:
        return None
    minutes = math.ceil((max(times) - 1) * run.seconds_used() / 60) or 1
    return (
        f"too few steps for results worth watching ({', '.join(short)}); go on with: "
        f"sinfusion train {pasteable(run.path)} --minutes {minutes}"
    )


@dataclass(frozen=True)
class Speed:
    """How fast this machine trains one recipe, measured on small frames."""

    recipe: Recipe
    seconds: float  # that a step of the Predictor takes, of all threads together
    share: float  # of the threads' time that they got from the machine, in (0, 1]
    threads: int

    def step(self, size: tuple[int, int], share: float | None = None, role: str = PREDICTOR.name) -> float:
        """Seconds that a model's step on frames of `size` will take; share: of the cores; None: as measured."""
        pixels = crop_pixels(self.recipe, role, size) / crop_pixels(self.recipe, PREDICTOR.name, MEASURED_SIZE)
        return self.seconds * pixels / self.threads / (self.share if share is None else share)

    @property
    def lasting_share(self) -> float:
        """The share of the cores to plan with: a load that takes more than half of them may still be over soon."""
        return min(1.0, self.share / BUSY)


def measure_speed(recipe: Recipe, device: torch.device, dtype: torch.dtype, graph: bool) -> Speed:
    """Train a few steps on small random frames, in about a second."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, *MEASURED_SIZE, 3), np.uint8)
    sigma_data = [0.5] * recipe.max_frame_offset
    models = {PREDICTOR.name: {"steps": 1, "minutes": None, "sigma_data": sigma_data}}
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
    # The first steps capture graphs. Of the others: the work of a typical one, and the share that all of them got.
    work, share = float(np.median(works[2:])), sum(works[2:]) / (sum(walls[2:]) * threads)
    return Speed(recipe, max(work, 1e-6), min(1.0, max(share, 0.01)), threads)


@dataclass(frozen=True)
class Outlook:
    """What a training on frames of one size will come to."""

    size: tuple[int, int]  # height and width
    step: float  # seconds that a step takes on a machine as busy as this one is now
    reached: float  # the least of all models' steps in the time given, in units of those worth watching
    minutes: float  # after which all models are worth watching, on a machine as busy as now

    def __str__(self) -> str:
        height, width = self.size
        return f"frames of {width}x{height}, about {1 / self.step:.2g} steps a second"


def outlook(speed: Speed, size: tuple[int, int], minutes: Mapping[str, float]) -> Outlook:
    """What models will come to on frames of `size`; minutes: of each, by the name of its role."""

    def reached(share: float | None) -> float:
        """The least of all models' steps, in units of those worth watching."""
        return min(
            60 * given / speed.step(size, share, name) / watchable_steps(speed.recipe, name, size)
            for name, given in minutes.items()
        )

    needed = sum(minutes.values()) / reached(None)
    return Outlook(size, speed.step(size), reached(speed.lasting_share), needed)


def choose(speed: Speed, native: tuple[int, int], minutes: Mapping[str, float]) -> Outlook:
    """The largest frames with which all models become good in the time given, of an input of size `native`.

    Where none do: the largest worth watching; where none are even that: the smallest.
    """
    sizes = dict.fromkeys(fit_longer_side(native, side) for side in SIDES)
    found = [outlook(speed, size, minutes) for size in sizes]
    for least in (GOOD, 1):
        if reached := [choice for choice in found if choice.reached >= least]:
            return reached[-1]
    return found[0]


def fit_frames(request: TrainingRequest, compute: Compute, log: Callable[[str], None]) -> int:
    """The longer side of the frames, where the source says neither that nor a size.

    With `tiny` the largest that this machine has the time for; a line says what the training will come to.
    """
    recipe, _ = request.resolve(compute.torch_device)
    if recipe.name != "tiny":
        return LONGER_SIDE
    source, minutes = request.source, request.minutes
    native = source.probe()
    # How many frames there really are, only reading them tells.
    roles = roles_for(native.kind, max(ENOUGH_FRAMES, native.frames), request.tasks)
    times = divide_minutes(TINY_MINUTES if minutes is None else minutes, roles)
    asked = source.target(native.size)
    if minutes is None and (asked or max(native.size) <= SIDES[0]):
        return LONGER_SIDE  # nothing to choose
    dtype = choose_dtype(compute.precision, compute.torch_device)
    speed = measure_speed(recipe, compute.torch_device, dtype, compute.graph is not False)
    found = choose(speed, native.size, times) if asked is None else outlook(speed, asked, times)
    if minutes is not None:
        log(_forecast(found, minutes, asked is not None, request.patient))
    return max(found.size)


def _forecast(found: Outlook, minutes: float, asked: bool, patient: bool) -> str:
    """What a training by the clock will come to, in a line. asked: the user chose the size."""
    if found.reached >= 1:
        why = "as asked for" if asked else f"as large as this machine can train in {minutes:g} minutes"
        return f"{found}: {why}"
    far = f"{found}: in {minutes:g} minutes this machine does not get to where results are worth watching"
    if patient:
        return f"{far}, so it takes about {math.ceil(found.minutes)}"
    smaller = " or smaller frames (--max-side 64)" if asked and max(found.size) > 64 else ""
    return f"{far}; --minutes {math.ceil(found.minutes)}{smaller} would do"
