"""Sampling: the reverse process as one loop over any denoiser, and each sampler as a table of coefficients.

In the coordinates x = clean + sigma * noise used here, DDPM's posterior step is the ancestral Euler step and
deterministic DDIM is the Euler step: samplers differ in coefficients alone. `sigmas` are (n + 1,) float64, the noise
levels to visit, falling to 0. `generation.reverse_process` runs the same tables in fused kernels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Step(NamedTuple):
    """One evaluation of the denoiser at x, and what the next x is the sum of."""

    sigma: float  # noise level of x
    of_x: float
    of_previous: float  # of the x before
    of_clean: float  # of denoise(x, sigma)
    of_noise: float  # of standard normal noise


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],  # (x, sigma (B,)) -> the expected clean image, like x
    x: Tensor,  # (B, C, H, W): clean + steps[0].sigma * noise
    steps: Sequence[Step],
    noise: Callable[[int], Tensor] | None = None,  # of step i, like x; None: torch.randn_like
    callback: Callable[[int, Tensor, Tensor], object] | None = None,  # of step i, the x it began at and clean
) -> Tensor:
    """The reverse process: x after the last step. Nothing is clamped, and gradients flow through it."""
    previous = torch.zeros_like(x)
    for i, step in enumerate(steps):
        clean = denoise(x, x.new_full((len(x),), step.sigma))
        if callback is not None:
            callback(i, x, clean)
        after = step.of_x * x + step.of_previous * previous + step.of_clean * clean
        if step.of_noise:
            after = after + step.of_noise * (torch.randn_like(x) if noise is None else noise(i))
        previous, x = x, after
    return x


def ddpm(sigmas: np.ndarray) -> list[Step]:
    """Ancestral sampling: the DDPM posterior q(x at the lower sigma | x, clean) (Ho et al. 2020, eq. 6-7)."""
    steps = []
    for sigma, lower in _pairs(sigmas):
        ratio = (lower / sigma) ** 2
        steps.append(Step(sigma, ratio, 0.0, 1 - ratio, lower * (1 - ratio) ** 0.5))
    return steps


def ddim(sigmas: np.ndarray) -> list[Step]:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0), which is Euler's method."""
    return [Step(sigma, lower / sigma, 0.0, 1 - lower / sigma, 0.0) for sigma, lower in _pairs(sigmas)]


def heun(sigmas: np.ndarray) -> list[Step]:
    """Heun's second-order method (Karras et al. 2022, algorithm 1): 2 n - 1 evaluations for n sigmas above 0."""
    steps = []
    for sigma, lower in _pairs(sigmas):
        steps.append(Step(sigma, lower / sigma, 0.0, 1 - lower / sigma, 0.0))
        if lower > 0:  # from the x that Euler's step began at, along the mean of the slopes at both ends
            half = (sigma - lower) / (2 * lower)
            steps.append(Step(lower, 0.5 - half, 0.5, half, 0.0))
    return steps


def resampled(steps: Sequence[Step], jumps: int) -> list[Step]:
    """Every step but the last taken `jumps` more times, each from where it began: RePaint's resampling.

    After a step from sigma to a lower one, noise of variance sigma^2 - lower^2 brings x back (Lugmayr et al. 2022,
    algorithm 1). It is added together with the step's own, so a jump is a row of the table like any other.
    """
    wholes: list[list[Step]] = []  # a step that looks at the x before it belongs to the one before it
    for step in steps:
        if step.of_previous:
            wholes[-1].append(step)
        else:
            wholes.append([step])
    table: list[Step] = []
    for whole, following in itertools.pairwise(wholes):
        back = (whole[0].sigma ** 2 - following[0].sigma ** 2) ** 0.5
        again = [*whole[:-1], whole[-1]._replace(of_noise=math.hypot(whole[-1].of_noise, back))]
        table += again * jumps + whole
    return table + wholes[-1]


def _pairs(sigmas: np.ndarray) -> list[tuple[float, float]]:
    return list(itertools.pairwise(sigmas.tolist()))


SAMPLERS: dict[str, Callable[[np.ndarray], list[Step]]] = {
    "ddpm": ddpm,
    "ancestral": ddpm,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
}
