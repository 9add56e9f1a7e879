"""The reverse process of a trained model, made once and called for one image or frame after another.

It computes what `diffusion.samplers.sample` computes with the model's denoiser, by fused kernels over memory of its own
and without waiting for the device. Noise comes from the counter-based generator, keyed by each sample's seed and by the
index of the frame, so a sample is the same alone and in a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import SAMPLERS, Step, resampled
from ..diffusion.schedule import karras_sigmas, truncated
from ..errors import SettingError, SinfusionError
from ..network import NextNet
from ..recipe import Recipe
from ..roles import Role
from ..run import Run

STREAM_SAMPLE = 16  # plus `Role.conditions`, so that Predictor and Projector draw apart
DRAWS_A_FRAME = 4096  # counters of a frame in one row: the last is that of x's first noise, the others of evaluations
EVALUATIONS_A_ROW = DRAWS_A_FRAME - 1
NOISE = 6  # column of the coefficients: of the noise that is added
GAIN_SIGMA = 0.5  # in units of sigma_data: below it, where texture is made, changes are not amplified
ROW = 2**51  # further evaluations go on in rows of their own, each beyond the counters of 2^39 frames

MOST_JUMPS = 100

# With more pixels a CPU does not capture the process: the memory of a graph is worth more than the time it saves.
GRAPHED_PIXELS = 2**14

# A hook of the reverse process: (clean, sigma, step) -> clean. The clean estimate (B, 3, H, W) fp32 in [-1, 1] of the
# evaluation number `step`, at the noise level sigma, is replaced by what it returns; step 0 begins a new image. Where
# it returns what it was given, the step is what it would be without it, to the bit.
Guide = Callable[[Tensor, float, int], Tensor]


class Multiples(NamedTuple):
    """What a reverse process has more of, or less."""

    noise: float = 1.0
    change: float = 1.0  # of clean estimates from the prior mean


AS_TRAINED = Multiples()


class ReverseProcess:
    """A denoiser, the steps of a sampler and a frame offset, with their numbers on the device."""

    def __init__(
        self,
        denoiser: Denoiser,
        steps: Sequence[Step],
        conditions: int = 0,  # number of conditioning frames
        frame_offset: int | None = None,
        graph: bool = True,  # on a CPU, capture small images
        stream: int = STREAM_SAMPLE,  # of the generator
        wraps: tuple[bool, bool] = (False, False),  # whether rows, and columns, go on at the other border: a tile
        multiples: Multiples = AS_TRAINED,
    ):
        network = denoiser.network
        assert isinstance(network, NextNet)
        self.denoiser, self.network, self.steps, self.conditions = denoiser, network, steps, conditions
        self.frame_offset, self.stream = frame_offset, stream
        self.device = device = next(network.parameters()).device
        sigma = torch.tensor([step.sigma for step in steps], device=device)
        offset = None if frame_offset is None else torch.full((len(steps),), frame_offset, device=device)
        self.multiples = multiples
        rows = _coefficients(denoiser, steps, frame_offset, multiples.change)
        self.coefficients = torch.tensor(rows, device=device)  # (S + 1, 9)
        self.coefficients[:, NOISE] *= multiples.noise
        self.noise = self.coefficients[:, NOISE].clone()  # (S + 1,)
        self.draws = torch.from_numpy(_draws(len(steps))).to(device)  # (S + 1,) int64
        with torch.no_grad():
            # Of all evaluations at once, a row for all samples: products over more rows would round differently.
            sigma_data = denoiser.sigma_data_of(offset, len(steps), device)
            time = denoiser.time(sigma, sigma_data)
            self.shifts = network.shifts(time, offset if denoiser.frame_offset else None)  # (S, ...)
            self.sigma_data = sigma_data[:1]
        self.wraps = wraps
        capture = graph and device.type == "cpu" and not any(wraps)
        self.graphed = ops.cpu_graphed(self._loop) if capture else None
        self.guide: Guide | None = None

    def resampling(self, jumps: int) -> ReverseProcess:
        """The same with each step taken `jumps` more times, see `samplers.resampled`; a guide comes after this."""
        if isinstance(jumps, bool) or not isinstance(jumps, Integral) or not 0 <= jumps <= MOST_JUMPS:
            raise SettingError(f"{{jumps}} must be from 0 to {MOST_JUMPS}, not {jumps!r:.40}.")
        if jumps == 0:
            return self
        return self._with(resampled(self.steps, int(jumps)), self.multiples)

    def livelier(self, multiples: Multiples) -> ReverseProcess:
        """The same with so much noise and change; a guide comes after this."""
        return self if multiples == self.multiples else self._with(self.steps, multiples)

    def _with(self, steps: Sequence[Step], multiples: Multiples) -> ReverseProcess:
        how = self.conditions, self.frame_offset, self.graphed is not None, self.stream, self.wraps, multiples
        return ReverseProcess(self.denoiser, steps, *how)

    def guided(self, guide: Guide | None) -> ReverseProcess:
        """The same with this guide; without a graph, since a guide is any code."""
        if guide is None:
            return self
        process = copy.copy(self)
        process.guide, process.graphed = guide, None
        return process

    def scale_noise(self, surprise: float) -> None:
        """Add so many times the noise from now on: with less only the likely happens, with more the unlikely, too.

        1 is the noise of the beginning, which is itself a multiple.
        """
        self.coefficients[:, NOISE] = surprise * self.noise

    @torch.no_grad()
    def __call__(
        self,
        seeds: Tensor,  # (B,) int64
        frame_index: int | Tensor,  # each has noise of its own; a tensor is () int64 on the device
        condition: Tensor | None = None,  # (B, 3 n, H, W) in [-1, 1], the nearest frame first
        init_image: Tensor | None = None,  # (B, 3, H, W) in [-1, 1], to which noise is added; None: the prior mean
        size: tuple[int, int] | None = None,  # (H, W), where neither of these tells it
        known_mask: Tensor | None = None,  # (B or 1, 1, H, W) bool: where every clean estimate is known_image
        known_image: Tensor | None = None,  # (B or 1, 3, H, W) in [-1, 1]
    ) -> Tensor:
        """One image a seed, (B, 3, H, W) fp32. Each clean estimate is clamped to [-1, 1]."""
        if not isinstance(frame_index, Tensor):
            frame_index = torch.full((), frame_index, device=self.device)
        x = self._init(len(seeds), condition, init_image, size)
        prior_mean = None if condition is None else _channels_last(self.denoiser.prior_mean(x, condition))
        shape = (len(x), 3 * (self.conditions + 1), *x.shape[2:])
        inputs = torch.empty(shape, dtype=self.network.dtype, device=x.device, memory_format=torch.channels_last)
        if condition is not None:
            inputs[:, :-3] = self.denoiser.seen(condition, self.sigma_data)
        previous = torch.zeros_like(x) if any(step.of_previous for step in self.steps) else None
        known = (None if value is None else _channels_last(value) for value in (known_mask, known_image))
        counters = frame_index * DRAWS_A_FRAME + self.draws
        state: tuple[Any, ...] = (x, prior_mean, seeds.to(x.device), counters, inputs, previous, *known)
        if self.graphed is None or len(x) * x.shape[2] * x.shape[3] > GRAPHED_PIXELS:
            return self._loop(*state)
        return self.graphed(*state).clone()

    def _init(
        self, batch: int, condition: Tensor | None, init_image: Tensor | None, size: tuple[int, int] | None
    ) -> Tensor:
        """(B, 3, H, W) fp32, channels-last memory of its own: what the first noise is added to."""
        if init_image is None:
            if condition is None:
                assert size is not None
                init_image = torch.zeros(batch, 3, *size, device=self.device)
            else:
                init_image = self.denoiser.prior_mean(condition[:, :3], condition)
        return torch.empty_like(init_image, memory_format=torch.channels_last).copy_(init_image)

    def _loop(
        self,
        x: Tensor,  # changed in place, like inputs and previous
        prior_mean: Tensor | None,
        seeds: Tensor,
        counters: Tensor,  # (S + 1,) int64
        inputs: Tensor,  # (B, C, H, W): what the network sees, conditions first
        previous: Tensor | None,
        known_mask: Tensor | None,
        known_image: Tensor | None,
    ) -> Tensor:
        """The steps, without a copy or a wait: x after the last."""
        ops.ddpm_step(x, None, prior_mean, self.coefficients[0], seeds, self.stream, counters[0], inputs, previous)
        for i in range(len(self.steps)):
            output = self._evaluate(inputs, self.shifts[i : i + 1])
            row, counter = self.coefficients[i + 1], counters[i + 1]
            if self.guide is not None:
                output, row = self._guided(i, output, (x, prior_mean), known_mask, known_image)
            ops.ddpm_step(
                x, output, prior_mean, row, seeds, self.stream, counter, inputs, previous, known_mask, known_image
            )  # fmt: skip
        return x

    def _guided(
        self,
        i: int,
        output: Tensor,
        of_clean: tuple[Tensor, Tensor | None],  # x and prior_mean
        known_mask: Tensor | None,
        known_image: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Output and coefficients of step i for `ops.ddpm_step`, whose clean estimate is the guide's."""
        assert self.guide is not None
        row = self.coefficients[i + 1]
        clean = row[0] * output.float()
        for coefficient, value in zip(row[1:3], of_clean, strict=True):
            if value is not None:
                clean = clean + coefficient * value
        clean = clean.clamp(-1, 1)
        if known_mask is not None and known_image is not None:
            clean = torch.where(known_mask, known_image, clean)
        guided = self.guide(clean, self.steps[i].sigma, i)
        if guided is clean:
            return output, row
        as_it_is = row.clone()
        as_it_is[0], as_it_is[1:3] = 1, 0
        return _channels_last(guided), as_it_is

    def _evaluate(self, inputs: Tensor, shifts: Tensor) -> Tensor:
        """The network's output; of a tile, as if its copies lay all around, as far as a pixel is seen."""
        if not any(self.wraps):
            return self.network.evaluate(inputs, shifts)
        rows, columns = (
            min(self.network.reach, side) if wraps else 0
            for side, wraps in zip(inputs.shape[2:], self.wraps, strict=True)
        )
        around = _channels_last(F.pad(inputs, (columns, columns, rows, rows), mode="circular"))
        output = self.network.evaluate(around, shifts)
        inside = output[:, :, rows : output.shape[2] - rows, columns : output.shape[3] - columns]
        return _channels_last(inside)


