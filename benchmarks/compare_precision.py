"""The loss of each step of the same training in bf16 and in fp32, and with other random numbers in fp32.

python benchmarks/compare_precision.py ../shared/data/tornado --size 64x36 --steps 500 --out OUT.json --plot OUT.png

A step draws the same crops, levels and noise in both precisions, so that its losses can be compared one by one. What
bf16 changes is told beside what another seed changes: the relative difference of the mean losses of every 50 steps,
and of the losses of single steps (root mean square of the difference of logarithms).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from machine import machine
from matplotlib.figure import Figure

from sinfusion import ops
from sinfusion.cli.options import parse_size
from sinfusion.media import Clip, read_video
from sinfusion.recipe import RECIPES, Recipe
from sinfusion.roles import PREDICTOR
from sinfusion.training.run_setup import plan_run
from sinfusion.training.trainer import Trainer

MEAN = 50  # steps to a mean


@dataclass
class Settings:
    clip: tyro.conf.Positional[Path]
    size: str = "64x36"
    stop: int = 28  # frames 0 .. stop - 1 are trained on
    steps: int = 500
    recipe: str = "tiny"
    dense_kernel: int = 1  # of `tiny`; 3: as released
    out: Path | None = None
    plot: Path | None = None


def losses(frames: np.ndarray, recipe: Recipe, steps: int, precision: str, seed: int) -> np.ndarray:
    """(steps,) float64."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Clip(frames, 20.0, "video", frames.shape[1:3])
        run = plan_run(Path(folder) / "run", clip, recipe, [PREDICTOR], seed=seed)
        trainer = Trainer(run.to("auto", precision), PREDICTOR, steps)
        found = np.empty(steps)
        for step in range(steps):
            trainer.step()
            found[step] = float(trainer.losses[step % len(trainer.losses)])
    return found


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    means = [values.reshape(-1, MEAN).mean(1) for values in (one, other)]
    return {
        "means_largest": float(np.abs(means[0] / means[1] - 1).max()),
        "means_last": float(abs(means[0][-1] / means[1][-1] - 1)),
        "steps_rms_log": float(np.sqrt(np.mean(np.log(one / other) ** 2))),
    }


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    height, width = parse_size(settings.size)
    frames = read_video(settings.clip, size=(height, width), log=lambda _: None).frames[: settings.stop]
    recipe = RECIPES[settings.recipe].replace(dense_kernel=settings.dense_kernel)
    runs = {"fp32": ("fp32", 0), "bf16": ("bf16", 0), "fp32, another seed": ("fp32", 1)}
    found = {name: losses(frames, recipe, settings.steps, *how) for name, how in runs.items()}
    report = {
        "clip": settings.clip.name, "size": settings.size, "frames": len(frames), "recipe": recipe.name,
        "dense_kernel": recipe.dense_kernel, "steps": settings.steps, **machine(),
        "bf16": difference(found["bf16"], found["fp32"]),
        "another seed": difference(found["fp32, another seed"], found["fp32"]),
        "mean_losses": {name: values.reshape(-1, MEAN).mean(1).tolist() for name, values in found.items()},
    }  # fmt: skip
    print(json.dumps({name: report[name] for name in ("bf16", "another seed")}, indent=1))
    if settings.out:
        settings.out.write_text(json.dumps(report, indent=1) + "\n")
    if settings.plot:
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        for name, values in found.items():
            axes.plot(np.convolve(values, np.ones(10) / 10, "valid"), label=name, linewidth=0.9)
        axes.set(xlabel="step", ylabel="loss, mean of 10 steps", yscale="log")
        axes.legend()
        figure.savefig(settings.plot, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Settings))
