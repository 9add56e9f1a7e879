"""Videos from a trained run: generate, extrapolate, upsample, retarget. `generate` also serves image runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import as_frames, as_image
from ..diffusion.schedule import cosine_schedule
from ..errors import SinfusionError
from ..ops.cuda_graph import cuda_graphed
from ..pixels import check_size, resize, to_uint8, to_unit
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, Role
from ..run import Run
from ..seeds import check_seed
from .reverse_process import reverse, sampling_sigmas
from .streaming import copy_to_host_async

Frames = np.ndarray  # (..., H, W, 3) uint8
OnProgress = Callable[[], object]  # called after each new frame


def generate(
    run: Run,
    frames: int | None = None,
    count: int = 1,
    size: tuple[int, int] | None = None,
    start: int | Frames | None = None,
    frame_offset: int = 1,
    seed: int = 0,
    steps: int | None = None,
) -> Frames:
    """New samples: (count, frames, H, W, 3) uint8 from a video run, (count, H, W, 3) from an image run.

    frames: length of each video; None: as long as the training clip. size: (height, width); None: the training size.
    start: the first frame, an index into the clip or an image; None: the Projector makes one from noise, and the video
    begins `burn_in_frames` of the recipe after it.
    frame_offset: -1 plays backward in time, 2 at double speed. seed: sample i is made from seed + i, whatever `count`,
    all from 0 to 2^32 - 1. steps: network evaluations an image; None: the recipe's.
    """
    if run.kind == "image":
        if frames is not None or start is not None or frame_offset != 1:
            raise SinfusionError(f"{run.path} is an image run: frames, start and frame offset are for video runs.")
        return generate_images(run, count, size, seed, steps)
    outputs = list(
        stream(run, len(run.frames) if frames is None else frames, count, size, start, frame_offset, seed, steps)
    )
    return np.stack(outputs, axis=1)


def generate_images(
    run: Run, count: int = 1, size: tuple[int, int] | None = None, seed: int = 0, steps: int | None = None
) -> Frames:
    """(count, H, W, 3) uint8: diverse samples of an image run at any size."""
    images = _from_noise(run, IMAGE, _seeds(run, seed, count), check_size(size or run.size), steps)
    return to_uint8(images).cpu().numpy()


def stream(
    run: Run,
    frames: int,
    count: int = 1,
    size: tuple[int, int] | None = None,
    start: int | Frames | None = None,
    frame_offset: int = 1,
    seed: int = 0,
    steps: int | None = None,
    frame_index: int = 0,
) -> Iterator[Frames]:
    """`generate` for a video run, a frame at a time: yields (count, H, W, 3) uint8 as soon as each is made.

    frame index: the first frame's; each has noise of its own, the same wherever a seed and a frame index are.
    """
    require_video(run)
    _check_offset(run, frame_offset)
    if frames < 1:
        raise SinfusionError(f"a video has at least 1 frame, not {frames}.")
    size = check_size(size or run.size)
    seeds = _seeds(run, seed, count)
    run.denoiser(PREDICTOR)
    if run.recipe.correction_timesteps:
        run.denoiser(PROJECTOR)
    elif start is None:
        run.denoiser(PROJECTOR, otherwise="--start 0")
    hidden = 0
    if start is None:
        first, hidden = _from_noise(run, PROJECTOR, seeds, size, None, frame_index), run.recipe.burn_in_frames
    else:
        first = _tensor(run, resize(_start_frame(run, start), size)[None]).expand(count, -1, -1, -1)

    def advance(image: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
        image = next_frame(run, image, seeds, frame_index, frame_offset, steps)
        return image, to_uint8(image)

    advance_one = cuda_graphed(advance, run.device, run.graph)
    return copy_to_host_async(_chain(run, first, advance_one, hidden, hidden + frames, frame_index))


def _chain(
    run: Run,
    image: Tensor,
    advance: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    shown: int,
    stop: int,
    first: int,  # frame index of the first image
) -> Iterator[Tensor]:
    """Each image (B, 3, H, W) made from the one before; those from `shown` to `stop` as (B, H, W, 3) uint8."""
    if shown == 0:
        yield to_uint8(image)
    for number in range(1, stop):
        image, frame = advance(image, _frame_index(run, first + number))
        if number >= shown:
            yield frame


def _frame_index(run: Run, frame_index: int) -> Tensor:
    """() int64 on the device, without a copy from the host."""
    return torch.full((), frame_index, device=run.device)


def next_frame(
    run: Run,
    previous: Tensor,  # (B, 3, H, W) in [-1, 1]
    seeds: Tensor,
    frame_index: int | Tensor,
    frame_offset: int = 1,
    steps: int | None = None,
    init_image: Tensor | None = None,  # (B, 3, H, W): an image to start from instead of noise around the previous one
    sigma_start: float | None = None,  # the noise level to start it at
) -> Tensor:
    """One predicted frame, corrected by the Projector if the recipe says so; (B, 3, H, W) in [-1, 1]."""
    sigmas = sampling_sigmas(run, PREDICTOR, frame_offset, steps, sigma_start)
    image = reverse(run, PREDICTOR, seeds, frame_index, sigmas, init_image, None, previous, frame_offset)
    return correct(run, image, seeds, frame_index)


def correct(run: Run, image: Tensor, seeds: Tensor, frame_index: int | Tensor) -> Tensor:
    """Noise a frame a little and let the Projector remove it with its own artefacts (SinFusion, section 5)."""
    recipe = run.recipe
    if recipe.correction_timesteps == 0:
        return image
    schedule = cosine_schedule(50)
    entry = float(schedule.sigma_at(np.array(float(recipe.correction_timesteps))))
    denoiser = run.denoiser(PROJECTOR)
    if denoiser.parameterization == "preconditioned":
        sigmas = sampling_sigmas(run, PROJECTOR, 1, recipe.correction_steps, entry)
    else:
        entry = float(denoiser.schedule.sigma[min(recipe.correction_timesteps, recipe.timesteps)])
        sigmas = sampling_sigmas(run, PROJECTOR, 1, recipe.timesteps, entry)
    return reverse(run, PROJECTOR, seeds, frame_index, sigmas, image)


def extrapolate(
    run: Run,
    after: int = 0,
    before: int = 0,
    seed: int = 0,
    steps: int | None = None,
    on_progress: OnProgress = lambda: None,
) -> tuple[Frames, np.ndarray]:
    """The training clip with new frames after and/or before it.

    Returns (before + T + after, H, W, 3) uint8 and a mask (before + T + after,) bool, True where a frame is new.
    """
    require_video(run)
    if after < 0 or before < 0 or after + before == 0:
        raise SinfusionError(f"extrapolate adds frames: after ({after}) or before ({before}) must be above 0.")
    parts = [run.frames]
    if after:
        parts.append(_new_frames(stream(run, after + 1, 1, None, len(run.frames) - 1, 1, seed, steps), on_progress))
    if before:
        # Its frame indices follow those of the frames after: no noise is used twice.
        parts.insert(0, _new_frames(stream(run, before + 1, 1, None, 0, -1, seed, steps, after), on_progress)[::-1])
    is_new = np.repeat([True, False, True], [before, len(run.frames), after])
    return np.concatenate(parts), is_new


def _new_frames(outputs: Iterator[Frames], on_progress: OnProgress) -> Frames:
    """(T, H, W, 3) uint8: all but the first frame of a stream of one sample."""
    next(outputs)
    frames = []
    for images in outputs:
        frames.append(images[0])
        on_progress()
    return np.stack(frames)


def upsample(
    run: Run,
    factor: int = 2,
    frames: Frames | None = None,
    seed: int = 0,
    steps: int | None = None,
    on_progress: OnProgress = lambda: None,
) -> Frames:
    """(factor (T - 1) + 1, H, W, 3) uint8: frames put between those of a clip, which stay untouched.

    factor: 2, 4 or 8 (the Interpolator is used recursively). frames: (T, H, W, 3) uint8, or what
    `as_frames` takes; None: the training clip.
    """
    require_video(run)
    if factor not in (2, 4, 8):
        raise SinfusionError(f"factor must be 2, 4 or 8, not {factor}.")
    clip = run.frames if frames is None else as_frames(frames)
    if len(clip) < 2:
        raise SinfusionError(f"upsampling needs at least 2 frames, not {len(clip)}.")
    check_size(clip.shape[1:3])
    seeds, sigmas = _seeds(run, seed, 1), sampling_sigmas(run, INTERPOLATOR, 1, steps)

    def between(pair: Tensor, frame_index: Tensor) -> Tensor:
        return to_uint8(reverse(run, INTERPOLATOR, seeds, frame_index, sigmas, condition=pair))

    between_two = cuda_graphed(between, run.device, run.graph)
    moments = itertools.count()
    while factor > 1:
        # A pair at a time bounds the memory.
        pairs = (_tensor(run, clip[i : i + 2]).flatten(0, 1)[None] for i in range(len(clip) - 1))
        middles = []
        for outputs in copy_to_host_async(between_two(pair, _frame_index(run, next(moments))) for pair in pairs):
            middles.append(outputs[0])
            on_progress()
        woven = np.empty((2 * len(clip) - 1, *clip.shape[1:]), np.uint8)
        woven[::2], woven[1::2] = clip, np.stack(middles)
        clip, factor = woven, factor // 2
    return clip


def retarget(
    run: Run,
    size: tuple[int, int],
    frames: Frames | None = None,
    strength: float = 0.5,
    seed: int = 0,
    steps: int | None = None,
    on_progress: OnProgress = lambda: None,
) -> Frames:
    """An image or video at another size and aspect ratio, its details made by the trained models at their own scale.

    size: (height, width). frames: what to retarget, (T, H, W, 3) or (H, W, 3) uint8, or what `as_pixels` takes; None:
    what the run was trained on.
    strength: in (0, 1], how much of the plainly resized input is made anew.
    Returns (T, *size, 3) uint8 for a video run, (*size, 3) for an image run.
    """
    size = check_size(size)
    source = run.frames if frames is None else as_frames(frames)
    if run.kind == "image":
        source = as_image(source)[None]
    first = IMAGE if run.kind == "image" else PROJECTOR
    seeds = _seeds(run, seed, 1)
    stretched = _tensor(run, np.stack([resize(frame, size) for frame in source]))
    sigmas = sampling_sigmas(run, first, 1, steps, strength=strength)
    image = reverse(run, first, seeds, 0, sigmas, stretched[:1])
    if run.kind == "image":
        on_progress()
        return to_uint8(image)[0].cpu().numpy()
    # Where each frame goes is the resized clip's to say (the entry level is above the change between frames),
    # how it looks is the Predictor's.
    sigma_start = 4 * strength * run.denoiser(PREDICTOR).sigma_data[0]

    def follow(image: Tensor, frame_index: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        image = next_frame(run, image, seeds, frame_index, 1, steps, target, sigma_start)
        return image, to_uint8(image)

    follow_one = cuda_graphed(follow, run.device, run.graph)

    def followed(image: Tensor) -> Iterator[Tensor]:
        for number in range(len(stretched)):  # frame index 0 was the first image's
            image, frame = follow_one(image, _frame_index(run, number + 1), stretched[number : number + 1])
            yield frame

    outputs = []
    for frame in copy_to_host_async(followed(image)):
        outputs.append(frame[0])
        on_progress()
    return np.stack(outputs)


def require_video(run: Run) -> None:
    """SinfusionError unless the run was trained on a video."""
    if run.kind != "video":
        raise SinfusionError(f"{run.path} is an image run; this needs a run trained on a video.")


def _check_offset(run: Run, frame_offset: int) -> None:
    known = run.recipe.offsets()
    if frame_offset not in known:
        choices = ", ".join(map(str, known))
        raise SinfusionError(f"frame offset {frame_offset} was not trained; this run knows {choices}.")


def _from_noise(
    run: Run, role: Role, seeds: Tensor, size: tuple[int, int], steps: int | None, frame_index: int = 0
) -> Tensor:
    return reverse(run, role, seeds, frame_index, sampling_sigmas(run, role, steps=steps), size=size)


def _start_frame(run: Run, start: Any) -> Frames:
    if isinstance(start, int | np.integer):
        if not -len(run.frames) <= start < len(run.frames):
            raise SinfusionError(f"start frame {start} does not exist: the clip has {len(run.frames)} frames.")
        return np.asarray(run.frames[start])
    return as_image(start, "the start image")


def _tensor(run: Run, frames: Frames) -> Tensor:
    return to_unit(torch.from_numpy(np.ascontiguousarray(frames)).to(run.device))


def _seeds(run: Run, seed: int, count: int) -> Tensor:
    if count < 1:
        raise SinfusionError(f"count must be at least 1, not {count}.")
    seed = check_seed(seed, count)
    return torch.arange(seed, seed + count, dtype=torch.int64, device=run.device)
