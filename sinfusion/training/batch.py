"""What a training step sees: crops, noise levels and noise, all of them a pure function of (seed, n) for step n.

Frames stay uint8 on the training device. Random numbers come from the counter-based generator, so that a resumed
training, or one spread over several processes, sees exactly what an uninterrupted one in one process sees. Everything
is drawn where the frames are: nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..diffusion.denoiser import Denoiser
from ..motion import compensated
from ..pixels import resize, to_uint8, to_unit
from ..recipe import Recipe
from ..roles import INTERPOLATOR, PREDICTOR, Role
from ..run import Run

# Streams of the generator: one for each purpose, so that no two draws share numbers.
STREAM_CROP, STREAM_SIGMA, STREAM_NOISE, STREAM_SIGMA_MAX = range(1, 5)
STREAM_WHITE_CONDITION_NOISE, STREAM_COARSE_CONDITION_NOISE, STREAM_CONDITION_NOISE_SHARE = range(5, 8)
STREAM_CONDITION_DROPOUT, STREAM_HALF_SIZE = 8, 9

COARSE_PIXELS = 8  # pixels from one sample of the coarse noise to the next
# The models of a run draw different numbers from one seed. Their order is part of what a seed means.
SEED_ORDER = ("image", "predictor", "projector", "interpolator")


class Draws(NamedTuple):
    """What is drawn for the samples of a step but for noise; or for those of several steps, one after the other."""

    places: Tensor  # (B, 3) int64: frame of the target, top, left
    around: Tensor  # (B, n) int64: frames of the conditions
    frame_offset: Tensor  # (B,) int64
    coefficients: Tensor  # (B, 6 + 4 n) fp32, as the next three; as `ops.sample_crops` takes them
    sigma: Tensor  # (B,) fp32
    sigma_data: Tensor  # (B,) fp32
    time: Tensor  # (B,) fp32: the network's time input


@dataclass(frozen=True)
class Batch:
    """What the network sees in one step, and what it should make of it."""

    inputs: Tensor  # (B, 3 (n + 1), h, w), conditions first
    target: Tensor  # (B, 3, h, w) fp32
    draws: Draws


class BatchSampler:
    """Draws the batches of one model."""

    def __init__(self, run: Run, role: Role, denoiser: Denoiser, samples: range):  # samples: of the whole batch
        self.role, self.recipe, self.denoiser = role, run.recipe, denoiser
        self.dtype = run.dtype or torch.float32  # of the inputs
        size = run.recipe.frame_size(role, *run.size)
        clip = run.frames if size == run.size else np.stack([resize(frame, size) for frame in run.frames])
        frames = torch.from_numpy(np.ascontiguousarray(clip)).to(run.device)
        self.clip = frames.shape[0], frames.shape[1], frames.shape[2]  # T, H, W
        self.half_size_share = run.recipe.half_size_share if role is INTERPOLATOR else 0.0
        # (n T, H, W, 3) uint8: the clip; of the Interpolator what stands at its neighbours' places, too.
        self.frames = interpolator_frames(frames, run.recipe) if role is INTERPOLATOR else frames
        self.crop = run.recipe.crop_size(role, *run.size)  # height, width
        self.seeds = sample_seeds(run.seed * 16 + SEED_ORDER.index(role.name), samples).to(run.device)  # (B,) int64
        # Of a rollout's own errors; an Interpolator sees frames as they are.
        recipe, rolled = run.recipe, role is PREDICTOR
        strength = (recipe.white_condition_noise, recipe.coarse_condition_noise) if rolled else (0.0, 0.0)
        self.coarse_noise = rolled and recipe.coarse_condition_noise > 0
        self.conditions = recipe.conditions(role)
        self.condition_noise = torch.tensor(strength, device=run.device)  # (2,) fp32, in units of sigma_data

    def draw(self, step: Tensor, largest_offset: Tensor) -> Draws:
        """For a step, () int64 on the device; largest_offset: () or (1,) int64, that of the Predictor.

        Or for several, both (n,): then the samples of each step follow those of the step before.
        """
        seeds, count = self.seeds, len(self.seeds)
        if step.ndim:
            seeds = seeds.repeat(len(step))
            step, largest_offset = step.repeat_interleave(count), largest_offset.repeat_interleave(count)
        role, recipe, denoiser = self.role, self.recipe, self.denoiser
        places, frame_offset = draw_places(self.clip, role, self.crop, seeds, step, largest_offset, recipe.every_triple)
        if self.half_size_share:
            bits = ops.uniform_bits(seeds, STREAM_HALF_SIZE, step, 1, seeds.device)[:, 0]
            places[:, 0] += len(self.frames) // 2 * (bits < int(self.half_size_share * 2**32))
        around = condition_frames(recipe, role, self.clip[0], places[:, 0], frame_offset, seeds, step)
        sigma_data = denoiser.sigma_data_of(frame_offset if role.frame_offset else None, len(seeds), seeds.device)
        sigma = draw_sigmas(recipe, role, denoiser, sigma_data, seeds, step)
        share = ops.uniform_bits(seeds, STREAM_CONDITION_NOISE_SHARE, step, 2, seeds.device).float() / 2**32
        strength = self.condition_noise * sigma_data[:, None] * share  # (B, 2): of white and of coarse noise
        coefficients = [denoiser.training_coefficients(sigma, sigma_data)]
        for i in range(self.conditions):
            coefficients += self._condition_coefficients(i, around, sigma_data[:, None], strength)
        time = denoiser.time(sigma, sigma_data)
        return Draws(places, around, frame_offset, torch.cat(coefficients, 1), sigma, sigma_data, time)

    def __call__(self, step: Tensor, draws: Draws) -> Batch:
        """The batch of a step, () int64 on the device, of which `draws` are."""
        inputs, target = ops.sample_crops(
            self.frames,
            draws.places,
            draws.around,
            draws.coefficients,
            self._coarse_noise(step),
            self.seeds,
            step,
            (STREAM_NOISE, STREAM_WHITE_CONDITION_NOISE),
            self.denoiser.changes,
            self.crop,
            self.dtype,
        )
        return Batch(inputs, target, draws)

    def _coarse_noise(self, step: Tensor) -> Tensor | None:
        """(B, C, h, w) fp32: noise on the conditions like a rollout's own errors, beside the white one."""
        if not self.coarse_noise:
            return None
        shape = (3 * self.conditions, self.crop[0] // COARSE_PIXELS + 2, self.crop[1] // COARSE_PIXELS + 2)
        return ops.normal(self.seeds, STREAM_COARSE_CONDITION_NOISE, step, shape, self.seeds.device)

    def _condition_coefficients(
        self, i: int, around: Tensor, sigma_data: Tensor, strength: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of condition i, its noise and it in the prior mean, (B, 1), (B, 2) and (B, 1): see `Denoiser.seen`."""
        one = torch.ones_like(sigma_data)
        if not self.denoiser.changes:
            return one, strength, one / self.conditions
        if i == 0:
            return one, strength, one
        known = around[:, i - 1 : i] != around[:, i : i + 1]  # a missing frame's change is exactly 0
        return 1 / sigma_data, known * self.recipe.change_noise / sigma_data * strength, 0 * one


def interpolator_frames(frames: Tensor, recipe: Recipe) -> Tensor:
    """(n T, H, W, 3) uint8: what an Interpolator's crops are cut from, of a clip (T, H, W, 3) uint8.

    The clip, then, with motion compensation, each frame's neighbours moved to it: all those before, all those after.
    And all of that at half the size, if the recipe takes a share of it.
    """
    parts = [with_neighbours(frames) if recipe.motion_compensation else frames]
    if recipe.half_size_share:
        half = at_half_size(frames)
        parts.append(mirrored(with_neighbours(half) if recipe.motion_compensation else half, frames.shape[1:3]))
    return torch.cat(parts)


def with_neighbours(frames: Tensor) -> Tensor:
    """(3 T, H, W, 3) uint8: a clip (T, H, W, 3), then the frame before each and the one after, moved to it.

    The first and the last frame, which nothing is between, stand for themselves.
    """
    parts = zip(frames[:-2].split(16), frames[2:].split(16), strict=True)  # bounds the memory
    moved = [to_uint8(compensated(to_unit(a), to_unit(b)).unflatten(1, (2, 3)).transpose(0, 1)) for a, b in parts]
    before, after = (torch.cat((frames[:1], some, frames[-1:])) for some in torch.cat(moved, 1))
    return torch.cat((frames, before, after))


def at_half_size(frames: Tensor) -> Tensor:
    """(T, H / 2, W / 2, 3) uint8, rounded up.

    What moves by two pixels from one training frame to the next but one moves by one here, as it does between the
    frames that an Interpolator is to fill (across scales, as in Zuckerman et al. 2020).
    """
    size = [-(-side // 2) for side in frames.shape[1:3]]
    parts = [F.interpolate(some.movedim(-1, 1).float(), size, mode="area") for some in frames.split(16)]
    return torch.cat([part.round().to(torch.uint8).movedim(1, -1) for part in parts])


def mirrored(half: Tensor, size: Sequence[int]) -> Tensor:
    """(T, H, W, 3): frames of half the size, four times beside each other and mirrored at the seams."""
    beside = torch.cat((half, half.flip(2)), 2)
    return torch.cat((beside, beside.flip(1)), 1)[:, : size[0], : size[1]].contiguous()


class StepTable:
    """Tensors of many steps: a GPU then fetches what a step needs in one launch, instead of dozens that make it.

    Their bytes lie behind each other, a row for each step; whole numbers come first, so that all are aligned.
    """

    def __init__(self, step: Sequence[Tensor], steps: int):  # step: as those of one step
        self._kinds = [(value.nbytes, value.dtype, value.shape) for value in step]
        row = sum(size for size, _, _ in self._kinds)
        self._rows = torch.zeros(steps, row, dtype=torch.uint8, device=step[0].device)

    def fill(self, row: int, steps: int, values: Sequence[Tensor]) -> None:
        """Keep those of so many steps, one after the other, from a row on."""
        columns = [value.reshape(steps, -1).contiguous().view(torch.uint8) for value in values]
        self._rows[row : row + steps] = torch.cat(columns, 1)

    def at(self, row: Tensor) -> list[Tensor]:
        """Those of a row, (1,) int64 on the device."""
        parts = self._rows.index_select(0, row)[0].split([size for size, _, _ in self._kinds])
        return [part.view(dtype).view(shape) for part, (_, dtype, shape) in zip(parts, self._kinds, strict=True)]


def sample_seeds(seed: int, samples: range) -> Tensor:
    """(len(samples),) int64: a key of the generator for each sample of the batch."""
    return torch.tensor([(seed * 1_000_003 + b) & (2**62 - 1) for b in samples], dtype=torch.int64)


def draw_places(
    clip: tuple[int, int, int],  # frames, height, width
    role: Role,
    crop: tuple[int, int],  # height, width
    seeds: Tensor,  # (B,) int64
    step: Tensor,  # () int64 on the same device
    largest_offset: Tensor | int = 1,  # () or (1,) int64; of the Predictor: frame offsets are up to this, both ways
    every_triple: bool = True,  # of the Interpolator: any middle frame, not only the odd ones
) -> tuple[Tensor, Tensor]:
    """Where each sample of a step is cut, so that its nearest conditions exist.

    Returns (B, 3) int64: frame of the target, top, left, as `ops.sample_crops` takes it; (B,) int64: frame offset.
    """
    count, height, width = clip
    bits = ops.uniform_bits(seeds, STREAM_CROP, step, 4, seeds.device)
    top, left = _below(height - crop[0] + 1, bits[:, 2]), _below(width - crop[1] + 1, bits[:, 3])
    offset = torch.ones_like(top)
    if role.conditions == 0:
        target = _below(count, bits[:, 0])
    elif role.conditions == 1:
        offset = _below(2 * largest_offset, bits[:, 1]) - largest_offset
        offset = offset + (offset >= 0)  # never 0
        target = offset.clamp(min=0) + _below(count - offset.abs(), bits[:, 0])
    elif every_triple:
        target = 1 + _below(count - 2, bits[:, 0])
    else:
        target = 1 + 2 * _below((count - 1) // 2, bits[:, 0])
    return torch.stack((target, top, left), 1), offset


def condition_frames(
    recipe: Recipe,
    role: Role,
    count: int,  # frames of the clip
    target: Tensor,  # (B,) int64
    offset: Tensor,  # (B,) int64
    seeds: Tensor,  # (B,) int64
    step: Tensor,  # () int64
) -> Tensor:
    """(B, n) int64: the frames that condition each target, the nearest first.

    A frame before the last one that does not exist, or that is dropped so that the network learns to do without,
    repeats the one after it.
    """
    if role.conditions == 0:
        return target.new_empty(len(target), 0)
    if role.conditions == 2:
        if recipe.motion_compensation:  # where `interpolator_frames` has them
            return torch.stack((target + count, target + 2 * count), 1)
        return torch.stack((target - 1, target + 1), 1)
    frames = [target - offset]
    if recipe.previous_frames > 1:
        bits = ops.uniform_bits(seeds, STREAM_CONDITION_DROPOUT, step, 1, seeds.device)[:, 0]
    for i in range(1, recipe.previous_frames):
        older = frames[-1] - offset
        missing = (older < 0) | (older >= count) | (bits < int(i * recipe.condition_dropout * 2**32))
        frames.append(torch.where(missing, frames[-1], older))
    return torch.stack(frames, 1)


def _below(bound: Tensor | int, bits: Tensor) -> Tensor:
    """Whole numbers in [0, bound) from 32 uniform bits."""
    return bits * bound >> 32


def draw_sigmas(
    recipe: Recipe,
    role: Role,
    denoiser: Denoiser,
    sigma_data: Tensor,  # (B,) fp32
    seeds: Tensor,  # (B,) int64
    step: Tensor,  # () int64
) -> Tensor:
    """(B,) fp32: the noise level of each sample of a step.

    preconditioned: ln(sigma / sigma_data) is normal (Karras et al. 2022, table 1); for models with a condition a share
    is at sigma_max, where they learn the conditional mean. Otherwise the sigma of a timestep of 1..T or, for continuous
    roles, of a sqrt(alphas_cumprod) that is uniform between those of two neighbouring timesteps (as in the released
    code).
    """
    device = seeds.device
    if denoiser.preconditioned:
        normal = ops.normal(seeds, STREAM_SIGMA, step, (1,), device)[:, 0]
        if not role.conditions:
            log_sigma = recipe.unconditional_log_sigma_mean + recipe.unconditional_log_sigma_std * normal
            return sigma_data * log_sigma.exp()
        log_sigma = recipe.log_sigma_mean + recipe.log_sigma_std * normal
        bits = ops.uniform_bits(seeds, STREAM_SIGMA_MAX, step, 1, device)[:, 0]
        at_max = bits < int(recipe.sigma_max_share * 2**32)
        return sigma_data * log_sigma.masked_fill(at_max, math.log(recipe.sigma_max)).exp()
    sqrt_alphas_cumprod = denoiser.sqrt_alphas_cumprod(device)
    bits = ops.uniform_bits(seeds, STREAM_SIGMA, step, 2, device)
    timestep = 1 + (bits[:, 0] * (len(sqrt_alphas_cumprod) - 1) >> 32)
    signal = sqrt_alphas_cumprod[timestep]
    if denoiser.continuous:
        signal = signal + bits[:, 1].double() / 2**32 * (sqrt_alphas_cumprod[timestep - 1] - signal)
    return (1 / signal**2 - 1).clamp(min=1e-8).sqrt().float()  # alphas_cumprod = 1 / (1 + sigma^2)
