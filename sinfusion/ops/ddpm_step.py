"""The operator `ddpm_step`: one step of a reverse process, in place; a CUDA graph of it serves every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import require, require_channels_last, require_tensor
from .cpu_graph import capturing
from .dispatch import native_or_reference
from .layout import channels_last
from .native import mark_written, run, why_no_library, wrong_dtype
from .philox import normal
from .registration import define, implement, takes


class DdpmStep(NamedTuple):
    x: Tensor  # (B, 3, H, W) fp32 (fp64: reference only), channels-last: the state, changed in place
    output: Tensor | None  # (B, 3, H, W) fp32 or bf16: the network's; None: nothing was evaluated
    prior_mean: Tensor | None  # as x: the expected image; None: 0
    coefficients: Tensor  # (9,) as x, on its device: numbers [0] to [8] below
    seeds: Tensor  # (B,) int64, on its device: keys of the noise
    stream: int  # what the noise is for, below 2^32
    counter: Tensor  # () int64, on its device: when
    inputs: Tensor | None  # (B, C, H, W) fp32 or bf16, channels-last: its last three channels are written
    previous: Tensor | None = None  # as x: takes what x was; finite
    known_mask: Tensor | None = None  # (B or 1, 1, H, W) bool
    known_image: Tensor | None = None  # (B or 1, 3, H, W) as x, with known_mask


@takes(DdpmStep)
def ddpm_step(a: DdpmStep) -> None:
    """In this order, where what is None is left out:

    clean = clamp([0] output + [1] x + [2] prior_mean, -1, 1), or 0 without an output; where known_mask, the known_image
    x, previous = [3] x + [4] previous + [5] clean + [6] normal(seeds, stream, counter, (3, H, W)), x
    inputs[:, -3:] = [7] x + [8] prior_mean
    """
    if (graph := capturing()) is not None:
        _check(a)
        graph.add("ddpm_step", **_native_fields(a))
    else:
        torch.ops.sinfusion.ddpm_step(*a)


def _check(a: DdpmStep) -> None:
    x, inputs, device, dtype = a.x, a.inputs, a.x.device, a.x.dtype
    require(x.ndim == 4 and x.shape[1] == 3, lambda: f"x is (B, 3, H, W), not {tuple(x.shape)}")
    require(dtype in (torch.float32, torch.float64), lambda: f"x is float32 or float64, not {dtype}")
    require(0 <= a.stream < 2**32, lambda: f"stream is from 0 and below 2^32, not {a.stream}")
    require((a.known_mask is None) == (a.known_image is None), lambda: "known_mask and known_image come together")
    batch, _, height, width = shape = tuple(x.shape)
    channels = 3 if inputs is None or inputs.ndim < 2 else max(3, inputs.shape[1])
    require_tensor("coefficients", a.coefficients, device, [(9,)], dtype)
    require_tensor("seeds", a.seeds, device, [(batch,)], torch.int64)
    require_tensor("counter", a.counter, device, [()], torch.int64)
    require_tensor("output", a.output, device, [shape], torch.float32, torch.bfloat16, dtype)
    require_tensor("prior_mean", a.prior_mean, device, [shape], dtype)
    require_tensor("inputs", inputs, device, [(batch, channels, height, width)], torch.float32, torch.bfloat16, dtype)
    require_tensor("previous", a.previous, device, [shape], dtype)
    require_tensor("known_mask", a.known_mask, device, [(batch, 1, height, width), (1, 1, height, width)], torch.bool)
    require_tensor("known_image", a.known_image, device, [shape, (1, *shape[1:])], dtype)
    require_channels_last("x", x)
    require_channels_last("inputs", inputs)
    require_channels_last("previous", a.previous)


@torch.no_grad()
def _reference(a: DdpmStep) -> None:
    _check(a)
    x, prior_mean, c = a.x, a.prior_mean, a.coefficients.view(9, 1, 1, 1, 1)
    clean = torch.zeros_like(x)
    if a.output is not None:
        clean = c[0] * a.output.to(x.dtype) + c[1] * x
        if prior_mean is not None:
            clean = clean + c[2] * prior_mean
        clean = clean.clamp(-1, 1)
    if a.known_mask is not None and a.known_image is not None:
        clean = torch.where(a.known_mask, a.known_image, clean)
    new = c[3] * x
    if a.previous is not None:
        new = new + c[4] * a.previous
        a.previous.copy_(x)
    noise = normal(a.seeds, a.stream, a.counter, x.shape[1:], x.device).to(x.dtype)
    new = new + c[5] * clean + c[6] * noise
    x.copy_(new)
    if a.inputs is not None:
        a.inputs[:, -3:] = c[7] * new if prior_mean is None else c[7] * new + c[8] * prior_mean


def unsupported(a: DdpmStep) -> list[str]:
    """Why the native kernels cannot run."""
    return why_no_library(a.x.device) + wrong_dtype("x", a.x.dtype, torch.float32)


def _native(a: DdpmStep) -> None:
    run("ddpm_step", a.x, **_native_fields(a))
    mark_written(a.x, a.inputs, a.previous)


def _native_fields(a: DdpmStep) -> dict[str, Any]:
    """The fields of ddpm_step in both libraries."""
    return {
        "batch": len(a.x),
        "pixels": a.x.shape[2] * a.x.shape[3],
        "x": a.x,
        "output": channels_last(a.output),
        "output_bf16": a.output is not None and a.output.dtype == torch.bfloat16,
        "prior_mean": channels_last(a.prior_mean),
        "coefficients": a.coefficients.contiguous(),
        "seeds": a.seeds.contiguous(),
        "stream": a.stream,
        "counter": a.counter,
        "inputs": a.inputs,
        "inputs_bf16": a.inputs is not None and a.inputs.dtype == torch.bfloat16,
        "channels": 3 if a.inputs is None else a.inputs.shape[1],
        "previous": a.previous,
        "known_mask": channels_last(a.known_mask),
        "known_mask_shared": a.known_mask is not None and len(a.known_mask) == 1,
        "known_image": channels_last(a.known_image),
        "known_image_shared": a.known_image is not None and len(a.known_image) == 1,
    }


_on_device = native_or_reference("ddpm_step", _native, _reference, unsupported, _check)
define("ddpm_step", DdpmStep, "()", written=("x", "inputs", "previous"))
implement("ddpm_step", DdpmStep, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_check)
