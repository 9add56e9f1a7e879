"""Results measured against their original: rows of numbers, as plain data.

comparison = Comparison.of(("fish.mp4", original), [("a.mp4", frames)], MetricOptions())   # refuses what does not fit
rows = [comparison.self_baseline(counter), comparison.result("a.mp4", frames, counter)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clip import format_size
from ..errors import SinfusionError
from ..progress import ProgressCounter
from ..text.clip import ClipModel
from .clip_scores import scores
from .coverage import SIDE, Coverage, coverage, downscale_of
from .fidelity import relative_statistics, sliced_wasserstein
from .frechet import C3D_MIN_SIDE, INCEPTION_MIN_SIDE, load_c3d, load_inception, sifid, svfid
from .nearest_neighbors import ROUNDS, STRIDES, nnf, nnfdist, nnfdiv
from .perceptual import Lpips, to_others
from .windows import Window, patches_in

NNF_PATCH = (3, 3, 3)  # frames, rows, columns
SWD_PATCH = (3, 7, 7)
SWD_PROJECTIONS = 64
SWD_MAX_SCALES = 3  # fewer where the smallest frames would be smaller than a patch
DRIFT_SHARE = 4  # of the frames of a video are its first, and its last, which are compared
SETTINGS = {
    "nnf_patch": NNF_PATCH,
    "nnf_steps": ROUNDS * len(STRIDES),
    "swd_patch": SWD_PATCH,
    "swd_projections": SWD_PROJECTIONS,
}

Row = dict[str, Any]
Named = tuple[str, np.ndarray]  # (T, H, W, 3) or (H, W, 3) uint8, and what errors call it
OnResult = Callable[[str, np.ndarray, np.ndarray], object]  # called with each result: name, pixels, field from `nnf`


@dataclass(frozen=True)
class MetricOptions:
    """How results are measured."""

    inception: str | Path | None = None  # weights of Inception v3, for SIFID
    c3d: str | Path | None = None  # weights of C3D, for SVFID
    seed: int = 0
    device: torch.device | str = "auto"  # of the nearest-neighbour fields
    on_result: OnResult = lambda *_: None
    clip: ClipModel | None = None  # for how well frames go together, and with a text
    prompt: str | None = None  # what results should show, whatever they were told
    original_prompt: str | None = None  # what the original shows
    lpips: Lpips | None = None  # for the diversity of images


@dataclass(frozen=True)
class Comparison:
    """What every result is measured against, and how."""

    original: np.ndarray  # (T, H, W, 3) or (H, W, 3) uint8
    swd_scales: int
    cover: Coverage | None  # None where the smallest frames would be smaller than a patch
    options: MetricOptions

    @classmethod
    def of(cls, original: Named, results: Sequence[Named], options: MetricOptions) -> Comparison:
        """Check what is to be compared, and the files of weights. Raises SinfusionError for what does not fit."""
        name, frames = original
        _check_kinds(original, results, options)
        # A result is compared with the whole original, and one half of the original with the other.
        compared = [(f"half of {name}", halves(frames)[1]), *results]
        _check_sizes(compared, options)
        if options.inception is not None:
            load_inception(options.inception)
        if options.c3d is not None:
            load_c3d(options.c3d)
        smallest = min(min(pixels.shape[-3:-1]) for _, pixels in compared)
        scales = swd_scales(smallest)
        covered = smallest // downscale_of(frames) >= SIDE
        return cls(frames, scales, Coverage.of(frames, options.device) if covered else None, options)

    def result(
        self, name: str, generated: np.ndarray, counter: ProgressCounter, prompt: str | None = None, **facts: Any
    ) -> Row:
        """The row of one result. prompt: what it was told to show, if it was. `facts` are added to the row."""
        metrics, field, distance = self._metrics(generated, self.original)
        metrics |= self._clip_scores(generated, self.options.prompt or prompt)
        metrics |= self._coverage_and_drift(generated, distance)
        self.options.on_result(name, generated, field)
        counter.add(frame_count(generated))
        relative = relative_statistics(generated, self.original)
        return {"kind": "result", "name": name, **metrics, **relative, **frames_and_size(generated), **facts}

    def self_baseline(self, counter: ProgressCounter) -> Row:
        """The row of the original's halves, each measured against the other: the mean. CLIP sees the whole original.

        `relative_statistics` are those of the second half against the first.
        """
        name, first, second = halves(self.original)
        metrics = mean([self._metrics(second, first)[0], self._metrics(first, second)[0]])
        if self.cover is not None:
            pairs = ((first, second), (second, first))
            metrics["coverage"] = float(np.mean([coverage(a, b, self.options.device) for a, b in pairs]))
        metrics |= self._clip_scores(self.original, self.options.original_prompt)
        counter.add(frame_count(self.original))
        relative = relative_statistics(second, first)
        return {"kind": "self_baseline", "name": name, **metrics, **relative, **frames_and_size(second)}

    def diversity(self, images: Sequence[np.ndarray]) -> list[Row]:
        """What the rows of these results have of their distance to each other, if that is asked for."""
        lpips = self.options.lpips
        return [{} for _ in images] if lpips is None else [{"lpips": value} for value in to_others(lpips, images)]

    def _clip_scores(self, pixels: np.ndarray, prompt: str | None) -> Row:
        model = self.options.clip
        return {} if model is None else scores(model, pixels, prompt) | ({"prompt": prompt} if prompt else {})

    def _coverage_and_drift(self, generated: np.ndarray, distance: np.ndarray) -> Row:
        """The coverage; and of a video some figures of its last frames, over those of the first ones."""
        row: Row = {}
        counts = None if self.cover is None else self.cover.counts(generated)
        if self.cover is not None and counts is not None:
            row["coverage"] = self.cover.share(counts)
        length = frame_count(generated) // DRIFT_SHARE
        if length < NNF_PATCH[0]:
            return row
        ends = Window(0, length), Window(len(generated) - length, len(generated))
        first, last = ({"nnfdist": nnfdist(patches_in(end, distance, NNF_PATCH[0]))} for end in ends)
        for end, figures in zip(ends, (first, last), strict=True):
            figures |= relative_statistics(end.of(generated), self.original)
            if self.cover is not None and counts is not None:
                figures["coverage"] = self.cover.share(end.of(counts))
        return row | {f"{name}_drift": last[name] / value for name, value in first.items() if value}

    def _metrics(self, generated: np.ndarray, original: np.ndarray) -> tuple[Row, np.ndarray, np.ndarray]:
        """All metrics of both alone; and the nearest-neighbour field and its distances."""
        options = self.options
        field, distance = nnf(generated, original, NNF_PATCH, options.seed, options.device)
        row: Row = {"nnfdiv": nnfdiv(field), "nnfdist": nnfdist(distance), "swd": []}
        if scales := self.swd_scales:
            row["swd"] = sliced_wasserstein(generated, original, SWD_PATCH, SWD_PROJECTIONS, scales, options.seed)
        if options.inception is not None:
            row["sifid"] = sifid(generated, original, options.inception)
        if options.c3d is not None:
            row["svfid"] = svfid(generated, original, options.c3d)
        return row, field, distance


def _check_kinds(original: Named, results: Sequence[Named], options: MetricOptions) -> None:
    name, frames = original
    kind = _kind(frames)
    if options.inception is not None and kind == "a video":
        raise SinfusionError(f"weights of Inception are for images, but {name} is a video; give weights of C3D.")
    if options.c3d is not None and kind == "an image":
        raise SinfusionError(f"weights of C3D are for videos, but {name} is an image; give weights of Inception.")
    for other, pixels in [original, *results]:
        if _kind(pixels) != kind:
            raise SinfusionError(
                f"{other} is {_kind(pixels)}, {name} is {kind}; compare videos with videos, images with images."
            )
        if kind == "a video" and len(pixels) < NNF_PATCH[0]:
            raise SinfusionError(
                f"{other} has {len(pixels)} frame(s); to be compared, a video needs at least {NNF_PATCH[0]}."
            )


def _check_sizes(compared: Sequence[Named], options: MetricOptions) -> None:
    min_side = max(NNF_PATCH[1:])
    if options.inception is not None:
        min_side = INCEPTION_MIN_SIDE
    elif options.c3d is not None:
        min_side = C3D_MIN_SIDE
    for name, pixels in compared:
        if min(pixels.shape[-3:-1]) < min_side:
            raise SinfusionError(f"{name} is {pixel_size(pixels)}; each side must be at least {min_side} pixels.")


def _kind(pixels: np.ndarray) -> str:
    return "an image" if pixels.ndim == 3 else "a video"


def halves(original: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """A description of the two halves, and the halves.

    A video is halved in time; an image, or a video too short for that, into left and right.
    """
    if original.ndim == 4 and len(original) >= 2 * NNF_PATCH[0]:
        middle = len(original) // 2
        return "first and second half", original[:middle], original[middle:]
    middle = original.shape[-2] // 2
    return "left and right half", original[..., :middle, :], original[..., -middle:, :]


def swd_scales(side: int) -> int:
    """How many scales of frames with this shorter side have room for a patch."""
    return sum(side // 2**scale >= max(SWD_PATCH[1:]) for scale in range(SWD_MAX_SCALES))


def mean(rows: Sequence[Row]) -> Row:
    """The means of all numbers that the first of the rows has; of lists, number by number."""
    metrics = [key for key, value in rows[0].items() if isinstance(value, float | list)]
    return {key: np.mean([row[key] for row in rows], axis=0).tolist() for key in metrics}


def frame_count(pixels: np.ndarray) -> int:
    """The number of frames of a video (T, H, W, 3); 1 for an image (H, W, 3)."""
    return 1 if pixels.ndim == 3 else len(pixels)


def frames_and_size(pixels: np.ndarray) -> Row:
    """What a row says of the shape of a video (T, H, W, 3) or an image (H, W, 3)."""
    return {"frames": frame_count(pixels), "size": pixel_size(pixels)}


def pixel_size(pixels: np.ndarray) -> str:
    """WIDTHxHEIGHT of pixels (..., H, W, 3)."""
    return format_size(pixels.shape[-3:-1])
