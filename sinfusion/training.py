"""`train`: from a file to a run. Reads the input, chooses models and recipe, and trains one model after another."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .errors import SinfusionError, option_name
from .media import LONGER_SIDE, Clip, Source, contact_sheet, write_image
from .network import NextNet
from .parameterization import rms_change
from .precision import choose_device, choose_dtype
from .progress import Progress
from .recipe import FAST, PAPER, RECIPES, SETTINGS, TINY, Recipe
from .reverse import LEAST_SIDE, check_size
from .roles import IMAGE, INTERPOLATOR, PREDICTOR, ROLES, TASKS, Role
from .rollout import generate_images, stream, upsample
from .run import Run, last_checkpoint, load
from .trainer import Stopped, Trainer, measure_speed

# How a time budget is divided between the models of a run, in relative shares.
SHARES = {"image": 1.0, "predictor": 0.6, "projector": 0.25, "interpolator": 0.35}

STEPS = tuple(f"{name}_steps" for name in ROLES)  # settings of a recipe

TINY_MINUTES = 10.0  # the budget of `tiny` where none is given


def train(
    input: Any,
    out: str | Path | None = None,
    recipe: str | Recipe | None = None,
    minutes: float | None = None,
    tasks: str | Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    max_side: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    graph: bool | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
) -> Run:
    """Train on one image or one video and return the run; or go on with a run.

    input: what `media.Source` takes: a file or a folder of frames, a Clip, frames (T, H, W, 3) or a picture (H, W, 3),
    a list of pictures and so on. out: the run folder; None: runs/<name of input>.
    recipe: paper, fast, tiny or a Recipe, which is taken as it is; None: fast on a GPU, tiny on a CPU. settings:
    settings of the recipe by name, which stay as they are while the others of `tiny` follow the time there is.
    minutes: a time budget for all models; schedule, decay and curriculum scale to it. steps: of each model, instead.
    tasks: `generate` (Predictor and Projector, the default) and `upsample` (Interpolator); an image has none.
    start, stop, stride, size, max_side, fps: see `Source`; without size and max_side, frames are scaled down to a
    longer side of 256, with `tiny` by the time there is.
    seed: None: 0. device: auto, cpu, cuda. precision: auto, bf16, fp32. graph: replay kernels,
    on a GPU each step from a CUDA graph; None: yes.

    input may be a Run or its folder. An unfinished one is taken to its end exactly as it would have gone, with the
    device, precision and graph that it was trained with where nothing else is asked for. A finished one is trained
    further: `steps` more for each model, or `minutes` for all. `tasks` adds models that it has not, for which `minutes`
    or `steps` are then. Its other settings are its own.

    Raises SinfusionError for anything wrong with these, before any work starts.
    """
    check_length(minutes, steps, recipe, settings or {})
    folder = run_folder(input)
    if folder is not None:
        others = {
            "out": out, "recipe": recipe, "size": size, "max_side": max_side, "start": start, "stop": stop,
            "stride": stride, "fps": fps, "seed": seed, "overwrite": overwrite or None, **(settings or {}),
        }  # fmt: skip
        _check_continuing(folder, others)
        run = load(folder, "cpu")
        _check_extension(run, minutes, steps, tasks)
        device, precision, graph, said = _as_before(run, device, precision, graph)
    graph = True if graph is None else graph
    rank, ranks = _join_processes(device)
    say: Callable[[str], None] = (lambda _: None) if quiet or rank else (lambda text: print(text, file=sys.stderr))
    if folder is not None:
        say("\n".join([f"continuing {run.path}", *said]))
        run = run.to(device, precision, graph)
        _check_batch(run.recipe, ranks)
        if (minutes, steps, tasks) != (None, None, None):
            extend_run(run, minutes, steps, tasks, rank, ranks)
        if all(map(run.finished, run.models)):
            say(f"it is finished; to train it further: sinfusion train {run.path} --minutes M, or --steps N")
        else:
            run.trained_with = _arithmetic(run.device, precision, graph)
            _save(run, rank)
    else:
        chosen = choose_device(device)
        source = Source(input, start, stop, stride, size, max_side, fps)
        if size is not None:
            check_size(size)
        asked, fixed, minutes = _recipe(recipe, settings or {}, minutes, steps, chosen)
        longest, asked = _fit(source, asked, minutes, fixed)
        clip = source.read(longest, say)
        roles = _roles(clip, tasks)
        _check_batch(asked, ranks)
        trained_with = _arithmetic(chosen, precision, graph)
        run = _new_run(input, clip, out, asked, roles, minutes, seed or 0, overwrite, rank, trained_with)
        run = run.to(str(chosen), precision, graph)
    _say_what(run, say)
    todo = [name for name in run.models if not run.finished(name)]
    with _stop_signals() as stopping:
        try:
            for name in todo:
                _train_role(run, ROLES[name], rank, ranks, stopping, say, quiet)
        except Stopped:
            say(f"stopped; everything is saved. Go on with: sinfusion train {run.path}")
            raise KeyboardInterrupt from None
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(run) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise _out_of_memory(run) from error
            raise
    run._denoisers.clear()
    return run


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


def _recipe(
    recipe: str | Recipe | None,
    settings: Mapping[str, Any],
    minutes: float | None,
    steps: int | None,
    device: torch.device,
) -> tuple[Recipe, frozenset[str], float | None]:
    """The recipe, the names of its settings that were asked for and so must stay, and the time budget, if any."""
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
        raise SinfusionError(f"a recipe has no setting {unknown[0]!r}; sinfusion train --help-recipe lists them.")
    asked = dict(settings) if steps is None else {**settings, **dict.fromkeys(STEPS, steps)}
    timed = not isinstance(recipe, Recipe) and base is TINY and not set(STEPS) & set(asked)
    fixed = SETTINGS if isinstance(recipe, Recipe) else frozenset(asked)
    return base.replace(**asked), fixed, TINY_MINUTES if minutes is None and timed else minutes


def _fit(source: Source, recipe: Recipe, minutes: float | None, fixed: frozenset[str]) -> tuple[int, Recipe]:
    """The longer side of the frames, and the recipe with the network, that a budget on a CPU allows.

    Settings whose names are in `fixed` stay. The side counts where `source` says neither that nor a size; what the
    frames are before scaling tells `source.probe()`.
    """
    if recipe.name != "tiny":
        return LONGER_SIDE, recipe
    minutes = TINY_MINUTES if minutes is None else minutes
    table = ((5, 64, 12, 32), (9, 96, 12, 32), (25, 128, 12, 32), (60, 128, 12, 48), (float("inf"), 160, 16, 48))
    _, side, depth, filters = next(row for row in table if minutes <= row[0])
    fitted = {name: value for name, value in (("depth", depth), ("filters", filters)) if name not in fixed}
    return side, recipe.replace(**fitted)


def _roles(clip: Clip, tasks: str | Sequence[str] | None) -> list[Role]:
    """The models that a clip and the tasks ask for."""
    if clip.kind == "image":
        if tasks is not None:
            raise SinfusionError("tasks are for videos, this is a picture; leave out --tasks.")
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


def _check_batch(recipe: Recipe, ranks: int) -> None:
    if recipe.batch_size % ranks:
        raise SinfusionError(
            f"batch size {recipe.batch_size} cannot be split over {ranks} processes; choose a multiple of {ranks}."
        )


# A run that is there -------------------------------------------------------------------------------------------------


def _check_continuing(folder: Path, others: Mapping[str, Any]) -> None:
    """SinfusionError for what would be ignored: a run that goes on has its settings."""
    for name, value in others.items():
        if value is not None:
            raise SinfusionError(f"{folder} is a run and goes on with its own settings; leave out {option_name(name)}.")


def _check_extension(run: Run, minutes: float | None, steps: int | None, tasks: str | Sequence[str] | None) -> None:
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


def _as_before(run: Run, device: str, precision: str, graph: bool | None) -> tuple[str, str, bool | None, list[str]]:
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
    now = _arithmetic(chosen, how, graph)
    said = []
    if now != before:
        why = "there is no GPU here:" if absent and device == "auto" else "as asked for,"
        said.append(f"it was trained on {_words(before)}; {why} it goes on on {_words(now)}")
    elif how == "bf16" and not fast and precision == "auto":
        said.append("it was trained in bf16, and goes on so; here fp32 would be faster: --precision fp32")
    return where, how, graph, said


def _arithmetic(device: torch.device, precision: str, graph: bool) -> dict[str, Any]:
    """What a run remembers of how it is trained."""
    dtype = choose_dtype(precision, device)
    return {"device": device.type, "precision": "bf16" if dtype == torch.bfloat16 else "fp32", "graph": graph}


def _words(trained_with: Mapping[str, Any]) -> str:
    graph = "" if trained_with["graph"] else " without graphs"
    return f"{trained_with['device']} in {trained_with['precision']}{graph}"


def extend_run(
    run: Run,
    minutes: float | None,
    steps: int | None,
    tasks: str | Sequence[str] | None,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Plan more training for a run, and save the plan; `_check_extension` has passed it.

    tasks: models for these are added, planned by `minutes` or `steps`, or else as those that are there. Without, the
    run is finished and all its models are trained further, `steps` more for each or `minutes` for all together.
    """
    if tasks is not None:
        roles = _lacking(run, tasks)
        recipe = run.recipe if steps is None else run.recipe.replace(**dict.fromkeys(STEPS, steps))
        check_crops(run.recipe, roles, *run.size)
        if minutes is None and steps is None:
            minutes = _minutes_alike(run, roles)
        run.models |= _planned(run.frames, roles, recipe, minutes)
    else:
        total = sum(SHARES[name] for name in run.models)
        for name in run.models:
            extend_model(run, ROLES[name], minutes and minutes * SHARES[name] / total, steps, rank, ranks)
    _save(run, rank)


