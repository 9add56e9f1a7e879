"""What each ingredient of a recipe does to a Predictor's rollouts: trains variants on clips and measures them.

python benchmarks/compare_recipes.py --clips ../shared/data/tornado:28 CLIP:STOP --seeds 0 1 --out OUT.json
python benchmarks/compare_recipes.py --clips ../shared/data/tornado --run runs/tornado --out OUT.json

Of CLIP:STOP the frames before STOP are trained on and the others held out. A row for each variant, clip and seed, and
one with the means of each variant: PSNR of the conditional mean (one evaluation at the largest sigma) above
repeating the last frame, on trained transitions and on those after them; and of 60-frame rollouts, relative to the
clip's own, the change between frames and the high-frequency RMS, whole and of the last 15 frames.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import machine
from quality import predictions, rollouts
from runs import new_run

from sinfusion import ops
from sinfusion.cli.options import parse_size
from sinfusion.generation.video import generate
from sinfusion.media import contact_sheet, read_video, write_image
from sinfusion.recipe import TINY
from sinfusion.roles import PREDICTOR, PROJECTOR
from sinfusion.run import Run, load
from sinfusion.training.trainer import Trainer

# Name of a variant -> what it changes in `tiny` (projector: steps for a Projector, which then corrects each frame).
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "sigma around sigma_data alone": {"log_sigma_mean": 0.0, "sigma_max_share": 0.0},
    "without sigma_max": {"sigma_max_share": 0.0},
    "sigma_max_share 0.25": {"sigma_max_share": 0.25},
    "sigma_max_share 0.6": {"sigma_max_share": 0.6},
    "log_sigma_mean 0": {"log_sigma_mean": 0.0},
    "clean condition": {"white_condition_noise": 0.0, "coarse_condition_noise": 0.0},
    "without coarse condition noise": {"coarse_condition_noise": 0.0},
    "coarse condition noise 2": {"coarse_condition_noise": 2.0},
    "Projector correction": {"projector": 0.5, "correction_timesteps": 3},
    "one previous frame": {"previous_frames": 1},
    "three previous frames": {"previous_frames": 3},
    "changes without noise": {"change_noise": 0.0},
    "condition dropout 0.25": {"condition_dropout": 0.25},
    "without projection": {"projection_weight": 0.0},
    "crop 0.95": {"crop": 0.95},
    "batch 1": {"batch_size": 1},
    "48 filters, depth 8": {"filters": 48, "depth": 8},
    "Euler sampler": {"sampler": "euler"},
    "dense 3x3, depth 8": {"dense_kernel": 3, "depth": 8},
    "x0, 50 DDPM steps": {"parameterization": "x0", "sampler": "ddpm", "sampling_steps": 50},
}
WARMUP_STEPS, TIMED_STEPS = 4, 12
OF_A_ROW = ("variant", "clip", "seed", "frames", "changes")  # all else is a figure

Row = dict[str, Any]


@dataclass
class Settings:
    clips: tuple[str, ...]  # each a path, or PATH:STOP
    size: str = "64x36"
    steps: int = 2000
    cpu_seconds: float = 0  # above 0: as many steps of each variant as take so long, all threads together
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0,)
    run: Path | None = None  # measure this trained run instead of training variants
    out: Path | None = None
    sheets: Path | None = None  # folder for contact sheets of the rollouts


def clip_name(path: Path) -> str:
    """A clip's own, or its folder's where it is `input`."""
    return path.parent.name if path.stem == "input" else path.stem


def read(clip: str, size: tuple[int, int], stop: int | None = None) -> tuple[str, np.ndarray, np.ndarray]:
    """Name of PATH:STOP, the frames to train on, and the last of them with those held out."""
    path, _, number = clip.rpartition(":")
    if not number.isdigit():
        path, number = clip, ""
    frames = read_video(path, size=size, log=lambda _: None).frames
    stop = int(number) if number else stop or len(frames)
    return clip_name(Path(path)), frames[:stop], frames[stop - 1 :]


def train(frames: np.ndarray, changes: dict[str, Any], steps: int, seed: int, folder: Path) -> tuple[Run, float]:
    """A run with a Predictor (and a Projector of `projector` times as many steps), and seconds a Predictor step."""
    changes = dict(changes)
    lengths = {PREDICTOR: steps, PROJECTOR: int(steps * changes.pop("projector", 0))}
    roles = [role for role, length in lengths.items() if length]
    run = new_run(frames, folder, TINY.replace(**changes, predictor_steps=steps), roles, seed)
    times: list[float] = []
    for role in roles:
        trainer = Trainer(run, role, lengths[role])
        for _ in range(trainer.total):
            started = time.perf_counter()
            trainer.step()
            times.append(time.perf_counter() - started)
        trainer.save()
    return run, float(np.median(times[:steps]))


def steps_in(cpu_seconds: float, frames: np.ndarray, changes: dict[str, Any]) -> int:
    """Steps of a variant's Predictor that take so long."""
    recipe = TINY.replace(**{name: value for name, value in changes.items() if name != "projector"})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(new_run(frames, Path(folder) / "run", recipe, [PREDICTOR]), PREDICTOR, 1000)
        for _ in range(WARMUP_STEPS):  # the first capture graphs
            trainer.step()
        started = time.process_time()
        for _ in range(TIMED_STEPS):
            trainer.step()
        return max(1, round(cpu_seconds * TIMED_STEPS / (time.process_time() - started)))


