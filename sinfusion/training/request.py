"""What a training is asked for becomes a run folder that is ready for it: recipe, roles, frames, time, room.

Everything that can be wrong with a request is told here, in one sentence, before any work.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..checkpoint import last_checkpoint
from ..diffusion.denoiser import rms, rms_change
from ..errors import SinfusionError, option_name
from ..files import LOCK, TEMPORARY
from ..media import LONGER_SIDE, Clip, Source
from ..pixels import LEAST_SIDE, check_size
from ..precision import choose_device, choose_dtype
from ..recipe import FAST, PAPER, RECIPES, RENAMED, SETTINGS, TINY, Recipe
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, ROLES, TASKS, Role
from ..run import Run, writing
from .capacity import SIDES, Outlook, choose, measure_speed, outlook

# How a time budget is divided between the models of a run, in relative shares.
SHARES = {"image": 1.0, "predictor": 0.6, "projector": 0.25, "interpolator": 0.35}

STEPS = tuple(f"{name}_steps" for name in ROLES)  # settings of a recipe

TINY_MINUTES = 10.0  # the budget of `tiny` where none is given
ENOUGH_FRAMES = max(role.least_frames for role in ROLES.values())


# What is asked for ---------------------------------------------------------------------------------------------------


def run_folder(input: Any) -> Path | None:
    """The folder of the run that an input is; None for anything else."""
    if isinstance(input, Run):
        return input.path
    return Path(input) if isinstance(input, str | os.PathLike) and (Path(input) / "run.json").is_file() else None


def check_length(
    minutes: float | None, steps: int | None, recipe: str | Recipe | None, settings: Mapping[str, Any]
) -> None:
    """SinfusionError where how long to train makes no sense, or is said twice.

    A Recipe says it where its steps are not those of the preset that it came from.
    """
    if minutes is not None and not (isinstance(minutes, Real) and 0 < minutes < 1e9):
        raise SinfusionError(f"minutes must be above 0, not {minutes!r:.40}.")
    if steps is not None and not (isinstance(steps, Integral) and 0 < steps < 10**8):
        raise SinfusionError(f"steps must be a whole number from 1 to {10**8 - 1}, not {steps!r:.40}.")
    own = {}
    if isinstance(recipe, Recipe):
        preset = RECIPES.get(recipe.name, PAPER)
        own = {name: getattr(recipe, name) for name in STEPS if getattr(recipe, name) != getattr(preset, name)}
    given = {"minutes": minutes, "steps": steps} | own | {name: settings[name] for name in STEPS if name in settings}
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1 and ("minutes" in said or "steps" in said):
        raise SinfusionError(
            f"{option_name(said[0])} and {option_name(said[1])} both say how long to train; give one of them."
        )


def choose_recipe(
    recipe: str | Recipe | None,
    settings: Mapping[str, Any],
    minutes: float | None,
    steps: int | None,
    device: torch.device,
) -> tuple[Recipe, float | None]:
    """The recipe with the settings that were asked for, and the time budget, if any."""
    if isinstance(recipe, Recipe):
        base = recipe
    elif recipe is None:
        base = FAST if device.type == "cuda" else TINY
    elif isinstance(recipe, str) and recipe in RECIPES:
        base = RECIPES[recipe]
    else:
        raise SinfusionError(f"recipe must be one of {', '.join(RECIPES)}, or a Recipe, not {recipe!r:.40}.")
    unknown = sorted(set(settings) - SETTINGS | ({"name"} & set(settings)))
    if unknown:
        found = (
            f"it is called {RENAMED[unknown[0]]!r} now"
            if unknown[0] in RENAMED
            else "sinfusion train --help-recipe lists them"
        )
        raise SinfusionError(f"a recipe has no setting {unknown[0]!r}; {found}.")
    asked = dict(settings) if steps is None else {**settings, **dict.fromkeys(STEPS, steps)}
    timed = not isinstance(recipe, Recipe) and base is TINY and not set(STEPS) & set(asked)
    return base.replace(**asked), TINY_MINUTES if minutes is None and timed else minutes


def choose_roles(clip: Clip, tasks: str | Sequence[str] | None) -> list[Role]:
    """The models that a clip and the tasks ask for."""
    if clip.kind == "image":
        if tasks is not None:
            raise SinfusionError("tasks are for videos, this is an image; leave out --tasks.")
        return [IMAGE]
    return _roles_of(("generate",) if tasks is None else tasks, len(clip.frames))


def _roles_of(tasks: str | Sequence[str], frames: int) -> list[Role]:
    """The models that tasks on a video ask for."""
    listed = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    unknown = [str(task) for task in listed if task not in TASKS]
    if unknown or not listed:
        raise SinfusionError(f"tasks are {' and '.join(TASKS)}, not {' '.join(unknown) or 'none'}.")
    roles = [role for task in TASKS if task in listed for role in TASKS[task]]
    for role in roles:
        if frames < role.least_frames:
            raise SinfusionError(
                f"the video has {frames} frame(s), the {role.name} needs at least {role.least_frames}."
            )
    return roles


def check_batch(recipe: Recipe, ranks: int) -> None:
    if recipe.batch_size % ranks:
        raise SinfusionError(
            f"batch size {recipe.batch_size} cannot be split over {ranks} processes; choose a multiple of {ranks}."
        )


def fit_frames(
    source: Source,
    recipe: Recipe,
    minutes: float | None,
    tasks: str | Sequence[str] | None,
    device: torch.device,
    precision: str,
    graph: bool,
    patient: bool,
    log: Callable[[str], None],
) -> int:
    """The longer side of the frames, where `source` says neither that nor a size.

    With `tiny`: of those that this machine has the time for, said in a line.
    """
    if recipe.name != "tiny":
        return LONGER_SIDE
    native = source.probe()
    roles = (
        [IMAGE]
        if native.kind == "image"
        else _roles_of(("generate",) if tasks is None else tasks, max(ENOUGH_FRAMES, native.frames))
    )
    times = _times(roles, TINY_MINUTES if minutes is None else minutes)
    asked = source.target(native.size)
    if minutes is None and (asked or max(native.size) <= SIDES[0]):
        return LONGER_SIDE  # nothing to choose
    speed = measure_speed(recipe, device, choose_dtype(precision, device), graph)
    found = choose(speed, native.size, times) if asked is None else outlook(speed, asked, times)
    if minutes is not None:
        log(_forecast(found, minutes, asked is not None, patient))
    return _of_first(max(found.size), device)


def _forecast(found: Outlook, minutes: float, asked: bool, patient: bool) -> str:
    """What a training by the clock will come to, in a line."""
    if found.reached >= 1:
        why = "as asked for" if asked else f"as large as this machine can train in {minutes:g} minutes"
        return f"{found}: {why}"
    far = f"{found}: in {minutes:g} minutes this machine does not get to where results are worth watching"
    if patient:
        return f"{far}, so it takes about {math.ceil(found.minutes)}"
    smaller = " or smaller frames (--max-side 64)" if asked and max(found.size) > 64 else ""
    return f"{far}; --minutes {math.ceil(found.minutes)}{smaller} would do"


def _of_first(number: int, device: torch.device) -> int:
    """The number that the first of several processes has."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def _times(roles: list[Role], minutes: float) -> dict[str, float]:
    """How a time for all is divided between models."""
    total = sum(SHARES[role.name] for role in roles)
    return {role.name: minutes * SHARES[role.name] / total for role in roles}


