"""Reverse processes as plain functions over `denoise(x, sigma) -> clean picture`.

In the coordinates x = clean + sigma * noise used here, DDPM's posterior step is the ancestral Euler step and
deterministic DDIM is the Euler step: they differ in the levels they visit, which the caller passes as `sigmas`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # x (B, 3, H, W), sigma (B,) -> clean (B, 3, H, W)
NoiseSource = Callable[[int], Tensor]  # index of the step -> standard normal like x


def _clean(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """One evaluation, clamped to the range of pictures as the released code does."""
    return denoise(x, torch.full((len(x),), sigma, device=x.device)).clamp(-1, 1)


def posterior(x: Tensor, clean: Tensor, sigma: float, lower: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of q(x at `lower` | x at `sigma`, clean) (Ho et al. 2020, eq. 6-7, divided by a)."""
    keep = (lower / sigma) ** 2
    return clean + keep * (x - clean), lower * (1 - keep) ** 0.5


def ddpm(denoise: Denoise, x: Tensor, sigmas: np.ndarray, noise: NoiseSource) -> Tensor:
    """Ancestral sampling: the DDPM posterior with its lower-bound variance, from sigmas[0] down to sigmas[-1] = 0."""
    for i, (sigma, lower) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        x, deviation = posterior(x, _clean(denoise, x, sigma), sigma, lower)
        if deviation > 0:
            x = x + deviation * noise(i)
    return x


def ddim(denoise: Denoise, x: Tensor, sigmas: np.ndarray, noise: NoiseSource) -> Tensor:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0), which is Euler's method; `noise` is not used."""
    for sigma, lower in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        clean = _clean(denoise, x, sigma)
        x = clean + lower / sigma * (x - clean)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: np.ndarray, noise: NoiseSource) -> Tensor:
    """Heun's second-order method (Karras et al. 2022, algorithm 1); 2 len(sigmas) - 3 evaluations; no noise."""
    for sigma, lower in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        slope = (x - _clean(denoise, x, sigma)) / sigma
        ahead = x + (lower - sigma) * slope
        if lower > 0:
            slope = (slope + (ahead - _clean(denoise, ahead, lower)) / lower) / 2
        x = x + (lower - sigma) * slope
    return x


SAMPLERS: dict[str, Callable[[Denoise, Tensor, np.ndarray, NoiseSource], Tensor]] = {
    "ddpm": ddpm,
    "ancestral": ddpm,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
}