def extend_model(run: Run, role: Role, minutes: float | None, steps: int | None, rank: int = 0, ranks: int = 1) -> None:
    """Plan a finished model to be trained further: for `minutes`, or by `steps`; one of them is None."""
    if minutes is not None:
        probe = measure_speed(run, role, min(10.0, 0.04 * minutes * 60), rank, ranks)
        steps = max(20, int(0.94 * minutes * 60 / probe))
    assert steps is not None
    run.models[role.name]["steps"] += steps


def _minutes_alike(run: Run, roles: list[Role]) -> float | None:
    """Minutes for new models in proportion to those of the ones that are there; None where these have steps."""
    known = [model["minutes"] / SHARES[name] for name, model in run.models.items() if model["minutes"]]
    return max(known) * sum(SHARES[role.name] for role in roles) if known else None


def _save(run: Run, rank: int) -> None:
    """Write run.json, by one process; the others wait for it."""
    if rank == 0:
        run.save()
    if dist.is_initialized():
        dist.barrier()


# Training ------------------------------------------------------------------------------------------------------------


def _train_role(
    run: Run, role: Role, rank: int, ranks: int, stopping: Callable[[], bool], say: Callable[[str], None], quiet: bool
) -> None:
    """Train one model to its planned end, planning it first if only a time budget is known."""
    plan = run.models[role.name]
    if not plan["steps"]:
        seconds = plan["minutes"] * 60
        probe = measure_speed(run, role, min(10.0, 0.04 * seconds), rank, ranks)
        plan["steps"] = max(20, int(0.94 * seconds / probe))
        say(f"{role.name}: {plan['minutes']:.1f} minutes at {1 / probe:.1f} steps/s: {plan['steps']} steps")
        if rank == 0:
            run.save()
    trainer = Trainer(run, role, plan["steps"], rank, ranks)
    trainer.restore()
    if trainer.done >= trainer.total:
        return
    progress = None
    if rank == 0:
        preview = _previewer(run, role, trainer)
        progress = Progress(run.path / role.name, role.name, trainer.done, trainer.total, preview, quiet=quiet)
    try:
        trainer.train(progress, stopping)
        if trainer.graph_bytes:
            say(f"{role.name}: the graph of a step kept {trainer.graph_bytes / 2**20:.0f} MiB")
        say(f"{role.name}: memory at the peak {peak_memory(run.device) / 2**30:.2f} GiB")
    finally:
        if progress:
            progress.close(trainer.done == trainer.total)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most until now: resident ones, or those of a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _previewer(run: Run, role: Role, trainer: Trainer) -> Callable[[], None]:
    """Writes preview.png: what the model makes with the averaged weights it has so far."""

    def preview() -> None:
        averaged = run.build(role)
        assert isinstance(averaged.network, NextNet)
        weights = trainer.optimizer.average if run.recipe.ema_gamma > 0 else trainer.optimizer.parameters
        averaged.network.load_state_dict(weights)
        # A run of its own, so that sampling finds this denoiser and never the checkpoint's.
        now = run.to(run.device.type, graph=False)
        now.dtype = run.dtype
        now.recipe = run.recipe.replace(correction_timesteps=0)
        now._denoisers[role.name] = averaged
        if role is PREDICTOR:
            made = np.stack([frames[0] for frames in stream(now, 8, start=0)])
        elif role is INTERPOLATOR:
            made = upsample(now, 2, now.frames[:3])
        elif role is IMAGE:
            made = generate_images(now, 4)
        else:
            now._denoisers[IMAGE.name] = averaged
            made = generate_images(now, 2)
        write_image(run.path / role.name / "preview.png", contact_sheet(made), overwrite=True)

    return preview