# A new run -----------------------------------------------------------------------------------------------------------


def new_run(
    input: Any,
    clip: Clip,
    out: str | Path | None,
    recipe: Recipe,
    roles: list[Role],
    minutes: float | None,
    seed: int,
    overwrite: bool,
    rank: int,
    trained_with: dict[str, Any] | None = None,
    held: ExitStack | None = None,
) -> Run:
    """A run folder with run.json and the frames, no weights yet; until `held` is closed nobody else writes to it."""
    check_crops(recipe, roles, *check_size(clip.frames.shape[1:3]))
    recipe = recipe.replace(max_frame_offset=min(recipe.max_frame_offset, max(1, len(clip.frames) - 1)))
    source = os.fspath(input) if isinstance(input, str | os.PathLike) else "frames"
    path = Path(out) if out is not None else Path("runs") / (Path(source).stem or "run")
    if rank == 0:
        _check_room(path, overwrite)
    models = _planned(clip.frames, roles, recipe, minutes)
    run = Run(path, clip.kind, recipe, clip.frames, clip.fps, seed, models, source, trained_with=trained_with)
    if rank == 0:
        if held:
            held.enter_context(writing(path))
        _check_room(path, overwrite)  # again: now nobody else writes
        run.save(anew=True)
    _meet()  # the others look for checkpoints only after old ones are gone
    return run


