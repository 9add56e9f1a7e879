"""The operator `sample_crops`: a training batch of uint8 frames, as the network takes it and as it should answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import require, require_tensor
from .dispatch import native_or_reference
from .native import run, why_no_library
from .philox import normal
from .registration import define, implement, takes

MOST_CONDITIONS = 3


class SampleCrops(NamedTuple):
    frames: Tensor  # (T, H, W, 3) uint8, contiguous
    places: Tensor  # (B, 3) int64, inside the frames: frame of the target, top, left
    condition_frames: Tensor  # (B, n) int64, inside the frames, n from 0 to 3: frames of the conditions
    coefficients: Tensor  # (B, 6 + 4 n) fp32: [0] to [5] below, then those of each condition
    coarse_noise: Tensor | None  # (B, 3 n, h', w') fp32, finite: spread over the crop, corners on corners
    seeds: Tensor  # (B,) int64: keys of the random numbers
    step: Tensor  # () int64: when
    streams: Sequence[int]  # below 2^32: of the noise on the image, of the white noise on the conditions
    changes: bool  # conditions after the first are changes
    size: Sequence[int]  # h, w of the crops
    dtype: torch.dtype  # of the input: fp32 or bf16


@takes(SampleCrops)
def sample_crops(a: SampleCrops) -> tuple[Tensor, Tensor]:
    """input (B, 3 n + 3, h, w): conditions, then the image; target (B, 3, h, w) fp32. Both are channels-last in memory.

    A pixel's value is u8 / 127.5 - 1. In this order, in fp32, with c = [6 + 4 i] to [9 + 4 i] of condition i:

    value = that of its frame; with `changes` and i > 0, that of the frame of condition i - 1 less it
    condition = c[0] value + c[1] normal(seeds, streams[1], step, (3 n, h, w)) + c[2] coarse_noise
    prior_mean = sum of c[3] condition; noise = normal(seeds, streams[0], step, (3, h, w))
    image = [0] clean + [1] noise + [2] prior_mean
    target = [3] clean + [4] noise + [5] prior_mean
    """
    out: tuple[Tensor, Tensor] = torch.ops.sinfusion.sample_crops(*a)
    return out


def _check(a: SampleCrops) -> None:
    frames, device, batch = a.frames, a.frames.device, len(a.places) if a.places.ndim else 0
    require(
        frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == torch.uint8 and frames.is_contiguous(),
        lambda: f"frames are (T, H, W, 3) uint8, contiguous, not {tuple(frames.shape)} {frames.dtype}",
    )
    n = a.condition_frames.shape[1] if a.condition_frames.ndim == 2 else 0
    require(n <= MOST_CONDITIONS, lambda: f"conditions are at most {MOST_CONDITIONS}, not {n}")
    require(
        len(a.size) == 2 and all(0 < side <= most for side, most in zip(a.size, frames.shape[1:3], strict=True)),
        lambda: f"size is two sides above 0 and within {tuple(frames.shape[1:3])}, not {tuple(a.size)}",
    )
    require(
        len(a.streams) == 2 and all(0 <= stream < 2**32 for stream in a.streams),
        lambda: f"streams are two from 0 and below 2^32, not {tuple(a.streams)}",
    )
    require(a.dtype in (torch.float32, torch.bfloat16), lambda: f"dtype is float32 or bfloat16, not {a.dtype}")
    require_tensor("places", a.places, device, [(batch, 3)], torch.int64)
    require_tensor("condition_frames", a.condition_frames, device, [(batch, n)], torch.int64)
    require_tensor("coefficients", a.coefficients, device, [(batch, 6 + 4 * n)], torch.float32)
    require_tensor("seeds", a.seeds, device, [(batch,)], torch.int64)
    require_tensor("step", a.step, device, [()], torch.int64)
    if (coarse := a.coarse_noise) is not None:
        require(n > 0, lambda: "coarse_noise is for conditions")
        sides = [max(1, side) for side in coarse.shape[2:4]] if coarse.ndim == 4 else [1, 1]
        require_tensor("coarse_noise", coarse, device, [(batch, 3 * n, *sides)], torch.float32)


def _check_places(a: SampleCrops) -> None:
    if a.places.device.type != "cpu":  # reading them would wait for a GPU
        return
    shape = a.frames.shape
    for (target, top, left), around in zip(a.places.tolist(), a.condition_frames.tolist(), strict=True):
        in_time = all(0 <= frame < shape[0] for frame in (target, *around))
        in_space = 0 <= top <= shape[1] - a.size[0] and 0 <= left <= shape[2] - a.size[1]
        require(in_time and in_space, lambda: f"places lead outside of frames {tuple(shape)}")


def _empty_results(a: SampleCrops) -> tuple[Tensor, Tensor]:
    def empty(channels: int, dtype: torch.dtype) -> Tensor:
        shape = (len(a.places), channels, *a.size)
        return torch.empty(shape, dtype=dtype, device=a.places.device, memory_format=torch.channels_last)

    return empty(3 * a.condition_frames.shape[1] + 3, a.dtype), empty(3, torch.float32)


def _interpolation(coarse: int, fine: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(fine,) each: coarse positions before and behind each fine one, ends on ends, and the weight of the second."""
    at = torch.arange(fine, dtype=torch.float32, device=device) * ((coarse - 1) / (fine - 1) if fine > 1 else 0.0)
    lower = at.long().clamp(max=coarse - 1)
    return lower, (lower + 1).clamp(max=coarse - 1), at - lower


