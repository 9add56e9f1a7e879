"""A role's reverse process as its recipe has it: which levels, which noise, which sampler. For everything that makes.

Noise comes from the counter-based generator, keyed by each sample's own seed and by the frame index (frame) it is for, so
a sample is the same alone or in a batch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..diffusion.denoiser import prior_mean_of
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedule import karras_sigmas, truncated
from ..errors import SinfusionError
from ..network import NextNet
from ..recipe import Recipe
from ..roles import Role
from ..run import Run

STREAM_SAMPLE = 16  # plus the role's number of conditions, so that Predictor and Projector draw apart
DRAWS_A_FRAME = 4096  # counters of a frame index in one row: the last is the start's, the others are evaluations
EVALUATIONS_A_ROW = DRAWS_A_FRAME - 1
ROW = 2**51  # further evaluations go on in rows of their own, each beyond the counters of 2^39 frame indices

# Above this a reverse process on a CPU is not recorded: the memory it would keep is worth more than the time it saves.
GRAPHED_PIXELS = 2**14


def sampling_sigmas(
    run: Run,
    role: Role,
    frame_offset: int = 1,
    steps: int | None = None,  # None: the recipe's
    sigma_start: float | None = None,  # sigma at which to enter; None: the top
    strength: float = 1.0,  # in (0, 1]: enter at this fraction of the timesteps
) -> np.ndarray:
    """(n + 1,) float64 levels to visit, from the entry down to 0."""
    recipe, denoiser = run.recipe, run.denoiser(role)
    if steps is None:
        steps = recipe.sampling_steps if role.conditions else recipe.unconditional_sampling_steps
    if not 0 < strength <= 1:
        raise SinfusionError(f"strength must be above 0 and at most 1, not {strength}.")
    if denoiser.parameterization == "preconditioned":
        sigma_data = denoiser.sigma_data[min(abs(frame_offset), len(denoiser.sigma_data)) - 1]
        top, bottom = _range(recipe, role)
        # The cosine schedule's level at this fraction of its timesteps, so that a strength means the same everywhere.
        entry = sigma_start if sigma_start is not None else math.tan(strength * math.pi / 2)
        return karras_sigmas(steps, min(entry, top * sigma_data), min(bottom * sigma_data, entry / 2))
    sigmas = denoiser.schedule.sigmas(steps)
    if sigma_start is None and strength < 1:
        sigma_start = float(denoiser.schedule.sigma_at(np.maximum(1, strength * recipe.timesteps)))
    return sigmas if sigma_start is None or sigma_start >= sigmas[0] else truncated(sigmas, sigma_start)


def _range(recipe: Recipe, role: Role) -> tuple[float, float]:
    """Highest and lowest sampling level in units of sigma_data."""
    if role.conditions:
        return recipe.sigma_max, recipe.sigma_min
    return recipe.unconditional_sigma_max, recipe.unconditional_sigma_min


@torch.no_grad()
def reverse(
    run: Run,
    role: Role,
    seeds: Tensor,  # (B,) int64
    frame_index: int | Tensor,  # which image of a rollout this is; a tensor is () int64 on the run's device
    sigmas: np.ndarray,  # from `sampling_sigmas`
    start: Tensor | None = None,  # (B, 3, H, W) in [-1, 1]: the image noise is added to; None: the prior mean
    size: tuple[int, int] | None = None,  # (H, W), needed where neither start nor condition tells it
    condition: Tensor | None = None,  # (B, 3 n, H, W) in [-1, 1]
    frame_offset: int | None = None,
    known_mask: Tensor | None = None,  # (B or 1, 1, H, W) bool: True where known_image is kept
    known_image: Tensor | None = None,  # (B or 1, 3, H, W)
    sampler: str | None = None,  # None: the recipe's
) -> Tensor:
    """One image for each seed, (B, 3, H, W) fp32 in [-1, 1]. Nothing here waits for the device."""
    denoiser = run.denoiser(role)
    network = denoiser.network
    assert isinstance(network, NextNet)
    table = _table(run, role, sampler or run.recipe.sampler, sigmas, frame_offset)
    sigma_data = denoiser.sigma_data_of(table.frame_offset, len(table.sigma), run.device)
    # For all evaluations at once, and one row for all samples: products over more rows would round differently.
    shifts = network.shifts(
        denoiser.time(table.sigma, sigma_data), table.frame_offset if denoiser.frame_offset else None
    )
    seeds = seeds.to(run.device)
    frame_index = frame_index if isinstance(frame_index, Tensor) else torch.full((), frame_index, device=run.device)
    counters = frame_index * DRAWS_A_FRAME + table.draws

    x = _start(run, len(seeds), start, size, condition)
    prior_mean = None if condition is None else _in_order(prior_mean_of(x, condition))
    shape = (len(x), role.in_channels, *x.shape[2:])
    inputs = torch.empty(shape, dtype=network.dtype, device=run.device, memory_format=torch.channels_last)
    if condition is not None:
        inputs[:, :-3] = condition
    before = torch.zeros_like(x) if table.looks_back else None
    stream = STREAM_SAMPLE + role.conditions
    known = [None if value is None else _in_order(value) for value in (known_mask, known_image)]
    state = (x, prior_mean, seeds, counters, shifts, inputs, before, *known)
    if run.device.type != "cpu" or not run.graph or len(x) * x.shape[2] * x.shape[3] > GRAPHED_PIXELS:
        return _loop(network, table, stream, *state)
    cpu_graphed = run.loops.get(role.name)
    if cpu_graphed is None or cpu_graphed[0] is not network or cpu_graphed[1] is not table:
        cpu_graphed = network, table, ops.cpu_graphed(functools.partial(_loop, network, table, stream))
        run.loops[role.name] = cpu_graphed
    return cast(Tensor, cpu_graphed[2](*state).clone())


def _loop(
    network: NextNet,
    table: Table,
    stream: int,
    x: Tensor,  # changed in place, like inputs and before
    prior_mean: Tensor | None,
    seeds: Tensor,
    counters: Tensor,  # (S + 1,) int64
    shifts: Tensor,  # (S, ...) from `NextNet.shifts`
    inputs: Tensor,
    before: Tensor | None,
    known: Tensor | None,
    image: Tensor | None,
) -> Tensor:
    """The steps, without a copy or a wait; x after the last."""
    ops.ddpm_step(x, None, prior_mean, table.coefficients[0], seeds, stream, counters[0], inputs, before)
    for i in range(len(table.sigma)):
        output = network.evaluate(inputs, shifts[i : i + 1])
        row, draw = table.coefficients[i + 1], counters[i + 1]
        ops.ddpm_step(x, output, prior_mean, row, seeds, stream, draw, inputs, before, known, image)
    return x


def _in_order(value: Tensor) -> Tensor:
    """As `ops.ddpm_step` reads it, which would copy anything else in every step."""
    return value.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Table:
    """The numbers of a reverse process, on the device."""

    sigma: Tensor  # (S,) fp32: the level of each evaluation
    coefficients: (
        Tensor  # (S + 1, 9) fp32, as `ops.ddpm_step` takes them: the start, then the step after each evaluation
    )
    draws: Tensor  # (S + 1,) int64: number of each step's noise within its frame index
    frame_offset: Tensor | None  # (S,) int64
    looks_back: bool  # some state depends on the one before the last


def _table(run: Run, role: Role, sampler: str, sigmas: np.ndarray, frame_offset: int | None) -> Table:
    """Made once for each reverse process that a run is asked for: no copy to the device while a graph is recorded."""
    denoiser = run.denoiser(role)
    key = (denoiser.parameterization, denoiser.sigma_data, run.device, sampler, sigmas.tobytes(), frame_offset)
    if key in run.tables:
        outputs: Table = run.tables[key]
        return outputs
    steps = SAMPLERS[sampler](sigmas)
    sigma_data = denoiser.sigma_data[min(abs(frame_offset or 1), len(denoiser.sigma_data)) - 1]
    of_input = [denoiser.form.input(step.sigma, sigma_data) for step in steps] + [(0.0, 0.0)]
    rows = [(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, steps[0].sigma, *of_input[0])]
    for step, inputs in zip(steps, of_input[1:], strict=True):
        rows.append((*denoiser.form.estimate(step.sigma, sigma_data), *step[1:], *inputs))
    outputs = Table(
        torch.tensor([step.sigma for step in steps], device=run.device),
        torch.tensor(rows, device=run.device),
        torch.from_numpy(_draws(len(steps))).to(run.device),
        None if frame_offset is None else torch.full((len(steps),), frame_offset, device=run.device),
        any(step.of_previous for step in steps),
    )
    run.tables[key] = outputs
    return outputs


def _draws(steps: int) -> np.ndarray:
    """(steps + 1,) int64: numbers of the start's noise and of each step's within a frame index; never those of another."""
    row, column = np.divmod(np.arange(steps, dtype=np.int64), EVALUATIONS_A_ROW)
    return np.append(np.int64(EVALUATIONS_A_ROW), row * ROW + column)


def _start(
    run: Run, batch: int, start: Tensor | None, size: tuple[int, int] | None, condition: Tensor | None
) -> Tensor:
    """(B, 3, H, W) fp32, channels-last and its own memory: what noise is added to."""
    if start is None:
        if condition is None:
            start = torch.zeros(batch, 3, *size, device=run.device)  # type: ignore[misc]  # size is given here
        else:
            start = prior_mean_of(condition[:, :3], condition)
    return torch.empty_like(start, memory_format=torch.channels_last).copy_(start)