def _planned(
    frames: np.ndarray, roles: list[Role], recipe: Recipe, minutes: float | None, since: float = 0.0
) -> dict[str, dict[str, Any]]:
    """What run.json says of models that are to be trained."""
    times = _times(roles, minutes) if minutes else {}
    return {
        role.name: {
            "steps": 0 if minutes else recipe.steps(role),
            "minutes": times.get(role.name),
            "sigma_data": measure_sigma_data(frames, role, recipe),
        }
        | ({"since": since} if minutes else {})
        for role in roles
    }


def check_crops(recipe: Recipe, roles: list[Role], height: int, width: int) -> None:
    """SinfusionError where a model's crops of frames of this size would be too small."""
    for role in roles:
        crop = recipe.crop_size(role, height, width)
        if min(crop) < LEAST_SIDE:
            raise SinfusionError(
                f"crop {recipe.crop} of {width}x{height} is {crop[1]}x{crop[0]}; a crop needs {LEAST_SIDE} pixels "
                "a side."
            )


def _check_room(path: Path, overwrite: bool) -> None:
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


def measure_sigma_data(frames: np.ndarray, role: Role, recipe: Recipe) -> list[float]:
    """RMS of clean - prior_mean: one entry for each frame offset, or one."""
    if role is PREDICTOR:
        return [rms_change(frames, k) for k in range(1, recipe.max_frame_offset + 1)]
    if role is INTERPOLATOR:
        triples = zip(frames[:-2], frames[1:-1], frames[2:], strict=True)
        return [rms((2 * b.astype(np.int16) - a - c for a, b, c in triples), 2 * 127.5)]
    return [rms((2 * frame.astype(np.int16) - 255 for frame in frames), 2 * 127.5)]


# A run that is there -------------------------------------------------------------------------------------------------


def check_continuing(folder: Path, others: Mapping[str, Any]) -> None:
    """SinfusionError for what would be ignored: a run that goes on has its settings."""
    for name, value in others.items():
        if value is not None:
            raise SinfusionError(f"{folder} is a run and goes on with its own settings; leave out {option_name(name)}.")


def check_extension(run: Run, minutes: float | None, steps: int | None, tasks: str | Sequence[str] | None) -> None:
    """SinfusionError for what a run cannot be given."""
    unfinished = [name for name in run.models if not run.finished(name)]
    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and unfinished:
            raise SinfusionError(
                f"{run.path} is not finished ({' and '.join(unfinished)}) and goes on as planned; leave out "
                f"{option_name(name)} until it is."
            )
    if tasks is not None:
        if run.kind == "image":
            raise SinfusionError(f"{run.path} is an image run, tasks are for videos; leave out --tasks.")
        if not _lacking(run, tasks):
            raise SinfusionError(f"{run.path} has the models for these tasks already; leave out --tasks.")
    elif minutes is not None or steps is not None:
        for name, model in run.models.items():
            if "parameterization" in model:
                raise SinfusionError(f"the {name} of {run.path} was imported and cannot be trained further.")


