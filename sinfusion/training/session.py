"""`train`: from a file to a run. `planning` makes the run folder; here its models are trained one after another."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .. import console
from ..checkpoint import last_checkpoint
from ..diffusion.denoiser import Denoiser
from ..errors import SettingError, SinfusionError
from ..generation.reverse_process import reverse_process
from ..generation.video import NextFrame, rollout
from ..media import Source, contact_sheet, write_image
from ..pixels import check_size, to_uint8, to_unit
from ..precision import choose_device
from ..recipe import Recipe
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, ROLES, Role
from ..run import Run, load, writing
from ..seeds import check_seed
from ..signals import Interrupted, Wish, awaited
from .capacity import shortfall, watchable_steps
from .plan import MOST_STEPS, Budget, Clock, Plan, read_journal
from .progress import Progress
from .request import (
    arithmetic,
    as_before,
    check_batch,
    check_continuing,
    check_extension,
    check_length,
    choose_recipe,
    choose_roles,
    extend_run,
    fit_frames,
    new_run,
    run_folder,
    save,
)
from .trainer import Stopped, Trainer


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
    patient: bool = False,
) -> Run:
    """Train on one image or one video and return the run; or go on with a run.

    input: what `media.Source` takes: a file or a folder of frames, a Clip, frames (T, H, W, 3) or an image (H, W, 3),
    a list of images and so on. out: the run folder; None: runs/<name of input>.
    recipe: paper, fast, tiny or a Recipe, which is taken as it is; None: fast on a GPU, tiny on a CPU. settings:
    settings of the recipe by name, which stay as they are while the others of `tiny` follow the machine and the time.
    minutes: after so many all models are trained to the end of their schedules, whatever else the machine does. steps:
    of each model, instead. patient: go on after `minutes` where a model needs more steps before what it makes is worth
    watching. tasks: `generate` (Predictor and Projector, the default) and `upsample` (Interpolator); an image has none.
    start, stop, stride, size, max_side, fps: see `Source`; without size and max_side, frames are scaled down to a
    longer side of 256, with `tiny` to the largest that the machine can train in the time.
    seed: from 0 to 2^32 - 1; None: 0. device: auto, cpu, cuda, or cuda:1 of several GPUs. precision: auto, bf16, fp32.
    graph: replay kernels, on a GPU each step from a CUDA graph; None: yes.

    input may be a Run or its folder. An unfinished one is taken to its end, with the device, precision and graph that
    it was trained with where nothing else is asked for. A finished one is trained further: `steps` more for each model,
    or `minutes` for all. `tasks` adds models that it has not, for which `minutes` or `steps` are then. Its other
    settings are its own. A model whose checkpoints were removed is trained again by its plan.jsonl, to the same bits.

    Raises SinfusionError for anything wrong with these, before any work starts.
    """
    started = time.monotonic()
    check_length(minutes, steps, recipe, settings or {})
    folder = run_folder(input)
    if folder is not None:
        others = {
            "out": out, "recipe": recipe, "size": size, "max_side": max_side, "start": start, "stop": stop,
            "stride": stride, "fps": fps, "seed": seed, "overwrite": overwrite or None, **(settings or {}),
        }  # fmt: skip
        check_continuing(folder, others)
        run = load(folder, "cpu")
        device, precision, graph, changes = as_before(run, device, precision, graph)
    seed, graph = check_seed(0 if seed is None else seed), True if graph is None else graph
    rank, ranks = _join_processes(device)
    log: Callable[[str], None] = (lambda _: None) if quiet or rank else console.log
    with ExitStack() as held:
        if folder is not None:
            if rank == 0:
                held.enter_context(writing(folder))
            run = load(folder, device, precision, graph, lambda _: None)  # again: now nobody else writes
            check_extension(run, minutes, steps, tasks)
            check_batch(run.recipe, ranks)
            log("\n".join([f"continuing {run.path}", *changes]))
            if (minutes, steps, tasks) != (None, None, None):
                extend_run(run, minutes, steps, tasks)
            if all(map(run.finished, run.models)):
                log(f"it is finished; to train it further: sinfusion train {run.path} --minutes M, or --steps N")
            else:
                run.trained_with = arithmetic(run.device, precision, graph)
                save(run, rank)
        else:
            chosen = choose_device(device)
            source = Source(input, start, stop, stride, size, max_side, fps)
            if size is not None:
                check_size(size)
            asked, minutes = choose_recipe(recipe, settings or {}, minutes, steps, chosen)
            longest = fit_frames(source, asked, minutes, tasks, chosen, precision, graph, patient, log)
            clip = source.read(longest, log)
            roles = choose_roles(clip, tasks)
            check_batch(asked, ranks)
            trained_with = arithmetic(chosen, precision, graph)
            run = new_run(input, clip, out, asked, roles, minutes, seed, overwrite, rank, trained_with, held)
            run = run.to(chosen, precision, graph)
        _log_what(run, log)
        budget = _budget(run, started)
        stopping = held.enter_context(awaited())
        try:
            for name in [name for name in run.models if not run.finished(name)]:
                _train_role(run, ROLES[name], budget, rank, ranks, stopping, log, quiet, patient)
        except Stopped:
            log(f"stopped; everything is saved. Go on with: sinfusion train {run.path}")
            raise (Interrupted(stopping.number) if stopping.number else KeyboardInterrupt()) from None
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(run) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise _out_of_memory(run) from error
            raise
    if short := shortfall(run):
        log(short)
    return run


def _budget(run: Run, started: float) -> Budget:
    """The time that the models of a run have together; without end where they were given steps."""
    timed = [model for model in run.models.values() if model["minutes"]]
    since = max((model.get("since", 0.0) for model in timed), default=0.0)
    minutes = sum(model["minutes"] for model in timed if model.get("since", 0.0) == since)
    return Budget(since + 60 * minutes if timed else math.inf, run.seconds_used(), started)


def _clock(run: Run, role: Role, plan: Plan, budget: Budget, patient: bool, log: Callable[[str], None]) -> Clock:
    """What plans a model by the time that it has beside those after it."""
    model = run.models[role.name]

    def late(seconds: float) -> None:
        log(
            f"this machine is slow, or busy with other work: the {role.name} takes about {seconds / 60:.1f} minutes "
            "more than planned, so that what it makes is worth watching"
        )

    names = list(run.models)
    after = [run.models[name] for name in names[names.index(role.name) + 1 :]]
    later = [model["minutes"] * 60 / budget.seconds for model in after if not model["steps"]]
    least = watchable_steps(run.recipe, role.name, run.size) if patient else 0
    begun = next((piece.progress for piece in plan.pieces if piece.step == model.get("further")), 0.0)
    return Clock(budget, model["minutes"] * 60 / budget.seconds, later, begun, least, late)


def _train_role(
    run: Run,
    role: Role,
    budget: Budget,
    rank: int,
    ranks: int,
    stopping: Wish,
    log: Callable[[str], None],
    quiet: bool,
    patient: bool,
) -> None:
    """Train one model to the end of its plan, which a clock makes where a time is given and no number of steps."""
    model, folder = run.models[role.name], run.path / role.name
    # A training whose checkpoints are gone is repeated, as its journal has it.
    again = None if last_checkpoint(folder) else read_journal(folder)
    trainer = Trainer(run, role, again or Plan.of(model["steps"] or MOST_STEPS), rank, ranks, budget)
    trainer.restore()
    if model.get("further") == trainer.done == trainer.total:
        total = model["steps"] or MOST_STEPS
        trainer.end_after(total, trainer.done / total if model["steps"] else budget.used / budget.seconds)
    if trainer.done >= trainer.total:
        _ended(run, model, trainer, rank)
        return
    clock = None if model["steps"] or again else _clock(run, role, trainer.plan, budget, patient, log)
    planned = clock and clock.seconds(trainer.progress)
    progress = None
    if rank == 0:
        preview = partial(stopping.cut_short, _previewer(run, role, trainer))
        progress = Progress(folder, role.name, trainer.done, trainer.total, preview, quiet=quiet)
    begun, worked, first = time.monotonic(), time.process_time(), trainer.done
    try:
        trainer.train(progress, stopping, clock)
    finally:
        if progress:
            progress.close(trainer.done == trainer.total)
    seconds, threads = time.monotonic() - begun, torch.get_num_threads()
    share = (time.process_time() - worked) / (seconds * threads)
    log(
        f"{role.name}: {trainer.done - first} steps in {seconds:.0f} s"
        + (f" ({planned:.0f} s planned)" if planned else "")
        + (f", {share:.0%} of {threads} core(s)" if run.device.type == "cpu" else "")
        + f", memory at the peak {peak_memory(run.device) / 2**30:.2f} GiB"
        + (f", the graph of a step kept {trainer.graph_bytes / 2**20:.0f} MiB" if trainer.graph_bytes else "")
    )
    _ended(run, model, trainer, rank)


def _ended(run: Run, model: dict[str, Any], trainer: Trainer, rank: int) -> None:
    """Have the steps of a training by the clock in run.json."""
    if model["steps"] != trainer.total:
        model["steps"] = trainer.total
        if rank == 0:
            run.save()


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
        weights = trainer.optimizer.average if run.recipe.ema_gamma > 0 else trainer.optimizer.parameters
        averaged.network.load_state_dict(weights)
        outputs = preview_images(dataclasses.replace(run, graph=False), role, averaged)
        write_image(run.path / role.name / "preview.png", contact_sheet(outputs), overwrite=True)

    return preview


def preview_images(run: Run, role: Role, denoiser: Denoiser) -> np.ndarray:
    """(N, H, W, 3) uint8: a few images or frames that a denoiser of the run generates."""
    process = reverse_process(run, role, denoiser, 1 if role.frame_offset else None)
    seeds = torch.arange(4, device=run.device)
    if role is PREDICTOR:
        first = to_unit(torch.from_numpy(run.frames[:1]).to(run.device))
        frames = rollout(NextFrame(process), first, seeds[:1], 8, graph=False)
        return np.concatenate([frame.cpu().numpy() for frame in frames])
    if role is INTERPOLATOR:
        shown = [run.frames[0]]
        for i in range(2):
            pair = to_unit(torch.from_numpy(run.frames[i : i + 2]).to(run.device)).flatten(0, 1)[None]
            shown += [to_uint8(process(seeds[:1], i, pair))[0].cpu().numpy(), run.frames[i + 1]]
        return np.stack(shown)
    return to_uint8(process(seeds[: 4 if role is IMAGE else 2], 0, size=run.size)).cpu().numpy()


def _log_what(run: Run, log: Callable[[str], None]) -> None:
    height, width = run.size
    dtype = str(run.dtype).removeprefix("torch.")
    what = "an image" if run.kind == "image" else f"{len(run.frames)} frames"
    log(
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
        chosen = choose_device(device)
        on_gpu = chosen.type == "cuda"
        if chosen.index is not None:
            raise SettingError(f"{{device}} must be cuda, not {chosen}: several processes take a GPU each, by number.")
        if on_gpu:
            number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if number >= count:
                raise SinfusionError(f"process {number} has no GPU: PyTorch sees {count}; start no more processes.")
            torch.cuda.set_device(number)
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return dist.get_rank(), dist.get_world_size()
