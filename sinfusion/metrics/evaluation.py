"""How good results are beside their original, and how good a run is: rows of figures, as plain data.

rows = evaluate("fish.mp4", ["a.mp4", "b.mp4"])    # how close, how diverse; and the original's own two halves
rows = evaluate("runs/fish")                       # predicts frames, generates, and measures that
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SinfusionError
from ..generation.reverse_process import reverse_process
from ..generation.video import generate_images, next_frame, require_video, stream
from ..media import Clip, Source
from ..pixels import to_pixel_values, to_unit
from ..roles import INTERPOLATOR, PREDICTOR, PROJECTOR, Role
from ..run import Run, load
from ..seeds import check_seed
from .frechet import load_c3d, load_inception, sifid, svfid
from .similarity import ROUNDS, STRIDES, nnf, nnfdist, nnfdiv, sliced_wasserstein

PATCH = (3, 3, 3)  # of the nearest-neighbour fields: frames, rows, columns
SWD_PATCH = (3, 7, 7)
SWD_PROJECTIONS = 64
SWD_SCALES = 3  # at most; fewer where the smallest frames would be smaller than a patch
SETTINGS = {
    "nnf_patch": PATCH,
    "nnf_steps": ROUNDS * len(STRIDES),
    "swd_patch": SWD_PATCH,
    "swd_projections": SWD_PROJECTIONS,
}
ROUNDING = 1 / 12  # the squared error of rounding to whole numbers
LEAST_SIDE, LEAST_SIDE_INCEPTION, LEAST_SIDE_C3D = 3, 9, 4  # pixels that hold a patch, and more than one feature
_AT_ONCE = 8  # frames predicted in one batch

Row = dict[str, Any]
Media = Any  # (T, H, W, 3) or (H, W, 3) uint8, a file or folder of it, or whatever else `Source` takes
OnProgress = Callable[[], object]  # called once for every frame that is made or measured
Bar = Callable[[int], AbstractContextManager[OnProgress]]  # of how many frames
Seen = Callable[[str, np.ndarray, np.ndarray], object]  # told of each result: its name, itself, its field


def evaluate(
    original: Media | Run,
    generated: Media | Sequence[Media] | None = None,
    *,
    inception: str | Path | None = None,
    c3d: str | Path | None = None,
    size: tuple[int, int] | None = None,
    max_side: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    stride: int | None = None,
    held_out: Media | None = None,
    count: int = 3,
    seed: int = 0,
    steps: int | None = None,
    log: Callable[[str], None] = print,
    bar: Bar = lambda _: nullcontext(lambda: None),
    seen: Seen = lambda *_: None,
) -> list[Row]:
    """Measure generated images or videos beside their original; or, where none are given, what a run makes.

    original: a video or an image; a run stands for the frames it was trained on. generated: one or several of the same
    kind. inception, c3d: files of weights (see `features`), for SIFID of images and SVFID of videos. size: (height,
    width) that all files are brought to; max_side: the longer side that they are scaled down to, if they are all of one
    size; files keep their own size without either. start, stop, stride: frames to use of the original, or of
    `held_out`.

    Of a run alone: count: how many are made from each start, with the seeds `seed`, `seed` + 1 and so on; steps:
    network evaluations an image; held_out: further frames of the video that the run was trained on. seed: of the
    figures' random numbers too. bar, seen: told about the work and about each result.

    Returns one dict a row. All have "kind" and "name". The one of kind "self_baseline" has the original's halves measured
    against each other, those of kind "result" one result each, of kind "mean" the mean of a run's results: "nnfdiv",
    "nnfdist", "swd" (a number for each scale), "sifid" or "svfid", "change" (videos) and "high_frequency" relative to
    the original's, "frames", "size", of a run's also "seed" and "start". Those of kind "prediction" (the next frame)
    and "interpolation" (the one between) tell PSNR in dB: "mean_db" of the conditional mean, "sample_db" of a sample,
    "baseline_db" of "baseline". Raises SinfusionError for anything wrong with these, before any work starts.
    """
    run = original if isinstance(original, Run) else _run_of(original)
    reading: dict[str, Any] = {"start": start, "stop": stop, "stride": stride}
    if generated is None:
        if run is None:
            raise SinfusionError(f"{_name(original)} is not a run; give generated videos or images to compare with it.")
        if count < 1:
            raise SinfusionError(f"count must be at least 1, not {count}.")
        seed = check_seed(seed, count)
        useless = {"size": size, "max_side": max_side} | (reading if held_out is None else {})
        if given := [name for name, value in useless.items() if value is not None]:
            raise SinfusionError(f"{given[0]} is for files; what a run makes has the size of its frames: leave it out.")
        held = None if held_out is None else _held_out(run, held_out, reading, log)
        clip = run.frames[0] if run.kind == "image" else run.frames
        measuring = Measuring.of(clip, str(run.path), [], inception, c3d, seed, seen, run.device)
        return _evaluate_run(run, measuring, held, count, seed, steps, bar)
    if held_out is not None or steps is not None:
        given_name = "steps" if held_out is None else "held_out"
        raise SinfusionError(f"{given_name} is of what a run makes; leave it out, or what is already generated.")
    seed = check_seed(seed)
    reading |= {"size": size, "max_side": max_side}
    clip, results = _read(original if run is None else run, generated, reading, log)
    measuring = Measuring.of(clip, _name(original), list(results.items()), inception, c3d, seed, seen)
    with bar(_frames(clip) + sum(map(_frames, results.values()))) as on_progress:
        return [
            measuring.self_baseline(on_progress),
            *(measuring.result(name, outputs, on_progress) for name, outputs in results.items()),
        ]


# Figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measuring:
    """What every result is measured against, and how."""

    original: np.ndarray  # (T, H, W, 3) or (H, W, 3) uint8
    scales: int  # of the sliced Wasserstein distance
    inception: str | Path | None
    c3d: str | Path | None
    seed: int
    seen: Seen
    device: torch.device | str  # of the nearest-neighbour fields

    @classmethod
    def of(
        cls,
        original: np.ndarray,
        name: str,
        results: list[tuple[str, np.ndarray]],
        inception: str | Path | None,
        c3d: str | Path | None,
        seed: int,
        seen: Seen,
        device: torch.device | str = "auto",
    ) -> Measuring:
        """Raises SinfusionError for what cannot be compared."""
        image = original.ndim == 3
        if inception is not None and not image:
            raise SinfusionError(f"weights of Inception are for images, {name} is a video; give those of C3D.")
        if c3d is not None and image:
            raise SinfusionError(f"weights of C3D are for videos, {name} is an image; give those of Inception.")
        for other, outputs in [(name, original), *results]:
            kinds = ["an image" if pixels.ndim == 3 else "a video" for pixels in (original, outputs)]
            if kinds[0] != kinds[1]:
                raise SinfusionError(f"{other} is {kinds[1]}, {name} {kinds[0]}; compare what is of one kind.")
            if not image and len(outputs) < PATCH[0]:
                raise SinfusionError(
                    f"{other} has {len(outputs)} frame(s); a video to compare has {PATCH[0]} or more, as many as a patch."
                )
        parts = [(f"half of {name}", halves(original)[1]), *results]
        least = LEAST_SIDE_INCEPTION if inception else LEAST_SIDE_C3D if c3d else LEAST_SIDE
        for other, part in parts:
            if min(part.shape[-3:-1]) < least:
                raise SinfusionError(f"{other} is {_size(part)}; each side must be at least {least} pixels.")
        if inception is not None:
            load_inception(inception)
        if c3d is not None:
            load_c3d(c3d)
        smallest = min(min(part.shape[-3:-1]) for _, part in parts)
        scales = sum(smallest // 2**scale >= max(SWD_PATCH[1:]) for scale in range(SWD_SCALES))
        return cls(original, scales, inception, c3d, seed, seen, device)

    def result(self, name: str, outputs: np.ndarray, on_progress: OnProgress, **facts: Any) -> Row:
        """The row of one result."""
        figures, field = self._figures(outputs, self.original)
        self.seen(name, outputs, field)
        _report(on_progress, _frames(outputs))
        return {
            "kind": "result",
            "name": name,
            **figures,
            **relative(outputs, self.original),
            **_shape(outputs),
            **facts,
        }

    def self_baseline(self, on_progress: OnProgress) -> Row:
        """The row of the original's halves: means of each against the other; `relative`, of the later to the former."""
        name, former, later = halves(self.original)
        figures = mean([self._figures(later, former)[0], self._figures(former, later)[0]])
        _report(on_progress, _frames(self.original))
        return {"kind": "self_baseline", "name": name, **figures, **relative(later, former), **_shape(later)}

    def _figures(self, outputs: np.ndarray, original: np.ndarray) -> tuple[Row, np.ndarray]:
        """All but `relative`; and the nearest-neighbour field."""
        field, distance = nnf(outputs, original, PATCH, self.seed, self.device)
        row: Row = {"nnfdiv": nnfdiv(field), "nnfdist": nnfdist(distance), "swd": []}
        if self.scales:
            row["swd"] = sliced_wasserstein(outputs, original, SWD_PATCH, SWD_PROJECTIONS, self.scales, self.seed)
        if self.inception is not None:
            row["sifid"] = sifid(outputs, original, self.inception)
        if self.c3d is not None:
            row["svfid"] = svfid(outputs, original, self.c3d)
        return row, field