def _lacking(run: Run, tasks: str | Sequence[str]) -> list[Role]:
    """The models that tasks ask for and that a run has not, nor has planned."""
    return [role for role in _roles_of(tasks, len(run.frames)) if role.name not in run.models]


def as_before(run: Run, device: str, precision: str, graph: bool | None) -> tuple[str, str, bool | None, list[str]]:
    """Device, precision and graph that a run goes on with: those it was trained with, unless others are asked for or
    the machine has none of them; and a line where they differ."""
    before = run.trained_with
    if before is None:
        return device, precision, graph, []
    absent = before["device"] == "cuda" and not torch.cuda.is_available()
    where = device if device != "auto" else "cpu" if absent else before["device"]
    chosen = choose_device(where)
    fast = choose_dtype("auto", chosen) == torch.bfloat16
    how = precision
    if precision == "auto":
        how = "fp32" if chosen.type != before["device"] and not fast else before["precision"]
    graph = before["graph"] if graph is None else graph
    now = arithmetic(chosen, how, graph)
    said = []
    if now != before:
        why = "there is no GPU here:" if absent and device == "auto" else "as asked for,"
        said.append(f"it was trained on {_words(before)}; {why} it goes on on {_words(now)}")
    elif how == "bf16" and not fast and precision == "auto":
        said.append("it was trained in bf16, and goes on so; here fp32 would be faster: --precision fp32")
    return where, how, graph, said


def arithmetic(device: torch.device, precision: str, graph: bool) -> dict[str, Any]:
    """What a run remembers of how it is trained."""
    dtype = choose_dtype(precision, device)
    return {"device": device.type, "precision": "bf16" if dtype == torch.bfloat16 else "fp32", "graph": graph}


def _words(trained_with: Mapping[str, Any]) -> str:
    graph = "" if trained_with["graph"] else " without graphs"
    return f"{trained_with['device']} in {trained_with['precision']}{graph}"


def extend_run(run: Run, minutes: float | None, steps: int | None, tasks: str | Sequence[str] | None) -> None:
    """Plan more training for a run; `check_extension` has passed it.

    tasks: models for these are added, planned by `minutes` or `steps`, or else as those that are there. Without, the
    run is finished and all its models are trained further, `steps` more for each or `minutes` for all together: with
    the learning rate that they would have at that step of a training that was planned so long from the beginning.
    """
    since = run.seconds_used()
    if tasks is not None:
        roles = _lacking(run, tasks)
        recipe = run.recipe if steps is None else run.recipe.replace(**dict.fromkeys(STEPS, steps))
        check_crops(run.recipe, roles, *run.size)
        if minutes is None and steps is None:
            minutes = _minutes_alike(run, roles)
        run.models |= _planned(run.frames, roles, recipe, minutes, since)
        return
    times = _times([ROLES[name] for name in run.models], minutes) if minutes else {}
    for name, model in run.models.items():
        done = run.steps_done(name)
        model |= {"steps": done + steps if steps else 0, "minutes": times.get(name), "since": since, "further": done}


def _minutes_alike(run: Run, roles: list[Role]) -> float | None:
    """Minutes for new models in proportion to those of the ones that are there; None where these have steps."""
    known = [model["minutes"] / SHARES[name] for name, model in run.models.items() if model["minutes"]]
    return max(known) * sum(SHARES[role.name] for role in roles) if known else None


def save(run: Run, rank: int) -> None:
    """Write run.json, by one process; the others wait for it."""
    if rank == 0:
        run.save()
    _meet()


def _meet() -> None:
    """Wait for the other processes of a training, if there are any."""
    if dist.is_initialized():
        dist.barrier()
