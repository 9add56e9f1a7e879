"""Frames between frames: by motion alone and by an Interpolator, beside the mean of both and beside optical flow.

python benchmarks/compare_interpolation.py --clips ../shared/data/tornado ../shared/data/published/ants --out OUT.json
python benchmarks/compare_interpolation.py --clips CLIP --runs CLIP=RUN --pictures FOLDER   # runs that are there

Every odd frame between two even ones is predicted; PSNR is the mean over these. `motion` is what `sinfusion upsample`
makes of a clip, `interpolator` what it makes with a run: one of `tiny`, trained on the even frames. Optical flow is
OpenCV's DIS in both directions: both neighbours are warped half way and blended.

--published takes a video of four rows above each other (input, linear, RIFE, SinFusion) whose input repeats each frame.
What was between is not known there, so its rows are measured by what needs no answer: high frequencies of the frames
between relative to the input's, and their NNFDIST (1x7x7) in it. The Interpolator is trained on all of its frames.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from compare_recipes import clip_name
from machine import machine
from runs import new_run

from sinfusion import ops
from sinfusion.cli.options import evenly_spaced, parse_size
from sinfusion.errors import SinfusionError
from sinfusion.generation.upsampling import upsample
from sinfusion.media import contact_sheet, read_media, read_video, write_image
from sinfusion.metrics.fidelity import high_frequency, mean_psnr
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.metrics.run_evaluation import sampled
from sinfusion.pixels import resize
from sinfusion.recipe import TINY
from sinfusion.roles import INTERPOLATOR
from sinfusion.run import Run, load
from sinfusion.training.trainer import Trainer

PUBLISHED = ("input", "linear", "RIFE", "SinFusion")  # rows, from above
FLOW_SIDE = 128  # that a smaller shorter side is enlarged to for the flow: DIS works on patches of 8x8
COLUMNS = 6  # of a sheet

Row = dict[str, Any]
Method = Callable[[np.ndarray], np.ndarray]  # (T, H, W, 3) uint8 -> the frames between each pair: (T - 1, H, W, 3)


@dataclass
class Settings:
    clips: tuple[Path, ...] = ()
    published: Path | None = None
    size: str = "64x36"
    published_size: str = "64x50"
    steps: int = 1500
    seed: int = 0
    runs: tuple[str, ...] = ()  # CLIP=RUN: trained on the even frames at this size, instead of a training
    out: Path | None = None
    pictures: Path | None = None  # folder for a sheet of each clip


# Methods -------------------------------------------------------------------------------------------------------------


def blended(frames: np.ndarray) -> np.ndarray:
    """The mean of both."""
    return (frames[:-1].astype(np.float32) + frames[1:]) / 2


def flowed(frames: np.ndarray) -> np.ndarray:
    """Both warped half way along the flow to the other, and blended."""
    return np.stack([_half_way(a, b) for a, b in pairwise(frames)])


def _half_way(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    estimate: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = first.shape[:2]
    scale = max(1, -(-FLOW_SIDE // min(height, width)))
    larger = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for f in (first, second)]
    one, other = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in larger)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

    def warped(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
        """At each pixel what came from half of its flow before; not resampled where nothing moves."""
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / scale
        at = x - flow[..., 0] / 2, y - flow[..., 1] / 2
        return cv2.remap(frame.astype(np.float32), *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

    flows = estimate.calc(one, other, None), estimate.calc(other, one, None)
    both = sum(warped(frame, flow) for frame, flow in zip((first, second), flows, strict=True)) / 2
    return both.clip(0, 255)


def compensated(frames: np.ndarray) -> np.ndarray:
    """Both moved half way to each other, and blended."""
    return upsample(frames)[1::2].astype(np.float32)


def of_run(run: Run, seed: int) -> Method:
    """What its Interpolator makes."""

    def between(frames: np.ndarray) -> np.ndarray:
        """It fills neighbours two apart, at pairs: each frame stands twice, and every other prediction counts."""
        return sampled(run, np.repeat(frames, 2, 0)[1:], INTERPOLATOR, seed)[::2]

    return between


def train(frames: np.ndarray, steps: int, seed: int, folder: Path) -> Run:
    run = new_run(frames, folder, TINY.replace(interpolator_steps=steps), [INTERPOLATOR], seed)
    trainer = Trainer(run, INTERPOLATOR, steps)
    for _ in range(trainer.total):
        trainer.step()
    trainer.save()
    return run


def methods(run: Run, seed: int) -> dict[str, Method]:
    """All of them, by name."""
    return {"blend": blended, "flow": flowed, "motion": compensated, "interpolator": of_run(run, seed)}


# Measuring -----------------------------------------------------------------------------------------------------------


def clip_rows(name: str, frames: np.ndarray, run: Run, settings: Settings) -> list[Row]:
    """PSNR and CPU time of each method on the odd frames."""
    even = frames[::2]
    known = frames[1::2][: len(even) - 1]
    rows, videos = [], {"original": known.astype(np.float32)}
    for method, between in methods(run, settings.seed).items():
        started = time.process_time()
        predicted = between(even)
        seconds = (time.process_time() - started) / len(predicted)
        videos[method] = predicted
        row = {"clip": name, "method": method, "psnr_db": mean_psnr(predicted, known), "cpu_seconds_a_frame": seconds}
        rows.append(row | {"frames": len(known), "steps": run.steps_done(INTERPOLATOR.name)})
    draw(settings, name, videos)
    return rows


def published_rows(path: Path, settings: Settings) -> list[Row]:
    """Sharpness of the frames between, and how near they are to the input's, for the published rows and for ours."""
    size = parse_size(settings.published_size)
    assert size is not None
    whole = read_media(path, max_side=0).frames
    side = whole.shape[1] // len(PUBLISHED)
    parts = [whole[:, k * side : (k + 1) * side] for k in range(len(PUBLISHED))]
    rows_of_video = [np.stack([resize(frame, size) for frame in part]) for part in parts]
    frames = rows_of_video[0][::2]
    videos = {name: video[1::2][: len(frames) - 1] for name, video in zip(PUBLISHED, rows_of_video, strict=True)}
    del videos["input"]
    with tempfile.TemporaryDirectory() as folder:
        run = train(frames, settings.steps, settings.seed, Path(folder) / "run")
        made = {name: between(frames) for name, between in methods(run, settings.seed).items() if name != "blend"}
        videos |= {name: video.round().astype(np.uint8) for name, video in made.items()}
    rows = []
    for method, video in videos.items():
        _, distance = nnf(video, frames, (1, 7, 7))
        sharpness = high_frequency(video) / high_frequency(frames)
        rows.append({"method": method, "high_frequency": sharpness, "nnfdist_1x7x7": nnfdist(distance)})
    draw(settings, path.stem, {"input": frames} | videos)
    return rows


