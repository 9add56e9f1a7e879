"""What the network predicts, and how a prediction becomes a clean image.

`Denoiser` wraps a network so that trainer and samplers never ask which parameterization it has: `loss` trains it,
calling it denoises. All states are x = clean + sigma * noise, images in [-1, 1], sigma one value a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .schedule import Schedule

# A noise level, or (B,) of them; coefficients are of the same kind.
Sigma = TypeVar("Sigma", float, Tensor)


class Parameterization(Protocol):
    """What the network sees and what its output F stands for, as sums of images with these coefficients.

    Images: x = clean + sigma * noise, and the prior mean, the expected image; `sigma_data`: RMS of clean - prior_mean.
    """

    def input(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma]:
        """Of x and of the prior mean, in what the network sees: about unit variance."""

    def target(self, sigma: Sigma, sigma_data: Sigma) -> tuple[Sigma, Sigma, Sigma]:
        """Of clean, noise and prior_mean, in what F should be."""

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
    """F is a unit-variance correction to the best linear guess between x and the prior mean (Karras et al. 2022, eq. 7).

    With prior_mean = the previous frame and sigma_data = the RMS change between frames, F = 0 says 'nothing moves'.
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


@dataclass
class Denoiser:
    """A network with all that is needed to train it and to denoise with it."""

    network: nn.Module  # (B, C, H, W), (B,), (B,) or None -> (B, 3, H, W)
    parameterization: str  # a key of PARAMETERIZATIONS
    schedule: Schedule
    continuous: bool  # the network is told the noise level itself, not the whole timestep (x0 and noise only)
    sigma_data: tuple[
        float, ...
    ]  # RMS of clean - prior_mean; entry |frame_offset| - 1 (one entry without frame offsets)
    frame_offset: bool = False  # the network is told the frame offset
    _tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def form(self) -> Parameterization:
        """What the network sees and means."""
        return PARAMETERIZATIONS[self.parameterization]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """sigma_data (n,) fp32, the schedule's levels as logarithms (T,) and as `signal`, fp64: once on each device."""
        if device not in self._tables:
            logarithm = torch.from_numpy(np.log(self.schedule.sigma[1:])).to(device)
            signal = torch.from_numpy(np.sqrt(self.schedule.alphas_cumprod)).to(device)
            self._tables[device] = torch.tensor(self.sigma_data, device=device), logarithm, signal
        return self._tables[device]

    def sqrt_alphas_cumprod(self, device: torch.device) -> Tensor:
        """(T + 1,) fp64: sqrt(alphas_cumprod) of the schedule."""
        return self._on(device)[2]

    def sigma_data_of(self, frame_offset: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """(B,) fp32: the RMS distance between the clean image and the prior mean for each sample."""
        table = self._on(device)[0]
        if frame_offset is None or len(self.sigma_data) == 1:
            return table[:1].expand(batch)
        return table[(frame_offset.abs() - 1).clamp(0, len(self.sigma_data) - 1)]

    def time(self, sigma: Tensor, sigma_data: Tensor) -> Tensor:
        """(B,) fp32: how the network is told the noise level."""
        if self.parameterization == "preconditioned":
            return 4.0 * (sigma / sigma_data).log()  # about -16 .. 16: spans the sinusoids like 32 timesteps
        if self.continuous:
            return (1 + sigma**2).rsqrt()  # sqrt(alphas_cumprod)
        # The timestep, the inverse of `Schedule.sigma_at`; counted from 0 as in the released code.
        logarithm = self._on(sigma.device)[1]
        wanted = sigma.double().log()
        above = torch.searchsorted(logarithm, wanted).clamp(1, len(logarithm) - 1)
        low, high = logarithm[above - 1], logarithm[above]
        return (above - 1 + (wanted - low) / (high - low)).clamp(0, len(logarithm) - 1).float()

    def training_coefficients(self, sigma: Tensor, sigma_data: Tensor) -> Tensor:
        """(B, 6) fp32: clean, noise and prior_mean in the noisy image that the network sees, and in its target."""
        of_state, of_prior_mean = self.form.input(sigma, sigma_data)
        return torch.stack((of_state, of_state * sigma, of_prior_mean, *self.form.target(sigma, sigma_data)), 1)

    def loss(
        self,
        inputs: Tensor,  # (B, 3 (n + 1), H, W): conditions, then the noisy image as the network sees it
        target: Tensor,  # (B, 3, H, W) fp32
        sigma: Tensor,  # (B,)
        sigma_data: Tensor,  # (B,)
        frame_offset: Tensor | None = None,  # (B,) int64
    ) -> Tensor:
        """Mean squared error between the network's output and its target, a scalar."""
        output = self.network(inputs, self.time(sigma, sigma_data), frame_offset if self.frame_offset else None)
        return (output - target).square().mean()

    def __call__(
        self,
        x: Tensor,  # (B, 3, H, W) fp32, clean + sigma * noise
        sigma: Tensor,  # (B,) fp32, > 0; or (1,), the same for all, as is then frame_offset
        condition: Tensor | None = None,  # (B, 3 n, H, W) fp32 in [-1, 1]: n neighbouring frames
        frame_offset: Tensor | None = None,  # (B or 1,) int64
    ) -> Tensor:
        """The expected clean image, (B, 3, H, W) fp32."""
        sigma_data = self.sigma_data_of(frame_offset, len(sigma), x.device)
        prior_mean = prior_mean_of(x, condition)

        def columns(values: tuple[Tensor, ...]) -> list[Tensor]:
            return [value[:, None, None, None] for value in values]

        of_state, of_prior_mean = columns(self.form.input(sigma, sigma_data))
        inputs = of_state * x + of_prior_mean * prior_mean
        if condition is not None:
            inputs = torch.cat((condition, inputs), 1)
        output = self.network(inputs, self.time(sigma, sigma_data), frame_offset if self.frame_offset else None)
        of_output, of_state, of_prior_mean = columns(self.form.estimate(sigma, sigma_data))
        return of_output * output.float() + of_state * x + of_prior_mean * prior_mean


def prior_mean_of(x: Tensor, condition: Tensor | None) -> Tensor:
    """(B, 3, H, W): the mean of the conditions (B, 3 n, H, W), or 0: what is expected before anything is denoised."""
    return torch.zeros_like(x) if condition is None else condition.unflatten(1, (-1, 3)).mean(1)


def rms_change(frames: np.ndarray, offset: int) -> float:
    """RMS of frame[i + offset] - frame[i] over a clip (T, H, W, 3) uint8, on the [-1, 1] scale; never 0."""
    pairs = zip(frames[offset:], frames[:-offset], strict=True)
    return rms(later.astype(np.int16) - earlier for later, earlier in pairs)


def rms(differences: Iterable[np.ndarray], unit: float = 127.5) -> float:
    """RMS over arrays of one size, int16 and below 2^15 in size, in multiples of `unit`; never 0.

    An array at a time, so that a clip needs the memory of a frame; sums of whole numbers, so that it is exact.
    """
    total = count = 0
    for difference in differences:
        total += int(np.square(difference, dtype=np.int32).sum(dtype=np.int64))
        count += difference.size
    return max(math.sqrt(total / count) / unit, 1e-3)
