"""What a training is asked for, and how that becomes a run folder that is ready to train.

Requests are checked when they are made: everything that can be wrong with one is told in a sentence, before any work.

    with ready_run(TrainingRequest(Source("fish.mp4"), minutes=5), Compute(), ALONE, print) as run: ...
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import last_checkpoint
from ..diffusion.denoiser import rms, rms_change
from ..errors import SinfusionError, option_name
from ..files import LOCK, TEMPORARY
from ..media import LONGER_SIDE, Clip, Source
from ..pixels import LEAST_SIDE, check_size
from ..precision import choose_device, choose_dtype
from ..recipe import FAST, PAPER, RECIPES, RENAMED, SETTINGS, TINY, Recipe
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, ROLES, TASKS, Role
from ..run import Run, load, writing
from ..seeds import check_seed
from .capacity import SIDES, Outlook, choose, measure_speed, outlook
from .processes import Processes

# How the time of a run is divided between its models, in relative shares.
SHARES = {"image": 1.0, "predictor": 0.6, "projector": 0.25, "interpolator": 0.35}

STEPS = tuple(f"{name}_steps" for name in ROLES)  # settings of a recipe

TINY_MINUTES = 10.0  # of `tiny` where nothing else is asked for
ENOUGH_FRAMES = max(role.least_frames for role in ROLES.values())


# What is asked for ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compute:
    """Where to compute and how. Raises SinfusionError for what this machine has not."""

    device: str = "auto"  # auto, cpu, cuda, or cuda:1 of several GPUs
    precision: str = "auto"  # auto, bf16, fp32
    graph: bool | None = None  # replay kernels; None: yes
    notes: tuple[str, ...] = ()  # sentences about where a run that goes on was trained before

    def __post_init__(self) -> None:
        choose_dtype(self.precision, self.chosen)

    @property
    def chosen(self) -> torch.device:
        return choose_device(self.device)

    def apply(self, run: Run) -> Run:
        """The run, computing like this."""
        return run.to(self.chosen, self.precision, self.graph is not False)

    def record(self) -> dict[str, Any]:
        """What a run remembers of it: `Run.trained_with`."""
        dtype = choose_dtype(self.precision, self.chosen)
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        return {"device": self.chosen.type, "precision": precision, "graph": self.graph is not False}

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

    def __post_init__(self) -> None:
        _check_length(self.minutes, self.steps)
        self._check_one_length()
        object.__setattr__(self, "seed", check_seed(self.seed))  # a plain int
        _check_tasks(self.tasks)
        if self.source.size is not None:
            check_size(self.source.size)
        self.resolve(torch.device("cpu"))

    def _check_one_length(self) -> None:
        """SinfusionError where it is said twice how long to train.

        A Recipe says it where its steps are not those of the preset that it came from.
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
        """The recipe with the settings that were asked for, and the minutes, if the time decides."""
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
        return base.replace(**asked), TINY_MINUTES if self.minutes is None and timed else self.minutes

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out if self.out is not None else Path("runs") / (Path(self.source_name).stem or "run")

    @property
    def source_name(self) -> str:
        """What run.json says of where the frames came from."""
        value = self.source.value
        return os.fspath(value) if isinstance(value, str | os.PathLike) else "frames"


@dataclass(frozen=True, kw_only=True)
class ContinuationRequest:
    """More training of a run that is there: to its planned end; or, where something is asked for, beyond."""

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
    """SinfusionError for what would be ignored: a run that goes on has its settings."""
    for name, value in settings.items():
        if value is not None:
            raise SinfusionError(f"{folder} is a run and goes on with its own settings; leave out {option_name(name)}.")


def run_folder(input: Any) -> Path | None:
    """The folder of the run that an input is; None for anything else."""
    if isinstance(input, Run):
        return input.path
    return Path(input) if isinstance(input, str | os.PathLike) and (Path(input) / "run.json").is_file() else None


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


# The run folder ------------------------------------------------------------------------------------------------------


@contextmanager
def ready_run(
    request: TrainingRequest | ContinuationRequest,
    compute: Compute,
    processes: Processes,
    log: Callable[[str], None],
) -> Iterator[Run]:
    """The run that a request asks for, with its folder and its plan; until the end nobody else writes to the folder.

    Raises SinfusionError where the source, the folder or the run does not allow what is asked for.
    """
    with ExitStack() as lock:
        if isinstance(request, ContinuationRequest):
            run = _reopened(request, compute, processes, log, lock)
        else:
            run = _created(request, compute, processes, log, lock)
        yield run