def halves(original: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """What its halves are, and they: of a video in time, of an image or a very short video left and right."""
    if original.ndim == 4 and len(original) >= 2 * PATCH[0]:
        middle = len(original) // 2
        return "first and second half", original[:middle], original[middle:]
    middle = original.shape[-2] // 2
    return "left and right half", original[..., :middle, :], original[..., -middle:, :]


def mean(rows: Sequence[Row]) -> Row:
    """The means of all figures that the first of the rows has; of lists, number by number."""
    figures = [key for key, value in rows[0].items() if isinstance(value, float | list)]
    return {key: np.mean([row[key] for row in rows], axis=0).tolist() for key in figures}


def relative(outputs: np.ndarray, original: np.ndarray) -> Row:
    """Change between frames and high-frequency RMS, 1 where they are the original's; none where it has none."""
    row = {}
    if original.ndim == 4 and (own := change(original)):
        row["change"] = change(outputs) / own
    if own := high_frequency(original):
        row["high_frequency"] = high_frequency(outputs) / own
    return row


def change(frames: np.ndarray) -> float:
    """Mean RMS difference of neighbouring frames (T, H, W, 3), uint8 scale."""
    return float(np.mean([np.sqrt(np.square(b - a).mean()) for a, b in pairwise(map(np.float64, frames))]))


def high_frequency(frames: np.ndarray) -> float:
    """RMS of each of the frames (..., H, W, 3) minus its 3x3 mean, uint8 scale."""
    squares = []
    for frame in frames.reshape(-1, *frames.shape[-3:]):
        x = torch.from_numpy(frame.astype(np.float32, order="C")).movedim(-1, 0)
        squares.append((x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).square().mean().item())
    return float(np.sqrt(np.mean(squares)))


def mean_psnr(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> float:
    """Mean over frames (T, H, W, 3) of PSNR in dB, uint8 scale, whole or not; at most 58.9, that of rounding."""
    errors = [np.square(one - other).mean() for one, other in zip(map(np.float64, a), map(np.float64, b), strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, ROUNDING))))


