"""`Denoiser`: a network and what its prediction means.

`Denoiser` wraps a network so that neither trainer nor sampler asks which parameterization it has: `loss` trains it,
calling it denoises. x = clean + sigma * noise, with images in [-1, 1] and one sigma a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .parameterization import Parameterization, Preconditioned
from .schedule import Schedule


@dataclass
class Denoiser:
    """A network with all that is needed to train it and to denoise with it."""

    network: nn.Module  # (B, C, H, W), (B,), (B,) or None -> (B, 3, H, W)
    parameterization: Parameterization
    schedule: Schedule
    continuous: bool  # the network's time is sqrt(alphas_cumprod), not a whole timestep (x0 and noise only)
    sigma_data: tuple[float, ...]  # RMS of clean - prior_mean; entry |frame_offset| - 1, or the only one
    frame_offset: bool = False  # the network is conditioned on the frame offset
    changes: bool = False  # of several conditions, the network sees those after the first as changes
    _tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def preconditioned(self) -> bool:
        return isinstance(self.parameterization, Preconditioned)

    def sigma_data_at(self, frame_offset: int | None) -> float:
        """RMS of clean - prior_mean at one frame offset; those beyond the largest trained one count as that."""
        return self.sigma_data[min(abs(frame_offset or 1), len(self.sigma_data)) - 1]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """sigma_data (n,) fp32; the schedule's log sigma (T,) and sqrt(alphas_cumprod) (T + 1,), fp64: on a device."""
        if device not in self._tables:
            log_sigma = torch.from_numpy(np.log(self.schedule.sigma[1:])).to(device)
            root = torch.from_numpy(np.sqrt(self.schedule.alphas_cumprod)).to(device)
            self._tables[device] = torch.tensor(self.sigma_data, device=device), log_sigma, root
        return self._tables[device]

    def sqrt_alphas_cumprod(self, device: torch.device) -> Tensor:
        """(T + 1,) fp64: sqrt(alphas_cumprod) of the schedule."""
        return self._on(device)[2]

    def sigma_data_of(self, frame_offset: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """(B,) fp32: RMS of clean - prior_mean for each sample, by its frame offset (B,) int64."""
        table = self._on(device)[0]
        if frame_offset is None or len(self.sigma_data) == 1:
            return table[:1].expand(batch)
        return table[(frame_offset.abs() - 1).clamp(0, len(self.sigma_data) - 1)]

    def time(self, sigma: Tensor, sigma_data: Tensor) -> Tensor:
        """(B,) fp32: the network's time input."""
        if self.preconditioned:
            return 4.0 * (sigma / sigma_data).log()  # about -16 .. 16: spans the sinusoids like 32 timesteps
        if self.continuous:
            return (1 + sigma**2).rsqrt()  # sqrt(alphas_cumprod)
        # The timestep, the inverse of `Schedule.sigma_at`; counted from 0 as in the released code.
        table = self._on(sigma.device)[1]
        log_sigma = sigma.double().log()
        above = torch.searchsorted(table, log_sigma).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + (log_sigma - low) / (high - low)).clamp(0, len(table) - 1).float()

    def training_coefficients(self, sigma: Tensor, sigma_data: Tensor) -> Tensor:
        """(B, 6) fp32: of clean, noise and prior_mean in the network's input, then the same in its target."""
        of_x, of_prior_mean = self.parameterization.input(sigma, sigma_data)
        return torch.stack((of_x, of_x * sigma, of_prior_mean, *self.parameterization.target(sigma, sigma_data)), 1)

    def loss(
        self,
        inputs: Tensor,  # (B, 3 (n + 1), H, W): conditions, then the noisy image as the network sees it
        target: Tensor,  # (B, 3, H, W) fp32
        time: Tensor,  # (B,) fp32, of `time`
        frame_offset: Tensor | None = None,  # (B,) int64
    ) -> Tensor:
        """Mean squared error between the network's output and its target, a scalar."""
        output = self.network(inputs, time, frame_offset if self.frame_offset else None)
        return ops.mean_square(output, target)

    def prior_mean(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, 3, H, W): what is expected before anything is denoised.

        The first of the conditions (B, 3 n, H, W) with `changes`, else their mean; 0 without any.
        """
        if condition is None:
            return torch.zeros_like(x)
        return condition[:, :3] if self.changes else condition.unflatten(1, (-1, 3)).mean(1)

    def seen(self, condition: Tensor, sigma_data: Tensor) -> Tensor:
        """(B, 3 n, H, W): the conditions as the network sees them; sigma_data: (B or 1,).

        With `changes` the first, then the change up to each from the one after it, of about unit variance: what moves
        is a small difference of large numbers. A frame that is missing repeats the one before it, so its change is 0.
        """
        if not self.changes or condition.shape[1] == 3:
            return condition
        return torch.cat(
            (condition[:, :3], (condition[:, :-3] - condition[:, 3:]) / sigma_data[:, None, None, None]), 1
        )

    def __call__(
        self,
        x: Tensor,  # (B, 3, H, W) fp32, clean + sigma * noise
        sigma: Tensor,  # (B,) fp32, > 0; or (1,), the same for all, as is then frame_offset
        condition: Tensor | None = None,  # (B, 3 n, H, W) fp32 in [-1, 1]: n neighbouring frames, the nearest first
        frame_offset: Tensor | None = None,  # (B or 1,) int64
    ) -> Tensor:
        """The expected clean image, (B, 3, H, W) fp32."""
        sigma_data = self.sigma_data_of(frame_offset, len(sigma), x.device)
        prior_mean = self.prior_mean(x, condition)

        def columns(values: tuple[Tensor, ...]) -> list[Tensor]:
            return [value[:, None, None, None] for value in values]

        of_x, of_prior_mean = columns(self.parameterization.input(sigma, sigma_data))
        inputs = of_x * x + of_prior_mean * prior_mean
        if condition is not None:
            inputs = torch.cat((self.seen(condition, sigma_data), inputs), 1)
        output = self.network(inputs, self.time(sigma, sigma_data), frame_offset if self.frame_offset else None)
        of_output, of_x, of_prior_mean = columns(self.parameterization.estimate(sigma, sigma_data))
        return of_output * output.float() + of_x * x + of_prior_mean * prior_mean


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
