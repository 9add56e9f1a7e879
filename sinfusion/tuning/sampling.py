"""DDIM over clips of latents: from a clip to its noise, and from noise to a clip that a text guides.

denoise = Denoiser(network, window=24)                                    # longer clips in windows that overlap
levels = invert(denoise, latents, schedulers(config)[1], empty_text)      # the clip at every noise level
latents = sample(denoise, levels, schedulers(config)[0], torch.cat((empty_text, text)), guidance=12.5)

The noise that DDIM inversion finds (Song et al. 2021) carries the layout and the motion of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .network import VideoNetwork

CLEAN = -1  # the timestep of latents without noise
OVERLAP = 1 / 3  # of two neighbouring windows, at least, as a share of their length

OnStep = Callable[[], object]
Levels = dict[int, Tensor]  # timestep -> (1, C, F, h, w)

# Of a scheduler's config; the rest is as Stable Diffusion wants it, whatever the file says or leaves out.
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
            "steps_offset", "set_alpha_to_one")  # fmt: skip


def schedulers(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """diffusers' DDIMScheduler and DDIMInverseScheduler, of the config of any scheduler of the same model."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    settings = {"steps_offset": 1, "set_alpha_to_one": False}
    settings |= {name: config[name] for name in SCHEDULE if name in config}
    # Latents are not in [-1, 1]: clipping them, which is the default, would spoil them.
    return DDIMScheduler(**settings, clip_sample=False), DDIMInverseScheduler(**settings, clip_sample=False)


@dataclass
class Denoiser:
    """The network over clips of any length."""

    network: VideoNetwork
    window: int  # frames that the network sees at once; clips up to that length are not divided

    def __call__(self, latents: Tensor, timestep: int | Tensor, text: Tensor) -> Tensor:
        """Of clips (B, C, F, h, w) with text (B, N, D): the mean of what all windows say of a frame.

        A window's weight is smallest at its ends, where it knows least of what is around.
        """
        timesteps = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        count = latents.shape[2]
        if count <= self.window:
            return self.network(latents, timesteps, text)
        total, weights = torch.zeros_like(latents), torch.zeros(count, device=latents.device)
        ramp = torch.arange(1.0, self.window + 1, device=latents.device)
        ramp = torch.minimum(ramp, ramp.flip(0))
        for start in window_starts(count, self.window):
            frames = slice(start, start + self.window)
            total[:, :, frames] += self.network(latents[:, :, frames], timesteps, text) * ramp[:, None, None]
            weights[frames] += ramp
        return total / weights[:, None, None]


def window_starts(count: int, window: int) -> list[int]:
    """First frames of windows that cover `count` frames evenly, neighbours sharing `OVERLAP` of their frames."""
    if count <= window:
        return [0]
    most = max(1, window - int(window * OVERLAP))  # from one start to the next
    gaps = -(-(count - window) // most)
    return [round(i * (count - window) / gaps) for i in range(gaps + 1)]


@torch.no_grad()
def invert(
    denoise: Denoiser,
    latents: Tensor,  # (1, C, F, h, w), clean
    scheduler: Any,  # a DDIMInverseScheduler
    text: Tensor,  # (1, N, D)
    steps: int = 50,
    on_step: OnStep = lambda: None,
) -> Levels:
    """The clip at every noise level, from clean to the last: what DDIM would have made it of."""
    scheduler.set_timesteps(steps)
    levels = {CLEAN: latents}
    for timestep in scheduler.timesteps.tolist():
        latents = scheduler.step(denoise(latents, timestep, text), timestep, latents).prev_sample
        levels[timestep] = latents
        on_step()
    return levels


@torch.no_grad()
def sample(
    denoise: Denoiser,
    levels: Levels,  # as `invert` makes them, with at least this number of steps
    scheduler: Any,  # a DDIMScheduler
    texts: Tensor,  # (2, N, D): one that says nothing, and the one that guides
    guidance: float = 12.5,
    steps: int = 50,
    keep: Tensor | None = None,  # (F, h, w) in [0, 1]: how much of the clip stays, at every noise level
    on_step: OnStep = lambda: None,
) -> Tensor:
    """The clip (1, C, F, h, w) that the text makes of the noise, by DDIM with classifier-free guidance."""
    scheduler.set_timesteps(steps)
    timesteps: list[int] = scheduler.timesteps.tolist()
    latents = levels[timesteps[0]]
    for timestep, following in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
        without, guided = denoise(torch.cat((latents, latents)), timestep, texts).chunk(2)
        latents = scheduler.step(without + guidance * (guided - without), timestep, latents, eta=0.0).prev_sample
        if keep is not None:
            latents = keep * levels[following] + (1 - keep) * latents
        on_step()
    return latents