def draw(settings: Settings, name: str, videos: dict[str, np.ndarray]) -> None:
    """NAME.png: a row of frames for each video."""
    if settings.pictures is None:
        return
    picked = evenly_spaced(min(map(len, videos.values())), COLUMNS)
    shown = [video[i].round().astype(np.uint8) for video in videos.values() for i in picked]
    labels = [f"{method}, {i}" for method in videos for i in picked]
    write_image(settings.pictures / f"{name}.png", contact_sheet(shown, len(picked), len(shown), labels), True)


def run_of(name: str, frames: np.ndarray, settings: Settings, folder: Path) -> Run:
    """Of this clip: given, or trained on the even frames."""
    given = dict(word.split("=", 1) for word in settings.runs)
    if name not in given:
        return train(frames[::2], settings.steps, settings.seed, folder)
    run = load(given[name])
    if not np.array_equal(run.frames, frames[::2]):
        raise SinfusionError(f"{given[name]} was not trained on the even frames of {name} at {settings.size}.")
    return run


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    rows: list[Row] = []
    report: Row = {"size": settings.size, "steps": settings.steps, "seed": settings.seed, **machine()}
    for clip in settings.clips:
        path = clip / "input.mp4" if (clip / "input.mp4").is_file() else clip
        frames = read_video(path, size=parse_size(settings.size), log=lambda _: None).frames
        with tempfile.TemporaryDirectory() as folder:
            name = clip_name(path)
            rows += clip_rows(name, frames, run_of(name, frames, settings, Path(folder) / "run"), settings)
        write(settings.out, report | {"rows": rows})
    if settings.published:
        published = published_rows(settings.published, settings)
        write(settings.out, report | {"rows": rows, "published": published, "published_size": settings.published_size})
        rows += published
    for row in rows:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def write(path: Path | None, report: Row) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
