"""Which sigmas, noise levels, a training step sees."""

from __future__ import annotations

import math

from torch import Tensor

from .. import ops
from ..diffusion.denoiser import Denoiser
from ..recipe import Recipe
from ..roles import Role
from .crops import STREAM_SIGMA, STREAM_SIGMA_MAX


def draw_sigmas(
    recipe: Recipe,
    role: Role,
    denoiser: Denoiser,
    sigma_data: Tensor,  # (B,) fp32
    seeds: Tensor,  # (B,) int64
    step: Tensor,  # () int64
) -> Tensor:
    """(B,) fp32: the sigma of each sample of a step.

    preconditioned: log-normal around sigma_data (Karras et al. 2022), and for models with a condition a share at
    sigma_max, where they learn the conditional mean. Otherwise that of a timestep of 1..T or, for continuous roles, of
    an sqrt(alphas_cumprod) uniform between two neighbouring timesteps (as in the released code).
    """
    device = seeds.device
    if denoiser.preconditioned:
        normal = ops.normal(seeds, STREAM_SIGMA, step, (1,), device)[:, 0]
        if not role.conditions:
            log_sigma = recipe.unconditional_log_sigma_mean + recipe.unconditional_log_sigma_std * normal
            return sigma_data * log_sigma.exp()
        log_sigma = recipe.log_sigma_mean + recipe.log_sigma_std * normal
        bits = ops.uniform_bits(seeds, STREAM_SIGMA_MAX, step, 1, device)[:, 0]
        at_max = bits < int(recipe.sigma_max_share * 2**32)
        return sigma_data * log_sigma.masked_fill(at_max, math.log(recipe.sigma_max)).exp()
    table = denoiser.sqrt_alphas_cumprod(device)
    bits = ops.uniform_bits(seeds, STREAM_SIGMA, step, 2, device)
    timestep = 1 + (bits[:, 0] * (len(table) - 1) >> 32)
    root = table[timestep]
    if denoiser.continuous:
        root = root + bits[:, 1].double() / 2**32 * (table[timestep - 1] - root)
    return (1 / root**2 - 1).clamp(min=1e-8).sqrt().float()
