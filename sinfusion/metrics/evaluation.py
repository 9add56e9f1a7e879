"""How good results are compared with their original, and how good a run is: rows of numbers, as plain data.

rows = evaluate("fish.mp4", ["a.mp4", "b.mp4"])    # fidelity and diversity; also of the original's own two halves
rows = evaluate("runs/fish")                       # predicts frames, generates, and measures both
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import console
from ..clip import format_size
from ..errors import SinfusionError
from ..media import Clip, Source
from ..names import as_path
from ..precision import choose_device
from ..progress import OnProgress, ProgressCounter
from ..run import Run, load
from ..seeds import check_seed
from ..text.clip import load as load_clip
from ..tuning.tuned_run import TunedRun, is_tuned
from ..tuning.tuned_run import load as load_tuned
from .clip_scores import recorded_prompt
from .comparison import Comparison, MetricOptions, Named, OnResult, Row, frame_count, pixel_size
from .perceptual import LEAST_SIDE, Lpips, load_lpips
from .run_evaluation import evaluate_run, read_held_out

Media = Any  # (T, H, W, 3) or (H, W, 3) uint8, a file or folder of it, or whatever else `Source` takes
Log = Callable[[str], None]


def evaluate(
    original: Media | Run,
    generated: Media | Sequence[Media] | None = None,
    *,
    inception: str | Path | None = None,
    c3d: str | Path | None = None,
    clip: str | Path | None = None,
    prompt: str | None = None,
    lpips: bool = False,
    size: tuple[int, int] | None = None,
    max_side: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    held_out: Media | None = None,
    count: int = 3,
    seed: int = 0,
    steps: int | None = None,
    log: Log = console.log,
    on_progress: OnProgress | None = None,
    on_result: OnResult = lambda *_: None,
) -> list[Row]:
    """Measure generated images or videos against their original; or, where none are given, what a run generates.

    original: a video or an image; a run stands for the frames it was trained on. generated: one or several of the same
    kind. inception, c3d: files of weights (see `frechet`), for SIFID of images and SVFID of videos. clip: folder of a
    CLIP (see `text.clip`), for how well frames go together, and with what they should show: `prompt`, or what
    `sinfusion retell` was told. lpips: of images, how different results are from each other; needs the extra `lpips`.
    size: (height, width) that all files are resized to; max_side: the longer side that
    they are scaled down to, if they are all of one size; files keep their own size without either. start, stop, stride:
    frames to use of the original, or of `held_out`. fps: frames per second that all videos with a rate are resampled
    to. seed: of the metrics' random numbers, and of what a run generates.

    For a run alone: count: how many samples are generated from each start, with the seeds `seed`, `seed` + 1 and so on;
    steps: network evaluations an image; held_out: further frames of the video that the run was trained on.

    log: called with notes on scaling. on_progress: called as frames are generated and measured. on_result: called with
    the name, the pixels and the nearest-neighbour field of each result.

    Returns one dict a row. All have "kind" and "name". The kind "self_baseline" has the original's halves measured
    against each other, "result" is one result, "mean" the mean of a run's results. They have "nnfdiv", "nnfdist", "swd"
    (a number for each scale), "coverage" (see `coverage`), "sifid" or "svfid", "lpips" (the mean distance to the other
    results), "clip_frames" and "clip_text" (see `clip_scores`), "change" (videos) and "high_frequency" divided by the
    original's, "frames" and "size"; results of a run also "seed" and "start". Results of at least 12 frames have
    "nnfdist_drift", "coverage_drift", "change_drift" and "high_frequency_drift": the last quarter's over the first
    quarter's. The kinds "prediction" (the next frame) and "interpolation" (the frame between) have PSNR in dB:
    "mean_db" of the conditional mean, "sample_db" of a sample, "linear_db" of the linear filter (next frame),
    "motion_db" of motion compensation (the frame between), "baseline_db" of "baseline". Raises SinfusionError for
    anything wrong with the arguments, before any work starts.
    """
    shown = None  # what the original shows, if anybody has said so
    if isinstance(original, TunedRun) or (isinstance(original, str | os.PathLike) and is_tuned(original)):
        original, shown = _read_tuned(original, generated)
    run = original if isinstance(original, Run) else _find_run(original)
    if prompt is not None and clip is None:
        raise SinfusionError("prompt is for CLIP; give the folder of one (--clip), or leave out prompt.")
    cut: dict[str, Any] = {"start": start, "stop": stop, "stride": stride}
    scaling: dict[str, Any] = {"size": size, "max_side": max_side}
    rate: dict[str, Any] = {"fps": fps}
    if generated is None:
        if run is None:
            raise SinfusionError(f"{_name(original)} is not a run; give generated videos or images to compare with it.")
        if count < 1:
            raise SinfusionError(f"count must be at least 1, not {count}.")
        seed = check_seed(seed, count)
        _refuse_unused(cut | rate if held_out is None else {}, scaling)
        held_out = None if held_out is None else read_held_out(run, held_out, cut | rate, log)
        model = None if clip is None else load_clip(clip, run.device)
        pixels = run.frames[0] if run.kind == "image" else run.frames
        distance = _load_lpips([pixels] * count, run.device) if lpips else None
        options = MetricOptions(inception, c3d, seed, run.device, on_result, model, prompt, prompt, distance)
        comparison = Comparison.of((str(run.path), pixels), [], options)
        return evaluate_run(run, comparison, held_out, count, seed, steps, on_progress)
    if held_out is not None or steps is not None:
        option = "steps" if held_out is None else "held_out"
        raise SinfusionError(
            f"{option} is for the evaluation of a run alone; leave out {option}, or what is generated."
        )
    model = None if clip is None else load_clip(clip, choose_device())
    seed, shown = check_seed(seed), shown if prompt is None else prompt
    known, results, told = _read(original if run is None else run, generated, cut, scaling | rate, log)
    distance = _load_lpips([pixels for _, pixels in results], choose_device()) if lpips else None
    options = MetricOptions(inception, c3d, seed, "auto", on_result, model, prompt, shown, distance)
    comparison = Comparison.of((_name(original), known), results, options)
    counter = ProgressCounter(frame_count(known) + sum(frame_count(pixels) for _, pixels in results), on_progress)
    rows = [comparison.self_baseline(counter)]
    diversity = comparison.diversity([pixels for _, pixels in results])
    for (name, pixels), text, facts in zip(results, told, diversity, strict=True):
        rows.append(comparison.result(name, pixels, counter, text, **facts))
    return rows


def _load_lpips(results: Sequence[np.ndarray], device: torch.device) -> Lpips:
    """The network for the distance of results to each other; SinfusionError for what has none."""
    if results[0].ndim == 4:
        raise SinfusionError("lpips is for images; leave it out for videos.")
    if len(results) < 2:
        raise SinfusionError("lpips is how different results are from each other; let there be two or more of them.")
    if len({pixels.shape for pixels in results}) > 1:
        raise SinfusionError("lpips compares results of one size; give one for all of them (--size).")
    if min(results[0].shape[:2]) < LEAST_SIDE:
        raise SinfusionError(
            f"the results are {pixel_size(results[0])}; for lpips each side must be at least {LEAST_SIDE} pixels."
        )
    return load_lpips(device)


def _refuse_unused(cut: dict[str, Any], scaling: dict[str, Any]) -> None:
    """SinfusionError for options that the evaluation of a run alone would ignore."""
    for name, value in scaling.items():
        if value is not None:
            raise SinfusionError(
                f"{name} is for generated files; what a run generates has the size of its frames: leave out {name}."
            )
    for name, value in cut.items():
        if value is not None:
            raise SinfusionError(
                f"{name} is for generated files and for held_out; give one of these or leave out {name}."
            )


# Reading -------------------------------------------------------------------------------------------------------------


def _find_run(original: Media) -> Run | None:
    """The run in a folder, or None for anything else."""
    return load(original) if _is_path(original) and (as_path(original) / "run.json").is_file() else None


def _read_tuned(original: Media, generated: Any) -> tuple[Clip, str]:
    """The clip of a tuned model, and what it shows."""
    run = original if isinstance(original, TunedRun) else load_tuned(original, "cpu")
    if generated is None:
        raise SinfusionError(f"{run.path} is a tuned model; give videos that sinfusion retell has made of it.")
    return Clip(run.frames, run.fps, "video", run.size), run.prompt


def _is_path(media: Any) -> bool:
    return isinstance(media, str | os.PathLike)


def _read(
    original: Media | Run, generated: Media | Sequence[Media], cut: dict[str, Any], scaling: dict[str, Any], log: Log
) -> tuple[np.ndarray, list[Named], list[str | None]]:
    """Original and results, images (H, W, 3), videos (T, H, W, 3); and what each result was to show."""
    clip, source_size = _read_original(original, cut, scaling, log)
    listed: list[Media] = [generated]
    if isinstance(generated, list | tuple) or getattr(generated, "ndim", 0) == clip.ndim + 1:  # as `generate` returns
        listed = list(generated)
    if not listed:
        raise SinfusionError(f"there is nothing to compare with {_name(original)}; give generated videos or images.")
    results = []
    for name, media in zip(result_names(listed), listed, strict=True):
        pixels, other_size = _pixels_and_source_size(media, scaling, log)
        results.append((name, pixels))
        unscaled = (other_size, source_size) == (pixels.shape[-3:-1], clip.shape[-3:-1])
        if scaling["max_side"] and other_size != source_size and not unscaled:
            raise SinfusionError(
                f"{name} is {format_size(other_size)}, the original {format_size(source_size)}: one longer side would "
                "bring them to different scales; give a size for both (--size)."
            )
        if pixels.shape[-3:] != clip.shape[-3:]:
            log(
                f"{name} is {pixel_size(pixels)}, the original {pixel_size(clip)}: compared pixel for pixel, as is "
                "right for retargeted ones; if they show the same at different scales, give a size for both (--size)"
            )
    return clip, results, [recorded_prompt(Path(media)) if _is_path(media) else None for media in listed]


def _read_original(
    original: Media | Run, cut: dict[str, Any], scaling: dict[str, Any], log: Log
) -> tuple[np.ndarray, tuple[int, int]]:
    """As `_pixels_and_source_size`, of the original; the frames of a run are not scaled."""
    if not isinstance(original, Run):
        return _pixels_and_source_size(original, cut | scaling, log)
    if scaling["max_side"] or (scaling["size"] or original.size) != original.size:
        raise SinfusionError(
            f"the frames of {original.path} stay {pixel_size(original.frames)}; give that as the size, or none."
        )
    clip = Clip(original.frames, original.fps, original.kind, original.size)
    return _pixels_and_source_size(clip, cut | {"fps": scaling["fps"]}, log)


def _pixels_and_source_size(media: Media, reading: dict[str, Any], log: Log) -> tuple[np.ndarray, tuple[int, int]]:
    """An image (H, W, 3) or a video (T, H, W, 3); and its (height, width) before scaling."""
    clip = Source(media, **reading).read(0, lambda text: log(f"{_name(media)}: {text}"))
    return clip.pixels, clip.source_size


def result_names(media: Sequence[Media]) -> list[str]:
    """A short unique name for each: the last parts of its path, as many as are needed; more than a bare number."""
    parts = [Path(m).parts if _is_path(m) else (f"generated {i + 1}",) for i, m in enumerate(media)]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(some[-depth:]) for some in parts]
        if len(set(short)) == len(short) and not any(name.isdigit() for name in short):
            return short
    return short if len(set(short)) == len(short) else [f"{name} ({i + 1})" for i, name in enumerate(short)]


def _name(media: Media | Run) -> str:
    if isinstance(media, Run):
        return str(media.path)
    return str(media) if _is_path(media) else "the original"
