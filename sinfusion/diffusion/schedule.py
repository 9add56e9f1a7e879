"""Noise schedules, in float64.

Noise is measured by sigma, the standard deviation of what is added to a clean image in [-1, 1]:
x = clean + sigma * noise. A variance-preserving x_t = a * clean + s * noise is a * x, with a = sqrt(alphas_cumprod) and
sigma = s / a.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import SinfusionError


@dataclass(frozen=True)
class Schedule:
    """A discrete schedule of T timesteps.

    alphas_cumprod: (T + 1,) float64, from 1 (clean, timestep 0) down to almost 0 (timestep T); Ho et al. 2020.
    """

    alphas_cumprod: np.ndarray

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod) - 1

    @property
    def betas(self) -> np.ndarray:
        """(T,) float64: the variance added by timestep 1..T."""
        return 1.0 - self.alphas_cumprod[1:] / self.alphas_cumprod[:-1]

    @property
    def sigma(self) -> np.ndarray:
        """(T + 1,) float64: noise per unit of signal, 0 at timestep 0."""
        return np.sqrt((1.0 - self.alphas_cumprod) / self.alphas_cumprod)

    def sigma_at(self, timestep: np.ndarray) -> np.ndarray:
        """Sigma at whole or fractional timesteps in [1, T], interpolated in log sigma; exact at whole ones."""
        return np.exp(np.interp(timestep, np.arange(1, self.timesteps + 1), np.log(self.sigma[1:])))

    def sigmas(self, steps: int) -> np.ndarray:
        """(steps + 1,) float64: the sigmas of a reverse process of any number of steps, from timestep T down to 0."""
        if steps < 1:
            raise SinfusionError(f"sampling takes at least 1 step, not {steps}.")
        timestep = np.linspace(self.timesteps, 1, steps)
        if steps <= self.timesteps:
            timestep = np.round(timestep)
        return np.append(self.sigma_at(timestep), 0.0)


def linear_schedule(timesteps: int = 50) -> Schedule:
    """Betas from 0.0001 to 0.02, each times 1000 / T (Ho et al. 2020, for any T)."""
    betas = np.linspace(1e-4, 0.02, timesteps) * (1000 / timesteps)
    return Schedule(np.append(1.0, np.cumprod(1.0 - np.clip(betas, 0.0, 0.999))))


def cosine_schedule(timesteps: int = 50) -> Schedule:
    """Nichol & Dhariwal 2021 with s = 0.008 and the spacing of the released SinFusion code, betas at most 0.999."""
    s = 0.008
    points = np.linspace(0, timesteps + 1, timesteps + 1) / (timesteps + 1)
    curve = np.cos((points + s) / (1 + s) * np.pi / 2) ** 2
    betas = np.clip(1.0 - curve[1:] / curve[:-1], 0.0, 0.999)
    return Schedule(np.append(1.0, np.cumprod(1.0 - betas)))


SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule}


def karras_sigmas(steps: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> np.ndarray:
    """(steps + 1,) float64: sigmas from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5)."""
    if steps < 1:
        raise SinfusionError(f"sampling takes at least 1 step, not {steps}.")
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(sigmas, 0.0)


def truncated(sigmas: np.ndarray, sigma_start: float) -> np.ndarray:
    """The end of a reverse process: sigma_start, then every lower one of `sigmas`."""
    # With the tolerance, a sigma_start that is one of `sigmas` is not visited twice.
    return np.append(sigma_start, sigmas[sigmas < sigma_start * (1 - 1e-6)])
