"""`tune`: from a clip and a sentence to the run of a tuned model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import console
from ..console import Bar
from ..errors import SettingError, SinfusionError, option_name
from ..media import Source
from ..names import as_path, name_after, pasteable
from ..precision import choose_device, choose_dtype
from ..progress import OnProgress, Progress
from ..seeds import check_seed
from ..signals import Interrupted, StopFlag, deferred
from ..training.callbacks import Callbacks, ShouldStop
from ..training.logger import TrainingLogger
from ..training.session import peak_memory
from ..training.trainer import Stopped
from .base_model import BaseModel
from .cost import Cost, check_affordable, duration, gib, speed
from .settings import RECIPES, SAMPLING_STEPS, Settings
from .tuned_run import TunedRun, check_replaceable, is_tuned, load, writing
from .tuner import Tuner

Log = Callable[[str], None]


def tune(
    input: Any,
    out: str | Path | None = None,
    prompt: str | None = None,
    model: str | Path | None = None,
    recipe: str | None = None,
    frames: int | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    learning_rate: float | None = None,
    window: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    really_on_cpu: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> TunedRun:
    """Tune an image model on one clip, so that `retell` can tell the clip in other words (Wu et al., ICCV 2023).

    input: a video, as `media.Source` takes it. out: the run folder; None: runs/<name of input>. prompt: what the clip
    shows, in a sentence. model: a folder with Stable Diffusion 1.4 or 1.5 in diffusers' layout, weights as safetensors.
    recipe: `paper` (8 frames, spread over the clip; 300 steps; the default) or `released` (the first 24 frames; 500
    steps). frames, steps, size (height, width), learning_rate and window in place of the recipe's.
    window: frames that the network sees at once; longer clips are learnt and told in windows that overlap.
    start, stop, stride, fps: see `Source`. seed: from 0 to 2^32 - 1; None: 0. device, precision: as for `train`.
    really_on_cpu: without it nothing that takes hours begins on a CPU. on_progress, should_stop: as for `train`.

    input may be a TunedRun or its folder: an unfinished one goes on to the same bits, a finished one by `steps` more.
    model: where the image model is now, if it was moved.

    Needs the extra `tune`. Raises SinfusionError for anything wrong with these, before any work starts;
    KeyboardInterrupt, after a save, where a signal stops it.
    """
    log: Log = (lambda _: None) if quiet else console.log
    places = {"start": start, "stop": stop, "stride": stride, "fps": fps}
    changes = {"frames": frames, "size": size, "learning_rate": learning_rate, "window": window}
    if folder := _run_folder(input):
        others = {"out": out, "prompt": prompt, "recipe": recipe, "seed": seed, "overwrite": overwrite or None}
        for name, value in {**others, **places, **changes}.items():
            if value is not None:
                raise SinfusionError(f"{folder} is a run that goes on as it was begun; leave out {option_name(name)}.")
        before = load(folder, "cpu")
        run = before.to(
            before.trained_with["device"] if device == "auto" else device,
            before.trained_with["precision"] if precision == "auto" else precision,
        )
        really_on_cpu = really_on_cpu or before.trained_with["device"] == "cpu"
        base = run.base_model(model)
        run.model = base.folder.absolute()
        if steps is not None:
            run = _extended(run, steps)
        log(f"continuing {run.path}")
        request = Request(run, base, overwrite, anew=False)
    else:
        settings = _settings(recipe).replace(**changes, steps=steps)
        source = Source(input, start, stop, stride, settings.size, None, fps)
        run, base = _new_run(source, out, settings, prompt, model, (device, precision, seed or 0), log)
        check_replaceable(run.path, overwrite)
        request = Request(run, base, overwrite, anew=True)
    return request.tuned(really_on_cpu, Callbacks(on_progress, should_stop), quiet, log)


def _run_folder(input: Any) -> Path | None:
    """The folder of a run that is to go on."""
    if isinstance(input, TunedRun):
        return input.path
    return Path(input) if isinstance(input, str | Path) and is_tuned(input) else None


def _settings(recipe: str | None) -> Settings:
    if (recipe or "paper") not in RECIPES:
        raise SettingError(f"{{recipe}} must be {' or '.join(RECIPES)}, not {recipe!r:.40}.")
    return RECIPES[recipe or "paper"]


def _extended(run: TunedRun, steps: int) -> TunedRun:
    if not run.finished():
        raise SinfusionError(f"{run.path} is not finished and goes on as planned; leave out --steps until it is.")
    return dataclasses.replace(run, settings=run.settings.replace(steps=run.steps_done() + steps))


def _new_run(
    source: Source,
    out: str | Path | None,
    settings: Settings,
    prompt: str | None,
    model: str | Path | None,
    how: tuple[str, str, int],  # device, precision, seed
    log: Log,
) -> tuple[TunedRun, BaseModel]:
    """A run in memory, and its image model; everything is checked."""
    if not prompt or not prompt.strip():
        raise SinfusionError("--prompt must say what the clip shows, such as --prompt 'a man is skiing'.")
    if model is None:
        raise SinfusionError("--model must name the folder of the image model to tune, a Stable Diffusion 1.4 or 1.5.")
    device = choose_device(how[0])
    dtype = choose_dtype(how[1], device)
    base = BaseModel(as_path(model, "--model"), device)
    base.embed([prompt])  # raises what is wrong with it
    clip = source.read(log=log)
    if clip.kind == "image" or len(clip.frames) < 2:
        raise SinfusionError(f"{source.name} is an image, in which nothing moves; give a video.")
    picked = settings.pick(len(clip.frames))
    if len(picked) < settings.frames:
        log(f"{source.name} has {len(picked)} frames, fewer than {settings.frames}: all are used")
    name = name_after(as_path(source.name)) if source.name != "the frames" else "tuned"
    run = TunedRun(
        path=as_path(out, "--out") if out is not None else Path("runs") / name,
        prompt=prompt.strip(),
        frames=clip.frames[picked],
        fps=clip.fps * (len(picked) - 1) / (picked[-1] - picked[0]),
        settings=settings,
        seed=check_seed(how[2]),
        model=base.folder.absolute(),
        fingerprint={},
        picked=picked,
        source_size=clip.source_size,
        source=source.name,
        device=device,
        dtype=dtype,
    )
    return run, base


@dataclass
class Request:
    """A run that is to be tuned, new or to go on."""

    run: TunedRun
    base: BaseModel
    overwrite: bool
    anew: bool

    def tuned(self, really_on_cpu: bool, callbacks: Callbacks, quiet: bool, log: Log) -> TunedRun:
        """The run, tuned to its end."""
        run, base = self.run, self.base
        with writing(run.path):
            if self.anew:
                check_replaceable(run.path, self.overwrite)  # again: now nobody else writes
            elif run.finished():
                log(f"it is finished; to tune it further: sinfusion tune {pasteable(run.path)} --steps N")
                return run
            self._say_cost(really_on_cpu, log)
            if self.anew:
                run.fingerprint = base.fingerprint()
            run.trained_with = {"device": run.device.type, "precision": "bf16" if run.dtype.itemsize == 2 else "fp32"}
            text, empty = base.embed([run.prompt, ""]).split(1)
            run.save(anew=self.anew)
            _train(Tuner(run, base, text, empty), callbacks, quiet, log)
        return run

    def _say_cost(self, really_on_cpu: bool, log: Log) -> None:
        """What it will take, in a line; SinfusionError where that is too much."""
        run, scale = self.run, self.base.downscale
        count, (height, width) = min(len(run.frames), run.settings.window), run.size
        cost = Cost.of(self.base.unet_config, count, (height // scale, width // scale), 77, run.dtype)
        rate = speed(run.device, run.dtype)
        left = run.settings.steps - (0 if self.anew else run.steps_done())
        seconds = left * cost.training_flops / rate
        check_affordable(run.device, seconds, really_on_cpu, cost.training_bytes)
        told = len(run.frames) / count * cost.evaluation_flops * 3 * SAMPLING_STEPS / rate
        disk = cost.tuned * 12
        log(
            f"{run.path}: {cost.tuned / 1e6:.1f} of {cost.weights / 1e6:.1f} million weights are tuned on "
            f"{len(run.frames)} frames of {width}x{height}, {left} steps, {run.device}, "
            f"{str(run.dtype).removeprefix('torch.')}: about {duration(seconds)} and {gib(cost.training_bytes)} of "
            f"memory, {gib(disk)} of disk; then about {duration(told)} for a prompt"
        )


def _train(tuner: Tuner, callbacks: Callbacks, quiet: bool, log: Log) -> None:
    """Tune, with a bar, files to look at and a line at the end."""
    run, began, first = tuner.run, time.monotonic(), tuner.done
    with deferred() as flag:
        try:
            with Bar(quiet=quiet, lasting=True) as bar:
                _train_with(tuner, bar, callbacks, flag, quiet)
        except Stopped:
            log(f"stopped; everything is saved. Go on with: sinfusion tune {pasteable(run.path)}")
            callbacks.raise_error()
            if flag.number is not None:
                raise Interrupted(flag.number) from None
    callbacks.raise_error()
    log(
        f"{tuner.done - first} steps in {time.monotonic() - began:.0f} s, memory at the peak "
        f"{gib(peak_memory(run.device))}"
    )


def _train_with(tuner: Tuner, bar: Bar, callbacks: Callbacks, flag: StopFlag, quiet: bool) -> None:
    def report(progress: Progress) -> None:
        bar(progress)
        callbacks.report(progress)

    logger = TrainingLogger(
        tuner.run.folder,
        "tuning",
        tuner.done,
        tuner.run.settings.steps,
        on_progress=report,
        preview=lambda: flag.interruptible(tuner.preview),
        quiet=quiet,
    )
    try:
        tuner.train(logger, lambda: flag() or callbacks.should_stop())
    finally:
        logger.close(tuner.done == tuner.run.settings.steps)
