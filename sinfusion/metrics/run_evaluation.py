"""How good a run is: it predicts known frames and generates new ones, and both are measured.

Everything that the evaluation needs from a run's models is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SinfusionError
from ..generation.reverse_process import reverse_process
from ..generation.upsampling import frame_between, moved_half_way
from ..generation.video import generate_images, next_frame, require_video, stream
from ..linear import LinearPredictor
from ..media import Source
from ..pixels import to_pixel_values, to_unit
from ..progress import OnProgress, ProgressCounter
from ..roles import INTERPOLATOR, PREDICTOR, PROJECTOR, Role
from ..run import Run
from .comparison import Comparison, Row, frames_and_size, mean
from .fidelity import mean_psnr

FRAMES_AT_ONCE = 8  # in one batch of predictions


def evaluate_run(
    run: Run,
    comparison: Comparison,
    held_out: np.ndarray | None,  # (T, H, W, 3) uint8: further frames at the run's size
    count: int,
    seed: int,
    steps: int | None,  # network evaluations an image; None: the recipe's
    on_progress: OnProgress | None,
) -> list[Row]:
    """The rows of a run: predictions (of a video run), the self-baseline, what it generates and the means of that."""
    if run.kind == "image":
        return _evaluate_image_run(run, comparison, count, seed, steps, on_progress)
    return _evaluate_video_run(run, comparison, held_out, count, seed, steps, on_progress)


def read_held_out(run: Run, media: Any, reading: dict[str, Any], log: Callable[[str], None]) -> np.ndarray:
    """(T, H, W, 3) uint8: frames that the run was not trained on, at its size.

    media: whatever `Source` takes, read with the options `reading`. Raises SinfusionError for too few frames, and where
    the run was trained on some of them.
    """
    require_video(run)
    name = str(media) if isinstance(media, str | os.PathLike) else "held_out"
    clip = Source(media, size=run.size, **reading).read(log=log)
    frames = clip.frames
    if isinstance(media, str | os.PathLike) and not Path(media).is_dir() and abs(clip.fps / run.fps - 1) > 0.05:
        log(
            f"{name} has {clip.fps:.4g} frames a second, {run.path} {run.fps:.4g}; --fps {run.fps:.4g} makes them alike"
        )
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


def _evaluate_image_run(
    run: Run, comparison: Comparison, count: int, seed: int, steps: int | None, on_progress: OnProgress | None
) -> list[Row]:
    counter = ProgressCounter(1 + 2 * count, on_progress)
    images = generate_images(run, count, None, seed, steps)
    counter.add(count, images[0])
    rows = [
        comparison.result(f"seed {seed + i}", image, counter, seed=seed + i, **diversity)
        for i, (image, diversity) in enumerate(zip(images, comparison.diversity(list(images)), strict=True))
    ]
    return [comparison.self_baseline(counter), *rows, *_mean_row(rows, "mean")]


def _evaluate_video_run(
    run: Run,
    comparison: Comparison,
    held_out: np.ndarray | None,
    count: int,
    seed: int,
    steps: int | None,
    on_progress: OnProgress | None,
) -> list[Row]:
    clips = {"its own frames": run.frames} | ({} if held_out is None else {"held-out frames": held_out})
    predictions = [
        (role, which, frames)
        for role in (PREDICTOR, INTERPOLATOR)
        for which, frames in clips.items()
        if run.has(role) and len(targets(frames, role))
    ]
    if not predictions:
        run.denoiser(PREDICTOR)  # raises what is missing
    starts, length = start_frames(run), len(run.frames)
    predicted = sum(len(targets(frames, role)) for role, _, frames in predictions)
    counter = ProgressCounter(predicted + length + 2 * count * length * len(starts), on_progress)
    rows = [_prediction_row(run, role, which, frames, seed, steps, counter) for role, which, frames in predictions]
    rows.append(comparison.self_baseline(counter))
    for name, start in starts.items():
        frames_of_all = []
        for images in stream(run, length, count, start=start, seed=seed, steps=steps):  # (count, H, W, 3)
            frames_of_all.append(images)
            counter.add(count, images[0])
        results = [
            comparison.result(f"from {name}, seed {seed + i}", video, counter, start=name, seed=seed + i)
            for i, video in enumerate(np.stack(frames_of_all, 1))
        ]
        rows += [*results, *_mean_row(results, f"from {name}, mean")]
    return rows


def _mean_row(results: list[Row], name: str) -> list[Row]:
    """A row for the mean, where there are several results."""
    shape = {key: results[0][key] for key in ("frames", "size")}
    return [{"kind": "mean", "name": name, **mean(results), **shape}] if len(results) > 1 else []


def start_frames(run: Run) -> dict[str, int | None]:
    """The starts of a run's videos, as `generate` takes them: a real frame, and noise if the run has a Projector."""
    if not run.has(PREDICTOR):
        return {}
    return {"frame 0": 0, "noise": None} if run.has(PROJECTOR) else {"frame 0": 0}


# Predictions ---------------------------------------------------------------------------------------------------------


