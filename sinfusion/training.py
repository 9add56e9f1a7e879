"""`train`: from a file to a run. Reads the input, chooses models and recipe, and trains one model after another."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .console import say
from .errors import SinfusionError
from .files import LOCK, TEMPORARY
from .media import Clip, contact_sheet, read_media, write_image
from .network import NextNet
from .parameterization import rms_change
from .precision import choose_device
from .progress import Progress
from .recipe import FAST, RECIPES, TINY, Recipe
from .reverse import LEAST_SIDE, check_size
from .roles import IMAGE, INTERPOLATOR, PREDICTOR, ROLES, TASKS, Role
from .rollout import generate_images, stream, upsample
from .run import Run, last_checkpoint, load, writing
from .signals import Interrupted, Wish, awaited
from .trainer import Stopped, Trainer, measure_speed

# How a time budget is divided between the models of a run, in relative shares.
SHARES = {"image": 1.0, "predictor": 0.6, "projector": 0.25, "interpolator": 0.35}

TINY_MINUTES = 10.0  # the budget of `tiny` where none is given


def train(
    input: str | Path | np.ndarray | Clip,
    out: str | Path | None = None,
    recipe: str | Recipe | None = None,
    minutes: float | None = None,
    tasks: tuple[str, ...] = ("generate",),
    size: tuple[int, int] | None = None,
    max_side: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    stride: int = 1,
    fps: float = 20.0,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    graph: bool = True,
    overwrite: bool = False,
    quiet: bool = False,
) -> Run:
    """Train on one image or one video and return the run.

    input: a file or frame folder, frames (T, H, W, 3) uint8, a picture (H, W, 3) uint8, or the folder of an unfinished
    run, which is then taken to its end exactly as it would have gone. out: the run folder; None: runs/<name of input>.
    recipe: paper, fast, tiny or a Recipe; None: fast on a GPU, tiny on a CPU. minutes: a time budget for all models;
    schedule, decay and curriculum scale to it. tasks: `generate` (Predictor and Projector) and `upsample`
    (Interpolator); an image always trains the image model. size: (height, width) of the training frames.
    max_side: larger inputs are scaled down to this longer side. start, stop, stride: frames of the video to use.
    fps: of frames that come without it. device: auto, cpu, cuda. precision: auto, bf16, fp32. graph: on a GPU,
    replay each step from a CUDA graph.

    Raises SinfusionError for anything wrong with these, before any work starts.
    """
    rank, ranks = _join_processes(device)
    tell: Callable[[str], None] = (lambda _: None) if quiet or rank else say
    with ExitStack() as held:
        if isinstance(input, str | Path) and (Path(input) / "run.json").is_file():
            if rank == 0:
                held.enter_context(writing(Path(input)))
            run = load(input, device, precision, graph)
            _check_batch(run.recipe, ranks)
            tell(f"continuing {run.path}")
        else:
            chosen = choose_device(device)
            settings = _recipe(recipe, chosen)
            clip, settings, minutes = _read(input, settings, minutes, size, max_side, start, stop, stride, fps, tell)
            roles = _roles(clip, tasks)
            _check_batch(settings, ranks)
            run = _new_run(input, clip, out, settings, roles, minutes, seed, overwrite, rank, held)
            run = run.to(str(chosen), precision, graph)
        _say_what(run, tell)
        stopping = held.enter_context(awaited())
        try:
            for name in run.models:
                _train_role(run, ROLES[name], rank, ranks, stopping, tell, quiet)
        except Stopped:
            tell(f"stopped; everything is saved. Go on with: sinfusion train {run.path}")
            raise (Interrupted(stopping.number) if stopping.number else KeyboardInterrupt()) from None
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(run) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise _out_of_memory(run) from error
            raise
    run._denoisers.clear()
    return run


def _train_role(
    run: Run, role: Role, rank: int, ranks: int, stopping: Wish, say: Callable[[str], None], quiet: bool
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
        preview = partial(stopping.cut_short, _previewer(run, role, trainer))
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


def _read(
    input: Any,
    recipe: Recipe,
    minutes: float | None,
    size: tuple[int, int] | None,
    max_side: int | None,
    start: int | None,
    stop: int | None,
    stride: int,
    fps: float,
    say: Callable[[str], None],
) -> tuple[Clip, Recipe, float | None]:
    """The clip to train on, and the recipe fitted to a CPU's budget if it is `tiny`."""
    if minutes is not None and minutes <= 0:
        raise SinfusionError(f"minutes must be above 0, not {minutes}.")
    side = 256
    if recipe.name == "tiny":
        if minutes is None and all(recipe.steps(role) == TINY.steps(role) for role in ROLES.values()):
            minutes = TINY_MINUTES
        side, recipe = _fit(recipe, minutes or TINY_MINUTES)
    if isinstance(input, Clip):
        return input, recipe, minutes
    if isinstance(input, np.ndarray):
        frames = input[None] if input.ndim == 3 else input
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise SinfusionError(f"frames are (T, H, W, 3) uint8, not {input.shape} {input.dtype}.")
        return Clip(frames, fps, "image" if len(frames) == 1 else "video", frames.shape[1:3]), recipe, minutes
    if size is not None:
        check_size(size)
    clip = read_media(
        input, start=start, stop=stop, stride=stride, size=size,
        max_side=side if max_side is None else max_side, say=say,
    )  # fmt: skip
    return clip, recipe, minutes


