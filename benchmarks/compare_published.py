"""Results beside their clip and beside what others have published of it: how close, how diverse, and what drifts.

python benchmarks/compare_published.py ../shared/data/published/ants --runs ours=runs/ants --seeds 0 1 2 --out OUT.json
python benchmarks/compare_published.py A B --videos A/ours=a.mp4 B/ours=b.mp4 --pictures FOLDER

A clip is a folder with `input.mp4`, whose other videos are published results named by their stem (`authors-1.mp4` and
`authors-2.mp4` are two samples of `authors`); or a video or a folder of frames, without any. Everything is measured at
one size, whole and over windows of time. A row of the table is a result: medians over its samples, with the smallest
and the largest; `halves` is the clip alone, each half against the other. Of several windows the table shows the second
and the last, the first being close to the frame that a video begins with.

--held-out: the PSNR of one step of each run on the clip's frames after those that it was trained on, beside the linear
filter and beside repeating the last frame, at the run's size.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from compare_recipes import clip_name
from machine import machine
from tyro.conf import Positional

from sinfusion import ops
from sinfusion.cli.options import evenly_spaced, parse_size
from sinfusion.errors import SinfusionError
from sinfusion.generation.video import generate, stream
from sinfusion.media import contact_sheet, read_video, write_image, write_video
from sinfusion.metrics.comparison import SWD_PATCH, halves, swd_scales
from sinfusion.metrics.coverage import Coverage
from sinfusion.metrics.fidelity import mean_psnr, relative_statistics, sliced_wasserstein
from sinfusion.metrics.nearest_neighbors import ROUNDS, nnf, nnfdist, nnfdiv
from sinfusion.metrics.run_evaluation import conditional_mean, linear_prediction
from sinfusion.metrics.windows import Window, patches_in, windows
from sinfusion.pixels import resize
from sinfusion.run import Run, load
from sinfusion.training.session import train

PATCHES = {(3, 3, 3): ROUNDS, (3, 7, 7): 2, (1, 7, 7): 2}  # rounds of the search: to within 1% of NNFDIST
COLUMNS = 8  # frames of each video in a sheet
VIDEOS = (".mp4", ".webm", ".mov", ".gif", ".webp")

Figures = dict[str, float]
Row = dict[str, Any]


class Result(NamedTuple):
    name: str
    sample: str  # which of several
    frames: np.ndarray  # (T, H, W, 3) uint8


@dataclass
class Settings:
    clips: Positional[tuple[Path, ...]]
    videos: tuple[str, ...] = ()  # NAME=PATH, or CLIP/NAME=PATH where there are several clips
    runs: tuple[str, ...] = ()  # NAME=RUN, likewise: generates a video from each seed
    size: str = "128x72"
    frames: int = 60  # of what runs generate
    start: int | None = None  # frame of a run to generate from; left out: its Projector generates one
    long: int = 0  # above 0: also a video of so many frames, whose second and last windows are measured
    seeds: tuple[int, ...] = (0,)
    train_minutes: float = 0  # above 0: train a run of `tiny` on each clip for so long, the result `ours`
    window: int = 20  # frames
    held_out: bool = False  # predict the frames of the clip that runs were not trained on
    out: Path | None = None
    pictures: Path | None = None  # folder for a contact sheet and a video of each clip


# Reading -------------------------------------------------------------------------------------------------------------


def read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return read_video(path, size=size, log=lambda _: None).frames


def files_of(clip: Path) -> tuple[str, Path, list[Path]]:
    """A clip's name, its own file or folder of frames, and the videos of published results."""
    own = [path for path in sorted(clip.glob("input.*")) if path.suffix in VIDEOS] if clip.is_dir() else []
    if not own:
        return clip_name(clip), clip, []
    return clip.name, own[0], [path for path in sorted(clip.iterdir()) if path.suffix in VIDEOS and path != own[0]]


def named(words: Sequence[str], clips: Sequence[str]) -> dict[str, list[tuple[str, Path]]]:
    """From CLIP/NAME=PATH, or NAME=PATH of an only clip: the names and paths of each clip."""
    found: dict[str, list[tuple[str, Path]]] = {clip: [] for clip in clips}
    for word in words:
        name, equals, path = word.partition("=")
        clip, slash, rest = name.rpartition("/")
        clip = clip if slash or len(clips) > 1 else clips[0]
        if not equals or not rest or clip not in found:
            raise SinfusionError(f"{word} is not CLIP/NAME=PATH with one of the clips {', '.join(clips)}.")
        if not Path(path).exists():
            raise SinfusionError(f"{path} does not exist.")
        found[clip].append((rest, Path(path)))
    return found


