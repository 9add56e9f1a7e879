"""Triton kernels of the dense convolutions of a ConvNeXt block, as implicit matrix products.

out, z = forward(x, weight, bias, residual, gelu, save)
grad_x, partial = input_gradient(grad, weight, z, bias)
partial = weight_gradient(grad, x, kernel)

Activations are channels-last, fp32 or bf16; sums are fp32. A convolution is one product of (pixels, taps x channels)
and (taps x channels, outputs), whose left side is never made: each step loads the pixels that a tap sees, 0 outside the
image. The gradient of the input is the same with taps in reverse; that of the weights sums over pixels, split among
programs, whose sums kernels/reduce.py adds up.

What an H200 needs at least for an image of 136x243 in bf16 (790 TFLOP/s; memory 4 TB/s; from L2 some 5.5 TB/s):

                          arithmetic   memory                 L2, default configuration
    64 -> 192, 3x3            9.3 us   4 us, with z 7 us      13 to 17 us
    192 -> 64, 3x3            9.3 us   5 us                   17 to 31 us
    128 -> 192, 3x3          18.5 us   5 us, with z 9 us      25 to 35 us
    weights of 64 -> 192      9.3 us   4 us                   15 to 24 us
    128 -> 64, 1x1            0.7 us   3 us
    6 -> 192, 3x3             0.9 us   3 us, with z 6 us

So the way from L2 to the multiprocessors is the limit: every program reads all weights of its outputs, 221 KB, and each
pixel once for each tap. Hence large tiles, all 192 outputs in one program where registers allow it, and pixels kept in
L1, where three taps of a row meet them again (the lower figure: L1 keeps all those; the upper: none). With pixels and
weights in flight to shared memory while tensor cores work (cp.async; wgmma on Hopper, tcgen05 on Blackwell), one step
costs fewer issue slots than its product takes.

Checked without a GPU: results, in Triton's interpreter; compiled code for sm_80, sm_90 and sm_100. On an H200
results are right too; times are 2 to 3 times the lower bounds above (`benchmarks/results/gpu-first-run.json`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .depthwise_norm import Input
from .gelu import activate, channel_block, slope


class Config(NamedTuple):
    """The tile of a matrix product that one program makes, and how.

    A convolution has pixels as rows, outputs as columns, taps x channels as depth; a weight gradient has channels of
    grad, taps x channels of x, pixels.
    """

    rows: int
    columns: int
    depth: int  # of one step
    warps: int
    stages: int
    through_l1: bool  # whether L1 keeps pixels for the taps that read them again


CONFIGS = [  # of bf16; the default fits 100 KB of shared memory, as every GPU of capability 8.0 or more has them
    Config(128, 192, 32, 8, 4, True),
    Config(128, 192, 64, 8, 3, True),
    Config(128, 192, 64, 8, 3, False),
    Config(64, 192, 64, 4, 3, True),
    Config(128, 64, 64, 4, 3, True),
    Config(256, 64, 64, 8, 4, True),
]
FP32 = Config(64, 64, 16, 4, 3, True)  # no tensor cores: whichever configuration is asked for, this runs
WARPS = 1056  # of a weight gradient, about: 8 for each of an H200's 132 multiprocessors


@triton.jit
def _inside(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _load_pixels(x, pixel, inside, channel, INPUTS: tl.constexpr, K: tl.constexpr, L1: tl.constexpr):
    """(M, K): pixels of x, 0 where they are not inside their image."""
    mask = inside[:, None]
    if INPUTS % K != 0:
        mask = mask & (channel < INPUTS)[None, :]
    place = pixel[:, None] * INPUTS + channel[None, :]
    return tl.load(x + place, mask=mask, other=0.0, cache_modifier=".ca" if L1 else "")


@triton.jit
def _load_weights(
    weight,
    tap,
    channel,
    output,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TAPS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """(K, N): weights of a tap; for the gradient the taps are in reverse, inputs and outputs exchanged."""
    mask = (channel < INPUTS)[:, None] & (output < OUTPUTS)[None, :]
    if BACKWARD:
        weight += (TAPS - 1 - tap) * OUTPUTS
        place = channel[:, None] * (TAPS * OUTPUTS) + output[None, :]
    else:
        weight += tap * INPUTS
        place = output[None, :] * (TAPS * INPUTS) + channel[:, None]
    return tl.load(weight + place, mask=mask, other=0.0)


@triton.jit
def _add_pointwise(
    sums,
    x,
    weight,
    pixel,
    pixels,
    output,
    START: tl.constexpr,  # of the weight's inputs, the first that belongs to x
    INPUTS: tl.constexpr,
    ALL: tl.constexpr,  # inputs of the weight
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    L1: tl.constexpr,
):
    for first in tl.static_range(0, INPUTS, K):
        channel = first + tl.arange(0, K)
        a = _load_pixels(x, pixel, pixel < pixels, channel, INPUTS, K, L1)
        mask = (channel < INPUTS)[:, None] & (output < OUTPUTS)[None, :]
        b = tl.load(weight + (output[None, :] * ALL + (START + channel)[:, None]), mask=mask, other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums


@triton.jit
def _add_bias(value, bias, output, OUTPUTS: tl.constexpr):
    if bias is not None:
        value += tl.load(bias + output, mask=output < OUTPUTS, other=0.0)[None, :]
    return value


@triton.jit
def _store(value, residual, out, pixel, pixels, output, OUTPUTS: tl.constexpr, GELU: tl.constexpr):
    """Writes value, GELU of it, or with the residual if there is one, where there is an `out`."""
    if out is not None:
        if GELU:
            value = activate(value, out.dtype.element_ty)
        mask = (pixel < pixels)[:, None] & (output < OUTPUTS)[None, :]
        place = pixel[:, None] * OUTPUTS + output[None, :]
        if residual is not None:
            value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store_through_gelu(value, z, bias, out, partial, pixel, pixels, program, output, OUTPUTS: tl.constexpr):
    """Writes value times the slope of GELU at z + bias, and the sums of that over pixels."""
    mask = (pixel < pixels)[:, None] & (output < OUTPUTS)[None, :]
    place = pixel[:, None] * OUTPUTS + output[None, :]
    before = tl.load(z + place, mask=mask, other=0.0).to(tl.float32)
    value *= slope(_add_bias(before, bias, output, OUTPUTS), out.dtype.element_ty)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
    tl.store(partial + program * OUTPUTS + output, tl.sum(value, 0), mask=output < OUTPUTS)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def convolve(
    x,  # (B, H, W, C)
    weight,  # (O, KERNEL, KERNEL, C); BACKWARD: (C, KERNEL, KERNEL, O)
    bias,  # (O,) fp32 or None
    residual,  # (B, H, W, O) or None
    out,  # (B, H, W, O), written
    short,  # (B, H, W, C2 - S2) or None: a 1x1 convolution of this and the next is added, as more depth
    skip,  # (B, H, W, S2) or None
    short_weight,  # (O, C2)
    short_bias,  # (O,) fp32 or None
    z,  # as out, written; or None. BACKWARD: read, what GELU was taken of but for the bias
    partial,  # (programs of pixels, O) fp32, written; with z, BACKWARD
    pixels,  # of all images
    height,
    width,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    C2: tl.constexpr,
    S2: tl.constexpr,
    BACKWARD: tl.constexpr,
    GELU: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    REST: tl.constexpr,
    K: tl.constexpr,
    L1: tl.constexpr,
):
    """A program: M consecutive pixels, N + REST outputs (192 is no power of two, 128 and 64 are)."""
    blocks: tl.constexpr = (OUTPUTS + N + REST - 1) // (N + REST)
    chunks: tl.constexpr = (INPUTS + K - 1) // K
    pixel = tl.program_id(0) // blocks * M + tl.arange(0, M)
    output = tl.program_id(0) % blocks * (N + REST) + tl.arange(0, N)
    column = pixel % width
    row = tl.where(pixel < pixels, pixel // width % height, -KERNEL)  # no tap reaches into an image from there
    sums = tl.zeros((M, N), tl.float32)
    if REST > 0:
        further = tl.program_id(0) % blocks * (N + REST) + N + tl.arange(0, REST)
        more = tl.zeros((M, REST), tl.float32)
    for step in range(KERNEL * KERNEL * chunks):  # one loop, so that loads run ahead of the products across taps too
        tap = step // chunks
        channel = step % chunks * K + tl.arange(0, K)
        dy = tap // KERNEL - KERNEL // 2
        dx = tap % KERNEL - KERNEL // 2
        inside = _inside(row + dy, column + dx, height, width)
        a = _load_pixels(x + (dy * width + dx) * INPUTS, pixel, inside, channel, INPUTS, K, L1)
        b = _load_weights(weight, tap, channel, output, INPUTS, OUTPUTS, KERNEL * KERNEL, BACKWARD)
        sums = tl.dot(a, b, sums, input_precision="ieee")
        if REST > 0:
            b = _load_weights(weight, tap, channel, further, INPUTS, OUTPUTS, KERNEL * KERNEL, BACKWARD)
            more = tl.dot(a, b, more, input_precision="ieee")
    if short is not None:
        sums = _add_pointwise(sums, short, short_weight, pixel, pixels, output, 0, C2 - S2, C2, OUTPUTS, K, L1)
        if skip is not None:
            sums = _add_pointwise(sums, skip, short_weight, pixel, pixels, output, C2 - S2, S2, C2, OUTPUTS, K, L1)
        sums = _add_bias(sums, short_bias, output, OUTPUTS)
        if REST > 0:
            more = _add_pointwise(more, short, short_weight, pixel, pixels, further, 0, C2 - S2, C2, OUTPUTS, K, L1)
            if skip is not None:
                more = _add_pointwise(more, skip, short_weight, pixel, pixels, further, C2 - S2, S2, C2, OUTPUTS, K, L1)
            more = _add_bias(more, short_bias, further, OUTPUTS)
    if BACKWARD and GELU:
        program = tl.program_id(0) // blocks
        _store_through_gelu(sums, z, bias, out, partial, pixel, pixels, program, output, OUTPUTS)
        if REST > 0:
            _store_through_gelu(more, z, bias, out, partial, pixel, pixels, program, further, OUTPUTS)
    else:
        _store(sums, None, z, pixel, pixels, output, OUTPUTS, False)
        _store(_add_bias(sums, bias, output, OUTPUTS), residual, out, pixel, pixels, output, OUTPUTS, GELU)
        if REST > 0:
            _store(more, None, z, pixel, pixels, further, OUTPUTS, False)
            _store(_add_bias(more, bias, further, OUTPUTS), residual, out, pixel, pixels, further, OUTPUTS, GELU)


@triton.jit
def _tap_rows(n, INPUTS: tl.constexpr, KERNEL: tl.constexpr):
    """(N,): how many rows below the pixel the tap of n lies, n = tap x channels + channel."""
    return n // INPUTS // KERNEL - KERNEL // 2


@triton.jit
def _load_taps(x, n, row_inside, column, width, INPUTS: tl.constexpr, KERNEL: tl.constexpr, L1: tl.constexpr):
    """(K, N): for each pixel of a strip a tap's neighbour and its channel, n = tap x channels + channel; 0 outside."""
    dy = _tap_rows(n, INPUTS, KERNEL)
    dx = n // INPUTS % KERNEL - KERNEL // 2
    valid = row_inside & (n < KERNEL * KERNEL * INPUTS)
    neighbour = column[:, None] + dx[None, :]
    mask = valid[None, :] & (neighbour >= 0) & (neighbour < width) & (column < width)[:, None]
    place = column[:, None] * INPUTS + ((dy * width + dx) * INPUTS + n % INPUTS)[None, :]
    return tl.load(x + place, mask=mask, other=0.0, cache_modifier=".ca" if L1 else "")


