"""Frames between frames: by an Interpolator, or by motion alone, which takes no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import as_frames
from ..diffusion.denoiser import Denoiser
from ..errors import SinfusionError
from ..motion import compensated
from ..ops.cuda_graph import cuda_graphed
from ..pixels import check_size, to_uint8, to_unit
from ..precision import choose_device
from ..progress import OnProgress, ProgressCounter
from ..roles import INTERPOLATOR
from ..run import Run
from .reverse_process import ReverseProcess, reverse_process
from .streaming import copy_to_host_async
from .video import on_device, require_video, seeds_of

Frames = np.ndarray  # (..., H, W, 3) uint8


def upsample(
    run: Run | Any,
    factor: int = 2,
    frames: Frames | None = None,
    seed: int = 0,
    steps: int | None = None,
    on_progress: OnProgress | None = None,
    device: torch.device | str = "auto",
) -> Frames:
    """(factor (T - 1) + 1, H, W, 3) uint8: new frames between those of a clip, which stay as they are.

    run: a run with an Interpolator; or a clip, (T, H, W, 3) uint8 or what `as_frames` takes, whose frames are moved
    half way to each other and blended, without training. factor: 2, 4 or 8; 4 is twice 2. frames: of a run, another
    clip; None: the training clip. seed, steps: of a run; steps: network evaluations a frame, None: the recipe's.
    on_progress: called after each new frame. device: of a clip; a run computes where it was loaded.
    """
    if factor not in (2, 4, 8):
        raise SinfusionError(f"factor must be 2, 4 or 8, not {factor}.")
    if isinstance(run, Run):
        require_video(run)
        clip = _checked(run.frames if frames is None else frames)
        seeds, between = seeds_of(run, seed, 1), frame_between(run, steps)
        return _woven(clip, factor, lambda pair, i: between(pair, seeds, i), run.device, run.graph, on_progress)
    if frames is not None or steps is not None:
        raise SinfusionError("frames and steps are for runs; a clip is upsampled by motion alone.")
    return _woven(_checked(run), factor, lambda pair, _: moved_half_way(pair), choose_device(device), True, on_progress)


@dataclass(frozen=True)
class FrameBetween:
    """The frame between two: what an Interpolator makes of both, as its recipe has it."""

    process: ReverseProcess
    motion_compensation: bool
    weight: float  # of what it makes; the rest is of the mean of what it sees

    def __call__(self, pair: Tensor, seeds: Tensor, frame_index: int | Tensor) -> Tensor:
        """(B, 3, H, W) of the frames before and after, (B, 6, H, W), all in [-1, 1]; seeds: (B,) int64."""
        seen = _moved(pair) if self.motion_compensation else pair
        image = self.process(seeds, frame_index, seen)
        return image if self.weight == 1 else torch.lerp(_mean(seen), image, self.weight)


def frame_between(run: Run, steps: int | None = None, denoiser: Denoiser | None = None) -> FrameBetween:
    """What makes the frame between two. steps: network evaluations; denoiser: None: the run's trained one."""
    process = reverse_process(run, INTERPOLATOR, denoiser, steps=steps)
    return FrameBetween(process, run.recipe.motion_compensation, run.recipe.interpolator_weight)


def moved_half_way(pair: Tensor) -> Tensor:
    """(B, 3, H, W): the frame between each two, (B, 6, H, W) in [-1, 1], as far as motion explains it."""
    return _mean(_moved(pair))


def _moved(pair: Tensor) -> Tensor:
    """(B, 6, H, W): both frames of each pair (B, 6, H, W), moved to the moment between them."""
    return compensated(*pair.chunk(2, 1))


def _mean(pair: Tensor) -> Tensor:
    """(B, 3, H, W) of (B, 6, H, W)."""
    return pair.unflatten(1, (2, 3)).mean(1)


def _checked(frames: Any) -> Frames:
    clip = as_frames(frames)
    if len(clip) < 2:
        raise SinfusionError(f"upsampling needs at least 2 frames, not {len(clip)}.")
    check_size(clip.shape[1:3])
    return clip


def _woven(
    clip: Frames,
    factor: int,
    between: Callable[[Tensor, Tensor], Tensor],  # (1, 6, H, W) and the frame index -> (1, 3, H, W), all in [-1, 1]
    device: torch.device,
    graph: bool,
    on_progress: OnProgress | None,
) -> Frames:
    """The clip with what is between its frames, again and again."""
    step = cuda_graphed(lambda pair, frame_index: to_uint8(between(pair, frame_index)), device, graph)
    counter = ProgressCounter((factor - 1) * (len(clip) - 1), on_progress)
    done = 0
    while factor > 1:
        # A pair at a time bounds the memory.
        pairs = (torch.from_numpy(np.ascontiguousarray(clip[i : i + 2])).to(device) for i in range(len(clip) - 1))
        new = (step(to_unit(pair).flatten(0, 1)[None], on_device(done + i, device)) for i, pair in enumerate(pairs))
        woven = np.empty((2 * len(clip) - 1, *clip.shape[1:]), np.uint8)
        woven[::2] = clip
        for i, images in enumerate(copy_to_host_async(new)):
            woven[2 * i + 1] = images[0]
            counter.add(1, images[0])
        done += len(clip) - 1
        clip, factor = woven, factor // 2
    return clip