def _prediction_row(
    run: Run, role: Role, which: str, frames: np.ndarray, seed: int, steps: int | None, counter: ProgressCounter
) -> Row:
    """How close a role comes to frames that are known."""
    known = targets(frames, role)
    guesses: Iterable[np.ndarray]
    if role is PREDICTOR:
        kind, task, baseline = "prediction", "next frame", "the last frame again"
        guesses = frames[:-1]
    else:
        kind, task, baseline = "interpolation", "frame between", "mean of the two neighbours"
        neighbours = zip(frames[:-2], frames[2:], strict=True)
        guesses = ((before.astype(np.float32) + after) / 2 for before, after in neighbours)
    row: Row = {
        "kind": kind,
        "name": f"{task}, {which}",
        "mean_db": mean_psnr(conditional_mean(run, frames, role), known),
        "sample_db": mean_psnr(sampled(run, frames, role, seed, steps), known),
        "baseline_db": mean_psnr(guesses, known),
        "baseline": baseline,
        **frames_and_size(known),
    }
    if role is PREDICTOR:
        row["linear_db"] = mean_psnr(linear_prediction(run.frames, frames), known)
    else:
        pairs = (condition for condition, _ in _conditions(run, frames, role, seed))
        row["motion_db"] = mean_psnr(_pixel_values([moved_half_way(pair) for pair in pairs]), known)
    counter.add(len(known))
    return row


def linear_prediction(clip: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """What the linear filter of a clip says of each frame but the first: (T - 1, H, W, 3) float in [0, 255].

    clip, frames: (T, H, W, 3) uint8. Fitted on the clip; of two previous frames where there are two.
    """
    known, shown = (to_unit(torch.from_numpy(np.ascontiguousarray(some))).float() for some in (clip, frames))
    return _pixel_values([LinearPredictor.fit(known, min(2, len(known) - 1)).predict_all(shown)])


def targets(frames: np.ndarray, role: Role) -> np.ndarray:
    """The frames that a role can predict from their neighbours.

    For the Predictor all but the first, for the Interpolator all but the first and the last.
    """
    return frames[1:] if role is PREDICTOR else frames[1:-1]


def conditional_mean(
    run: Run, frames: np.ndarray, role: Role = PREDICTOR, earlier: np.ndarray | None = None
) -> np.ndarray:
    """The expected image for each of `targets`, (T - n, H, W, 3) float in [0, 255].

    One evaluation at the highest noise level, where the noisy image says nothing: the network's estimate is the mean of
    all images that it finds likely given the condition. earlier: (T, H, W, 3) uint8, what came just before `frames`.
    """
    batches = _conditions(run, frames, role, 0, earlier)
    if role is INTERPOLATOR:
        return _between(run, batches, 1)
    process = reverse_process(run, role, frame_offset=1, steps=1)
    return _pixel_values([process(seeds, 1, condition) for condition, seeds in batches])


def sampled(
    run: Run, frames: np.ndarray, role: Role = PREDICTOR, seed: int = 0, steps: int | None = None
) -> np.ndarray:
    """A sample for each of `targets`, (T - n, H, W, 3) whole floats in [0, 255], drawn as `generate` draws it."""
    batches = _conditions(run, frames, role, seed)
    if role is PREDICTOR:
        advance = next_frame(run, steps=steps)
        images = [advance(advance.begin(condition), seeds, 1) for condition, seeds in batches]
        return _pixel_values(images).round()
    return _between(run, batches, steps).round()


def _between(run: Run, batches: Iterable[tuple[Tensor, Tensor]], steps: int | None) -> np.ndarray:
    """(N, H, W, 3) float in [0, 255]: the frame between each two, as `upsample` makes it."""
    between = frame_between(run, steps)
    return _pixel_values([between(condition, seeds, 1) for condition, seeds in batches])


def _conditions(
    run: Run, frames: np.ndarray, role: Role, seed: int, earlier: np.ndarray | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of conditions, (B, 3 n, H, W), and of seeds, (B,), for all `targets` in order.

    The condition is the frames before (Predictor; the first repeats where there are none), or the frames before and
    after (Interpolator).
    """
    neighbours = [frames[:-2], frames[2:]]
    if role is PREDICTOR:
        known = 0 if earlier is None else len(earlier)
        whole = frames if earlier is None else np.concatenate((earlier, frames))
        at = known + np.arange(len(frames) - 1)
        neighbours = [whole[np.maximum(at - i, 0)] for i in range(run.recipe.previous_frames)]
    for first in range(0, len(neighbours[0]), FRAMES_AT_ONCE):
        parts = [torch.from_numpy(part[first : first + FRAMES_AT_ONCE].copy()) for part in neighbours]
        condition = torch.cat([to_unit(part.to(run.device)) for part in parts], 1)
        yield condition, torch.arange(seed + first, seed + first + len(condition))


def _pixel_values(images: list[Tensor]) -> np.ndarray:
    """(N, H, W, 3) float in [0, 255] from batches (B, 3, H, W) in [-1, 1]."""
    return to_pixel_values(torch.cat(images)).cpu().numpy()
