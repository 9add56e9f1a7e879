"""The loss of each step of the same training in bf16 and in fp32, and with other random numbers in fp32.

python benchmarks/compare_precision.py ../shared/data/tornado --size 64x36 --steps 500 --out OUT.json --plot OUT.png

For each size of the dense convolutions of `tiny` (1x1 is its own, 3x3 the released one) a row.

A step draws the same crops, sigma and noise in both precisions, so that its losses can be compared one by one. What
bf16 changes stands beside what another seed changes: the relative difference of the mean losses of every 50 steps,
and of the losses of single steps (root mean square of the difference of logarithms).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import machine
from matplotlib.figure import Figure
from runs import new_run

from sinfusion import ops
from sinfusion.cli.options import parse_size
from sinfusion.media import read_video
from sinfusion.recipe import RECIPES, Recipe
from sinfusion.roles import PREDICTOR
from sinfusion.training.trainer import Trainer

MEAN = 50  # steps to a mean


@dataclass
class Settings:
    clip: tyro.conf.Positional[Path]
    size: str = "64x36"
    stop: int = 28  # frames 0 .. stop - 1 are trained on
    steps: int = 500
    recipe: str = "tiny"
    dense_kernels: tuple[int, ...] = (1, 3)
    out: Path | None = None
    plot: Path | None = None


def losses(frames: np.ndarray, recipe: Recipe, steps: int, precision: str, seed: int) -> np.ndarray:
    """(steps,) float64."""
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(frames, Path(folder) / "run", recipe, [PREDICTOR], seed)
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


RUNS = {"fp32": ("fp32", 0), "bf16": ("bf16", 0), "another seed": ("fp32", 1)}  # precision, seed


def compare(frames: np.ndarray, recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """A row: differences from fp32, and the means of losses that they are of."""
    found = {name: losses(frames, recipe, settings.steps, *how) for name, how in RUNS.items()}
    if settings.plot:
        draw(found, settings.plot.with_stem(f"{settings.plot.stem}-{recipe.dense_kernel}"))
    differences = {name: difference(found[name], found["fp32"]) for name in ("bf16", "another seed")}
    row = {"dense_kernel": recipe.dense_kernel, "steps": settings.steps, **differences}
    print(json.dumps(row, indent=1), flush=True)
    return row | {"mean_losses": {name: values.reshape(-1, MEAN).mean(1).tolist() for name, values in found.items()}}


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, values in found.items():
        axes.plot(np.convolve(values, np.ones(10) / 10, "valid"), label=name, linewidth=0.9)
    axes.set(xlabel="step", ylabel="loss, mean of 10 steps", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=110)


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    frames = read_video(settings.clip, size=parse_size(settings.size), log=lambda _: None).frames[: settings.stop]
    recipes = [RECIPES[settings.recipe].replace(dense_kernel=kernel) for kernel in settings.dense_kernels]
    facts = {"clip": settings.clip.name, "size": settings.size, "frames": len(frames), "recipe": settings.recipe}
    report = facts | machine() | {"rows": [compare(frames, recipe, settings) for recipe in recipes]}
    if settings.out:
        settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
