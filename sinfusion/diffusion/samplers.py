"""Samplers as tables: what each state of a reverse process is made of.

In the coordinates x = clean + sigma * noise used here, DDPM's posterior step is the ancestral Euler step and
deterministic DDIM is the Euler step: they differ in the levels they visit, which the caller passes as `sigmas`,
(n + 1,) float64 from the entry down to 0. After an evaluation clean = denoise(x, sigma), the next state is

    of_state * x + of_previous * (the state before x) + of_clean * clean + of_noise * (standard normal noise)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One evaluation of the network and the state after it."""

    sigma: float  # the level of the evaluation
    of_state: float
    of_previous: float
    of_clean: float
    of_noise: float


def ddpm(sigmas: np.ndarray) -> list[Step]:
    """Ancestral sampling: the DDPM posterior q(x at the lower level | x, clean) (Ho et al. 2020, eq. 6-7)."""
    steps = []
    for sigma, lower in _pairs(sigmas):
        keep = (lower / sigma) ** 2
        steps.append(Step(sigma, keep, 0.0, 1 - keep, lower * (1 - keep) ** 0.5))
    return steps


def ddim(sigmas: np.ndarray) -> list[Step]:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0), which is Euler's method."""
    return [Step(sigma, lower / sigma, 0.0, 1 - lower / sigma, 0.0) for sigma, lower in _pairs(sigmas)]


def heun(sigmas: np.ndarray) -> list[Step]:
    """Heun's second-order method (Karras et al. 2022, algorithm 1): 2 n - 1 evaluations for n levels above 0."""
    steps = []
    for sigma, lower in _pairs(sigmas):
        steps.append(Step(sigma, lower / sigma, 0.0, 1 - lower / sigma, 0.0))
        if lower > 0:  # from the state that Euler's step began at, along the mean of the slopes at both ends
            half = (sigma - lower) / (2 * lower)
            steps.append(Step(lower, 0.5 - half, 0.5, half, 0.0))
    return steps


def _pairs(sigmas: np.ndarray) -> list[tuple[float, float]]:
    return list(itertools.pairwise(sigmas.tolist()))


SAMPLERS: dict[str, Callable[[np.ndarray], list[Step]]] = {
    "ddpm": ddpm,
    "ancestral": ddpm,
    "ddim": ddim,
    "euler": ddim,
    "heun": heun,
}
