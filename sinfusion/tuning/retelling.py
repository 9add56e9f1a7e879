"""`retell`: the clip of a tuned model, told in other words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import as_mask, format_size
from ..errors import SettingError, SinfusionError
from ..media import read_media
from ..names import pasteable
from ..ops.philox import normal
from ..pixels import is_light, resize
from ..progress import OnProgress, Progress
from ..seeds import check_seed
from .base_model import BaseModel
from .cost import Cost, check_affordable, speed
from .sampling import Denoiser, Levels, invert, sample, schedulers
from .settings import GUIDANCE, SAMPLING_STEPS
from .tuned_run import TunedRun, load
from .tuner import LATENTS

STARTS = 8  # stream of random numbers of a video that begins with noise of its own


def retell(
    run: TunedRun | str | Path,
    prompt: str | Sequence[str],
    guidance: float = GUIDANCE,
    steps: int = SAMPLING_STEPS,
    inversion_steps: int | None = None,
    keep_mask: Any = None,
    from_noise: bool = False,
    seed: int = 0,
    model: str | Path | None = None,
    really_on_cpu: bool = False,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """The clip of a tuned model with another sentence: (T, H, W, 3) uint8; of several sentences, one video each.

    prompt: such as "spider man is skiing on the beach, cartoon style". guidance: how strongly it counts (1: as it is).
    steps: evaluations of DDIM. inversion_steps: those that find the clip's noise, a multiple of `steps`; None: as many;
    more keep more of the clip. keep_mask: a file or what `as_mask` takes, light where the clip stays: its latents are
    put back at every noise level, so that it stays up to what the VAE makes of them. from_noise: begin with noise of
    the `seed`, not with that of the clip, so that layout and motion are what the tuning has learnt.
    model: where the image model is now, if it was moved. really_on_cpu: as for `tune`.

    Raises SinfusionError for anything wrong with these, before any work starts.
    """
    run = run if isinstance(run, TunedRun) else load(run)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    check_request(prompts, guidance, steps, inversion_steps)
    seed = check_seed(seed)
    if not run.steps_done():
        raise SinfusionError(f"{run.path} has no checkpoint yet; go on with: sinfusion tune {pasteable(run.path)}")
    keep = None if keep_mask is None else read_keep_mask(run, keep_mask)
    base = run.base_model(model)
    *texts, empty = base.embed([*prompts, ""]).split(1)
    inversion = None if from_noise and keep is None else inversion_steps or steps
    _check_cost(run, base, (inversion or 0) + 2 * steps * len(prompts), really_on_cpu)
    network = base.network(run.seed, run.dtype)
    run.restore(network)
    denoise = Denoiser(network, run.settings.window)
    forward, inverse = schedulers(base.schedule)
    counter = _Steps(on_progress)
    levels: Levels = {}
    latents = clip_latents(run, base)
    if inversion:
        levels = invert(denoise, latents, inverse, empty, inversion, counter.of("inversion", inversion))
    if from_noise:
        forward.set_timesteps(steps)
        levels[int(forward.timesteps[0])] = normal([seed], STARTS, 0, latents.shape[1:], run.device)
    kept = None if keep is None else _latent_mask(keep, base.downscale).to(run.device)
    videos = []
    for number, text in enumerate(texts, 1):
        name = "retelling" + (f" {number}" if len(texts) > 1 else "")
        both = torch.cat((empty, text))
        told = sample(denoise, levels, forward, both, guidance, steps, kept, counter.of(name, steps))
        videos.append(base.decode(told).numpy())
    return videos[0] if isinstance(prompt, str) else np.stack(videos)


def check_request(prompts: list[str], guidance: float, steps: int, inversion_steps: int | None) -> None:
    """SinfusionError for settings that make no sense."""
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise SettingError("{prompt} must say what the video should show.")
    if not 1 <= guidance <= 100:
        raise SettingError(f"{{guidance}} must be from 1 to 100, not {guidance}.")
    if not 2 <= steps <= 1000:
        raise SettingError(f"{{steps}} must be from 2 to 1000, not {steps}.")
    if inversion_steps is not None and (not steps <= inversion_steps <= 1000 or inversion_steps % steps):
        raise SettingError(f"{{inversion_steps}} must be a multiple of {{steps}}, {steps}, not {inversion_steps}.")


def _check_cost(run: TunedRun, base: BaseModel, evaluations: int, really_on_cpu: bool) -> None:
    """SinfusionError for what would take hours on a CPU."""
    if run.device.type != "cpu" or really_on_cpu:
        return
    count, scale = min(len(run.frames), run.settings.window), base.downscale
    cost = Cost.of(base.unet_config, count, (run.size[0] // scale, run.size[1] // scale), 77, run.dtype)
    total = len(run.frames) / count * cost.evaluation_flops * evaluations
    check_affordable(run.device, total / speed(run.device, run.dtype), really_on_cpu)


def clip_latents(run: TunedRun, base: BaseModel) -> Tensor:
    """(1, 4, T, h, w): as the VAE samples them for the step after the last one."""
    mean, deviation = base.encode(torch.from_numpy(run.frames))
    return mean + deviation * normal([run.seed], LATENTS, run.steps_done(), mean.shape[1:], run.device)


# What stays -----------------------------------------------------------------------------------------------------------


def read_keep_mask(run: TunedRun, mask: Any) -> np.ndarray:
    """(T, H, W) bool of a mask at the size of the clip, as it was or as it was learnt."""
    height, width = run.size
    if isinstance(mask, str | os.PathLike):
        frames, name = read_media(os.fspath(mask), max_side=None, log=lambda _: None).frames, f"the mask {mask}"
        size = frames.shape[1:3]
        if not any(_same_shape(size, other) for other in (run.size, run.source_size)):
            raise SinfusionError(
                f"{name} is {format_size(size)}; it must have the aspect ratio of the clip, "
                f"{format_size(run.source_size)}, or of its frames, {format_size(run.size)}."
            )
        masks = np.stack([is_light(resize(frame, run.size)) for frame in frames])
    else:
        masks, name = as_mask(mask, "keep_mask"), "keep_mask"
        masks = masks[None] if masks.ndim == 2 else masks
        if masks.shape[1:] != run.size:
            raise SinfusionError(f"{name} is {format_size(masks.shape[1:])}, the frames are {width}x{height}.")
    if len(masks) > max(run.picked):
        masks = masks[run.picked]  # of the whole clip
    if len(masks) not in (1, len(run.frames)):
        raise SinfusionError(f"{name} has {len(masks)} frames; give one, or {len(run.frames)}.")
    return np.broadcast_to(masks, run.frames.shape[:3])


def _same_shape(size: tuple[int, ...], other: tuple[int, int]) -> bool:
    scale = max(other) / max(size)
    return all(abs(side * scale - wanted) <= 1 for side, wanted in zip(size, other, strict=True))


def _latent_mask(keep: np.ndarray, scale: int) -> Tensor:
    """(T, h, w) in [0, 1]: the share of its pixels for which a latent stays."""
    return F.avg_pool2d(torch.from_numpy(keep.astype(np.float32))[:, None], scale)[:, 0]


class _Steps:
    """Counts the evaluations of one task after the other."""

    def __init__(self, on_progress: OnProgress | None):
        self.on_progress = on_progress

    def of(self, task: str, total: int) -> Any:
        done = 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if self.on_progress is not None:
                self.on_progress(Progress(done, total, "step", task))

        return on_step
