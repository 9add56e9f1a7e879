"""Videos from a trained run: generate, extrapolate, retarget. `generate` also serves image runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import as_frames, as_image
from ..diffusion.schedule import cosine_schedule
from ..errors import SinfusionError
from ..names import pasteable
from ..ops.cuda_graph import cuda_graphed
from ..patches.videos import wraps_of
from ..pixels import check_size, resize, to_uint8, to_unit
from ..progress import OnProgress, Progress
from ..roles import IMAGE, PREDICTOR, PROJECTOR
from ..run import Run
from ..seeds import check_seed
from .guidance import UNGUIDED, Guidance
from .projection import PatchProjection
from .projector import Projector, projector
from .reverse_process import ReverseProcess, reverse_process
from .streaming import copy_to_host_async
from .texture import Texture

Frames = np.ndarray  # (..., H, W, 3) uint8


def generate(
    run: Run,
    frames: int | None = None,
    count: int = 1,
    size: tuple[int, int] | None = None,
    start: int | Frames | None = None,
    frame_offset: int = 1,
    seed: int = 0,
    steps: int | None = None,
    projection: float | None = None,
    on_progress: OnProgress | None = None,
    tile: str | None = None,
    text: str | None = None,
    text_model: str | Path | None = None,
    text_strength: float | None = None,
    text_fill: float | None = None,
    style: Any = None,
    where: Any = None,
) -> Frames:
    """New samples: (count, frames, H, W, 3) uint8 from a video run, (count, H, W, 3) from an image run.

    frames: length of each video; None: as long as the training clip. size: (height, width); None: the training size.
    start: the first frame, an index into the clip or an image; None: the Projector generates one from noise, and the
    video begins the recipe's `burn_in_frames` after it. Of an index, the clip's frames before it tell what moves.
    frame_offset: -1 plays backward in time, 2 at double speed. seed: sample i has seed + i, whatever `count`; seeds are
    from 0 to 2^32 - 1. steps: network evaluations an image; None: the recipe's. projection: weight, from 0 to 1, with
    which frames are drawn to the clip's patches; None: the recipe's. on_progress: called after each frame. tile: of
    images, "x", "y" or "x,y": the borders left and right, above and below, or all of them meet.

    text: of images, words that the samples are to show; `restyle` serves videos. text_model: the folder of a CLIP of
    transformers; None: a stand-in that knows a thousand things (extra `labels`). text_strength: share of their length
    by which pixels change in a step, from 0, no guidance, to 10; None: 0.1. text_fill: share of the pixels that change;
    None: 0.5. style: in place of a text, an image whose looks are wanted. where: (H, W) bool or what `as_mask` takes,
    True where pixels may change.
    """
    guidance = Guidance(text, text_model, style, where, text_strength, text_fill)
    if run.kind == "image":
        if frames is not None or start is not None or frame_offset != 1 or projection is not None:
            what = "frames, start, frame offset and projection are for video runs"
            raise SinfusionError(f"{run.path} is an image run: {what}.")
        return generate_images(run, count, size, seed, steps, tile, guidance)
    if tile is not None:
        raise SinfusionError(f"{run.path} is a video run: tile is for image runs, or for patches.generate.")
    require_unguided(run, guidance.wanted)
    length = len(run.frames) if frames is None else frames
    outputs = []
    for images in stream(run, length, count, size, start, frame_offset, seed, steps, projection):
        outputs.append(images)
        report(on_progress, len(outputs), length, images[0])
    return np.stack(outputs, axis=1)


def generate_images(
    run: Run,
    count: int = 1,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    steps: int | None = None,
    tile: str | None = None,
    guidance: Guidance = UNGUIDED,
) -> Frames:
    """(count, H, W, 3) uint8: diverse samples of an image run at any size. tile, guidance: as for `generate`."""
    seeds, size, wraps = seeds_of(run, seed, count), check_size(size or run.size), wraps_of(tile)
    process = reverse_process(run, IMAGE, steps=steps, wraps=wraps[1:])
    process = process.guided(guidance.guide(process.steps, seeds.tolist(), size, run.device))
    return to_uint8(process(seeds, 0, size=size)).cpu().numpy()


def stream(
    run: Run,
    frames: int,
    count: int = 1,
    size: tuple[int, int] | None = None,
    start: int | Frames | None = None,
    frame_offset: int = 1,
    seed: int = 0,
    steps: int | None = None,
    projection: float | None = None,
) -> Iterator[Frames]:
    """`generate` for a video run, a frame at a time: yields (count, H, W, 3) uint8 as soon as each is there."""
    require_video(run)
    _check_offset(run, frame_offset)
    if frames < 1:
        raise SinfusionError(f"a video has at least 1 frame, not {frames}.")
    size = check_size(size or run.size)
    seeds, burn_in = seeds_of(run, seed, count), 0
    advance = next_frame(run, frame_offset, steps, projection=projection)
    if start is None:
        run.denoiser(PROJECTOR, otherwise="--start 0")
        first = first_frames(run, advance, seeds, size)
        burn_in = run.recipe.burn_in_frames if advance.project is None else 0
    else:
        first = _known_frames(run, start, frame_offset, size).expand(count, -1, -1, -1)
    return copy_to_host_async(rollout(advance, first, seeds, frames, burn_in, graph=run.graph))


def first_frames(run: Run, advance: NextFrame, seeds: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3 n, H, W) in [-1, 1], the last one first: what the Projector generates from noise, and what led there.

    Without projection it is one frame, unless the Projector's are reduced: then patches make what is finer.
    """
    process = projector(run)
    image, repair = process(seeds, 0, size=size), advance.project
    if repair is None and process.reduction < 1:
        repair = _projection(run, 1, 1.0, 0)
    return image if repair is None else repair.first(image, seeds)