@triton.jit(do_not_specialize=["rows", "height", "width", "share"])
def multiply_gradients(
    grad,  # (rows, width, O)
    x,  # (rows, width, C)
    partial,  # (programs, O, KERNEL, KERNEL, C) fp32, written
    rows,  # of all images
    height,
    width,
    share,  # rows of a program
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    REST: tl.constexpr,
    K: tl.constexpr,
    L1: tl.constexpr,
):
    """A program: M channels of grad, N + REST of the taps x channels of x, summed over `share` rows of pixels.

    Pixels are taken in strips of K along a row: no division for each pixel. Grid: shares, blocks of M x of N + REST.
    """
    columns: tl.constexpr = KERNEL * KERNEL * INPUTS
    blocks: tl.constexpr = (columns + N + REST - 1) // (N + REST)
    output = tl.program_id(1) // blocks * M + tl.arange(0, M)
    n = tl.program_id(1) % blocks * (N + REST) + tl.arange(0, N)
    sums = tl.zeros((M, N), tl.float32)
    if REST > 0:
        further = tl.program_id(1) % blocks * (N + REST) + N + tl.arange(0, REST)
        more = tl.zeros((M, REST), tl.float32)
    strips = tl.cdiv(width, K)
    first = tl.program_id(0) * share
    for step in range((tl.minimum(first + share, rows) - first) * strips):
        row = first + step // strips
        line = x + row * width * INPUTS
        y = row % height
        column = step % strips * K + tl.arange(0, K)
        mask = (output < OUTPUTS)[:, None] & (column < width)[None, :]
        a = tl.load(grad + row * width * OUTPUTS + (output[:, None] + column[None, :] * OUTPUTS), mask=mask, other=0.0)
        tap_row = y + _tap_rows(n, INPUTS, KERNEL)
        b = _load_taps(line, n, (tap_row >= 0) & (tap_row < height), column, width, INPUTS, KERNEL, L1)
        sums = tl.dot(a, b, sums, input_precision="ieee")
        if REST > 0:
            tap_row = y + _tap_rows(further, INPUTS, KERNEL)
            b = _load_taps(line, further, (tap_row >= 0) & (tap_row < height), column, width, INPUTS, KERNEL, L1)
            more = tl.dot(a, b, more, input_precision="ieee")
    target = partial + tl.program_id(0).to(tl.int64) * (OUTPUTS * columns) + output[:, None] * columns
    tl.store(target + n[None, :], sums, mask=(output < OUTPUTS)[:, None] & (n < columns)[None, :])
    if REST > 0:
        tl.store(target + further[None, :], more, mask=(output < OUTPUTS)[:, None] & (further < columns)[None, :])