def _channels_last(value: Tensor) -> Tensor:
    """As `ops.ddpm_step` reads it, which would copy anything else in every step."""
    return value.contiguous(memory_format=torch.channels_last)


def _coefficients(
    denoiser: Denoiser, steps: Sequence[Step], frame_offset: int | None, gain: float
) -> list[tuple[float, ...]]:
    """(S + 1, 9), as `ops.ddpm_step` takes them: the first noise, then the step after each evaluation."""
    sigma_data, form = denoiser.sigma_data_at(frame_offset), denoiser.parameterization
    inputs = [form.input(step.sigma, sigma_data) for step in steps] + [(0.0, 0.0)]
    rows: list[tuple[float, ...]] = [(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, steps[0].sigma, *inputs[0])]
    for step, following in zip(steps, inputs[1:], strict=True):
        estimate = form.estimate(step.sigma, sigma_data)
        if gain != 1 and step.sigma >= GAIN_SIGMA * sigma_data:
            of_output, of_x, of_prior_mean = (gain * value for value in estimate)
            estimate = of_output, of_x, of_prior_mean + 1 - gain  # gain of clean - prior_mean
        rows.append((*estimate, *step[1:], *following))
    return rows


def _draws(steps: int) -> np.ndarray:
    """(steps + 1,) int64: counters within a frame, of the first noise and of each step's; never those of another."""
    row, column = np.divmod(np.arange(steps, dtype=np.int64), EVALUATIONS_A_ROW)
    return np.append(np.int64(EVALUATIONS_A_ROW), row * ROW + column)


