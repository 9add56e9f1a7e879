"""What a training is asked for: a new run, or more of one that is there; and where to compute it.

A request is checked when it is made: what is wrong with it is told in a sentence, before any work.

request = TrainingRequest(source=Source("fish.mp4"), minutes=5)
recipe, minutes = request.resolve(Compute("cpu").torch_device)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from ..errors import SettingError, SinfusionError, option_name
from ..media import Source
from ..names import as_path, name_after
from ..pixels import check_size
from ..precision import choose_device, choose_dtype
from ..recipe import FAST, PAPER, RECIPES, RENAMED, SETTINGS, TINY, Recipe
from ..roles import IMAGE, ROLES, TASKS, Role
from ..run import Run
from ..seeds import check_seed

# How the time of a run is divided between its models, in relative shares.
SHARES = {"image": 1.0, "predictor": 0.6, "projector": 0.25, "interpolator": 0.35}

STEPS = tuple(f"{name}_steps" for name in ROLES)  # settings of a recipe

TINY_MINUTES = 10.0  # of `tiny` where nothing else is asked for


@dataclass(frozen=True)
class Compute:
    """Where to compute and how. Raises SinfusionError for a device that is not there, or a precision that is none."""

    device: str = "auto"  # auto, cpu, cuda, or cuda:1 of several GPUs
    precision: str = "auto"  # auto, bf16, fp32
    graph: bool | None = None  # replay kernels; None: yes
    notes: tuple[str, ...] = ()  # sentences about where a run that goes on was trained before

    def __post_init__(self) -> None:
        choose_dtype(self.precision, self.torch_device)

    @property
    def torch_device(self) -> torch.device:
        """The device; auto is CUDA where there is a GPU."""
        return choose_device(self.device)

    def apply(self, run: Run) -> Run:
        """The run, computing like this."""
        return run.to(self.torch_device, self.precision, self.graph is not False)

    def record(self) -> dict[str, Any]:
        """What run.json keeps of it: `Run.trained_with`."""
        dtype = choose_dtype(self.precision, self.torch_device)
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        return {"device": self.torch_device.type, "precision": precision, "graph": self.graph is not False}

    def continuing(self, run: Run) -> Compute:
        """As the run was trained before, if nothing else is asked for and the machine can; notes say what differs."""
        before = run.trained_with
        if before is None:
            return self
        absent = before["device"] == "cuda" and not torch.cuda.is_available()
        device = self.device if self.device != "auto" else "cpu" if absent else before["device"]
        chosen, precision = choose_device(device), self.precision
        has_bf16 = choose_dtype("auto", chosen) == torch.bfloat16
        if precision == "auto":
            precision = "fp32" if chosen.type != before["device"] and not has_bf16 else before["precision"]
        compute = Compute(device, precision, before["graph"] if self.graph is None else self.graph)
        note = None
        if (now := compute.record()) != before:
            why = "there is no GPU here:" if absent and self.device == "auto" else "as asked for,"
            note = f"it was trained on {_compute_words(before)}; {why} it goes on on {_compute_words(now)}"
        elif precision == "bf16" and not has_bf16 and self.precision == "auto":
            note = "it was trained in bf16, and goes on so; here fp32 would be faster: --precision fp32"
        return Compute(device, precision, compute.graph, () if note is None else (note,))


def _compute_words(record: Mapping[str, Any]) -> str:
    graph = "" if record["graph"] else " without graphs"
    return f"{record['device']} in {record['precision']}{graph}"


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A new run. Raises SinfusionError for what makes no sense, before anything is read."""

    source: Source
    out: Path | None = None  # the run folder; None: runs/<name of the source>
    recipe: str | Recipe | None = None  # None: fast on a GPU, tiny on a CPU
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the recipe, by name
    minutes: float | None = None  # for all models together
    steps: int | None = None  # of each model
    tasks: tuple[str, ...] | None = None  # of `roles.TASKS`; None: generate, and nothing for an image
    seed: int = 0
    overwrite: bool = False
    patient: bool = False  # go on after `minutes` until results are worth watching
    receptive: int | None = None  # pixels across that the network sees, in place of a depth

    def __post_init__(self) -> None:
        _check_length(self.minutes, self.steps)
        self._check_one_length()
        if self.receptive is not None and "depth" in self.settings:
            raise SettingError("{depth} and {receptive} both say how deep the network is; give one of them.")
        object.__setattr__(self, "seed", check_seed(self.seed))  # a plain int
        _check_tasks(self.tasks)
        if self.source.size is not None:
            check_size(self.source.size)
        self.resolve(torch.device("cpu"))

    def _check_one_length(self) -> None:
        """SinfusionError where two settings say how long to train.

        A Recipe does where its steps are not those of the preset that it came from.
        """
        own = {}
        if isinstance(self.recipe, Recipe):
            preset = RECIPES.get(self.recipe.name, PAPER)
            own = {name: getattr(self.recipe, name) for name in STEPS}
            own = {name: value for name, value in own.items() if value != getattr(preset, name)}
        own |= {name: self.settings[name] for name in STEPS if name in self.settings}
        given = {"minutes": self.minutes, "steps": self.steps, **own}
        said = [name for name, value in given.items() if value is not None]
        if len(said) > 1 and ("minutes" in said or "steps" in said):
            raise SinfusionError(
                f"{option_name(said[0])} and {option_name(said[1])} both say how long to train; give one of them."
            )

    def resolve(self, device: torch.device) -> tuple[Recipe, float | None]:
        """The recipe with the settings that were asked for; and the minutes, or None where steps decide."""
        if isinstance(self.recipe, Recipe):
            base = self.recipe
        elif self.recipe is None:
            base = FAST if device.type == "cuda" else TINY
        elif isinstance(self.recipe, str) and self.recipe in RECIPES:
            base = RECIPES[self.recipe]
        else:
            raise SinfusionError(f"recipe must be one of {', '.join(RECIPES)}, or a Recipe, not {self.recipe!r:.40}.")
        unknown = sorted(set(self.settings) - SETTINGS | ({"name"} & set(self.settings)))
        if unknown:
            renamed = RENAMED.get(unknown[0])
            hint = f"it is called {renamed!r} now" if renamed else "sinfusion train --help-recipe lists them"
            raise SinfusionError(f"a recipe has no setting {unknown[0]!r}; {hint}.")
        steps = {} if self.steps is None else dict.fromkeys(STEPS, self.steps)
        asked = {**self.settings, **steps}
        timed = base is TINY and not isinstance(self.recipe, Recipe) and not set(STEPS) & set(asked)
        recipe = base.replace(**asked)
        if self.receptive is not None:
            recipe = recipe.with_receptive(self.receptive)
        return recipe, TINY_MINUTES if self.minutes is None and timed else self.minutes

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out if self.out is not None else Path("runs") / name_after(as_path(self.source_name))

    @property
    def source_name(self) -> str:
        """What run.json says of where the frames came from."""
        value = self.source.value
        return os.fspath(value) if isinstance(value, str | os.PathLike) else "frames"


