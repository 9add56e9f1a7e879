"""The operator `sample_crops`: a training batch of uint8 frames, as the network takes it and as it should answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ._choice import use_native
from ._native import run, why_no_library
from ._require import require
from .philox import normal

Index = TypeVar("Index", int, Tensor)  # of frames

_library = torch.library.Library("sinfusion", "FRAGMENT")
_library.define(
    "sample_crops(Tensor frames, Tensor places, Tensor coefficients, Tensor? coarse_noise, Tensor seeds, Tensor step, "
    "int[] streams, int conditions, int[] size, ScalarType dtype) -> (Tensor, Tensor)"
)


def sample_crops(
    frames: Tensor,  # (T, H, W, 3) uint8, contiguous
    places: Tensor,  # (B, 4) int64, inside the frames: frame of the target, frame offset, top, left
    coefficients: Tensor,  # (B, 8) fp32: numbers [0] to [7] below
    coarse_noise: Tensor | None,  # (B, 3 n, h', w') fp32, finite: spread over the crop, corners on corners
    seeds: Tensor,  # (B,) int64: keys of the random numbers
    step: Tensor,  # () int64: when
    streams: Sequence[int],  # below 2^32: of the noise on the image, of the white noise on the conditions
    conditions: int,  # n = 0, 1 (frame target - offset) or 2 (frames target - 1 and target + 1)
    size: Sequence[int],  # h, w of the crops
    dtype: torch.dtype,  # of the input: fp32 or bf16
) -> tuple[Tensor, Tensor]:  # input (B, 3 n + 3, h, w): conditions, then the image; target (B, 3, h, w) fp32
    """A pixel's value is u8 / 127.5 - 1; results are channels-last in memory. In this order, in fp32:

    conditions = values + [6] normal(seeds, streams[1], step, (3 n, h, w)) + [7] coarse_noise
    prior_mean = their mean, or 0 without any; noise = normal(seeds, streams[0], step, (3, h, w))
    image = [0] clean + [1] noise + [2] prior_mean
    target = [3] clean + [4] noise + [5] prior_mean
    """
    out: tuple[Tensor, Tensor] = torch.ops.sinfusion.sample_crops(
        frames, places, coefficients, coarse_noise, seeds, step, list(streams), conditions, list(size), dtype
    )
    return out


def _check(
    frames: Tensor,
    places: Tensor,
    coefficients: Tensor,
    coarse_noise: Tensor | None,
    seeds: Tensor,
    step: Tensor,
    streams: Sequence[int],
    conditions: int,
    size: Sequence[int],
    dtype: torch.dtype,
) -> None:
    require(
        frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == torch.uint8 and frames.is_contiguous(),
        lambda: f"frames are (T, H, W, 3) uint8, contiguous, not {tuple(frames.shape)} {frames.dtype}",
    )
    require(conditions in (0, 1, 2), lambda: f"conditions are 0, 1 or 2, not {conditions}")
    require(
        len(size) == 2 and all(0 < side <= most for side, most in zip(size, frames.shape[1:3], strict=True)),
        lambda: f"size is two sides above 0 and within {tuple(frames.shape[1:3])}, not {tuple(size)}",
    )
    require(
        len(streams) == 2 and all(0 <= stream < 2**32 for stream in streams),
        lambda: f"streams are two from 0 and below 2^32, not {tuple(streams)}",
    )
    require(dtype in (torch.float32, torch.bfloat16), lambda: f"dtype is float32 or bfloat16, not {dtype}")
    batch, device = len(places) if places.ndim else 0, frames.device
    for name, value, shape, kind in (
        ("places", places, (batch, 4), torch.int64),
        ("coefficients", coefficients, (batch, 8), torch.float32),
        ("seeds", seeds, (batch,), torch.int64),
        ("step", step, (), torch.int64),
    ):
        if value.shape != shape or value.dtype != kind or value.device != device:
            raise RuntimeError(
                f"{name} is {shape} {kind} on {device}, not {tuple(value.shape)} {value.dtype} on {value.device}"
            )
    if coarse_noise is not None:
        require(conditions > 0, lambda: "coarse_noise is for conditions")
        require(
            coarse_noise.ndim == 4
            and coarse_noise.shape[:2] == (batch, 3 * conditions)
            and min(coarse_noise.shape[2:]) > 0
            and coarse_noise.dtype == torch.float32
            and coarse_noise.device == frames.device,
            lambda: (
                f"coarse_noise is ({batch}, {3 * conditions}, h, w) float32 on {frames.device}, not "
                f"{tuple(coarse_noise.shape)} {coarse_noise.dtype} on {coarse_noise.device}"
            ),
        )


def _images(target: Index, offset: Index, conditions: int) -> list[Index]:
    """The frames of the conditions, then that of the target."""
    return {0: [], 1: [target - offset], 2: [target - 1, target + 1]}[conditions] + [target]


def _check_places(frames: Tensor, places: Tensor, conditions: int, size: Sequence[int]) -> None:
    if places.device.type != "cpu":  # on a GPU a look at them would wait for it
        return
    last, lowest, rightmost = len(frames) - 1, frames.shape[1] - size[0], frames.shape[2] - size[1]
    for target, offset, top, left in places.tolist():
        images = _images(target, offset, conditions)
        inside = min(images) >= 0 and max(images) <= last and 0 <= top <= lowest and 0 <= left <= rightmost
        require(inside, lambda: f"places lead outside of frames {tuple(frames.shape)}")


def _results(places: Tensor, conditions: int, size: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    def empty(channels: int, kind: torch.dtype) -> Tensor:
        shape = (len(places), channels, *size)
        return torch.empty(shape, dtype=kind, device=places.device, memory_format=torch.channels_last)

    return empty(3 * conditions + 3, dtype), empty(3, torch.float32)


def _between(coarse: int, fine: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(fine,) each: between which two of the coarse places one lies, ends on ends, and the share of the second."""
    at = torch.arange(fine, dtype=torch.float32, device=device) * ((coarse - 1) / (fine - 1) if fine > 1 else 0.0)
    low = at.long().clamp(max=coarse - 1)
    return low, (low + 1).clamp(max=coarse - 1), at - low