def _tile(config: int, dtype: torch.dtype, columns: int) -> tuple[Config, dict[str, int]]:
    """A configuration, and its columns (no more than needed) as powers of two: 192 = 128 + 64, 96 = 64 + 32."""
    tile = CONFIGS[config] if dtype == torch.bfloat16 else FP32
    most = max(16, min(tile.columns, columns))
    first = 1 << (most.bit_length() - 1)
    rest = max(16, triton.next_power_of_2(most - first)) if most > first else 0
    return tile, {
        "N": first,
        "REST": rest,
        "L1": tile.through_l1,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }


def convolution_options(config: int, dtype: torch.dtype, inputs: int, outputs: int) -> dict[str, int]:
    # The first convolution writes more than it computes: small tiles, so that some compute while others write.
    tile, options = _tile(config, dtype, outputs if inputs >= 16 else min(outputs, 64))
    return {"M": tile.rows, "K": min(tile.depth, max(16, channel_block(inputs)))} | options


def gradient_options(config: int, dtype: torch.dtype, inputs: int, outputs: int, kernel: int) -> dict[str, int]:
    tile, options = _tile(config, dtype, kernel * kernel * inputs)
    return {"M": min(tile.rows, max(64, triton.next_power_of_2(outputs))), "K": tile.depth} | options


