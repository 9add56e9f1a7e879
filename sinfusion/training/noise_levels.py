"""Which noise levels a training step sees."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .. import ops
from ..diffusion.denoiser import Denoiser
from ..recipe import Recipe
from ..roles import Role
from .crops import STREAM_LEVEL, STREAM_TOP


def levels(recipe: Recipe, role: Role, denoiser: Denoiser, sigma_data: Tensor, seeds: Tensor, step: Tensor) -> Tensor:
    """(B,) fp32 noise levels to train on.

    preconditioned: log-normal around sigma_data, and for models with a condition a share at the top, where they learn
    the conditional mean. Otherwise a timestep of 1..T, or, for continuous roles, a level
    sqrt(alphas_cumprod) uniform between two neighbouring timesteps (reference: the released code).
    """
    if denoiser.parameterization == "preconditioned":
        free = role.conditions == 0
        mean, std = (
            (recipe.unconditional_log_sigma_mean, recipe.unconditional_log_sigma_std)
            if free
            else (recipe.log_sigma_mean, recipe.log_sigma_std)
        )
        logarithm = mean + std * ops.normal(seeds, STREAM_LEVEL, step, (1,), seeds.device)[:, 0]
        if free:
            return sigma_data * logarithm.exp()
        bits = ops.uniform_bits(seeds, STREAM_TOP, step, 1, seeds.device)[:, 0]
        at_top = bits < int(recipe.sigma_max_share * 2**32)
        return sigma_data * logarithm.masked_fill(at_top, float(np.log(recipe.sigma_max))).exp()
    signal = denoiser.signal(seeds.device)
    bits = ops.uniform_bits(seeds, STREAM_LEVEL, step, 2, seeds.device)
    timestep = 1 + (bits[:, 0] * (len(signal) - 1) >> 32)
    level = signal[timestep]
    if denoiser.continuous:
        level = level + bits[:, 1].double() / 2**32 * (signal[timestep - 1] - level)
    return (1 / level**2 - 1).clamp(min=1e-8).sqrt().float()
