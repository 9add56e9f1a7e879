"""What can be known of a next frame without training: predictions and rollouts of clips, beside repeating the last one.

python benchmarks/compare_predictors.py --clips ../shared/data/tornado:28 CLIP:STOP --length 0 --out OUT.json
python benchmarks/compare_predictors.py --clips ../shared/data/tornado CLIP --later 0 --out OUT.json

Of CLIP:STOP the frames before STOP are known, and the `--later` after them are predicted, each from the true ones
before it: a row for each predictor, with PSNR above repeating, and its CPU seconds of fitting and a frame. Of CLIP all
splits in `SHARES`. Then, for each `--wholeness`, a video that goes on after the last frame: its change between frames
and high-frequency RMS relative to the clip's own, NNFDIST, and the PSNR of its frames to the nearest known ones.
With `--speed` alone the two operators on the first clip, beside PyTorch's own: seconds of the clock, and of the CPU.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine
from quality import rollouts
from torch import Tensor

from sinfusion import ops
from sinfusion.cli.options import parse_size
from sinfusion.closed_form import ClosedFormPredictor, generate
from sinfusion.linear import LinearPredictor
from sinfusion.media import contact_sheet, read_video, write_image
from sinfusion.metrics.fidelity import mean_psnr
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.pixels import to_pixel_values, to_unit

Row = dict[str, Any]
Predict = Callable[[Tensor], Tensor]  # frames (1, n, 3, H, W) in [-1, 1] -> the next, (1, 3, H, W)

SHARES = (0.5, 0.65, 0.8)  # of a clip's frames that are known, where a clip names no STOP
PATCH = (3, 7, 7)  # of NNFDIST
LOOKED_AT = (5, 15)  # frames of a rollout whose nearest known frame is looked for

PREDICTORS: dict[str, Callable[[Tensor], Predict]] = {
    "linear 1": lambda known: LinearPredictor.fit(known, 1).predict,
    "linear 2": lambda known: LinearPredictor.fit(known, 2).predict,
    "linear 2, 5x5": lambda known: LinearPredictor.fit(known, 2, taps=5).predict,
    "closed 1": lambda known: ClosedFormPredictor.fit(known, 1).predict,
    "closed 2": lambda known: ClosedFormPredictor.fit(known, 2).predict,
    "linear + closed 1": lambda known: ClosedFormPredictor.fit(known, 1, linear=True).predict,
    "linear + closed 2": lambda known: ClosedFormPredictor.fit(known, 2, linear=True).predict,
}


@dataclass
class Settings:
    clips: tuple[str, ...]  # each a path, or PATH:STOP
    size: str = "64x36"
    most: int = 60  # frames of a clip that are used
    later: int = 5  # frames that are predicted; 0: none
    length: int = 40  # frames of a rollout; 0: none
    speed: bool = False  # measure the operators instead
    wholeness: tuple[float, ...] = (0.0, 0.5)
    out: Path | None = None
    sheets: Path | None = None  # folder for contact sheets of the rollouts


def read(clip: str, settings: Settings) -> tuple[str, np.ndarray, list[int]]:
    """Name, frames and the STOPs of PATH:STOP or PATH."""
    path, _, number = clip.rpartition(":")
    if not number.isdigit():
        path, number = clip, ""
    frames = read_video(path, size=parse_size(settings.size), log=lambda _: None).frames[: settings.most]
    name = Path(path).parent.name if Path(path).stem == "input" else Path(path).stem
    return name, frames, [int(number)] if number else [round(share * len(frames)) for share in SHARES]


def prediction_rows(name: str, frames: np.ndarray, stop: int, later: int) -> Iterator[Row]:
    """One for each predictor, of the frames from `stop` on."""
    unit, end = to_unit(torch.from_numpy(frames)), min(len(frames), stop + later)
    truth, repeated = frames[stop:end], mean_psnr(frames[stop - 1 : end - 1], frames[stop:end])
    split = {"clip": name, "known": stop, "later": end - stop}
    yield {"predictor": "repeat", **split, "db": repeated}
    for predictor, fit in PREDICTORS.items():
        started = time.process_time()
        predict = fit(unit[:stop])
        fitted = time.process_time()
        found = torch.cat([predict(unit[None, n - 2 : n]) for n in range(stop, end)])
        seconds = {"fit_cpu": fitted - started, "frame_cpu": (time.process_time() - fitted) / (end - stop)}
        above = mean_psnr(to_pixel_values(found).numpy(), truth) - repeated
        yield {"predictor": predictor, **split, "above_repeating_db": above} | seconds


def nearest_known(video: np.ndarray, frames: np.ndarray, n: int) -> float:
    """PSNR in dB of a video's frame to the known one that is most like it."""
    return max(mean_psnr(video[n : n + 1], known[None]) for known in frames)


