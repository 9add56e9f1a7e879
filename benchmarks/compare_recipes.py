"""What each ingredient of a recipe does to a Predictor's rollouts: trains variants on one clip and measures them.

python benchmarks/compare_recipes.py ../shared/data/tornado --size 64x36 --stop 28 --steps 2000 --out OUT.json
python benchmarks/compare_recipes.py ../shared/data/tornado --run runs/tornado --out OUT.json

For each variant: PSNR of the conditional mean (one evaluation at the highest noise level) on trained transitions and
on the frames after them, beside repeating the last frame; and of a 60-frame rollout, relative to the clip's own, the
mean frame-to-frame RMS change and the high-frequency RMS (frame minus its 3x3 mean), whole and of its last 15 frames.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import machine

from sinfusion import ops
from sinfusion.cli.options import parse_size
from sinfusion.generation.video import generate
from sinfusion.media import Clip, contact_sheet, read_video, write_image
from sinfusion.metrics.evaluation import change, conditional_mean, high_frequency, mean_psnr
from sinfusion.recipe import TINY, Recipe
from sinfusion.roles import PREDICTOR, PROJECTOR
from sinfusion.run import Run, load
from sinfusion.training.run_setup import plan_run
from sinfusion.training.trainer import Trainer

# Name of a variant -> what it changes in `tiny` (projector: steps for a Projector, which then corrects each frame).
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "levels around sigma_data alone": {"log_sigma_mean": 0.0, "sigma_max_share": 0.0},
    "no top level": {"sigma_max_share": 0.0},
    "level mean 0": {"log_sigma_mean": 0.0},
    "clean condition": {"white_condition_noise": 0.0, "coarse_condition_noise": 0.0},
    "no drift on the condition": {"coarse_condition_noise": 0.0},
    "drift 2 on the condition": {"coarse_condition_noise": 2.0},
    "Projector correction": {"projector": 0.5, "correction_timesteps": 3},
    "Euler sampler": {"sampler": "euler"},
    "dense 3x3, depth 8": {"dense_kernel": 3, "depth": 8},
    "x0, 50 DDPM steps": {"parameterization": "x0", "sampler": "ddpm", "sampling_steps": 50},
}


@dataclass
class Settings:
    clip: tyro.conf.Positional[Path]
    size: str = "64x36"
    stop: int = 28  # frames 0 .. stop - 1 are trained on, the others held out
    steps: int = 2000
    variants: tuple[str, ...] = tuple(VARIANTS)
    run: Path | None = None  # measure this trained run instead of training variants
    seed: int = 0
    out: Path | None = None
    sheets: Path | None = None  # folder for contact sheets of the rollouts


def train(
    frames: np.ndarray, recipe: Recipe, steps: int, projector: float, seed: int, folder: Path
) -> tuple[Run, float]:
    """A run with a Predictor (and a Projector of `projector` times as many steps), and seconds a Predictor step."""
    roles = [PREDICTOR, PROJECTOR] if projector else [PREDICTOR]
    recipe = recipe.replace(predictor_steps=steps)
    run = plan_run(folder, Clip(frames, 20.0, "video", frames.shape[1:3]), recipe, roles, seed=seed)
    run.save(anew=True)
    seconds = 0.0
    for role in roles:
        trainer = Trainer(run, role, max(1, int(steps * (projector if role is PROJECTOR else 1))))
        times = []
        for _ in range(trainer.total):
            started = time.perf_counter()
            trainer.step()
            times.append(time.perf_counter() - started)
        if role is PREDICTOR:
            seconds = float(np.median(times))
        trainer.save()
    return run, seconds


def measure(run: Run, known: np.ndarray, held: np.ndarray, seed: int, sheet: Path | None) -> dict[str, float]:
    """Every figure of one trained run."""
    outputs = generate(run, 60, count=4, start=0, seed=seed)
    if sheet is not None:
        write_image(sheet, contact_sheet(outputs[0], columns=6), overwrite=True)
    figures = {
        "mean_trained_db": mean_psnr(conditional_mean(run, known), known[1:]),
        "repeat_trained_db": mean_psnr(known[:-1], known[1:]),
        "change": float(np.mean([change(video) for video in outputs])) / change(known),
        "change_last": float(np.mean([change(video[-15:]) for video in outputs])) / change(known),
        "high_frequency": high_frequency(outputs) / high_frequency(known),
        "high_frequency_last": high_frequency(outputs[:, -15:]) / high_frequency(known),
    }
    if len(held) > 1:
        figures["mean_unseen_db"] = mean_psnr(conditional_mean(run, held), held[1:])
        figures["repeat_unseen_db"] = mean_psnr(held[:-1], held[1:])
    return figures


def train_and_measure(settings: Settings, name: str, known: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    changes = dict(VARIANTS[name])
    projector = changes.pop("projector", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run, seconds = train(known, TINY.replace(**changes), settings.steps, projector, settings.seed, path)
        sheet = settings.sheets / f"{name.replace(' ', '-')}.png" if settings.sheets else None
        figures = measure(run, known, held, settings.seed, sheet)
    return {"variant": name, "changes": VARIANTS[name], "steps": settings.steps, "seconds_a_step": seconds} | figures


def measure_run(settings: Settings, run: Run, known: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    log = (run.path / "predictor" / "log.jsonl").read_text().splitlines()
    last = json.loads(log[-1])
    sheet = settings.sheets / f"{run.path.name}.png" if settings.sheets else None
    figures = measure(run, known, held, settings.seed, sheet)
    return {"variant": run.recipe.name, "steps": last["step"], "training_seconds": last["seconds"]} | figures


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    trained = load(settings.run) if settings.run else None
    height, width = trained.size if trained else parse_size(settings.size)
    stop = len(trained.frames) if trained else settings.stop
    frames = read_video(settings.clip, size=(height, width), log=lambda _: None).frames
    known, held = frames[:stop], frames[stop - 1 :]
    report: dict[str, Any] = {
        "clip": settings.clip.name, "size": f"{width}x{height}", "frames": stop, "seed": settings.seed, **machine(),
        "variants": [],
    }  # fmt: skip
    for name in settings.variants[: 1 if trained else None]:
        row = measure_run(settings, trained, known, held) if trained else train_and_measure(settings, name, known, held)
        report["variants"].append(row)
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        if settings.out:
            settings.out.parent.mkdir(parents=True, exist_ok=True)
            settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
