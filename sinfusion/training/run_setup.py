"""A run folder that is ready to train: a new one, or one that goes on, with a plan for each of its models.

with ready_run(TrainingRequest(source=Source("fish.mp4"), minutes=5), Compute(), ALONE, print) as run: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import last_checkpoint
from ..diffusion.denoiser import rms, rms_change
from ..errors import SinfusionError, option_name
from ..files import LOCK, TEMPORARY
from ..media import Clip
from ..names import pasteable
from ..pixels import LEAST_SIDE, check_size
from ..recipe import Recipe
from ..roles import INTERPOLATOR, PREDICTOR, ROLES, Role
from ..run import Run, load, writing
from .batch import with_neighbours
from .capacity import fit_frames
from .processes import Processes
from .request import SHARES, STEPS, Compute, ContinuationRequest, TrainingRequest, divide_minutes, roles_for

MEASURED_TRIPLES = 32  # with motion compensation: what an Interpolator's sigma_data is the mean of


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
    recipe, minutes = request.resolve(compute.torch_device)
    check_batch(recipe, processes)
    if processes.is_first:
        check_replaceable(request.folder, request.overwrite)
    longer_side = processes.broadcast(fit_frames(request, compute, log), compute.torch_device)
    clip = request.source.read(longer_side, log)
    roles = roles_for(clip.kind, len(clip.frames), request.tasks)
    run = plan_run(request.folder, clip, recipe, roles, minutes, request.seed, request.source_name)
    run.trained_with = compute.record()
    if processes.is_first:
        lock.enter_context(writing(run.path))
        check_replaceable(run.path, request.overwrite)  # again: now nobody else writes
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
    return Run(path, clip.kind, recipe, clip.frames, clip.fps, seed, models, source, sound=clip.sound)


def _plan_models(
    frames: np.ndarray, roles: Sequence[Role], recipe: Recipe, minutes: float | None, since: float = 0.0
) -> dict[str, dict[str, Any]]:
    """What run.json says of models that are to be trained. since: seconds that the run had used before."""
    times = divide_minutes(minutes, roles) if minutes else {}
    return {
        role.name: {
            "steps": 0 if minutes else recipe.steps(role),
            "minutes": times.get(role.name),
            "sigma_data": measure_sigma_data(frames, role, recipe),
        }
        | ({"since": since} if minutes else {})
        for role in roles
    }


def measure_sigma_data(frames: np.ndarray, role: Role, recipe: Recipe) -> list[float]:
    """RMS of clean - prior_mean over frames (T, H, W, 3) uint8: one entry for each frame offset, or one."""
    if role is PREDICTOR:
        return [rms_change(frames, k) for k in range(1, recipe.max_frame_offset + 1)]
    if role is INTERPOLATOR:
        before, between, after = _triples(frames, recipe.motion_compensation)
        parts = zip(before, between, after, strict=True)
        return [rms((2 * b.astype(np.int16) - a - c for a, b, c in parts), 2 * 127.5)]
    return [rms((2 * frame.astype(np.int16) - 255 for frame in frames), 2 * 127.5)]


def _triples(frames: np.ndarray, moved: bool) -> tuple[np.ndarray, ...]:
    """Each frame that lies between two, with these, (T - 2, H, W, 3) uint8 each: before, between, after.

    moved: with motion compensation, which takes time; then of some neighbouring frames.
    """
    if not moved:
        return frames[:-2], frames[1:-1], frames[2:]
    starts = np.linspace(0, len(frames) - 3, min(len(frames) - 2, MEASURED_TRIPLES)).round().astype(int)
    triples = [with_neighbours(torch.from_numpy(frames[i : i + 3].copy()))[[4, 1, 7]].numpy() for i in starts]
    before, between, after = np.stack(triples, 1)
    return before, between, after


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


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Refuse to write over anything unless asked to, and over anything but an earlier run, whole or half-written."""
    if not path.exists():
        return
    there = {p.name for p in path.iterdir() if not p.name.startswith(TEMPORARY)} - {LOCK} if path.is_dir() else {""}
    trained = any(last_checkpoint(path / role) for role in ROLES)
    if not there or ("run.json" in there and "input.safetensors" not in there and not trained):
        return  # empty, or stopped before it began
    if "tuned" in there:
        raise SinfusionError(f"{path} is a run of sinfusion tune, so it is not overwritten; choose another --out.")
    if "run.json" not in there and not there <= {"input.safetensors", "outputs", "made", *ROLES}:
        raise SinfusionError(
            f"{path} exists and is not a run folder, so it is not overwritten; choose another --out"
            + (f", such as {pasteable(path / 'run')}" if path.is_dir() else ".")
        )
    if not overwrite:
        hint = f"; to go on training it: sinfusion train {pasteable(path)}" if "run.json" in there else ""
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another --out{hint}")


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
        log(f"it is finished; to train it further: sinfusion train {pasteable(run.path)} --minutes M, or --steps N")
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
    return [role for role in roles_for(run.kind, len(run.frames), tasks) if role.name not in run.models]


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
    times = divide_minutes(minutes, [ROLES[name] for name in run.models]) if minutes else {}
    for name, model in run.models.items():
        done = run.steps_done(name)
        model |= {"steps": done + steps if steps else 0, "minutes": times.get(name), "since": since, "further": done}


def _minutes_alike(run: Run, roles: Sequence[Role]) -> float | None:
    """Minutes for new models in proportion to those of the ones that are there; None where these have steps."""
    known = [model["minutes"] / SHARES[name] for name, model in run.models.items() if model["minutes"]]
    return max(known) * sum(SHARES[role.name] for role in roles) if known else None
