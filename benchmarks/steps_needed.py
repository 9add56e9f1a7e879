"""How many training steps a model needs before what it makes is worth watching: clips, frame sizes and steps.

python benchmarks/steps_needed.py CLIP [CLIP ...] --roles predictor --sizes 64 128 --steps 250 500 1000 --out OUT.json

Each row is a training of `tiny` of its own, to the end of its schedule. A Predictor is judged by its conditional mean
(PSNR above repeating the last frame, on the transitions it was trained on and on those after them) and by rollouts of
60 frames from frame 0: change between frames and high-frequency RMS relative to the clip's, patch distance to the clip
(NNFDIST) in three windows of time. An Interpolator by its conditional mean (PSNR above the mean of its two frames). A
Projector and an image model by four images of their own: sliced Wasserstein distance beside that between the clip's
halves, high-frequency RMS relative to the clip's, patch distance. And all by their contact sheets.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from compare_recipes import clip_name
from machine import machine
from quality import predictions, rollouts
from runs import new_run

from sinfusion.generation.reverse_process import reverse_process
from sinfusion.generation.video import generate
from sinfusion.media import contact_sheet, read_media, write_image
from sinfusion.metrics.comparison import halves
from sinfusion.metrics.fidelity import high_frequency, mean_psnr, sliced_wasserstein
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.metrics.run_evaluation import conditional_mean, targets
from sinfusion.pixels import to_uint8
from sinfusion.recipe import TINY
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, ROLES, Role
from sinfusion.run import Run
from sinfusion.training.trainer import Trainer

WINDOWS = ((0, 20), (20, 40), (40, 60))
IMAGE_PATCH = (1, 7, 7)


@dataclass
class Settings:
    clips: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    roles: tuple[Literal["predictor", "projector", "interpolator", "image"], ...] = ("predictor",)
    sizes: tuple[int, ...] = (64, 128)
    steps: tuple[int, ...] = (250, 500, 1000, 2000)
    frames: int = 40  # of a clip at most; a fifth of them, at least 1, is held out
    depth: int = TINY.depth
    filters: int = TINY.filters
    seed: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    sheets: Path | None = None  # folder for contact sheets


def trained(clip: np.ndarray, role: Role, steps: int, settings: Settings, folder: Path) -> tuple[Run, float]:
    """A run with one model, and the CPU seconds that a step took, of all threads."""
    recipe = TINY.replace(depth=settings.depth, filters=settings.filters, **{f"{role.name}_steps": steps})
    run = new_run(clip[:1] if role is IMAGE else clip, folder, recipe, [role], settings.seed)
    trainer, times = Trainer(run, role, steps), []
    for _ in range(steps):
        started = time.process_time()
        trainer.step()
        times.append(time.process_time() - started)
    trainer.save()
    return run, float(np.median(times))


def of_predictor(run: Run, known: np.ndarray, held: np.ndarray, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    outputs = generate(run, 60, count=2, start=0, seed=seed)
    distances = [float(np.mean([nnfdist(nnf(v[a:b], known)[1]) for v in outputs])) for a, b in WINDOWS]
    return predictions(run, known, held) | rollouts(outputs, known) | {"nnfdist": distances}, outputs[0]


def of_interpolator(run: Run, known: np.ndarray, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    outputs, wanted = conditional_mean(run, known, INTERPOLATOR), targets(known, INTERPOLATOR)
    average = (known[:-2].astype(np.float64) + known[2:]) / 2
    return {"trained_db": mean_psnr(outputs, wanted) - mean_psnr(average, wanted)}, outputs.round().astype(np.uint8)


def of_images(run: Run, role: Role, known: np.ndarray, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    seeds = torch.arange(seed, seed + 4, dtype=torch.int64)
    outputs = to_uint8(reverse_process(run, role)(seeds, 0, size=run.size)).numpy()
    _, one, other = halves(known)
    figures = {
        "swd": sliced_wasserstein(outputs, known, IMAGE_PATCH, scales=2),
        "swd_of_halves": sliced_wasserstein(one, other, IMAGE_PATCH, scales=2),
        "high_frequency": high_frequency(outputs) / high_frequency(known),
        "nnfdist": float(np.mean([nnfdist(nnf(image, known[0], IMAGE_PATCH)[1]) for image in outputs])),
    }
    return figures, outputs


def row(clip: Path, role: Role, side: int, steps: int, settings: Settings) -> dict[str, Any]:
    frames = read_media(clip, max_side=side, log=lambda _: None).frames[: settings.frames]
    stop = len(frames) - (max(1, len(frames) // 5) if role is PREDICTOR else 0)
    known, held = frames[:stop], frames[stop - 1 :]
    name = clip_name(clip)
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = trained(known, role, steps, settings, Path(folder) / "run")
        if role is PREDICTOR:
            figures, shown = of_predictor(run, known, held, settings.seed)
        elif role is INTERPOLATOR:
            figures, shown = of_interpolator(run, known, settings.seed)
        else:
            figures, shown = of_images(run, role, known, settings.seed)
    if settings.sheets:
        sheet = settings.sheets / f"{role.name}-{name}-{side}-{steps}-{settings.depth}-{settings.filters}.png"
        write_image(sheet, contact_sheet(shown, columns=10), overwrite=True)
    return {
        "role": role.name,
        "clip": name,
        "size": f"{frames.shape[2]}x{frames.shape[1]}",
        "frames": stop,
        "depth": settings.depth,
        "filters": settings.filters,
        "steps": steps,
        "cpu_seconds_a_step": seconds,
    } | figures


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    report: dict[str, Any] = {"seed": settings.seed, **machine(), "rows": []}
    if settings.out.exists():
        before = json.loads(settings.out.read_text())
        if before["commit"] == report["commit"]:  # rows are added
            report["rows"] = before["rows"]
    for clip, role, side, steps in itertools.product(settings.clips, settings.roles, settings.sizes, settings.steps):
        report["rows"].append(row(clip, ROLES[role], side, steps, settings))
        print(json.dumps(report["rows"][-1]), flush=True)
        settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
