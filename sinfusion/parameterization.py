"""What the network predicts, and how a prediction becomes a clean picture.

`Denoiser` wraps a network so that trainer and samplers never ask which parameterization it has: `loss` trains it,
calling it denoises. All states are x = clean + sigma * noise, pictures in [-1, 1], sigma one value a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .schedule import Schedule


class Parameterization(Protocol):
    """How to read a network's output F. `centre` (B, 3, H, W): the expected picture, `spread`: its RMS error."""

    def scale_input(self, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """The picture the network sees, of about unit variance."""

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """What F should be."""

    def estimate(self, output: Tensor, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """The clean picture that F stands for: the inverse of `target`."""


class X0:
    """F is the clean picture."""

    def scale_input(self, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return x / (1 + sigma**2).sqrt()

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return clean

    def estimate(self, output: Tensor, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return output


class Noise(X0):
    """F is the noise (Ho et al. 2020)."""

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return noise

    def estimate(self, output: Tensor, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return x - sigma * output


class Preconditioned:
    """F is a unit-variance correction to the best linear guess between x and the centre (Karras et al. 2022, eq. 7).

    With centre = the previous frame and spread = the RMS change between frames, F = 0 says 'nothing moves'.
    """

    def scale_input(self, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return (x - centre) / (sigma**2 + spread**2).sqrt()

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        total = (sigma**2 + spread**2).sqrt()
        # (clean - c - skip (clean + sigma noise - c)) / out, multiplied out so that nothing cancels.
        return (sigma / spread * (clean - centre) - spread * noise) / total

    def estimate(self, output: Tensor, x: Tensor, sigma: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        variance = sigma**2 + spread**2
        return centre + spread**2 / variance * (x - centre) + sigma * spread / variance.sqrt() * output


PARAMETERIZATIONS: dict[str, Parameterization] = {"x0": X0(), "noise": Noise(), "preconditioned": Preconditioned()}


@dataclass
class Denoiser:
    """A network with all that is needed to train it and to denoise with it."""

    network: nn.Module  # (B, C, H, W), (B,), (B,) or None -> (B, 3, H, W)
    parameterization: str  # a key of PARAMETERIZATIONS
    schedule: Schedule
    continuous: bool  # the network is told the noise level itself, not the whole timestep (x0 and noise only)
    spreads: tuple[float, ...]  # RMS of clean - centre; entry |frame_offset| - 1 (one entry without frame offsets)
    frame_offset: bool = False  # the network is told the frame offset

    def spread(self, frame_offset: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """(B,) fp32: the RMS distance between the clean picture and the centre for each sample."""
        if frame_offset is None or len(self.spreads) == 1:
            return torch.full((batch,), self.spreads[0], device=device)
        table = torch.tensor(self.spreads, device=device)
        return table[(frame_offset.abs() - 1).clamp(0, len(self.spreads) - 1)]

    def time(self, sigma: Tensor, spread: Tensor) -> Tensor:
        """(B,) fp32: how the network is told the noise level."""
        if self.parameterization == "preconditioned":
            return 4.0 * (sigma / spread).log()  # about -16 .. 16: spans the sinusoids like 32 timesteps
        if self.continuous:
            return (1 + sigma**2).rsqrt()  # sqrt(alphas_cumprod)
        timestep = self.schedule.timestep_at(sigma.double().cpu().numpy()) - 1  # the released code counts from 0
        return torch.as_tensor(timestep, dtype=torch.float32, device=sigma.device)

    def _parts(
        self, x: Tensor, sigma: Tensor, condition: Tensor | None, frame_offset: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centre (B, 3, H, W), sigma and spread (B or 1, 1, 1, 1), time (B or 1,)."""
        spread = self.spread(frame_offset, len(sigma), x.device)
        centre = torch.zeros_like(x) if condition is None else condition.unflatten(1, (-1, 3)).mean(1)
        time = self.time(sigma, spread)
        return centre, sigma[:, None, None, None], spread[:, None, None, None], time

    def _network(self, x: Tensor, time: Tensor, condition: Tensor | None, frame_offset: Tensor | None) -> Tensor:
        inputs = x if condition is None else torch.cat((condition, x), 1)
        output: Tensor = self.network(inputs, time, frame_offset if self.frame_offset else None)
        return output.float()

    def __call__(
        self,
        x: Tensor,  # (B, 3, H, W) fp32, clean + sigma * noise
        sigma: Tensor,  # (B,) fp32, > 0; or (1,), the same for all, as is then frame_offset
        condition: Tensor | None = None,  # (B, 3 n, H, W) fp32 in [-1, 1]: n neighbouring frames
        frame_offset: Tensor | None = None,  # (B or 1,) int64
    ) -> Tensor:
        """The expected clean picture, (B, 3, H, W) fp32."""
        centre, s, spread, time = self._parts(x, sigma, condition, frame_offset)
        form = PARAMETERIZATIONS[self.parameterization]
        output = self._network(form.scale_input(x, s, centre, spread), time, condition, frame_offset)
        return form.estimate(output, x, s, centre, spread)

    def loss(
        self,
        clean: Tensor,  # (B, 3, H, W) fp32 in [-1, 1]
        noise: Tensor,  # (B, 3, H, W) standard normal
        sigma: Tensor,  # (B,)
        condition: Tensor | None = None,
        frame_offset: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error between the network's output and its target, a scalar."""
        centre, s, spread, time = self._parts(clean, sigma, condition, frame_offset)
        form = PARAMETERIZATIONS[self.parameterization]
        x = form.scale_input(clean + s * noise, s, centre, spread)
        output = self._network(x, time, condition, frame_offset)
        return (output - form.target(clean, noise, s, centre, spread)).square().mean()


def rms_change(frames: np.ndarray, offset: int) -> float:
    """RMS of frame[i + offset] - frame[i] over a clip (T, H, W, 3) uint8, on the [-1, 1] scale; never 0."""
    values = frames.astype(np.float32) / 127.5
    return max(float(np.sqrt(np.mean((values[offset:] - values[:-offset]) ** 2))), 1e-3)
