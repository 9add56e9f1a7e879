"""A role's reverse process as its recipe has it: which levels, which noise, which sampler. For everything that makes.

Noise comes from the counter-based generator, keyed by each sample's own seed and by the moment (frame) it is for, so
a sample is the same alone or in a batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from . import ops
from .errors import SinfusionError
from .recipe import Recipe
from .roles import Role
from .run import Run
from .sampler import SAMPLERS
from .schedule import karras_sigmas, truncated

STREAM_SAMPLE = 16  # plus the role's number of conditions, so that Predictor and Projector draw apart
STEPS_A_MOMENT = 4096  # more than any reverse process takes

LEAST_SIDE = 8  # pixels; below this there is nothing a 7x7 kernel could learn


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """A usable (height, width), or SinfusionError."""
    height, width = size
    if min(height, width) < LEAST_SIDE:
        raise SinfusionError(f"size {width}x{height} is too small: each side must be at least {LEAST_SIDE} pixels.")
    return int(height), int(width)


def sampling_levels(
    run: Run,
    role: Role,
    frame_offset: int = 1,
    steps: int | None = None,  # None: the recipe's
    enter: float | None = None,  # sigma at which to enter; None: the top
    strength: float = 1.0,  # in (0, 1]: enter at this fraction of the timesteps
) -> np.ndarray:
    """(n + 1,) float64 levels to visit, from the entry down to 0."""
    recipe, denoiser = run.recipe, run.denoiser(role)
    if steps is None:
        steps = recipe.sampling_steps if role.conditions else recipe.free_sampling_steps
    if not 0 < strength <= 1:
        raise SinfusionError(f"strength must be above 0 and at most 1, not {strength}.")
    if denoiser.parameterization == "preconditioned":
        spread = denoiser.spreads[min(abs(frame_offset), len(denoiser.spreads)) - 1]
        top, bottom = _range(recipe, role)
        # The cosine schedule's level at this fraction of its timesteps, so that a strength means the same everywhere.
        entry = enter if enter is not None else math.tan(strength * math.pi / 2)
        return karras_sigmas(steps, min(entry, top * spread), min(bottom * spread, entry / 2))
    sigmas = denoiser.schedule.sigmas(steps)
    if enter is None and strength < 1:
        enter = float(denoiser.schedule.sigma_at(np.maximum(1, strength * recipe.timesteps)))
    return sigmas if enter is None or enter >= sigmas[0] else truncated(sigmas, enter)


def _range(recipe: Recipe, role: Role) -> tuple[float, float]:
    """Highest and lowest sampling level in spreads."""
    if role.conditions:
        return recipe.level_top, recipe.level_bottom
    return recipe.free_level_top, recipe.free_level_bottom


@torch.no_grad()
def reverse(
    run: Run,
    role: Role,
    seeds: Tensor,  # (B,) int64
    moment: int,  # which picture of a rollout this is
    levels: np.ndarray,  # from `sampling_levels`
    start: Tensor | None = None,  # (B, 3, H, W) in [-1, 1]: the picture noise is added to; None: the centre
    size: tuple[int, int] | None = None,  # (H, W), needed where neither start nor condition tells it
    condition: Tensor | None = None,  # (B, 3 n, H, W) in [-1, 1]
    frame_offset: int | None = None,
    keep: tuple[Tensor, Tensor] | None = None,  # (B or 1, 1, H, W) bool, picture (B or 1, 3, H, W): known where True
    sampler: str | None = None,  # None: the recipe's
) -> Tensor:
    """One picture for each seed, (B, 3, H, W) fp32 in [-1, 1]."""
    denoiser = run.denoiser(role)
    offset = None if frame_offset is None else torch.tensor([frame_offset], device=run.device)
    if start is None:
        start = (
            torch.zeros(len(seeds), 3, *size, device=run.device)  # type: ignore[misc]  # size is given here
            if condition is None
            else condition.unflatten(1, (-1, 3)).mean(1)
        )

    def noise(step: int) -> Tensor:
        counter = moment * STEPS_A_MOMENT + step
        return ops.normal(seeds, STREAM_SAMPLE + role.conditions, counter, start.shape[1:], run.device)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        # One level for all: matrix products over one row and over several round differently.
        clean = denoiser(x, sigma[:1], condition, offset)
        return clean if keep is None else torch.where(keep[0], keep[1], clean)

    x = start + float(levels[0]) * noise(STEPS_A_MOMENT - 1)
    return SAMPLERS[sampler or run.recipe.sampler](denoise, x, levels, noise)