def measure(run: Run, known: np.ndarray, held: np.ndarray, seed: int, sheet: Path | None) -> dict[str, float]:
    """Every figure of one trained run."""
    outputs = generate(run, 60, count=4, start=0, seed=seed)
    if sheet is not None:
        write_image(sheet, contact_sheet(outputs[0], columns=6), overwrite=True)
    return predictions(run, known, held) | rollouts(outputs, known)


def variant_rows(settings: Settings, clip: str) -> list[Row]:
    """One for each variant and seed, trained."""
    name, known, held = read(clip, parse_size(settings.size))
    rows = []
    for variant, seed in itertools.product(settings.variants, settings.seeds):
        with tempfile.TemporaryDirectory() as folder:
            changes, steps = VARIANTS[variant], settings.steps
            if settings.cpu_seconds:
                steps = steps_in(settings.cpu_seconds, known, changes)
            run, seconds = train(known, changes, steps, seed, Path(folder) / "run")
            file = f"{name}-{variant.replace(' ', '-')}-{seed}.png"
            figures = measure(run, known, held, seed, settings.sheets / file if settings.sheets else None)
        facts = {"variant": variant, "clip": name, "seed": seed, "frames": len(known), "changes": VARIANTS[variant]}
        rows.append(facts | {"steps": steps, "seconds_a_step": seconds} | figures)
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    return rows


def run_row(settings: Settings, run: Run, clip: str) -> Row:
    """Of a run that is there."""
    name, known, held = read(clip, run.size, len(run.frames))
    last = json.loads((run.path / "predictor" / "log.jsonl").read_text().splitlines()[-1])
    sheet = settings.sheets / f"{run.path.name}.png" if settings.sheets else None
    figures = measure(run, known, held, settings.seeds[0], sheet)
    facts = {"variant": run.recipe.name, "clip": name, "seed": settings.seeds[0], "frames": len(known)}
    return facts | {"steps": last["step"], "training_seconds": last["seconds"]} | figures


def means(rows: list[Row]) -> list[Row]:
    """One for each variant: of every figure that all its rows have."""
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        same = [row for row in rows if row["variant"] == variant]
        names = [name for name in same[0] if name not in OF_A_ROW and all(name in row for row in same)]
        figures = {name: float(np.mean([row[name] for row in same])) for name in names}
        found.append({"variant": variant, "clip": "mean", "rows": len(same)} | figures)
    return found


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    run, rows = load(settings.run) if settings.run else None, []
    for clip in settings.clips:
        rows += [run_row(settings, run, clip)] if run else variant_rows(settings, clip)
        size = f"{run.size[1]}x{run.size[0]}" if run else settings.size
        report = {"size": size, "cpu_seconds": settings.cpu_seconds, **machine(), "rows": rows + means(rows)}
        if settings.out:
            settings.out.parent.mkdir(parents=True, exist_ok=True)
            settings.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in means(rows):
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
