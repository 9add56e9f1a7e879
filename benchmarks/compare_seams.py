"""Seams of what is made around kept pixels: patches across them beside those inside what is made.

python benchmarks/compare_seams.py --runs RUN RUN --out OUT.json --pictures FOLDER
python benchmarks/compare_seams.py --inputs CLIP PICTURE --train-minutes 10

The first `--frames` frames of a run's clip are extended to a canvas of 5/4 the width and 4/3 the height; of an image
run, a hole in the middle, half as wide and as high, is filled, and the picture continued on such a canvas. NNFDIST of
3x3 patches in the run's own clip or picture, their mean across the seam and inside: a seam that shows is the one over
the other above 1.1. `least` is what no method could be below across the seam: how far the kept pixels alone of these
patches are from the clip's, since what lies beyond the border of a clip is nowhere in it. Medians over the seeds.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from compare_recipes import clip_name
from machine import machine
from numpy.lib.stride_tricks import sliding_window_view

from sinfusion import ops
from sinfusion.generation.extension import extend
from sinfusion.generation.image import edit
from sinfusion.media import write_image, write_video
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.pixels import middle
from sinfusion.run import Run, load
from sinfusion.training.session import train

SIDE = 3  # rows and columns of a patch
TINY = 1e-6  # in place of a distance of 0
LEAST_FRAMES, LEAST_QUERIES = 8, 128  # of which the least distance is found; patches at once

Row = dict[str, Any]


@dataclass
class Settings:
    runs: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()  # clips and pictures, of which runs of `tiny` are trained for so long
    train_minutes: float = 10
    frames: int = 30  # of a clip at most
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path | None = None
    pictures: Path | None = None  # folder for the first seed's results


def larger(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the canvas around frames of this size."""
    return size[0] * 4 // 3, size[1] * 5 // 4


def known_share(known: np.ndarray) -> np.ndarray:
    """Of each 3x3 patch the known pixels: (H, W) bool -> (H - 2, W - 2) whole numbers from 0 to 9."""
    return sliding_window_view(known, (SIDE, SIDE)).sum((2, 3))


def figures(made: np.ndarray, known: np.ndarray, original: np.ndarray) -> Row:
    """made, original: (T, H, W, 3) uint8; known: (H, W) bool, pixels that are kept."""
    distance = nnf(made, original, (1, SIDE, SIDE))[1]
    share = known_share(known)
    inside = nnfdist(distance[:, share == 0])
    across = nnfdist(distance[:, (share > 0) & (share < SIDE * SIDE)])
    return {"across": across, "inside": inside, "ratio": across / max(inside, TINY)}


def least_across(made: np.ndarray, known: np.ndarray, original: np.ndarray) -> float:
    """The mean distance of the known pixels alone of patches across the seam; arguments as of `figures`."""
    some = made[np.linspace(0, len(made) - 1, min(len(made), LEAST_FRAMES)).astype(int)]
    patterns = sliding_window_view(known, (SIDE, SIDE))  # (H - 2, W - 2, 3, 3)
    queries, keys = (_patches(frames) for frames in (some, original))
    keys = keys.flatten(0, 2)
    share, found = known_share(known), []
    across = (share > 0) & (share < SIDE * SIDE)
    for pattern in np.unique(patterns[across], axis=0):
        here = torch.from_numpy(across & (patterns == pattern).all((2, 3)))
        weight = torch.from_numpy(pattern.copy()).float().flatten().repeat(3)
        squares = (keys.square() * weight).sum(1)
        for query in (queries[:, here].flatten(0, 1) * weight).split(LEAST_QUERIES):
            nearest = torch.addmm(squares, query, keys.T, alpha=-2).amin(1)
            found.append((nearest + query.square().sum(1)).clamp(min=0))
    return float(torch.cat(found).mean())


def _patches(frames: np.ndarray) -> torch.Tensor:
    """(T, H - 2, W - 2, 27) fp32 in [-1, 1]: of each patch the pixels of one colour after the other."""
    views = sliding_window_view(frames.astype(np.float32) / 127.5 - 1, (SIDE, SIDE), (1, 2))
    return torch.from_numpy(views.reshape(*views.shape[:3], -1).copy())


def made_of(run: Run, settings: Settings) -> Iterator[tuple[str, list[np.ndarray], np.ndarray]]:
    """Of each task: its name, the results of the seeds (T, H, W, 3) uint8, and what of them is kept, (H, W) bool."""
    size = run.frames.shape[1:3]
    canvas = larger(size)
    around = np.zeros(canvas, bool)
    around[middle(size, canvas)] = True
    if run.kind == "video":
        kept = run.frames[: settings.frames]
        yield "extend", [extend(run, canvas, kept, seed=seed) for seed in settings.seeds], around
        return
    picture = run.frames[0]
    filled = np.ones(size, bool)
    filled[middle((size[0] // 2, size[1] // 2), size)] = False
    holes = [edit(run, picture, ~filled, strength=1, seed=seed) for seed in settings.seeds]
    yield "edit --mask", holes, filled
    yield "edit --canvas", [edit(run, picture, strength=1, canvas=canvas, seed=seed) for seed in settings.seeds], around


def rows_of(name: str, run: Run, settings: Settings) -> Iterator[Row]:
    for task, results, known in made_of(run, settings):
        if settings.pictures:
            path = settings.pictures / f"{name} {task}".replace(" --", "-").replace(" ", "-")
            if run.kind == "video":
                write_video(path.with_suffix(".mp4"), results[0], fps=15, overwrite=True)
            else:
                write_image(path.with_suffix(".png"), results[0][0], True)
        found = [figures(made, known, run.frames) for made in results]
        medians = {key: median(row[key] for row in found) for key in found[0]}
        medians["least"] = least_across(results[0], known, run.frames)
        yield {"clip": name, "task": task, "frames": len(results[0]), "seeds": len(found), **medians}


def runs_of(settings: Settings, folder: Path) -> Iterator[tuple[str, Run]]:
    for path in settings.runs:
        yield path.name, load(path)
    for path in settings.inputs:
        name = clip_name(path)
        yield name, train(path, folder / name, recipe="tiny", minutes=settings.train_minutes, quiet=True)


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    if settings.pictures:
        settings.pictures.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp())
    try:
        for name, run in runs_of(settings, folder):
            for row in rows_of(name, run, settings):
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
                rows.append(row)
    finally:
        shutil.rmtree(folder)
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"minutes": settings.train_minutes, **machine(), "rows": rows}
        settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