@dataclass(frozen=True)
class NextFrame:
    """The next frame: the Predictor's sample, corrected by the Projector or by patches of the clip, if at all."""

    predict: ReverseProcess
    correct: Projector | None = None
    project: PatchProjection | None = None
    texture: Texture | None = None

    def __call__(
        self,
        previous: Tensor,  # (B, 3 m, H, W) in [-1, 1], the last frame first, as from `begin`
        seeds: Tensor,  # (B,) int64
        frame_index: int | Tensor,
        init_image: Tensor | None = None,  # (B, 3, H, W) in [-1, 1]: start from this instead of the previous frame
        known: tuple[Tensor, Tensor] | None = None,  # mask (1, 1, H, W) bool, and the image (1, 3, H, W) that it keeps
    ) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        mask, kept = known or (None, None)
        seen = previous[:, : 3 * self.predict.conditions]
        image = self.predict(seeds, frame_index, seen, init_image, None, mask, kept)
        if self.correct is not None:
            # A little noise, which the Projector removes with the Predictor's artefacts (SinFusion, section 5).
            image = self.correct(seeds, frame_index, image, None, mask, kept)
        if self.project is not None:
            image = self.project(image, previous, framed=mask is None)  # what is known says where things are
        if self.texture is not None:
            image = self.texture(image, frame_index)
        return image if mask is None or kept is None else torch.where(mask, kept, image)

    @property
    def needed(self) -> int:
        """How many frames before the next it takes."""
        return max(self.predict.conditions, self.project.depth - 1 if self.project else 0)

    def begin(self, known: Tensor) -> Tensor:
        """(B, 3 m, H, W): `previous` of the frame after some known ones, (B, 3 l, H, W), the last one first.

        m is `needed`, or l where that is more; where fewer are known, the oldest repeats.
        """
        missing = self.needed - known.shape[1] // 3
        previous = torch.cat([known, *[known[:, -3:]] * missing], 1) if missing > 0 else known
        if self.project is not None:
            self.project.begin(previous)
        return previous


def followed_by(previous: Tensor, image: Tensor) -> Tensor:
    """(B, 3 n, H, W): the last n frames, once `image` (B, 3, H, W) is the last of them."""
    return image if previous.shape[1] == 3 else torch.cat((image, previous[:, :-3]), 1)


def next_frame(
    run: Run,
    frame_offset: int = 1,
    steps: int | None = None,
    sigma_start: float | None = None,
    projection: float | None = None,
) -> NextFrame:
    """What generates the next frame of a rollout, as the run's recipe has it."""
    free = sigma_start is None  # no target tells what enters, and what happens
    project = _projection(run, frame_offset, projection, run.recipe.border if free else 0)
    predict, texture = reverse_process(run, PREDICTOR, None, frame_offset, steps, sigma_start), None
    if project is not None and free:
        predict = predict.livelier(project.multiples)
        texture = Texture(project.scales[0].clip, project.weight)
    correct = _correction(run) if run.recipe.correction_timesteps else None
    return NextFrame(predict, correct, project, texture)


