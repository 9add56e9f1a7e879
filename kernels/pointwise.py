"""Triton kernels of a 1x1 convolution of one or two tensors with a bias: the residuals of a network, its last layer.

out = forward(Input(x, skip), weight, bias)
grads, of_weight, of_bias = backward(grad, Input(x, skip), weight, wants_input)

Activations are channels-last, fp32 or bf16; sums are fp32. Memory is the limit, so the backward reads the gradient and
the input once for both of its results; of 128 to 64 channels of 136x243 pixels in bf16 that is 21 MB, on an H200 5 us.
Sums over pixels are left as partial sums, for kernels/reduce.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .depthwise_norm import Input

STEPS = 4  # strips of pixels of a program of the backward
SIDE = {torch.bfloat16: 64, torch.float32: 32}  # pixels of a strip; most channels of the input, and outputs, at a time
OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


@triton.jit
def _load(x, pixel, pixels, channel, first, channels, stride):
    """(PIXELS, BLOCK): `first` + channel of pixels; 0 where there are none of them."""
    mask = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    return tl.load(x + (pixel[:, None] * stride + (first + channel)[None, :]), mask=mask, other=0.0)


@triton.jit(do_not_specialize=["pixels"])
def pointwise(
    x,  # (pixels, C - S)
    skip,  # (pixels, S) or None
    weight,  # (O, C) as x
    bias,  # (O,) fp32 or None
    out,  # (pixels, O) as x, written
    pixels,
    C: tl.constexpr,
    S: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    OUTPUTS: tl.constexpr,  # of a program
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program: PIXELS, OUTPUTS of them. Grid: strips of pixels, blocks of outputs."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    channel = tl.arange(0, BLOCK)
    sums = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for first in tl.static_range(0, C - S, BLOCK):
        a = _load(x, pixel, pixels, channel, first, C - S - first, C - S)
        b = _load(weight, output, O, channel, first, C - S - first, C)
        sums = tl.dot(a, tl.trans(b), sums, input_precision="ieee")
    for first in tl.static_range(0, S, BLOCK):
        a = _load(skip, pixel, pixels, channel, first, S - first, S)
        b = _load(weight, output, O, channel, C - S + first, S - first, C)
        sums = tl.dot(a, tl.trans(b), sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + output, mask=output < O, other=0.0)[None, :]
    mask = (pixel < pixels)[:, None] & (output < O)[None, :]
    tl.store(out + (pixel[:, None] * O + output[None, :]), sums.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels"])
def pointwise_backward(
    grad,  # (pixels, O)
    x,  # (pixels, C - S) as grad
    skip,  # (pixels, S) as grad, or None
    weight,  # (O, C) as grad
    grad_x,  # as x, written, or None
    grad_skip,  # as skip, written, or None
    of_weight,  # (programs, O, C) fp32, written: partial sums, as the next
    of_bias,  # (programs, O) fp32
    pixels,
    C: tl.constexpr,
    S: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A program: STEPS strips of PIXELS, BLOCK channels of x or of skip, OUTPUTS.

    Grid: programs, blocks of channels, blocks of outputs, of which the first makes the gradient of the input.
    """
    blocks_of_x: tl.constexpr = (C - S + BLOCK - 1) // BLOCK
    block = tl.program_id(1)
    output = tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)
    source, target, stride, first, before = x, grad_x, C - S, block * BLOCK, 0
    if S > 0:
        if block >= blocks_of_x:
            source, target, stride, first, before = skip, grad_skip, S, (block - blocks_of_x) * BLOCK, C - S
    channel = tl.arange(0, BLOCK)
    inside = channel < stride - first
    products = tl.zeros((OUTPUTS, BLOCK), tl.float32)
    sums = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for step in range(STEPS):
        pixel = (tl.program_id(0) * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
        a = _load(grad, pixel, pixels, output, 0, O, O)
        b = _load(source, pixel, pixels, channel, first, stride - first, stride)
        products = tl.dot(tl.trans(a), b, products, input_precision="ieee")
        sums += a.to(tl.float32)
        if grad_x is not None:
            if tl.program_id(2) == 0:
                of_input = tl.zeros((PIXELS, BLOCK), tl.float32)
                for start in tl.static_range(0, O, OUTPUTS):
                    further = start + tl.arange(0, OUTPUTS)
                    all_outputs = _load(grad, pixel, pixels, further, 0, O, O)
                    weights = _load(weight, further, O, channel, before + first, stride - first, C)
                    of_input = tl.dot(all_outputs, weights, of_input, input_precision="ieee")
                mask = (pixel < pixels)[:, None] & inside[None, :]
                place = pixel[:, None] * stride + (first + channel)[None, :]
                tl.store(target + place, of_input.to(grad_x.dtype.element_ty), mask=mask)
    place = (tl.program_id(0) * O + output)[:, None] * C + (before + first + channel)[None, :]
    tl.store(of_weight + place, products, mask=(output < O)[:, None] & inside[None, :])
    if block == 0:
        tl.store(of_bias + tl.program_id(0) * O + output, tl.sum(sums, 0), mask=output < O)


def options(channels: int, outputs: int, dtype: torch.dtype) -> dict[str, int]:
    """channels: the most of x and skip."""
    block, of_outputs = (max(16, min(SIDE[dtype], triton.next_power_of_2(n))) for n in (channels, outputs))
    return {"OUTPUTS": of_outputs, "BLOCK": block, "PIXELS": SIDE[dtype]} | OPTIONS


def _options(given: Input, outputs: int) -> dict[str, int]:
    return options(max(value.shape[1] for value in given if value is not None), outputs, given.x.dtype)


def forward(
    given: Input,  # of C channels
    weight: Tensor,  # (O, C, 1, 1) as x
    bias: Tensor | None,  # (O,) fp32
) -> Tensor:  # (B, O, H, W) as x
    """B H W times C or O has to be below 2^31, as in backward."""
    (batch, _, height, width), (channels, of_skip), outputs = given.x.shape, given.channels, len(weight)
    out = given.empty(outputs)
    chosen, pixels = _options(given, outputs), batch * height * width
    grid = triton.cdiv(pixels, chosen["PIXELS"]), triton.cdiv(outputs, chosen["OUTPUTS"])
    with torch.cuda.device_of(out):
        pointwise[grid](*given, weight, bias, out, pixels, C=channels, S=of_skip, O=outputs, **chosen)
    return out


def backward(
    grad: Tensor,  # (B, O, H, W)
    given: Input,  # as in forward
    weight: Tensor,
    wants_input: bool,
) -> tuple[Input | None, Tensor, Tensor]:
    """The gradients of the input, and partial sums for weight (1, n, O, 1, 1, C) and bias (1, n, O), fp32."""
    (batch, outputs, height, width), (channels, of_skip) = grad.shape, given.channels
    chosen, pixels = _options(given, outputs), batch * height * width
    programs = triton.cdiv(pixels, chosen["PIXELS"] * STEPS)
    blocks = sum(triton.cdiv(n, chosen["BLOCK"]) for n in (channels - of_skip, of_skip))
    of_weight = grad.new_empty(1, programs, outputs, 1, 1, channels, dtype=torch.float32)
    of_bias = grad.new_empty(1, programs, outputs, dtype=torch.float32)
    grads = Input(given.empty(channels - of_skip), given.empty(of_skip) if of_skip else None) if wants_input else None
    with torch.cuda.device_of(grad):
        pointwise_backward[programs, blocks, triton.cdiv(outputs, chosen["OUTPUTS"])](
            grad, *given, weight, *(grads or (None, None)), of_weight, of_bias, pixels,
            C=channels, S=of_skip, O=outputs, STEPS=STEPS, **chosen,
        )  # fmt: skip
    return grads, of_weight, of_bias