def _created(
    request: TrainingRequest, compute: Compute, processes: Processes, log: Callable[[str], None], lock: ExitStack
) -> Run:
    """A new run: its folder has run.json and the frames, and no weights yet."""
    recipe, minutes = request.resolve(compute.chosen)
    check_batch(recipe, processes)
    if processes.is_first:
        _check_replaceable(request.folder, request.overwrite)
    longer_side = processes.broadcast(fit_frames(request, compute, log), compute.chosen)
    clip = request.source.read(longer_side, log)
    roles = choose_roles(clip, request.tasks)
    run = plan_run(request.folder, clip, recipe, roles, minutes, request.seed, request.source_name)
    run.trained_with = compute.record()
    if processes.is_first:
        lock.enter_context(writing(run.path))
        _check_replaceable(run.path, request.overwrite)  # again: now nobody else writes
        run.save(anew=True)
    processes.barrier()  # the others look for checkpoints only after old ones are gone
    return compute.apply(run)


def plan_run(
    path: Path,
    clip: Clip,
    recipe: Recipe,
    roles: Sequence[Role],
    minutes: float | None = None,  # for all models together; None: the recipe's steps
    seed: int = 0,
    source: str = "frames",  # where they came from
) -> Run:
    """A run with a plan for its models and no weights; in memory alone: `Run.save(anew=True)` begins its folder."""
    check_crops(recipe, roles, check_size(clip.frames.shape[1:3]))
    recipe = recipe.replace(max_frame_offset=min(recipe.max_frame_offset, max(1, len(clip.frames) - 1)))
    models = _plan_models(clip.frames, roles, recipe, minutes)
    return Run(path, clip.kind, recipe, clip.frames, clip.fps, seed, models, source)


def _plan_models(
    frames: np.ndarray, roles: Sequence[Role], recipe: Recipe, minutes: float | None, since: float = 0.0
) -> dict[str, dict[str, Any]]:
    """What run.json says of models that are to be trained. since: seconds that the run had used before."""
    times = _divide(minutes, roles) if minutes else {}
    return {
        role.name: {
            "steps": 0 if minutes else recipe.steps(role),
            "minutes": times.get(role.name),
            "sigma_data": measure_sigma_data(frames, role, recipe),
        }
        | ({"since": since} if minutes else {})
        for role in roles
    }


def _divide(minutes: float, roles: Sequence[Role]) -> dict[str, float]:
    """Each model's part of the minutes for all of them, by name."""
    total = sum(SHARES[role.name] for role in roles)
    return {role.name: minutes * SHARES[role.name] / total for role in roles}


def measure_sigma_data(frames: np.ndarray, role: Role, recipe: Recipe) -> list[float]:
    """RMS of clean - prior_mean over frames (T, H, W, 3) uint8: one entry for each frame offset, or one."""
    if role is PREDICTOR:
        return [rms_change(frames, k) for k in range(1, recipe.max_frame_offset + 1)]
    if role is INTERPOLATOR:
        triples = zip(frames[:-2], frames[1:-1], frames[2:], strict=True)
        return [rms((2 * b.astype(np.int16) - a - c for a, b, c in triples), 2 * 127.5)]
    return [rms((2 * frame.astype(np.int16) - 255 for frame in frames), 2 * 127.5)]


def choose_roles(clip: Clip, tasks: tuple[str, ...] | None) -> list[Role]:
    """The models that a clip and the tasks ask for."""
    if clip.kind == "image":
        if tasks is not None:
            raise SinfusionError("tasks are for videos, this is an image; leave out --tasks.")
        return [IMAGE]
    return _roles_of(tasks or ("generate",), len(clip.frames))


def _roles_of(tasks: tuple[str, ...], frames: int) -> list[Role]:
    """The models that tasks on a video of so many frames ask for."""
    roles = [role for task in TASKS if task in tasks for role in TASKS[task]]
    for role in roles:
        if frames < role.least_frames:
            raise SinfusionError(
                f"the video has {frames} frame(s), the {role.name} needs at least {role.least_frames}."
            )
    return roles


def check_batch(recipe: Recipe, processes: Processes) -> None:
    """SinfusionError where a batch cannot be divided evenly."""
    if recipe.batch_size % processes.count:
        raise SinfusionError(
            f"batch size {recipe.batch_size} cannot be split over {processes.count} processes; choose a multiple of "
            f"{processes.count}."
        )


