"""Loops by patches, and of runs: the seam beside what changes elsewhere.

python benchmarks/compare_loops.py --clips scene ../shared/data/tornado ../shared/data/published/lava --out OUT.json
python benchmarks/compare_loops.py --runs RUN RUN --pictures FOLDER

A clip's first `--frames` frames at `--size` are looped with each seed; `scene` is that of `sinfusion demo`. `as it is`
is the clip played over and over. Changes are over the loop's median change, patch distances (3x7x7) over
those of the other moments; `anywhere` is the largest at any moment, whichever the loop begins with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from compare_recipes import clip_name
from machine import machine

from sinfusion import ops, patches, scene
from sinfusion.cli.options import evenly_spaced, parse_size
from sinfusion.generation.loops import loop
from sinfusion.media import contact_sheet, read_video, write_image, write_video
from sinfusion.metrics.loops import loop_figures
from sinfusion.run import load

SHEET = 24  # frames of a sheet, half of the cycle before its end

Row = dict[str, Any]


@dataclass
class Settings:
    clips: tuple[str, ...] = ()  # files or folders, and `scene`
    runs: tuple[Path, ...] = ()
    size: str = "96x54"  # of clips; runs have their own
    frames: int = 60  # of a clip at most
    length: int | None = None  # of each loop; left out: chosen
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path | None = None
    pictures: Path | None = None  # folder for sheets, and videos of each loop three times


def frames_of(clip: str, settings: Settings) -> np.ndarray:
    size = parse_size(settings.size)
    assert size is not None
    if clip == "scene":
        return scene.render(min(48, settings.frames), size)
    path = Path(clip) / "input.mp4" if (Path(clip) / "input.mp4").is_file() else Path(clip)
    return read_video(path, size=size, log=lambda _: None).frames[: settings.frames]


def sources(settings: Settings) -> Iterator[tuple[str, str, np.ndarray, Callable[[int], np.ndarray]]]:
    """Of each clip and run: name, kind, frames, and what makes a loop of a seed."""
    for clip in settings.clips:
        frames = frames_of(clip, settings)
        name = clip if clip == "scene" else clip_name(Path(clip))
        yield name, "patches", frames, lambda seed, frames=frames: patches.loop(frames, settings.length, seed=seed)
    for path in settings.runs:
        run = load(path)
        yield path.name, "run", run.frames, lambda seed, run=run: loop(run, settings.length, seed=seed)


def rows_of(name: str, kind: str, clip: np.ndarray, make: Callable[[int], np.ndarray], settings: Settings) -> list[Row]:
    whole = {"clip": name, "loop": "as it is", "frames": len(clip), "seed": None}
    rows = [whole | asdict(loop_figures(clip, clip))] if kind == "patches" else []
    for seed in settings.seeds:
        looped = make(seed)
        row = {"clip": name, "loop": kind, "frames": len(looped), "seed": seed}
        rows.append(row | asdict(loop_figures(looped, clip)))
        draw(settings, f"{name}-{kind}-{seed}", looped)
    return rows


def draw(settings: Settings, name: str, looped: np.ndarray) -> None:
    """NAME.png: the cycle with its end in the middle; NAME.mp4: three times."""
    if settings.pictures is None:
        return
    half = len(looped) // 2
    order = np.roll(np.arange(len(looped)), half)[evenly_spaced(len(looped), SHEET)]
    write_image(
        settings.pictures / f"{name}.png", contact_sheet(looped[order], 6, SHEET, [str(i) for i in order]), True
    )
    write_video(settings.pictures / f"{name}.mp4", np.concatenate([looped] * 3), fps=15, overwrite=True)


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    rows: list[Row] = []
    for source in sources(settings):
        for row in rows_of(*source, settings):
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            rows.append(row)
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"size": settings.size, "most_frames": settings.frames, **machine(), "rows": rows}
        settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