# Runs ----------------------------------------------------------------------------------------------------------------


def starts(run: Run) -> dict[str, int | None]:
    """What a run's videos are made from, as `rollout.generate` takes it: a real frame; noise, if it can."""
    if not run.has(PREDICTOR):
        return {}
    return {"frame 0": 0, "noise": None} if run.has(PROJECTOR) else {"frame 0": 0}


def conditional_mean(run: Run, frames: np.ndarray, role: Role = PREDICTOR) -> np.ndarray:
    """The expected image for each of `targets`, (T - n, H, W, 3) float, uint8 scale, by one evaluation at the top.

    At the highest noise level the noisy image says nothing: what the network finds likely is all there is.
    """
    process = reverse_process(run, role, frame_offset=1 if role.frame_offset else None, steps=1)
    return _pixels([process(seeds, 1, some) for some, seeds in _conditions(run, frames, role, 0)])


def sampled(
    run: Run, frames: np.ndarray, role: Role = PREDICTOR, seed: int = 0, steps: int | None = None
) -> np.ndarray:
    """A sample for each of `targets`, (T - n, H, W, 3) float, uint8 scale, made as a rollout makes it."""
    parts = _conditions(run, frames, role, seed)
    if role is PREDICTOR:
        advance = next_frame(run, steps=steps)
        return _pixels([advance(some, seeds, 1) for some, seeds in parts]).round()
    process = reverse_process(run, role, steps=steps)
    return _pixels([process(seeds, 1, some) for some, seeds in parts]).round()