def _projection(run: Run, frame_offset: int, projection: float | None, border: int) -> PatchProjection | None:
    """The projection of a rollout to the clip's patches, with this weight."""
    weight, recipe = _projection_weight(run, projection), run.recipe
    if weight == 0:
        return None
    sigma_data = run.denoiser(PREDICTOR).sigma_data_at(frame_offset)
    tolerance, clip = recipe.projection_tolerance * sigma_data, as_tensor(run, run.frames).movedim(1, -1)
    return PatchProjection(clip, weight, recipe.projection_depth, tolerance, frame_offset, border, sigma_data)


def _projection_weight(run: Run, projection: float | None) -> float:
    """The one asked for, or the recipe's."""
    weight = run.recipe.projection_weight if projection is None else projection
    if not 0 <= weight <= 1:
        raise SinfusionError(f"projection must be from 0 to 1, not {weight}.")
    return weight


def _correction(run: Run) -> Projector:
    """The end of the Projector's reverse process, from the recipe's `correction_timesteps` on."""
    recipe, denoiser = run.recipe, run.denoiser(PROJECTOR)
    if denoiser.preconditioned:
        start = float(cosine_schedule(50).sigma_at(np.array(float(recipe.correction_timesteps))))
        return projector(run, recipe.correction_steps, start)
    start = float(denoiser.schedule.sigma[min(recipe.correction_timesteps, recipe.timesteps)])
    return projector(run, recipe.timesteps, start)