def _upsample(coarse_noise: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h', w') -> (B, C, h, w), bilinearly."""
    above, below, of_below = _between(coarse_noise.shape[2], size[0], coarse_noise.device)
    left, right, of_right = _between(coarse_noise.shape[3], size[1], coarse_noise.device)
    wide = coarse_noise[..., left] + of_right * (coarse_noise[..., right] - coarse_noise[..., left])
    return wide[:, :, above] + of_below[:, None] * (wide[:, :, below] - wide[:, :, above])


def _reference(
    frames: Tensor,
    places: Tensor,
    coefficients: Tensor,
    coarse_noise: Tensor | None,
    seeds: Tensor,
    step: Tensor,
    streams: Sequence[int],
    conditions: int,
    size: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _check(frames, places, coefficients, coarse_noise, seeds, step, streams, conditions, size, dtype)
    _check_places(frames, places, conditions, size)
    batch, device = len(places), frames.device
    c = coefficients.t()[:, :, None, None, None]
    rows = places[:, 2, None, None] + torch.arange(size[0], device=device)[:, None]
    columns = places[:, 3, None, None] + torch.arange(size[1], device=device)
    scale = torch.full((), 127.5, device=device)  # by a number of Python's a GPU would not divide, but multiply
    *around, clean = (
        (frames[at[:, None, None], rows, columns].float() / scale - 1).movedim(3, 1)
        for at in _images(places[:, 0], places[:, 1], conditions)
    )
    condition, prior_mean = clean.new_empty(batch, 0, *size), torch.zeros_like(clean)
    if conditions:
        grain = normal(seeds, streams[1], step, (3 * conditions, *size), device)
        condition = torch.cat(around, 1) + c[6] * grain
        if coarse_noise is not None:
            condition = condition + c[7] * _upsample(coarse_noise, size)
        prior_mean = condition.unflatten(1, (conditions, 3)).mean(1)
    noise = normal(seeds, streams[0], step, (3, *size), device)
    image = c[0] * clean + c[1] * noise + c[2] * prior_mean
    given, target = _results(places, conditions, size, dtype)
    given.copy_(torch.cat((condition, image), 1))
    target.copy_(c[3] * clean + c[4] * noise + c[5] * prior_mean)
    return given, target


def unsupported(frames: Tensor) -> list[str]:
    """Why the native kernels cannot run."""
    return why_no_library(frames.device)


def _native(
    frames: Tensor,
    places: Tensor,
    coefficients: Tensor,
    coarse_noise: Tensor | None,
    seeds: Tensor,
    step: Tensor,
    streams: Sequence[int],
    conditions: int,
    size: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if not use_native("sample_crops", unsupported(frames)):
        return _reference(frames, places, coefficients, coarse_noise, seeds, step, streams, conditions, size, dtype)
    _check(frames, places, coefficients, coarse_noise, seeds, step, streams, conditions, size, dtype)
    _check_places(frames, places, conditions, size)
    given, target = _results(places, conditions, size, dtype)
    coarse = (0, 0) if coarse_noise is None else coarse_noise.shape[2:]
    run(
        "sample_crops", frames, frames, *frames.shape[1:3], len(places), places.contiguous(), coefficients.contiguous(),
        None if coarse_noise is None else coarse_noise.contiguous(), *coarse, seeds.contiguous(), step, *streams, conditions,
        *size, given, dtype == torch.bfloat16, target,
    )  # fmt: skip
    return given, target


def _fake(
    frames: Tensor,
    places: Tensor,
    coefficients: Tensor,
    coarse_noise: Tensor | None,
    seeds: Tensor,
    step: Tensor,
    streams: Sequence[int],
    conditions: int,
    size: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _check(frames, places, coefficients, coarse_noise, seeds, step, streams, conditions, size, dtype)
    return _results(places, conditions, size, dtype)


_library.impl("sample_crops", _reference, "CompositeExplicitAutograd")
_library.impl("sample_crops", _native, "CPU")
_library.impl("sample_crops", _native, "CUDA")
torch.library.register_fake("sinfusion::sample_crops", _fake, lib=_library)