def targets(frames: np.ndarray, role: Role) -> np.ndarray:
    """The frames that a role can make from the others: for the Predictor all but the first, for the Interpolator the
    last too."""
    return frames[1:] if role is PREDICTOR else frames[1:-1]


def _conditions(run: Run, frames: np.ndarray, role: Role, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A few at a time: the frame before, or those around, each of `targets`, (B, 3 n, H, W); and their seeds, (B,)."""
    around = [frames[:-1]] if role is PREDICTOR else [frames[:-2], frames[2:]]
    for first in range(0, len(around[0]), _AT_ONCE):
        some = [to_unit(torch.from_numpy(part[first : first + _AT_ONCE].copy()).to(run.device)) for part in around]
        yield torch.cat(some, 1), torch.arange(seed + first, seed + first + len(some[0]))


def _pixels(images: list[Tensor]) -> np.ndarray:
    """(N, H, W, 3) float, uint8 scale, of batches (B, 3, H, W) in [-1, 1]."""
    return to_pixel_values(torch.cat(images)).cpu().numpy()


def _prediction(
    run: Run, role: Role, which: str, frames: np.ndarray, seed: int, steps: int | None, on_progress: OnProgress
) -> Row:
    """How near a role comes to known frames."""
    known = targets(frames, role)
    if role is PREDICTOR:
        kind, name, baseline = "prediction", "next frame", "the last frame again"
        plain: Iterable[np.ndarray] = frames[:-1]
    else:
        kind, name, baseline = "interpolation", "frame between", "mean of the two neighbours"
        plain = ((before.astype(np.float32) + after) / 2 for before, after in zip(frames[:-2], frames[2:], strict=True))
    row = {
        "kind": kind,
        "name": f"{name}, {which}",
        "mean_db": mean_psnr(conditional_mean(run, frames, role), known),
        "sample_db": mean_psnr(sampled(run, frames, role, seed, steps), known),
        "baseline_db": mean_psnr(plain, known),
        "baseline": baseline,
        **_shape(known),
    }
    _report(on_progress, len(known))
    return row


def _evaluate_run(
    run: Run,
    measuring: Measuring,
    held: np.ndarray | None,  # further frames, at the run's size
    count: int,
    seed: int,
    steps: int | None,
    bar: Bar,
) -> list[Row]:
    if run.kind == "image":
        with bar(1 + 2 * count) as on_progress:
            images = generate_images(run, count, None, seed, steps)
            _report(on_progress, count)
            rows = [
                measuring.result(f"seed {seed + i}", image, on_progress, seed=seed + i)
                for i, image in enumerate(images)
            ]  # fmt: skip
            return [measuring.self_baseline(on_progress), *rows, *_mean_of(rows, "mean")]
    length = len(run.frames)
    known = {"its own frames": run.frames} | ({} if held is None else {"held-out frames": held})
    tasks = [
        (role, which, frames)
        for role in (PREDICTOR, INTERPOLATOR)
        for which, frames in known.items()
        if run.has(role) and len(targets(frames, role))
    ]
    if not tasks:
        run.denoiser(PREDICTOR)  # raises what is missing
    made_of = starts(run)
    work = sum(len(targets(frames, role)) for role, _, frames in tasks) + length + 2 * count * length * len(made_of)
    with bar(work) as on_progress:
        rows = [_prediction(run, role, which, frames, seed, steps, on_progress) for role, which, frames in tasks]
        rows.append(measuring.self_baseline(on_progress))
        for name, begin in made_of.items():
            moments = []
            for images in stream(run, length, count, start=begin, seed=seed, steps=steps):  # (count, H, W, 3)
                moments.append(images)
                _report(on_progress, count)
            results = [
                measuring.result(f"from {name}, seed {seed + i}", video, on_progress, start=name, seed=seed + i)
                for i, video in enumerate(np.stack(moments, 1))
            ]
            rows += [*results, *_mean_of(results, f"from {name}, mean")]
    return rows


def _mean_of(results: list[Row], name: str) -> list[Row]:
    """A row for the mean, where there are several."""
    shape = {key: results[0][key] for key in ("frames", "size")}
    return [{"kind": "mean", "name": name, **mean(results), **shape}] if len(results) > 1 else []


# Reading -------------------------------------------------------------------------------------------------------------


def _run_of(original: Media) -> Run | None:
    """The run in a folder, or None for anything else."""
    return load(original) if _is_path(original) and (Path(original) / "run.json").is_file() else None


def _is_path(media: Any) -> bool:
    return isinstance(media, str | os.PathLike)


def _held_out(run: Run, media: Media, reading: dict[str, Any], log: Callable[[str], None]) -> np.ndarray:
    """(T, H, W, 3): frames that the run was not trained on, at its size."""
    require_video(run)
    name = str(media) if _is_path(media) else "held_out"
    frames = Source(media, size=run.size, **reading).read(log=log).frames
    least = 2 if run.has(PREDICTOR) else 3
    if len(frames) < least:
        raise SinfusionError(f"{name} has {len(frames)} frame(s); held-out frames are at least {least}.")
    trained = {frame.tobytes() for frame in run.frames}
    same = [i for i, frame in enumerate(frames) if frame.tobytes() in trained]
    if same:
        raise SinfusionError(
            f"{name} is not held out: the run was trained on {len(same)} of its {len(frames)} frames, up to "
            f"number {same[-1]}; begin after it (--start)."
        )
    return frames


def _read(
    original: Media | Run, generated: Media | Sequence[Media], reading: dict[str, Any], log: Callable[[str], None]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Original and results, images (H, W, 3), videos (T, H, W, 3); the results by name."""
    size, max_side = reading["size"], reading["max_side"]
    if isinstance(original, Run):
        if max_side or (size or original.size) != original.size:
            raise SinfusionError(
                f"the frames of {original.path} stay {_size(original.frames)}; give that as the size, or none."
            )
        of_run = Clip(original.frames, original.fps, original.kind, original.size)
        clip, source = _pixels_of(of_run, reading | {"max_side": None, "size": None}, log)
    else:
        clip, source = _pixels_of(original, reading, log)
    listed: list[Media] = [generated]
    if isinstance(generated, list | tuple) or getattr(generated, "ndim", 0) == clip.ndim + 1:  # as `generate` returns
        listed = list(generated)
    if not listed:
        raise SinfusionError(f"there is nothing to compare with {_name(original)}; give generated videos or images.")
    results = {}
    for name, one in zip(names(listed), listed, strict=True):
        results[name], other = _pixels_of(one, {"size": size, "max_side": max_side}, log)
        if max_side and other != source and (other, source) != (results[name].shape[-3:-1], clip.shape[-3:-1]):
            raise SinfusionError(
                f"{name} is {_words(other)}, the original {_words(source)}: one longer side would bring them to "
                "different scales; give a size for both (--size)."
            )
        if results[name].shape[-3:] != clip.shape[-3:]:
            log(
                f"{name} is {_size(results[name])}, the original {_size(clip)}: compared pixel for pixel, as is right "
                "for retargeted ones; if they show the same at different scales, give a size for both (--size)"
            )
    return clip, results


def _pixels_of(media: Media, reading: dict[str, Any], log: Callable[[str], None]) -> tuple[np.ndarray, tuple[int, int]]:
    """An image (H, W, 3) or a video (T, H, W, 3); and its height and width before scaling."""
    clip = Source(media, **reading).read(0, lambda text: log(f"{_name(media)}: {text}"))
    return clip.frames[0] if clip.kind == "image" else clip.frames, clip.source_size


def names(media: Sequence[Media]) -> list[str]:
    """A short name for each, unlike all others: the last parts of its path, as many as it takes; not bare numbers."""
    parts = [Path(m).parts if _is_path(m) else (f"generated {i + 1}",) for i, m in enumerate(media)]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(some[-depth:]) for some in parts]
        if len(set(short)) == len(short) and not any(name.isdigit() for name in short):
            return short
    return short if len(set(short)) == len(short) else [f"{name} ({i + 1})" for i, name in enumerate(short)]


def _name(media: Media | Run) -> str:
    if isinstance(media, Run):
        return str(media.path)
    return str(media) if _is_path(media) else "the original"


def _frames(pixels: np.ndarray) -> int:
    return 1 if pixels.ndim == 3 else len(pixels)


def _shape(pixels: np.ndarray) -> Row:
    return {"frames": _frames(pixels), "size": _size(pixels)}


def _size(pixels: np.ndarray) -> str:
    return _words(pixels.shape[-3:-1])


def _words(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _report(on_progress: OnProgress, frames: int) -> None:
    for _ in range(frames):
        on_progress()
