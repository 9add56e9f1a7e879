"""`train`: from a file to a run. `run_setup` makes the run folder; here its models are trained, one after another."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import console
from ..console import Bar
from ..errors import SinfusionError
from ..media import Source
from ..names import as_path, pasteable
from ..progress import OnProgress, Progress
from ..recipe import Recipe
from ..roles import ROLES, Role
from ..run import Run, load
from ..signals import Interrupted, StopFlag, deferred
from .budget import Budget, Clock
from .callbacks import Callbacks, ShouldStop
from .capacity import shortfall, watchable_steps
from .logger import TrainingLogger
from .plan import MOST_STEPS, Plan, read_journal
from .preview import preview
from .processes import ALONE, Processes
from .request import Compute, ContinuationRequest, TrainingRequest, refuse_other_settings, run_folder, task_names
from .run_setup import ready_run
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
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    receptive: int | None = None,
) -> Run:
    """Train on one image or one video and return the run; or go on with a run.

    input: what `media.Source` takes: a file or a folder of frames, a Clip, frames (T, H, W, 3) or an image (H, W, 3),
    a list of images and so on. out: the run folder; None: runs/<name of input>.
    recipe: paper, fast, tiny or a Recipe, which is taken as it is; None: fast on a GPU, tiny on a CPU. settings:
    settings of the recipe by name, which stay as they are while the others of `tiny` follow the machine and the time.
    receptive: pixels across that the network sees, in place of the recipe's depth; `tiny` sees 73.
    minutes: after so many all models are trained to the end of their schedules, whatever else the machine does. steps:
    of each model, instead. patient: go on after `minutes` where a model needs more steps before what it makes is worth
    watching. tasks: `generate` (Predictor and Projector, the default) and `upsample` (Interpolator); an image has none.
    start, stop, stride, size, max_side, fps: see `Source`; without size and max_side, frames are scaled down to a
    longer side of 256, with `tiny` to the largest that the machine can train in the time.
    seed: from 0 to 2^32 - 1; None: 0. device: auto, cpu, cuda, or cuda:1 of several GPUs. precision: auto, bf16, fp32.
    graph: replay kernels, on a GPU each step from a CUDA graph; None: yes. quiet: print nothing.

    on_progress: called with a `Progress` about once a second, by the thread that trains: steps done and planned, the
    model as the task, the mean loss, and an image whenever there is a new preview. An exception that it raises stops
    the training after a save and is raised here. should_stop: called between steps, by the same thread; once it returns
    True (`threading.Event().is_set` is one that any thread can set), the training is saved, and its run is returned,
    unfinished: `train(run)` goes on to the same bits.

    input may be a Run or its folder. An unfinished one is taken to its end, with the device, precision and graph that
    it was trained with where nothing else is asked for. A finished one is trained further: `steps` more for each model,
    or `minutes` for all. `tasks` adds models that it has not, for which `minutes` or `steps` are then. Its other
    settings are its own. A model whose checkpoints were removed is trained again by its plan.jsonl, to the same bits.

    Raises SinfusionError for anything wrong with these, before any work starts; KeyboardInterrupt, after a save, where
    a signal stops it.
    """
    started = time.monotonic()
    compute = Compute(device, precision, graph)
    folder = run_folder(input)
    request: TrainingRequest | ContinuationRequest
    if folder is None:
        request = TrainingRequest(
            source=Source(input, start, stop, stride, size, max_side, fps),
            out=None if out is None else as_path(out, "out"),
            recipe=recipe,
            settings=settings or {},
            minutes=minutes,
            steps=steps,
            tasks=task_names(tasks),
            seed=0 if seed is None else seed,
            overwrite=overwrite,
            patient=patient,
            receptive=receptive,
        )
    else:
        others = {
            "out": out, "recipe": recipe, "size": size, "max_side": max_side, "start": start, "stop": stop,
            "stride": stride, "fps": fps, "seed": seed, "overwrite": overwrite or None,
            "receptive": receptive, **(settings or {}),
        }  # fmt: skip
        refuse_other_settings(folder, others)
        request = ContinuationRequest(
            folder=folder, minutes=minutes, steps=steps, tasks=task_names(tasks), patient=patient
        )
        compute = compute.continuing(load(folder, "cpu", log=_silent if quiet else console.log))
    processes = Processes.join(compute.device)
    quiet = quiet or not processes.is_first
    log: Callable[[str], None] = _silent if quiet else console.log
    with ready_run(request, compute, processes, log) as run:
        log(_summary(run))
        session = Session(
            run, budget_of(run, started), request.patient, Callbacks(on_progress, should_stop), quiet, processes
        )
        session.train_models()
    if not quiet and (short := shortfall(run)):  # the first process is alone in knowing that all is written
        log(short)
    return run


def _silent(text: str) -> None:
    pass


def budget_of(run: Run, started: float) -> Budget:
    """The time that the models of a run have together; without end where they were given steps.

    started: `time.monotonic` when this session began.
    """
    timed = [model for model in run.models.values() if model["minutes"]]
    since = max((model.get("since", 0.0) for model in timed), default=0.0)
    minutes = sum(model["minutes"] for model in timed if model.get("since", 0.0) == since)
    return Budget(since + 60 * minutes if timed else math.inf, run.seconds_used(), started)


@dataclass
class Session:
    """The training of a run's models, one after another."""

    run: Run
    budget: Budget
    patient: bool = False  # go on after the time until results are worth watching
    callbacks: Callbacks = field(default_factory=Callbacks)
    quiet: bool = False
    processes: Processes = ALONE

    def train_models(self) -> None:
        """Train all models that are not finished.

        Raises what a callback raised, and KeyboardInterrupt after a signal, once everything is saved.
        """
        run = self.run
        with deferred() as flag:
            try:
                for name in [name for name in run.models if not run.finished(name)]:
                    self._train_model(ROLES[name], flag)
            except Stopped:
                self._log(f"stopped; everything is saved. Go on with: sinfusion train {pasteable(run.path)}")
                self.callbacks.raise_error()
                if flag.number is not None:
                    raise Interrupted(flag.number) from None
                if not self.callbacks.stopped:  # another process was stopped
                    raise KeyboardInterrupt from None
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if _is_out_of_memory(error):
                    raise _out_of_memory(run) from error
                raise
        self.callbacks.raise_error()  # of the very last report

    def _train_model(self, role: Role, flag: StopFlag) -> None:
        """Train one model to the end of its plan, which a clock makes where a time is given and no number of steps."""
        run, model = self.run, self.run.models[role.name]
        # A training whose checkpoints are gone is repeated, as its journal has it.
        again = None if self.run.has(role) else read_journal(run.path / role.name)
        trainer = Trainer(run, role, again or Plan.even(model["steps"] or MOST_STEPS), self.processes, self.budget)
        trainer.restore()
        if model.get("further") == trainer.done == trainer.total:
            total = model["steps"] or MOST_STEPS
            at = trainer.done / total if model["steps"] else self.budget.used / self.budget.seconds
            trainer.end_after(total, at)
        if trainer.done < trainer.total:
            clock = None if model["steps"] or again else self._clock(role, trainer.plan)
            self._run_trainer(trainer, clock, flag)
        if model["steps"] != trainer.total:  # what the clock has found
            model["steps"] = trainer.total
            if self.processes.is_first:
                run.save()

    def _run_trainer(self, trainer: Trainer, clock: Clock | None, flag: StopFlag) -> None:
        """Train a model, with a bar, files to look at and a line at the end."""
        run, role = self.run, trainer.role
        planned = clock and clock.seconds(trainer.progress)
        began, worked, first = time.monotonic(), time.process_time(), trainer.done
        with Bar(quiet=self.quiet, lasting=True) as bar:

            def report(progress: Progress) -> None:
                bar(progress)
                self.callbacks.report(progress)

            logger = None
            if self.processes.is_first:
                make_preview = partial(flag.interruptible, partial(preview, run, role, trainer))
                logger = TrainingLogger(
                    run.path / role.name,
                    role.name,
                    first,
                    trainer.total,
                    on_progress=report,
                    preview=make_preview,
                    quiet=self.quiet,
                )
            try:
                trainer.train(logger, lambda: flag() or self.callbacks.should_stop(), clock)
            finally:
                if logger:
                    logger.close(trainer.done == trainer.total)
        seconds, threads = time.monotonic() - began, torch.get_num_threads()
        share = (time.process_time() - worked) / (seconds * threads)
        self._log(
            f"{role.name}: {trainer.done - first} steps in {seconds:.0f} s"
            + (f" ({planned:.0f} s planned)" if planned else "")
            + (f", {share:.0%} of {threads} core(s)" if run.device.type == "cpu" else "")
            + f", memory at the peak {peak_memory(run.device) / 2**30:.2f} GiB"
            + (f", the graph of a step kept {trainer.graph_bytes / 2**20:.0f} MiB" if trainer.graph_bytes else "")
        )

    def _clock(self, role: Role, plan: Plan) -> Clock:
        """What plans a model by the time that it has beside those after it."""
        run, model, seconds = self.run, self.run.models[role.name], self.budget.seconds

        def on_overrun(beyond: float) -> None:
            self._log(
                f"this machine is slow, or busy with other work: the {role.name} takes about {beyond / 60:.1f} minutes "
                "more than planned, so that what it makes is worth watching"
            )

        names = list(run.models)
        after = [run.models[name] for name in names[names.index(role.name) + 1 :]]
        later_shares = [model["minutes"] * 60 / seconds for model in after if not model["steps"]]
        min_steps = watchable_steps(run.recipe, role.name, run.size) if self.patient else 0
        further = model.get("further")
        start = next((segment.progress for segment in plan.segments if segment.step == further), 0.0)
        return Clock(self.budget, model["minutes"] * 60 / seconds, later_shares, start, min_steps, on_overrun)

    def _log(self, text: str) -> None:
        if not self.quiet:
            console.log(text)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most until now: resident ones, or those of a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _summary(run: Run) -> str:
    """What is trained, on what and how, in a line."""
    height, width = run.size
    dtype = str(run.dtype).removeprefix("torch.")
    frames = "an image" if run.kind == "image" else f"{len(run.frames)} frames"
    return (
        f"{run.path}: {' and '.join(run.models)} on {frames} of {width}x{height}, recipe {run.recipe.name} "
        f"(depth {run.recipe.depth}, which sees {run.recipe.receptive} pixels across, {run.recipe.filters} filters), "
        f"{run.device}, {dtype}"
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in ("not enough memory", "can't allocate memory"))  # of the CPU's allocator


def _out_of_memory(run: Run) -> SinfusionError:
    return SinfusionError(
        f"out of memory at {run.size[1]}x{run.size[0]}, batch size {run.recipe.batch_size}, {run.recipe.filters} "
        "filters; lower --max-side first, then --batch-size, --filters or --depth."
    )