def _new_run(
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
) -> Run:
    """A run folder with run.json and the frames, no weights yet."""
    check_crops(recipe, roles, *check_size(clip.frames.shape[1:3]))
    recipe = recipe.replace(max_frame_offset=min(recipe.max_frame_offset, max(1, len(clip.frames) - 1)))
    source = os.fspath(input) if isinstance(input, str | os.PathLike) else "frames"
    path = Path(out) if out is not None else Path("runs") / (Path(source).stem or "run")
    if rank == 0:
        _make_room(path, overwrite)
    models = _planned(clip.frames, roles, recipe, minutes)
    run = Run(path, clip.kind, recipe, clip.frames, clip.fps, seed, models, source, trained_with=trained_with)
    _save(run, rank)  # the others look for checkpoints only after old ones are gone
    return run


def _planned(frames: np.ndarray, roles: list[Role], recipe: Recipe, minutes: float | None) -> dict[str, dict[str, Any]]:
    """What run.json says of models that are to be trained."""
    total = sum(SHARES[role.name] for role in roles)
    return {
        role.name: {
            "steps": 0 if minutes else recipe.steps(role),
            "minutes": minutes * SHARES[role.name] / total if minutes else None,
            "spreads": _spreads(frames, role, recipe),
        }
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


def _make_room(path: Path, overwrite: bool) -> None:
    """Refuse to write over anything unless asked to; then remove an earlier run, and nothing else."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        hint = f"; to go on training it: sinfusion train {path}" if (path / "run.json").exists() else ""
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another --out{hint}")
    if not (path / "run.json").exists():
        raise SinfusionError(f"{path} exists and is not a run folder, so it is not overwritten; choose another --out.")
    for name in ("run.json", "input.safetensors"):
        (path / name).unlink(missing_ok=True)
    for role in ROLES.values():
        while (checkpoint := last_checkpoint(path / role.name)) is not None:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()


def _spreads(frames: np.ndarray, role: Role, recipe: Recipe) -> list[float]:
    """RMS of clean - centre: one entry for each frame offset, or one."""
    if role is PREDICTOR:
        return [rms_change(frames, k) for k in range(1, recipe.max_frame_offset + 1)]
    values = frames.astype(np.float32) / 127.5 - 1
    if role is INTERPOLATOR:
        values = values[1:-1] - (values[:-2] + values[2:]) / 2
    return [max(float(np.sqrt(np.mean(values**2))), 1e-3)]


def _say_what(run: Run, say: Callable[[str], None]) -> None:
    height, width = run.size
    dtype = str(run.dtype).removeprefix("torch.")
    what = "an image" if run.kind == "image" else f"{len(run.frames)} frames"
    say(
        f"{run.path}: {' and '.join(run.models)} on {what} of {width}x{height}, recipe {run.recipe.name} "
        f"(depth {run.recipe.depth}, {run.recipe.filters} filters), {run.device}, {dtype}"
    )


def _out_of_memory(run: Run) -> SinfusionError:
    return SinfusionError(
        f"out of memory at {run.size[1]}x{run.size[0]}, batch size {run.recipe.batch_size}, {run.recipe.filters} "
        "filters; lower --max-side first, then --batch-size, --filters or --depth."
    )


def _join_processes(device: str) -> tuple[int, int]:
    """(rank, number of processes), joining the others if torchrun started this one."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1
    if not dist.is_initialized():
        on_gpu = choose_device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a wish to stop that the loop asks for; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def handle(number: int, _: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller handles its signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
