"""The operator `ddpm_step`: one step of a reverse process, in place; a CUDA graph of it serves every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._choice import use_native
from ._native import run, why_no_library
from ._require import require
from .cpu_graph import capturing
from .philox import normal

_library = torch.library.Library("sinfusion", "FRAGMENT")
_library.define(
    "ddpm_step(Tensor(a!) x, Tensor? output, Tensor? prior_mean, Tensor coefficients, Tensor seeds, int stream, "
    "Tensor counter, Tensor(b!)? inputs, Tensor(c!)? previous, Tensor? known_mask, Tensor? known_image) -> ()"
)


def ddpm_step(
    x: Tensor,  # (B, 3, H, W) fp32 (fp64: reference only), channels-last: the state, changed in place
    output: Tensor | None,  # (B, 3, H, W) fp32 or bf16: the network's; None: nothing was evaluated
    prior_mean: Tensor | None,  # as x: the expected image; None: 0
    coefficients: Tensor,  # (9,) as x, on its device: numbers [0] to [8] below
    seeds: Tensor,  # (B,) int64, on its device: keys of the noise
    stream: int,  # what the noise is for, below 2^32
    counter: Tensor,  # () int64, on its device: when
    inputs: Tensor | None,  # (B, C, H, W) fp32 or bf16, channels-last: its last three channels are written
    previous: Tensor | None = None,  # as x: takes what x was; finite
    known_mask: Tensor | None = None,  # (B or 1, 1, H, W) bool
    known_image: Tensor | None = None,  # (B or 1, 3, H, W) as x, with known_mask
) -> None:
    """In this order, where what is None is left out:

    clean = clamp([0] output + [1] x + [2] prior_mean, -1, 1), or 0 without an output; where known_mask, the known_image
    x, previous = [3] x + [4] previous + [5] clean + [6] normal(seeds, stream, counter, (3, H, W)), x
    inputs[:, -3:] = [7] x + [8] prior_mean
    """
    arguments = (x, output, prior_mean, coefficients, seeds, stream, counter, inputs, previous, known_mask, known_image)
    if (graph := capturing()) is not None:
        _check(*arguments)
        graph.add("ddpm_step", *_arguments(*arguments))
    else:
        torch.ops.sinfusion.ddpm_step(*arguments)


def _check_layout(name: str, value: Tensor) -> None:
    require(
        value.is_contiguous(memory_format=torch.channels_last),
        lambda: f"{name} is written, so it has to be channels-last in memory",
    )


def _check_like(
    name: str, value: Tensor, device: torch.device, shapes: tuple[tuple[int, ...], ...], *dtypes: torch.dtype
) -> None:
    if value.shape in shapes and value.dtype in dtypes and value.device == device:
        return
    raise RuntimeError(
        f"{name} is {' or '.join(map(str, dict.fromkeys(shapes)))} {' or '.join(map(str, dict.fromkeys(dtypes)))} "
        f"on {device}, not {tuple(value.shape)} {value.dtype} on {value.device}"
    )


def _check(
    x: Tensor,
    output: Tensor | None,
    prior_mean: Tensor | None,
    coefficients: Tensor,
    seeds: Tensor,
    stream: int,
    counter: Tensor,
    inputs: Tensor | None,
    previous: Tensor | None,
    known_mask: Tensor | None,
    known_image: Tensor | None,
) -> None:
    require(x.ndim == 4 and x.shape[1] == 3, lambda: f"x is (B, 3, H, W), not {tuple(x.shape)}")
    require(x.dtype in (torch.float32, torch.float64), lambda: f"x is float32 or float64, not {x.dtype}")
    require(0 <= stream < 2**32, lambda: f"stream is from 0 and below 2^32, not {stream}")
    require((known_mask is None) == (known_image is None), lambda: "known_mask and known_image come together")
    _check_layout("x", x)
    (batch, _, height, width), dtype, device = x.shape, x.dtype, x.device
    shape = (batch, 3, height, width)
    _check_like("coefficients", coefficients, device, ((9,),), dtype)
    _check_like("seeds", seeds, device, ((batch,),), torch.int64)
    _check_like("counter", counter, device, ((),), torch.int64)
    if output is not None:
        _check_like("output", output, device, (shape,), torch.float32, torch.bfloat16, dtype)
    if prior_mean is not None:
        _check_like("prior_mean", prior_mean, device, (shape,), dtype)
    if inputs is not None:
        channels = max(3, inputs.shape[1]) if inputs.ndim > 1 else 3
        _check_like("inputs", inputs, device, ((batch, channels, height, width),), torch.float32, torch.bfloat16, dtype)
        _check_layout("inputs", inputs)
    if previous is not None:
        _check_like("previous", previous, device, (shape,), dtype)
        _check_layout("previous", previous)
    if known_mask is not None and known_image is not None:
        _check_like("known_mask", known_mask, device, ((batch, 1, height, width), (1, 1, height, width)), torch.bool)
        _check_like("known_image", known_image, device, (shape, (1, *shape[1:])), dtype)


@torch.no_grad()
def _reference(
    x: Tensor,
    output: Tensor | None,
    prior_mean: Tensor | None,
    coefficients: Tensor,
    seeds: Tensor,
    stream: int,
    counter: Tensor,
    inputs: Tensor | None,
    previous: Tensor | None,
    known_mask: Tensor | None,
    known_image: Tensor | None,
) -> None:
    _check(x, output, prior_mean, coefficients, seeds, stream, counter, inputs, previous, known_mask, known_image)
    c = coefficients.view(9, 1, 1, 1, 1)
    clean = torch.zeros_like(x)
    if output is not None:
        clean = c[0] * output.to(x.dtype) + c[1] * x
        if prior_mean is not None:
            clean = clean + c[2] * prior_mean
        clean = clean.clamp(-1, 1)
    if known_mask is not None and known_image is not None:
        clean = torch.where(known_mask, known_image, clean)
    new = c[3] * x
    if previous is not None:
        new = new + c[4] * previous
        previous.copy_(x)
    noise = normal(seeds, stream, counter, x.shape[1:], x.device).to(x.dtype)
    new = new + c[5] * clean + c[6] * noise
    x.copy_(new)
    if inputs is not None:
        inputs[:, -3:] = c[7] * new if prior_mean is None else c[7] * new + c[8] * prior_mean


def unsupported(x: Tensor) -> list[str]:
    """Why the native kernels cannot run."""
    reasons = why_no_library(x.device)
    if x.dtype != torch.float32:
        reasons.append(f"x is {x.dtype}, not float32")
    return reasons


def _native(
    x: Tensor,
    output: Tensor | None,
    prior_mean: Tensor | None,
    coefficients: Tensor,
    seeds: Tensor,
    stream: int,
    counter: Tensor,
    inputs: Tensor | None,
    previous: Tensor | None,
    known_mask: Tensor | None,
    known_image: Tensor | None,
) -> None:
    if not use_native("ddpm_step", unsupported(x)):
        return _reference(
            x, output, prior_mean, coefficients, seeds, stream, counter, inputs, previous, known_mask, known_image
        )
    _check(x, output, prior_mean, coefficients, seeds, stream, counter, inputs, previous, known_mask, known_image)
    run(
        "ddpm_step", x,
        *_arguments(x, output, prior_mean, coefficients, seeds, stream, counter, inputs, previous, known_mask, known_image),
    )  # fmt: skip
    written = (value for value in (x, inputs, previous) if value is not None and not value.is_inference())
    torch.autograd.graph.increment_version(written)  # the dispatcher leaves that to whoever writes
    return None


def _arguments(
    x: Tensor,
    output: Tensor | None,
    prior_mean: Tensor | None,
    coefficients: Tensor,
    seeds: Tensor,
    stream: int,
    counter: Tensor,
    inputs: Tensor | None,
    previous: Tensor | None,
    known_mask: Tensor | None,
    known_image: Tensor | None,
) -> tuple[Any, ...]:
    """What ddpm_step of both libraries takes."""
    return (
        len(x), x.shape[2] * x.shape[3], x, _in_order(output), output is not None and output.dtype == torch.bfloat16,
        _in_order(prior_mean), coefficients.contiguous(), seeds.contiguous(), stream, counter, inputs,
        inputs is not None and inputs.dtype == torch.bfloat16, 3 if inputs is None else inputs.shape[1], previous,
        _in_order(known_mask), known_mask is not None and len(known_mask) == 1, _in_order(known_image),
        known_image is not None and len(known_image) == 1,
    )  # fmt: skip


def _in_order(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous(memory_format=torch.channels_last)


_library.impl("ddpm_step", _reference, "CompositeExplicitAutograd")
_library.impl("ddpm_step", _native, "CPU")
_library.impl("ddpm_step", _native, "CUDA")
torch.library.register_fake("sinfusion::ddpm_step", _check, lib=_library)
