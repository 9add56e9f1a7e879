"""Videos by the closed-form Predictor: samples of the next frame, one after the other, kept near the clip.

The Predictor takes a trained network's place in the same sampler. What a rollout adds: after each frame the nearest
7x7 patches of the clip vote for every pixel, and the frame moves towards what they say, so that things stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..clip import as_frames
from ..diffusion.samplers import ddpm, sample
from ..diffusion.schedule import karras_sigmas
from ..errors import SinfusionError
from ..pixels import check_size, to_uint8, to_unit
from ..precision import choose_device
from ..progress import OnProgress, ProgressCounter
from ..seeds import check_seed, part_key
from .predictor import ClosedFormPredictor

Frames = np.ndarray  # (..., H, W, 3) uint8

STREAM = 0x436C6F73  # of random numbers
DRAWS_A_FRAME = 4096  # counters of a frame: the last is that of x's first noise, the others of evaluations
SIGMA_MAX, SIGMA_MIN = 20.0, 0.05  # multiples of the RMS change, as of `tiny`
BANDWIDTH = 0.18  # sharper than the best for the mean, which would move too little
WHOLE_PATCH = (1, 7, 7)  # frames, rows, columns: so large that it holds what a 3x3 patch cannot know of
FIRST_ROUNDS, ROUNDS = 10, 2  # of the search: from nothing, and from where the frame before was found


def generate(
    frames: Frames,
    length: int = 60,
    count: int = 1,
    seed: int = 0,
    steps: int = 10,
    wholeness: float = 0.5,
    device: torch.device | str = "auto",
    on_progress: OnProgress | None = None,
) -> Frames:
    """What comes after a clip, without training: (count, length, H, W, 3) uint8, all of them new frames.

    frames: (T, H, W, 3) uint8, or what `as_frames` takes; at least 3. seed: sample i has seed + i, whatever `count`.
    steps: evaluations of the denoiser a frame. wholeness: from 0 to 1, how far each frame moves to what the nearest 7x7
    patches of the clip say. on_progress: called after each frame.
    """
    counter, videos = ProgressCounter(length, on_progress), []
    for images in stream(frames, length, count, seed, steps, wholeness, device):
        videos.append(images)
        counter.add(1, images[0])
    return np.stack(videos, axis=1)


def stream(
    frames: Frames,
    length: int,
    count: int = 1,
    seed: int = 0,
    steps: int = 10,
    wholeness: float = 0.5,
    device: torch.device | str = "auto",
) -> Iterator[Frames]:
    """`generate`, a frame at a time: yields (count, H, W, 3) uint8 as soon as each is there."""
    clip, chosen = as_frames(frames), choose_device(device)
    check_size(clip.shape[1:3])
    if len(clip) < 3:
        raise SinfusionError(f"a video that goes on takes at least 3 frames of it, not {len(clip)}.")
    for name, value in {"length": length, "count": count, "steps": steps}.items():
        if value < 1:
            raise SinfusionError(f"{name} must be at least 1, not {value}.")
    if not 0 <= wholeness <= 1:
        raise SinfusionError(f"wholeness must be from 0 to 1, not {wholeness}.")
    seeds = torch.arange(count) + check_seed(seed, count)
    return _stream(clip, length, seeds, steps, wholeness, chosen)


def _stream(
    clip: Frames, length: int, seeds: Tensor, steps: int, wholeness: float, device: torch.device
) -> Iterator[Frames]:
    known = to_unit(torch.tensor(clip, device=device))
    predictor = ClosedFormPredictor.fit(known, previous=1, bandwidth=BANDWIDTH)
    image, whole = known[-1:].expand(len(seeds), -1, -1, -1), Wholeness(known, len(seeds), int(seeds[0]))
    for frame_index in range(1, length + 1):
        with ops.torch_alone():
            image = next_frame(predictor, image[:, None], seeds, frame_index, steps)
            if wholeness:
                image = whole(image, wholeness)
        yield to_uint8(image).cpu().numpy()


def next_frame(
    predictor: ClosedFormPredictor,
    history: Tensor,  # (B, n, 3, H, W) in [-1, 1], the latest last
    seeds: Tensor,  # (B,) int64
    frame_index: int,  # each has noise of its own
    steps: int = 10,
) -> Tensor:
    """A sample of the frame that follows, (B, 3, H, W) in [-1, 1]; the same for a seed alone and in a batch."""
    shape, device = history.shape[2:], history.device
    table = ddpm(karras_sigmas(steps, SIGMA_MAX * predictor.change, SIGMA_MIN * predictor.change))

    def noise(evaluation: int) -> Tensor:
        return ops.normal(seeds, STREAM, frame_index * DRAWS_A_FRAME + evaluation, shape, device)

    x = history[:, -1] + table[0].sigma * noise(DRAWS_A_FRAME - 1)
    return sample(predictor.denoiser(history, centre_weight=1.0), x, table, noise).clamp(-1, 1)


class Wholeness:
    """Moves frames to the mean of what their nearest patches of a clip say; a search begins where the last ended."""

    def __init__(self, known: Tensor, count: int, seed: int):
        self.known = known.movedim(1, -1).contiguous()  # (T, H, W, 3)
        self.patch = (1, *(min(side, size) for side, size in zip(WHOLE_PATCH[1:], known.shape[2:], strict=True)))
        self.fields: list[Tensor | None] = [None] * count
        self.seed, self.searches = seed, 0

    def __call__(self, images: Tensor, share: float) -> Tensor:
        """images: (B, 3, H, W) in [-1, 1]."""
        voted = []
        for n, image in enumerate(images.movedim(1, -1)):
            field, key = self.fields[n], part_key(self.seed + n, self.searches)
            rounds = FIRST_ROUNDS if field is None else ROUNDS
            found, _ = ops.patch_match(image[None].contiguous(), self.known, self.patch, rounds, key, start=field)
            self.fields[n] = found
            voted.append(ops.vote(self.known, found, self.patch, mean=True)[0])
        self.searches += 1
        return torch.lerp(images, torch.stack(voted).movedim(-1, 1), share)