def _blocks(columns: int, options: dict[str, int]) -> int:
    return triton.cdiv(columns, options["N"] + options["REST"])


class Shortcut(NamedTuple):
    """A 1x1 convolution that is added to another one."""

    given: Input  # of C channels
    weight: Tensor  # (O, C, 1, 1) as the input
    bias: Tensor | None  # (O,) fp32


def forward(
    x: Tensor,  # (B, C, H, W) fp32 or bf16, channels-last in memory, as every tensor of 4 dimensions here
    weight: Tensor,  # (O, C, k, k) as x, k 1 or 3
    bias: Tensor | None,  # (O,) fp32, contiguous
    residual: Tensor | None,  # (B, O, H, W) as x
    gelu: bool,
    save: bool,
    config: int = 0,
    shortcut: Shortcut | None = None,
) -> tuple[Tensor, Tensor | None]:
    """out (B, O, H, W) as x: gelu(z + bias), or z + bias + residual, with z = conv(x); and z if gelu and save.

    gelu, residual and shortcut, which is a residual made here, exclude each other. B H W times C or O has to be below
    2^31, in every function here.
    """
    z = _empty(x, weight.shape[0]) if gelu and save else None
    return _convolve(x, weight, _Epilogue(bias, residual, z, gelu, shortcut), False, config)[0], z