def rollout_row(name: str, frames: np.ndarray, wholeness: float, settings: Settings) -> Row:
    """Of one video that goes on after the last frame."""
    started = time.process_time()
    video = generate(frames, settings.length, wholeness=wholeness)[0]
    seconds = (time.process_time() - started) / settings.length
    if settings.sheets is not None:
        settings.sheets.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(np.concatenate((frames[-1:], video)), columns=6)
        write_image(settings.sheets / f"{name}-{wholeness}.png", sheet, overwrite=True)
    looked_at = [n for n in LOOKED_AT if n < settings.length] + [settings.length]
    near = {f"nearest_known_{n}_db": nearest_known(video, frames, n - 1) for n in looked_at}
    distance = nnfdist(nnf(video, frames, PATCH)[1])
    facts = {"rollout": "closed 1", "clip": name, "known": len(frames), "wholeness": wholeness}
    return facts | rollouts(video[None], frames) | {"nnfdist": distance} | near | {"frame_cpu": seconds}


def by_torch(query: Tensor, key: Tensor, k: int) -> list[Tensor]:
    """The k nearest 3x3 patches by a matrix product in fp32 and `topk`: indices, a block of queries at a time."""
    rows, columns = (video.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).flatten(0, 2) for video in (query, key))
    squares = columns.square().sum(1)
    return [(squares - 2 * some @ columns.T).topk(k, largest=False).indices for some in rows.split(256)]


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int = 5) -> Row:
    """Median seconds of each, by the clock and of all threads' CPU time."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            before = time.perf_counter(), time.process_time()
            side()
            times[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    medians = {name: np.median(np.array(of), 0) for name, of in times.items()}
    return {f"{name}_{kind}": float(of[i]) for name, of in medians.items() for i, kind in enumerate(("seconds", "cpu"))}


def speed_rows(frames: np.ndarray) -> Iterator[Row]:
    """The search of a frame's neighbours among all others, of colours and of colours and changes; and their mean."""
    unit = torch.nn.functional.pad(to_unit(torch.from_numpy(frames)), (1,) * 4, mode="replicate").movedim(1, -1)
    both = torch.cat((unit[1:], unit[1:] - unit[:-1]), -1)
    facts = {"frames": len(frames), "size": f"{frames.shape[2]}x{frames.shape[1]}", "threads": torch.get_num_threads()}
    for channels, video in {3: unit[1:].contiguous(), 6: both}.items():
        query, key = video[-1:], video[:-1]
        search = functools.partial(ops.nearest_patches, query, key, (1, 3, 3), 64)
        sides = {"ours": search, "torch": functools.partial(by_torch, query, key, 64)}
        yield {"operator": "nearest_patches", "channels": channels, **facts, **interleaved(sides)}
    rows, distance = search()
    values, observed = torch.randn(int(rows.max()) + 1, 27), torch.randn(len(rows), 27)
    mean = functools.partial(ops.posterior, rows, distance, values, 0.5, observed, 0.1)

    def reference() -> None:
        with ops.backend("reference"):
            mean()

    yield {"operator": "posterior", **facts, **interleaved({"ours": mean, "torch": reference})}


def means(rows: list[Row]) -> list[Row]:
    """One for each predictor: dB above repeating over all clips and splits, and in how many it is above."""
    found = []
    for predictor in PREDICTORS:
        above = [row["above_repeating_db"] for row in rows if row.get("predictor") == predictor]
        counts = {"rows": len(above), "better_than_repeating": sum(value > 0 for value in above)}
        if above:
            found.append({"mean of": predictor, "above_repeating_db": float(np.mean(above))} | counts)
    return found


def show(row: Row) -> None:
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}))


def write(settings: Settings, rows: list[Row]) -> None:
    """All rows so far, with their means."""
    if not settings.out:
        return
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(
        json.dumps({"size": settings.size, **machine(), "rows": rows + means(rows)}, indent=1) + "\n"
    )


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    rows: list[Row] = []
    if settings.speed:
        rows = list(speed_rows(read(settings.clips[0], settings)[1]))
        write(settings, rows)
        for row in rows:
            show(row)
        return
    with ops.torch_alone():
        for clip in settings.clips:
            name, frames, stops = read(clip, settings)
            for stop in stops if settings.later else ():
                for row in prediction_rows(name, frames, stop, settings.later):
                    rows.append(row)
                    show(row)
            for wholeness in settings.wholeness if settings.length else ():
                rows.append(rollout_row(name, frames, wholeness, settings))
                show(rows[-1])
            write(settings, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
