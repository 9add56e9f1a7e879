"""What the network predicts: the clean image, the noise, or a correction to a prior mean."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

# One sigma, or (B,) of them; coefficients are of the same type.
Sigma = TypeVar("Sigma", float, Tensor)


class Parameterization(Protocol):
    """What the network sees, and what its output F stands for: coefficients of sums of images.

    clean: the image without noise; x = clean + sigma * noise; prior_mean: the expected image before anything is
    denoised; sigma_data: RMS of clean - prior_mean.
    """

    def input(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma]:
        """Of x and prior_mean, in the network's input, which has about unit variance."""

    def target(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        """Of clean, noise and prior_mean, in the target of F."""

    def estimate(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        """Of F, x and prior_mean, in the clean image that F stands for: the inverse of `target`."""


class X0:
    """F is the clean image."""

    def input(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma]:
        return (1 + sigma**2) ** -0.5, 0 * sigma

    def target(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        return 0 * sigma + 1, 0 * sigma, 0 * sigma

    def estimate(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        return 0 * sigma + 1, 0 * sigma, 0 * sigma


class Noise(X0):
    """F is the noise (Ho et al. 2020)."""

    def target(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        return 0 * sigma, 0 * sigma + 1, 0 * sigma

    def estimate(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        return -sigma, 0 * sigma + 1, 0 * sigma


class Preconditioned:
    """F corrects, with unit variance, the best linear guess between x and prior_mean (Karras et al. 2022, eq. 7).

    With the previous frame as prior_mean and the RMS change as sigma_data, F = 0 says that nothing moves.
    """

    def input(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma]:
        scale = (sigma**2 + sigma_data**2) ** -0.5
        return scale, -scale

    def target(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        # (clean - c - skip (clean + sigma noise - c)) / out, multiplied out so that nothing cancels.
        scale = (sigma**2 + sigma_data**2) ** -0.5
        return sigma / sigma_data * scale, -sigma_data * scale, -sigma / sigma_data * scale

    def estimate(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        variance = sigma**2 + sigma_data**2
        return sigma * sigma_data * variance**-0.5, sigma_data**2 / variance, sigma**2 / variance


PARAMETERIZATIONS: dict[str, Parameterization] = {"x0": X0(), "noise": Noise(), "preconditioned": Preconditioned()}