def input_gradient(
    grad: Tensor,  # (B, O, H, W)
    weight: Tensor,  # (O, C, k, k) as grad
    z: Tensor | None = None,  # (B, C, H, W) as grad: x was GELU(z + bias), and the gradient is that of z
    bias: Tensor | None = None,  # (C,) fp32
    config: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """The gradient (B, C, H, W) as grad; with z, partial sums of it (1, n, C) fp32."""
    return _convolve(grad, weight, _Epilogue(bias, None, z, z is not None), True, config)


def weight_gradient(
    grad: Tensor,  # (B, O, H, W)
    x: Tensor,  # (B, C, H, W) as grad
    kernel: int,  # k
    config: int = 0,
) -> Tensor:
    """(1, n, O, k, k, C) fp32: partial sums, of pixels that shape and configuration decide."""
    batch, channels, height, width = x.shape
    outputs, rows, columns = grad.shape[1], batch * height, kernel * kernel * channels
    options = gradient_options(config, x.dtype, channels, outputs, kernel)
    blocks = triton.cdiv(outputs, options["M"]) * _blocks(columns, options)
    share = triton.cdiv(rows, max(1, WARPS // options["num_warps"] // blocks))  # rows of a program
    programs = triton.cdiv(rows, share)
    partial = x.new_empty(1, programs, outputs, kernel, kernel, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        multiply_gradients[programs, blocks](
            grad, x, partial, rows, height, width, share, INPUTS=channels, OUTPUTS=outputs, KERNEL=kernel, **options
        )
    return partial


def _empty(x: Tensor, channels: int) -> Tensor:
    batch, _, height, width = x.shape
    return torch.empty(
        batch, channels, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


class _Epilogue(NamedTuple):
    """What follows the convolution of a pixel, as `convolve` takes it."""

    bias: Tensor | None
    residual: Tensor | None
    z: Tensor | None
    gelu: bool
    shortcut: Shortcut | None = None


def _convolve(
    x: Tensor, weight: Tensor, epilogue: _Epilogue, backward: bool, config: int
) -> tuple[Tensor, Tensor | None]:
    bias, residual, z, gelu, shortcut = epilogue
    batch, inputs, height, width = x.shape
    outputs, kernel, pixels = weight.shape[1 if backward else 0], weight.shape[2], batch * height * width
    options = convolution_options(config, x.dtype, inputs, outputs)
    out, programs = _empty(x, outputs), triton.cdiv(pixels, options["M"])
    partial = x.new_empty(1, programs, outputs, dtype=torch.float32) if backward and gelu else None
    channels, of_skip = (0, 0) if shortcut is None else shortcut.given.channels
    short = (None,) * 4 if shortcut is None else (*shortcut.given, shortcut.weight, shortcut.bias)
    with torch.cuda.device_of(x):
        convolve[(programs * _blocks(outputs, options),)](
            x, weight, bias, residual, out, *short, z, partial, pixels, height, width, INPUTS=inputs, OUTPUTS=outputs,
            KERNEL=kernel, C2=channels, S2=of_skip, BACKWARD=backward, GELU=gelu, **options,
        )  # fmt: skip
    return out, partial