def rollout(
    advance: NextFrame,
    first: Tensor,  # (B, 3, H, W) in [-1, 1]; frames before it, as far as they are known, in channels behind its own
    seeds: Tensor,  # (B,) int64
    frames: int,
    burn_in: int = 0,  # frames that are not yielded, `first` among them
    first_index: int = 0,
    graph: bool = True,  # on a GPU, a CUDA graph a frame
) -> Iterator[Tensor]:
    """(B, H, W, 3) uint8 on the device, overwritten by the next: `first`, then each frame after the one before."""

    def one(previous: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
        image = advance(previous, seeds, frame_index)
        return followed_by(previous, image), to_uint8(image)

    step = cuda_graphed(one, first.device, graph)
    previous = advance.begin(first)
    if burn_in == 0:
        yield to_uint8(first[:, :3])
    for number in range(1, burn_in + frames):
        previous, frame = step(previous, on_device(first_index + number, first.device))
        if number >= burn_in:
            yield frame


def extrapolate(
    run: Run,
    after: int = 0,
    before: int = 0,
    seed: int = 0,
    steps: int | None = None,
    projection: float | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Frames, np.ndarray]:
    """The training clip with new frames after and/or before it.

    Returns (before + T + after, H, W, 3) uint8 and a mask (before + T + after,) bool, True where a frame is new.
    projection: as for `generate`. on_progress: called after each new frame.
    """
    require_video(run)
    if after < 0 or before < 0 or after + before == 0:
        raise SinfusionError(f"extrapolate adds frames: after ({after}) or before ({before}) must be above 0.")
    parts = []
    if after:
        parts.append(_continuation(run, len(run.frames) - 1, after, 1, seed, 0, steps, projection))
    if before:  # with frame indices after those above: no noise is used twice
        parts.append(_continuation(run, 0, before, -1, seed, after, steps, projection))
    new: list[np.ndarray] = []
    for images in itertools.chain(*parts):
        new.append(images[0])
        report(on_progress, len(new), after + before, images[0])
    is_new = np.repeat([True, False, True], [before, len(run.frames), after])
    return np.stack([*new[after:][::-1], *run.frames, *new[:after]]), is_new


def _continuation(
    run: Run,
    start: int,
    frames: int,
    frame_offset: int,
    seed: int,
    first_index: int,
    steps: int | None,
    projection: float | None,
) -> Iterator[Frames]:
    """(1, H, W, 3) uint8 for each new frame after frame `start` of the clip, which has index `first_index`."""
    first = _known_frames(run, start, frame_offset, run.size)
    advance, seeds = next_frame(run, frame_offset, steps, projection=projection), seeds_of(run, seed, 1)
    return copy_to_host_async(rollout(advance, first, seeds, frames, 1, first_index, run.graph))


def retarget(
    run: Run,
    size: tuple[int, int],
    frames: Frames | None = None,
    strength: float = 0.5,
    seed: int = 0,
    steps: int | None = None,
    projection: float | None = None,
    on_progress: OnProgress | None = None,
) -> Frames:
    """An image or video at another size and aspect ratio, its details generated at their own scale.

    size: (height, width). frames: what to retarget, (T, H, W, 3) or (H, W, 3) uint8, or what `as_pixels` takes; None:
    what the run was trained on. strength: in (0, 1], how much of the resized input is generated anew. projection: as
    for `generate`. on_progress: called after each frame.
    Returns (T, *size, 3) uint8 for a video run, (*size, 3) for an image run.
    """
    size = check_size(size)
    source = run.frames if frames is None else as_frames(frames)
    if run.kind == "image":
        if projection is not None:
            raise SinfusionError(f"{run.path} is an image run: projection is for video runs.")
        source = as_image(source)[None]
    seeds = seeds_of(run, seed, 1)
    stretched = as_tensor(run, np.stack([resize(frame, size) for frame in source]))
    if run.kind == "image":
        image = reverse_process(run, IMAGE, steps=steps, strength=strength)(seeds, 0, init_image=stretched)
        result = to_uint8(image)[0].cpu().numpy()
        report(on_progress, 1, 1, result)
        return result
    image = projector(run, steps, strength=strength)(seeds, 0, stretched[:1])
    outputs: list[np.ndarray] = []
    for images in copy_to_host_async(_follow(run, image, stretched, seeds, steps, strength, projection)):
        outputs.append(images[0])
        report(on_progress, len(outputs), len(stretched), images[0])
    return np.stack(outputs)


def _follow(
    run: Run,
    image: Tensor,
    targets: Tensor,
    seeds: Tensor,
    steps: int | None,
    strength: float,
    projection: float | None,
) -> Iterator[Tensor]:
    """(1, H, W, 3) uint8 for each of `targets` (T, 3, H, W): laid out as the target, looking like the one before."""
    # The Predictor starts from the noisy target, at a sigma above the change between frames.
    start = 4 * strength * run.denoiser(PREDICTOR).sigma_data[0]
    advance = next_frame(run, 1, steps, start, projection)

    def one(previous: Tensor, frame_index: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        image = advance(previous, seeds, frame_index, target)
        return followed_by(previous, image), to_uint8(image)

    step, previous = cuda_graphed(one, run.device, run.graph), advance.begin(image)
    for number in range(len(targets)):  # frame index 0 was the first image's
        previous, frame = step(previous, on_device(number + 1, run.device), targets[number : number + 1])
        yield frame


def require_unguided(run: Run, guided: object) -> None:
    """SinfusionError where a video run is to be guided: its Predictor would go back to the look of its clip."""
    if guided:
        how = f"sinfusion restyle {pasteable(run.path)} --text ..."
        raise SinfusionError(f"{run.path} is a video run; bring all of it to the new look with: {how}")


def require_video(run: Run) -> None:
    """SinfusionError unless the run was trained on a video."""
    if run.kind != "video":
        raise SinfusionError(f"{run.path} is an image run; this needs a run trained on a video.")


def seeds_of(run: Run, seed: int, count: int) -> Tensor:
    """(count,) int64 on the run's device: the seeds of `count` samples."""
    if count < 1:
        raise SinfusionError(f"count must be at least 1, not {count}.")
    seed = check_seed(seed, count)
    return torch.arange(seed, seed + count, dtype=torch.int64, device=run.device)


def _check_offset(run: Run, frame_offset: int) -> None:
    known = run.recipe.offsets()
    if frame_offset not in known:
        choices = ", ".join(map(str, known))
        raise SinfusionError(f"frame offset {frame_offset} was not trained; this run knows {choices}.")


def _known_frames(run: Run, start: Any, frame_offset: int, size: tuple[int, int]) -> Tensor:
    """(1, 3 m, H, W) in [-1, 1]: the frame to start from, then those of the clip before it that the Predictor sees."""
    if isinstance(start, int | np.integer):
        count = len(run.frames)
        if not -count <= start < count:
            raise SinfusionError(f"start frame {start} does not exist: the clip has {count} frames.")
        indices = [int(start) % count - i * frame_offset for i in range(run.recipe.previous_frames)]
        frames = [np.asarray(run.frames[i]) for i in indices if 0 <= i < count]
    else:
        frames = [as_image(start, "the start image")]
    return torch.cat([as_tensor(run, resize(frame, size)[None]) for frame in frames], 1)


def as_tensor(run: Run, frames: Frames) -> Tensor:
    return to_unit(torch.from_numpy(np.ascontiguousarray(frames)).to(run.device))


def on_device(frame_index: int, device: torch.device) -> Tensor:
    """() int64, without a copy from the host."""
    return torch.full((), frame_index, device=device)


def report(on_progress: OnProgress | None, done: int, total: int, image: np.ndarray) -> None:
    if on_progress is not None:
        on_progress(Progress(done, total, image=image))