def generated(path: Path, settings: Settings, size: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """A video from each seed, at a size."""
    run = load(path)
    for seed in settings.seeds:
        video = generate(run, settings.frames, start=settings.start, seed=seed)[0]
        yield f"seed {seed}", np.stack([resize(frame, size) for frame in video])
    if settings.long:
        picked: dict[str, list[np.ndarray]] = {"second window": [], "last window": []}
        for number, images in enumerate(stream(run, settings.long, start=settings.start, seed=settings.seeds[0])):
            if settings.window <= number < 2 * settings.window:
                picked["second window"].append(resize(images[0], size))
            if number >= settings.long - settings.window:
                picked["last window"].append(resize(images[0], size))
        yield from ((f"{name} of {settings.long}", np.stack(frames)) for name, frames in picked.items())


def trained(own: Path, folder: Path, minutes: float) -> tuple[str, Path]:
    """Name and folder of a run of a clip, trained for so long."""
    return "ours", train(own, folder, recipe="tiny", minutes=minutes, quiet=True).path


def results_of(
    published: Sequence[Path],
    videos: Sequence[tuple[str, Path]],
    runs: Sequence[tuple[str, Path]],
    settings: Settings,
) -> Iterator[Result]:
    size = parse_size(settings.size)
    assert size is not None
    for path in published:
        yield Result(re.sub(r"-\d+$", "", path.stem), path.stem, read(path, size))
    for name, path in videos:
        yield Result(name, str(path), read(path, size))
    for name, path in runs:
        for sample, frames in generated(path, settings, size):
            of_long = f"{name}, {sample}"
            yield Result(name if sample.startswith("seed") else of_long, sample, frames)


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(
    frames: np.ndarray, original: np.ndarray, cover: Coverage, window: int, seed: int = 0
) -> dict[str, Figures]:
    """Every figure of a video against its original, (T, H, W, 3) uint8 each: of the `whole` and of each window."""
    counts, scales = cover.counts(frames), swd_scales(min(original.shape[1:3]))
    parts = {"whole": Window(0, len(frames))}
    parts |= {str(part): part for part in windows(len(frames), window, max(depth for depth, *_ in PATCHES))}
    figures: dict[str, Figures] = {}
    for name, part in parts.items():
        swd = sliced_wasserstein(part.of(frames), original, SWD_PATCH, scales=scales, seed=seed)
        figures[name] = {"swd": float(np.mean(swd)), "coverage": cover.share(part.of(counts))}
        figures[name] |= relative_statistics(part.of(frames), original)
    for patch, rounds in PATCHES.items():
        field, distance = nnf(frames, original, patch, seed, rounds=rounds)
        label = "x".join(map(str, patch))
        for name, part in parts.items():
            figures[name][f"nnfdiv_{label}"] = nnfdiv(patches_in(part, field, patch[0]))
            figures[name][f"nnfdist_{label}"] = nnfdist(patches_in(part, distance, patch[0]))
    return figures


def rows_of(clip: str, original: np.ndarray, results: Sequence[Result], window: int) -> Iterator[Row]:
    """One for each sample; the halves of the clip first."""
    _, first, second = halves(original)
    pairs = [(Result("halves", "first", first), second), (Result("halves", "second", second), first)]
    cover = Coverage.of(original)
    for result, against in [*pairs, *((result, original) for result in results)]:
        of = cover if against is original else Coverage.of(against)
        figures = measure(result.frames, against, of, window)
        facts = {"clip": clip, "result": result.name, "sample": result.sample, "frames": len(result.frames)}
        yield facts | {"figures": figures}


def predictions(clip: str, own: Path, name: str, run: Run) -> Row:
    """PSNR in dB of one step on the frames of a clip that come after those that a run was trained on."""
    frames, trained = read(own, run.size), {frame.tobytes() for frame in run.frames}
    known = [i for i, frame in enumerate(frames) if frame.tobytes() in trained]
    if not known or known[-1] == len(frames) - 1:
        how = "all of its last" if known else "none of its"
        raise SinfusionError(f"{name} has no held-out frames: it was trained on {how} frames of {own}.")
    held = frames[known[-1] :]
    expected = conditional_mean(run, held, earlier=frames[: known[-1]])
    guesses = {"mean_db": expected, "linear_db": linear_prediction(run.frames, held)}
    figures = {key: mean_psnr(guess, held[1:]) for key, guess in (guesses | {"repeat_db": held[:-1]}).items()}
    size = f"{run.size[1]}x{run.size[0]}"
    return {"clip": clip, "result": name, "frames": len(held) - 1, "size": size, **figures}


# Showing -------------------------------------------------------------------------------------------------------------

TITLES = {f"nnfdiv_{'x'.join(map(str, patch))}": f"NNFDIV {'x'.join(map(str, patch))}" for patch in PATCHES}
TITLES |= {key.replace("nnfdiv", "nnfdist"): title.replace("DIV", "DIST") for key, title in TITLES.items()}
TITLES |= {"coverage": "coverage", "swd": "SWD", "high_frequency": "high frequencies", "change": "change"}


def summary(values: Sequence[float]) -> str:
    """The median; of several also the smallest and the largest."""
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def shown_parts(parts: Sequence[str]) -> list[str]:
    """The whole, and of several windows the second and the last: the first is still close to its first frame."""
    rest = list(parts[1:])
    return ["whole", *dict.fromkeys(rest[1:2] + rest[-1:])] if len(rest) > 1 else ["whole"]


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each result and window."""
    lines = [["clip", "result", "frames", *TITLES.values()]]
    for clip, name in dict.fromkeys((row["clip"], row["result"]) for row in rows):
        samples = [row for row in rows if (row["clip"], row["result"]) == (clip, name)]
        parts = [part for part in samples[0]["figures"] if all(part in row["figures"] for row in samples)]
        for part in shown_parts(parts):
            figures = [row["figures"][part] for row in samples]
            cells = [
                summary([some[key] for some in figures]) if all(key in some for some in figures) else ""
                for key in TITLES
            ]
            lines.append([clip, name, "all" if part == "whole" else part, *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def held_out_table(rows: Sequence[Row]) -> str:
    """Markdown: PSNR of one step."""
    head = ["clip", "result", "held-out frames", "expected", "linear filter", "repeating", "size"]
    keys = ("mean_db", "linear_db", "repeat_db")
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append([row["clip"], row["result"], str(row["frames"]), *(f"{row[k]:.2f} dB" for k in keys), row["size"]])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(folder: Path, clip: str, original: np.ndarray, results: Sequence[Result]) -> None:
    """CLIP.png, a row of frames for each video; CLIP.mp4, all of them side by side, the shorter ones starting over."""
    firsts = {name: next(result.frames for result in results if result.name == name)
              for name in dict.fromkeys(result.name for result in results)}  # fmt: skip
    videos = {clip: original} | firsts
    frames, labels = [], []
    for name, video in videos.items():
        picked = (evenly_spaced(len(video), COLUMNS) * COLUMNS)[:COLUMNS]
        frames += [video[i] for i in picked]
        labels += [f"{name}, {i}" for i in picked]
    write_image(folder / f"{clip}.png", contact_sheet(frames, COLUMNS, len(frames), labels), overwrite=True)
    longest = max(map(len, videos.values()))
    shown = (
        contact_sheet([video[t % len(video)] for video in videos.values()], len(videos), labels=list(videos))
        for t in range(longest)
    )
    write_video(folder / f"{clip}.mp4", shown, fps=20, overwrite=True)


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    clips = {name: (own, published) for name, own, published in map(files_of, settings.clips)}
    videos, runs = (named(words, list(clips)) for words in (settings.videos, settings.runs))
    size = parse_size(settings.size)
    assert size is not None
    windows(settings.window, settings.window, max(depth for depth, *_ in PATCHES))  # refuses what is too short
    started = time.perf_counter()
    report: Row = {"size": settings.size, "window": settings.window, **machine(), "held_out": [], "rows": []}
    if settings.held_out:
        report["held_out"] = [
            predictions(clip, clips[clip][0], name, load(path)) for clip in clips for name, path in runs[clip]
        ]
    for clip, (own, published) in clips.items():
        original = read(own, size)
        with tempfile.TemporaryDirectory() as folder:
            if settings.train_minutes:
                runs[clip].append(trained(own, Path(folder) / clip, settings.train_minutes))
            results = list(results_of(published, videos[clip], runs[clip], settings))
        if settings.pictures:
            draw(settings.pictures, clip, original, results)
        for row in rows_of(clip, original, results, settings.window):
            report["rows"].append(row)
            report["seconds"] = time.perf_counter() - started
            if settings.out:
                settings.out.parent.mkdir(parents=True, exist_ok=True)
                settings.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["rows"]))
    if report["held_out"]:
        print(held_out_table(report["held_out"]))


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except SinfusionError as error:
        raise SystemExit(str(error)) from None