def _upsample(coarse_noise: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h', w') -> (B, C, h, w), bilinearly."""
    above, below, row_weight = _interpolation(coarse_noise.shape[2], size[0], coarse_noise.device)
    left, right, column_weight = _interpolation(coarse_noise.shape[3], size[1], coarse_noise.device)
    wide = coarse_noise[..., left] + column_weight * (coarse_noise[..., right] - coarse_noise[..., left])
    return wide[:, :, above] + row_weight[:, None] * (wide[:, :, below] - wide[:, :, above])


def _reference(a: SampleCrops) -> tuple[Tensor, Tensor]:
    _check(a)
    _check_places(a)
    device, size, places, n = a.frames.device, a.size, a.places, a.condition_frames.shape[1]
    c = a.coefficients.t()[:, :, None, None, None]
    rows = places[:, 1, None, None] + torch.arange(size[0], device=device)[:, None]
    columns = places[:, 2, None, None] + torch.arange(size[1], device=device)
    scale = torch.full((), 127.5, device=device)  # a GPU multiplies by the inverse of a Python number

    def values(at: Tensor) -> Tensor:
        return (a.frames[at[:, None, None], rows, columns].float() / scale - 1).movedim(3, 1)

    clean, around = values(places[:, 0]), [values(at) for at in a.condition_frames.unbind(1)]
    white_noise = normal(a.seeds, a.streams[1], a.step, (3 * n, *size), device).split(3, 1)
    coarse_noise = None if a.coarse_noise is None else _upsample(a.coarse_noise, size).split(3, 1)
    conditions, prior_mean = [], torch.zeros_like(clean)
    for i, value in enumerate(around):
        of_value, of_white_noise, of_coarse_noise, of_condition = c[6 + 4 * i : 10 + 4 * i]
        condition = of_value * (around[i - 1] - value if a.changes and i else value) + of_white_noise * white_noise[i]
        if coarse_noise is not None:
            condition = condition + of_coarse_noise * coarse_noise[i]
        conditions.append(condition)
        prior_mean = prior_mean + of_condition * condition
    noise = normal(a.seeds, a.streams[0], a.step, (3, *size), device)
    image = c[0] * clean + c[1] * noise + c[2] * prior_mean
    input, target = _empty_results(a)
    input.copy_(torch.cat((*conditions, image), 1))
    target.copy_(c[3] * clean + c[4] * noise + c[5] * prior_mean)
    return input, target


def unsupported(a: SampleCrops) -> list[str]:
    """Why the native kernels cannot run."""
    return why_no_library(a.frames.device)


def _native(a: SampleCrops) -> tuple[Tensor, Tensor]:
    _check_places(a)
    input, target = _empty_results(a)
    coarse_noise = None if a.coarse_noise is None else a.coarse_noise.contiguous()
    coarse_height, coarse_width = (0, 0) if coarse_noise is None else coarse_noise.shape[2:]
    run(
        "sample_crops", a.frames, frames=a.frames, height=a.frames.shape[1], width=a.frames.shape[2],
        batch=len(a.places), crops=a.places.contiguous(), condition_frames=a.condition_frames.contiguous(),
        coefficients=a.coefficients.contiguous(),
        coarse_noise=coarse_noise, coarse_height=coarse_height, coarse_width=coarse_width,
        seeds=a.seeds.contiguous(), step=a.step, noise_stream=a.streams[0], white_noise_stream=a.streams[1],
        conditions=a.condition_frames.shape[1], changes=a.changes, crop_height=a.size[0], crop_width=a.size[1],
        input=input, bf16=a.dtype == torch.bfloat16, target=target,
    )  # fmt: skip
    return input, target


def _fake(a: SampleCrops) -> tuple[Tensor, Tensor]:
    _check(a)
    return _empty_results(a)


_on_device = native_or_reference("sample_crops", _native, _reference, unsupported, _check)
define("sample_crops", SampleCrops, "(Tensor, Tensor)")
implement("sample_crops", SampleCrops, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_fake)