@dataclass(frozen=True, kw_only=True)
class ContinuationRequest:
    """More training of a run that is there: to its planned end or, where something is asked for, beyond it."""

    folder: Path
    minutes: float | None = None  # for all models together, or for those that `tasks` adds
    steps: int | None = None  # likewise, of each
    tasks: tuple[str, ...] | None = None  # add the models of these
    patient: bool = False  # go on after `minutes` until results are worth watching

    def __post_init__(self) -> None:
        _check_length(self.minutes, self.steps)
        if self.minutes is not None and self.steps is not None:
            raise SinfusionError("--minutes and --steps both say how long to train; give one of them.")
        _check_tasks(self.tasks)

    @property
    def extends(self) -> bool:
        """Whether something is asked for that the run has not planned."""
        return (self.minutes, self.steps, self.tasks) != (None, None, None)


def refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """SinfusionError for settings that would be ignored: a run that goes on has its own."""
    for name, value in settings.items():
        if value is not None:
            raise SinfusionError(f"{folder} is a run and goes on with its own settings; leave out {option_name(name)}.")


def run_folder(input: Any) -> Path | None:
    """The folder of the run that an input is; None for anything else."""
    if isinstance(input, Run):
        return input.path
    folder = as_path(input, "the input") if isinstance(input, str | os.PathLike) else None
    return folder if folder is not None and (folder / "run.json").is_file() else None


def task_names(tasks: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One task or several, as requests take them."""
    return None if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)


def _check_length(minutes: float | None, steps: int | None) -> None:
    if minutes is not None and not (isinstance(minutes, Real) and 0 < minutes < 1e9):
        raise SinfusionError(f"minutes must be above 0, not {minutes!r:.40}.")
    if steps is not None and not (isinstance(steps, Integral) and 0 < steps < 10**8):
        raise SinfusionError(f"steps must be a whole number from 1 to {10**8 - 1}, not {steps!r:.40}.")


def _check_tasks(tasks: tuple[str, ...] | None) -> None:
    unknown = [str(task) for task in tasks or () if task not in TASKS]
    if unknown or tasks == ():
        raise SinfusionError(f"tasks are {' and '.join(TASKS)}, not {' '.join(unknown) or 'none'}.")


def roles_for(kind: str, frames: int, tasks: tuple[str, ...] | None) -> list[Role]:
    """The models that tasks ask for. kind, frames: of the clip, as `Clip` has them."""
    if kind == "image":
        if tasks is not None:
            raise SinfusionError("tasks are for videos, this is an image; leave out --tasks.")
        return [IMAGE]
    roles = [role for task in TASKS if task in (tasks or ("generate",)) for role in TASKS[task]]
    for role in roles:
        if frames < role.least_frames:
            raise SinfusionError(
                f"the video has {frames} frame(s), the {role.name} needs at least {role.least_frames}."
            )
    return roles


def divide_minutes(minutes: float, roles: Sequence[Role]) -> dict[str, float]:
    """Each model's part of the minutes for all of them, by name."""
    total = sum(SHARES[role.name] for role in roles)
    return {role.name: minutes * SHARES[role.name] / total for role in roles}