def _fit(recipe: Recipe, minutes: float) -> tuple[int, Recipe]:
    """The longer side of the frames and the network that a budget on a CPU allows; settings the user made stay."""
    table = ((5, 64, 12, 32), (9, 96, 12, 32), (25, 128, 12, 32), (60, 128, 12, 48), (float("inf"), 160, 16, 48))
    _, side, depth, filters = next(row for row in table if minutes <= row[0])
    fitted = recipe.replace(
        depth=depth if recipe.depth == TINY.depth else recipe.depth,
        filters=filters if recipe.filters == TINY.filters else recipe.filters,
    )
    return side, fitted


def _recipe(recipe: str | Recipe | None, device: torch.device) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        return FAST if device.type == "cuda" else TINY
    if recipe not in RECIPES:
        raise SinfusionError(f"recipe must be one of {', '.join(RECIPES)}, not {recipe!r}.")
    return RECIPES[recipe]


def _roles(clip: Clip, tasks: tuple[str, ...]) -> list[Role]:
    """The models that a clip and the tasks ask for."""
    if clip.kind == "image":
        return [IMAGE]
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise SinfusionError(f"tasks are {' and '.join(TASKS)}, not {' '.join(unknown) or 'none'}.")
    roles = [role for task in TASKS if task in tasks for role in TASKS[task]]
    for role in roles:
        if len(clip.frames) < role.least_frames:
            raise SinfusionError(
                f"the video has {len(clip.frames)} frame(s), the {role.name} needs at least {role.least_frames}."
            )
    return roles


def _check_batch(recipe: Recipe, ranks: int) -> None:
    if recipe.batch_size % ranks:
        raise SinfusionError(
            f"batch size {recipe.batch_size} cannot be split over {ranks} processes; choose a multiple of {ranks}."
        )


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
    held: ExitStack | None = None,
) -> Run:
    """A run folder with run.json and the frames, no weights yet; until `held` is closed nobody else writes to it."""
    height, width = check_size(clip.frames.shape[1:3])
    for role in roles:
        crop = recipe.crop_size(role, height, width)
        if min(crop) < LEAST_SIDE:
            raise SinfusionError(
                f"crop {recipe.crop} of {width}x{height} is {crop[1]}x{crop[0]}; a crop needs {LEAST_SIDE} pixels "
                "a side."
            )
    recipe = recipe.replace(max_frame_offset=min(recipe.max_frame_offset, max(1, len(clip.frames) - 1)))
    source = str(input) if isinstance(input, str | Path) else "frames"
    path = Path(out) if out is not None else Path("runs") / (Path(source).stem or "run")
    if rank == 0:
        _check_room(path, overwrite)
    total = sum(SHARES[role.name] for role in roles)
    models: dict[str, dict[str, Any]] = {}
    for role in roles:
        models[role.name] = {
            "steps": 0 if minutes else recipe.steps(role),
            "minutes": minutes * SHARES[role.name] / total if minutes else None,
            "spreads": _spreads(clip.frames, role, recipe),
        }
    run = Run(path, clip.kind, recipe, clip.frames, clip.fps, seed, models, source)
    if rank == 0:
        if held:
            held.enter_context(writing(path))
        _check_room(path, overwrite)  # again: now nobody else writes
        run.save(anew=True)
    if dist.is_initialized():  # the others look for checkpoints only after old ones are gone
        dist.barrier()
    return run


def _check_room(path: Path, overwrite: bool) -> None:
    """Refuse to write over anything unless asked to, and over anything but an earlier run, whole or half-written."""
    if not path.exists():
        return
    there = {p.name for p in path.iterdir() if not p.name.startswith(TEMPORARY)} - {LOCK} if path.is_dir() else {""}
    trained = any(last_checkpoint(path / role) for role in ROLES)
    if not there or ("run.json" in there and "input.safetensors" not in there and not trained):
        return  # empty, or stopped before it began
    if "run.json" not in there and not there <= {"input.safetensors", "made", *ROLES}:
        raise SinfusionError(f"{path} exists and is not a run folder, so it is not overwritten; choose another --out.")
    if not overwrite:
        hint = f"; to go on training it: sinfusion train {path}" if "run.json" in there else ""
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another --out{hint}")


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