def check_crops(recipe: Recipe, roles: Sequence[Role], size: tuple[int, int]) -> None:
    """SinfusionError where a model's crops of frames of this size (height, width) would be too small."""
    height, width = size
    for role in roles:
        crop = recipe.crop_size(role, height, width)
        if min(crop) < LEAST_SIDE:
            raise SinfusionError(
                f"crop {recipe.crop} of {width}x{height} is {crop[1]}x{crop[0]}; a crop needs {LEAST_SIDE} pixels "
                "a side."
            )


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse to write over anything unless asked to, and over anything but an earlier run, whole or half-written."""
    if not path.exists():
        return
    there = {p.name for p in path.iterdir() if not p.name.startswith(TEMPORARY)} - {LOCK} if path.is_dir() else {""}
    trained = any(last_checkpoint(path / role) for role in ROLES)
    if not there or ("run.json" in there and "input.safetensors" not in there and not trained):
        return  # empty, or stopped before it began
    if "run.json" not in there and not there <= {"input.safetensors", "outputs", "made", *ROLES}:
        raise SinfusionError(f"{path} exists and is not a run folder, so it is not overwritten; choose another --out.")
    if not overwrite:
        hint = f"; to go on training it: sinfusion train {path}" if "run.json" in there else ""
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another --out{hint}")


# The size of the frames ----------------------------------------------------------------------------------------------


def fit_frames(request: TrainingRequest, compute: Compute, log: Callable[[str], None]) -> int:
    """The longer side of the frames, where the source says neither that nor a size.

    With `tiny` the largest that this machine has the time for; a line says what the training will come to.
    """
    recipe, _ = request.resolve(compute.chosen)
    if recipe.name != "tiny":
        return LONGER_SIDE
    source, minutes = request.source, request.minutes
    native = source.probe()
    if native.kind == "image":
        roles = [IMAGE]
    else:  # how many frames there really are, only reading them tells
        roles = _roles_of(request.tasks or ("generate",), max(ENOUGH_FRAMES, native.frames))
    times = _divide(TINY_MINUTES if minutes is None else minutes, roles)
    asked = source.target(native.size)
    if minutes is None and (asked or max(native.size) <= SIDES[0]):
        return LONGER_SIDE  # nothing to choose
    dtype = choose_dtype(compute.precision, compute.chosen)
    speed = measure_speed(recipe, compute.chosen, dtype, compute.graph is not False)
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


# A run that is there -------------------------------------------------------------------------------------------------


def _reopened(
    request: ContinuationRequest, compute: Compute, processes: Processes, log: Callable[[str], None], lock: ExitStack
) -> Run:
    """A run that is trained to its end, or beyond."""
    if processes.is_first:
        lock.enter_context(writing(request.folder))
    run = compute.apply(load(request.folder, "cpu", log=lambda _: None))
    _check_extension(run, request)
    check_batch(run.recipe, processes)
    log("\n".join([f"continuing {run.path}", *compute.notes]))
    if request.extends:
        _extend(run, request)
    if all(map(run.finished, run.models)):
        log(f"it is finished; to train it further: sinfusion train {run.path} --minutes M, or --steps N")
        return run
    run.trained_with = compute.record()
    if processes.is_first:
        run.save()
    processes.barrier()
    return run


def _check_extension(run: Run, request: ContinuationRequest) -> None:
    """SinfusionError for what a run cannot be given."""
    unfinished = [name for name in run.models if not run.finished(name)]
    for name, value in (("minutes", request.minutes), ("steps", request.steps)):
        if value is not None and unfinished:
            raise SinfusionError(
                f"{run.path} is not finished ({' and '.join(unfinished)}) and goes on as planned; leave out "
                f"{option_name(name)} until it is."
            )
    if request.tasks is not None:
        if run.kind == "image":
            raise SinfusionError(f"{run.path} is an image run, tasks are for videos; leave out --tasks.")
        if not _missing_roles(run, request.tasks):
            raise SinfusionError(f"{run.path} has the models for these tasks already; leave out --tasks.")
    elif request.extends:
        for name, model in run.models.items():
            if "parameterization" in model:
                raise SinfusionError(f"the {name} of {run.path} was imported and cannot be trained further.")


def _missing_roles(run: Run, tasks: tuple[str, ...]) -> list[Role]:
    """The models that tasks ask for and that a run neither has nor has planned."""
    return [role for role in _roles_of(tasks, len(run.frames)) if role.name not in run.models]


def _extend(run: Run, request: ContinuationRequest) -> None:
    """Plan more training for a run; `_check_extension` has passed it.

    With tasks: models for these are added, planned by minutes or steps, or else as those that are there. Without: the
    run is finished and all its models are trained further, with the learning rate that they would have at that step of
    a training that was planned so long from the beginning.
    """
    since, minutes, steps = run.seconds_used(), request.minutes, request.steps
    if request.tasks is not None:
        roles = _missing_roles(run, request.tasks)
        recipe = run.recipe if steps is None else run.recipe.replace(**dict.fromkeys(STEPS, steps))
        check_crops(run.recipe, roles, run.size)
        if minutes is None and steps is None:
            minutes = _minutes_alike(run, roles)
        run.models |= _plan_models(run.frames, roles, recipe, minutes, since)
        return
    times = _divide(minutes, [ROLES[name] for name in run.models]) if minutes else {}
    for name, model in run.models.items():
        done = run.steps_done(name)
        model |= {"steps": done + steps if steps else 0, "minutes": times.get(name), "since": since, "further": done}


def _minutes_alike(run: Run, roles: Sequence[Role]) -> float | None:
    """Minutes for new models in proportion to those of the ones that are there; None where these have steps."""
    known = [model["minutes"] / SHARES[name] for name, model in run.models.items() if model["minutes"]]
    return max(known) * sum(SHARES[role.name] for role in roles) if known else None