def reverse_process(
    run: Run,
    role: Role,
    denoiser: Denoiser | None = None,  # None: the run's trained one
    frame_offset: int | None = None,
    steps: int | None = None,  # None: the recipe's
    sigma_start: float | None = None,  # None: the highest
    strength: float = 1.0,  # in (0, 1]: start at this fraction of the timesteps
    wraps: tuple[bool, bool] = (False, False),  # whether rows, and columns, go on at the other border: a tile
) -> ReverseProcess:
    """A role's reverse process, as the run's recipe has it."""
    denoiser = denoiser or run.denoiser(role)
    sigmas = sampling_sigmas(run.recipe, role, denoiser, frame_offset, steps, sigma_start, strength)
    table = SAMPLERS[run.recipe.sampler](sigmas)
    conditions, stream = run.recipe.conditions(role), STREAM_SAMPLE + role.conditions
    return ReverseProcess(denoiser, table, conditions, frame_offset, run.graph, stream, wraps)


def sampling_sigmas(
    recipe: Recipe,
    role: Role,
    denoiser: Denoiser,
    frame_offset: int | None = None,
    steps: int | None = None,
    sigma_start: float | None = None,
    strength: float = 1.0,
) -> np.ndarray:
    """(n + 1,) float64: the sigmas to visit, from where the process starts down to 0; see `reverse_process`."""
    steps = recipe.sampling_steps_of(role) if steps is None else steps
    if not 0 < strength <= 1:
        raise SinfusionError(f"strength must be above 0 and at most 1, not {strength}.")
    if denoiser.preconditioned:
        sigma_data = denoiser.sigma_data_at(frame_offset)
        highest, lowest = recipe.sigma_max, recipe.sigma_min
        if not role.conditions:
            highest, lowest = recipe.unconditional_sigma_max, recipe.unconditional_sigma_min
        # The cosine schedule's sigma at this fraction of its timesteps, so that a strength means the same everywhere.
        start = sigma_start if sigma_start is not None else math.tan(strength * math.pi / 2)
        return karras_sigmas(steps, min(start, highest * sigma_data), min(lowest * sigma_data, start / 2))
    sigmas = denoiser.schedule.sigmas(steps)
    if sigma_start is None and strength < 1:
        sigma_start = float(denoiser.schedule.sigma_at(np.maximum(1, strength * recipe.timesteps)))
    return sigmas if sigma_start is None or sigma_start >= sigmas[0] else truncated(sigmas, sigma_start)
