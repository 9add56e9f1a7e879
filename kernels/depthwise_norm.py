"""Triton kernels of the operator `depthwise_norm`, which sinfusion/ops/depthwise_norm.py defines.

out, saved = forward(x, taps, Epilogue(bias, shift, gain, offset), eps, save)
grads = backward(grad_out, x, saved, taps, gain)

Activations are channels-last, fp32 or bf16; sums are fp32. With 49 multiplications for each number read, arithmetic is
the limit and not memory (a number in bf16 on an H200: 98 operations take 1.5 ps, 4 bytes 0.8 ps). So numbers are
reused from registers: a program makes 4 rows of a strip of pixels, each number loaded serves up to 4 of them, and its
neighbours to the left and right come from L1.

Checked without a GPU: results, in Triton's interpreter; compiled code for sm_80 and sm_90, which spills no registers
(Triton 3.9; other versions up to 8 words). On an H200 results are right too, and the block sizes were
measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

GRADIENT_CHANNELS = 64  # of one program of the weight gradient
BAND = 32  # rows of one program of the weight gradient; on an H200 16 took 1.2 to 1.4 times as long
STEPS = 8  # strips of one program of the norm's backward


@triton.jit
def _load_row(image, row, column, channel, height, width, C: tl.constexpr):
    """Pixels `column` (PIXELS, 1), channels `channel` (1, CHANNELS) of one row of an image (H, W, C); 0 outside it."""
    mask = (column >= 0) & (channel < C) & (column < tl.where((row >= 0) & (row < height), width, 0))
    return tl.load(image + row * width * C + (column * C + channel), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_channels(vector, channel, C: tl.constexpr):
    return tl.load(vector + channel, mask=channel < C, other=0.0)


@triton.jit
def _load_tap(taps, dy: tl.constexpr, dx, channel, C: tl.constexpr, FLIP: tl.constexpr):
    tap = dy * 7 + dx
    if FLIP:
        tap = 48 - tap
    return _load_channels(taps + tap * C, channel, C)


@triton.jit
def _pixels(row, column, height, width):
    """Indices of the pixels of a row in their image; those outside have a column past its end."""
    return row * width + column, column < tl.where(row < height, width, 0)


@triton.jit
def _store_pixels(image, value, pixel, inside, channel, C: tl.constexpr):
    tl.store(image + (pixel * C + channel), value.to(image.dtype.element_ty), mask=inside & (channel < C))


@triton.jit
def _statistics(value, channel, eps, C: tl.constexpr):
    """Of each pixel: the mean over channels, and 1 / the standard deviation. Padded channels of value are zero."""
    average = tl.sum(value, 1, keep_dims=True) / C
    centred = tl.where(channel < C, value - average, 0.0)
    return average, tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / C + eps)


@triton.jit
def _normalize(value, channel, gain, offset, eps, C: tl.constexpr):
    """LayerNorm of a row's pixels if there is a gain."""
    if gain is not None:
        average, scale = _statistics(value, channel, eps, C)
        centred = tl.where(channel < C, value - average, 0.0)
        value = centred * scale * _load_channels(gain, channel, C) + _load_channels(offset, channel, C)
    return value


@triton.jit
def _store_statistics(value, pixel, inside, channel, mean, rstd, eps, C: tl.constexpr):
    average, scale = _statistics(value, channel, eps, C)
    tl.store(mean + pixel, average, mask=inside)
    tl.store(rstd + pixel, scale, mask=inside)


@triton.jit
def _store_sums(partial, sums, channel, C: tl.constexpr):
    tl.store(partial + channel, tl.sum(sums, 0, keep_dims=True), mask=channel < C)


@triton.jit(do_not_specialize=["height", "width"])
def convolve(
    x,  # (B, H, W, C)
    taps,  # (49, C) fp32
    bias,  # (C,) fp32 or None
    shift,  # (B, C) fp32 or None
    gain,  # (C,) fp32 or None
    offset,  # (C,) fp32, with gain
    out,  # as x
    u,  # as x, or None; kept for the backward
    mean,  # (B, H, W) fp32, with u
    rstd,  # (B, H, W) fp32, with u
    height,
    width,
    eps,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,  # C up to a power of two
    PIXELS: tl.constexpr,
    FLIP: tl.constexpr,  # taps in reverse: the gradient of the convolution
):
    """A program: 4 rows of a strip of PIXELS, all channels. Grid: strips, groups of 4 rows, images."""
    column = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    row = tl.program_id(1) * 4
    image = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    start = image * height * width
    x += start * C

    a0 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a1 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a2 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a3 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for dx in range(7):
        neighbour = column + (dx - 3)
        for dy in tl.static_range(7):  # equal loads are merged: 10 rows and 7 taps
            tap = _load_tap(taps, dy, dx, channel, C, FLIP)
            a0 += tap * _load_row(x, row + (dy - 3), neighbour, channel, height, width, C)
            a1 += tap * _load_row(x, row + (dy - 2), neighbour, channel, height, width, C)
            a2 += tap * _load_row(x, row + (dy - 1), neighbour, channel, height, width, C)
            a3 += tap * _load_row(x, row + dy, neighbour, channel, height, width, C)
    constant = tl.zeros((1, CHANNELS), tl.float32)
    if bias is not None:
        constant += _load_channels(bias, channel, C)
    if shift is not None:
        constant += _load_channels(shift + image * C, channel, C)
    out += start * C
    if u is not None:
        u += start * C
        mean += start
        rstd += start
    for i in tl.static_range(4):
        value = constant + (a0 if i == 0 else a1 if i == 1 else a2 if i == 2 else a3)
        pixel, inside = _pixels(row + i, column, height, width)
        if u is not None:
            _store_pixels(u, value, pixel, inside, channel, C)
            _store_statistics(value, pixel, inside, channel, mean, rstd, eps, C)
        _store_pixels(out, _normalize(value, channel, gain, offset, eps, C), pixel, inside, channel, C)


@triton.jit(do_not_specialize=["pixels"])
def norm_backward(
    grad,  # (B, H, W, C), of the output
    u,  # (B, H, W, C), or None without a norm, as the next four
    mean,  # (B, H, W) fp32
    rstd,  # (B, H, W) fp32
    gain,  # (C,) fp32
    du,  # (B, H, W, C), written
    partial,  # (B, programs of an image, 3 or 1, C) fp32, written: sums for shift, gain, offset
    pixels,  # of an image
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A program: STEPS strips of PIXELS of one image, all channels. Grid: programs of an image, images."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    grad += image * pixels * C
    if gain is not None:
        u += image * pixels * C
        du += image * pixels * C
        mean += image * pixels
        rstd += image * pixels

    for_shift = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for_gain = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for_offset = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for step in range(STEPS):
        pixel = (tl.program_id(0) * STEPS + step) * PIXELS + tl.arange(0, PIXELS)[:, None]
        inside = pixel < pixels
        mask = inside & (channel < C)
        place = pixel * C + channel
        g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        if gain is not None:
            average = tl.load(mean + pixel, mask=inside, other=0.0)
            scale = tl.load(rstd + pixel, mask=inside, other=0.0)
            normed = (tl.load(u + place, mask=mask, other=0.0).to(tl.float32) - average) * scale
            normed = tl.where(channel < C, normed, 0.0)
            for_gain += g * normed
            for_offset += g
            g *= _load_channels(gain, channel, C)
            along_one = tl.sum(g, 1, keep_dims=True) / C
            along_normed = tl.sum(g * normed, 1, keep_dims=True) / C
            g = tl.where(channel < C, (g - along_one - normed * along_normed) * scale, 0.0)
            tl.store(du + place, g.to(du.dtype.element_ty), mask=mask)
        for_shift += g

    program = image * tl.num_programs(0) + tl.program_id(0)
    if gain is None:
        _store_sums(partial + program * C, for_shift, channel, C)
    else:
        partial += program * (3 * C)
        _store_sums(partial, for_shift, channel, C)
        _store_sums(partial + C, for_gain, channel, C)
        _store_sums(partial + 2 * C, for_offset, channel, C)


@triton.jit(do_not_specialize=["height", "width"])
def weight_gradient(
    x,  # (B, H, W, C)
    du,  # (B, H, W, C)
    partial,  # (B, bands, strips, 49, C) fp32, written
    height,
    width,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,  # of this program, a power of two
    PIXELS: tl.constexpr,
    BAND: tl.constexpr,
):
    """A program: 7 taps below each other of BAND rows of a strip of PIXELS, CHANNELS of them.

    Grid: strips x 7, bands, images x blocks of channels.
    """
    blocks: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    strip, strips, dx = tl.program_id(0) // 7, tl.num_programs(0) // 7, tl.program_id(0) % 7
    column = strip * PIXELS + tl.arange(0, PIXELS)[:, None]
    neighbour = column + (dx - 3)
    image = (tl.program_id(2) // blocks).to(tl.int64)
    channel = tl.program_id(2) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    x += image * height * width * C
    du += image * height * width * C
    partial += ((image * tl.num_programs(1) + tl.program_id(1)) * strips + strip) * (49 * C)
    last = tl.minimum((tl.program_id(1) + 1) * BAND, height)
    a0 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a1 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a2 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a3 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a4 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a5 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a6 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    row = tl.program_id(1) * BAND
    while row < last:
        for t in tl.static_range(4):  # equal loads are merged: 4 rows of du, 10 of x
            g = _load_row(du, row + t, column, channel, height, width, C)
            a0 += g * _load_row(x, row + (t - 3), neighbour, channel, height, width, C)
            a1 += g * _load_row(x, row + (t - 2), neighbour, channel, height, width, C)
            a2 += g * _load_row(x, row + (t - 1), neighbour, channel, height, width, C)
            a3 += g * _load_row(x, row + t, neighbour, channel, height, width, C)
            a4 += g * _load_row(x, row + (t + 1), neighbour, channel, height, width, C)
            a5 += g * _load_row(x, row + (t + 2), neighbour, channel, height, width, C)
            a6 += g * _load_row(x, row + (t + 3), neighbour, channel, height, width, C)
        row += 4
    tap = partial + dx * C
    _store_sums(tap, a0, channel, C)
    _store_sums(tap + 7 * C, a1, channel, C)
    _store_sums(tap + 14 * C, a2, channel, C)
    _store_sums(tap + 21 * C, a3, channel, C)
    _store_sums(tap + 28 * C, a4, channel, C)
    _store_sums(tap + 35 * C, a5, channel, C)
    _store_sums(tap + 42 * C, a6, channel, C)


def launch_options(channels: int) -> dict[str, int]:
    """A strip of 8 numbers a thread: with the sums of 4 rows some 90 to 130 registers, so 12 to 20 warps fit."""
    padded = triton.next_power_of_2(channels)
    warps = 4 if padded <= 64 else 8  # no more channels than half the threads: else taps go through shared memory
    return {
        "CHANNELS": padded,
        "PIXELS": min(64, 256 * warps // padded),
        "num_warps": warps,
        "enable_fp_fusion": True,
    }


def convolution_options(channels: int) -> dict[str, int]:
    """Half a strip up to 64 channels: on an H200 that is faster, but not at 128."""
    options = launch_options(channels)
    return options | {"PIXELS": options["PIXELS"] // 2 if options["CHANNELS"] <= 64 else options["PIXELS"]}


class Epilogue(NamedTuple):
    """What follows the convolution of a pixel."""

    bias: Tensor | None = None  # (C,) fp32
    shift: Tensor | None = None  # (B, C) fp32
    gain: Tensor | None = None  # (C,) fp32
    offset: Tensor | None = None  # (C,) fp32, with gain


class Saved(NamedTuple):
    """What backward needs of forward."""

    u: Tensor | None = None  # (B, C, H, W) as x, the input of the norm
    mean: Tensor | None = None  # (B, H, W) fp32
    rstd: Tensor | None = None  # (B, H, W) fp32


class Grads(NamedTuple):
    """None where not wanted, or where there is no norm."""

    x: Tensor | None  # (B, C, H, W) as x
    taps: Tensor | None  # (49, C) fp32
    shift: Tensor  # (B, C) fp32
    gain: Tensor | None  # (C,) fp32
    offset: Tensor | None  # (C,) fp32


def forward(
    x: Tensor,  # (B, C, H, W) fp32 or bf16, channels-last in memory, as every (B, C, H, W) here
    taps: Tensor,  # (49, C) fp32, contiguous, as every fp32 argument
    epilogue: Epilogue,
    eps: float,
    save: bool,
) -> tuple[Tensor, Saved]:
    """The output as x; and what backward needs, if there is a gain and `save`."""
    saved = Saved()
    if save and epilogue.gain is not None:
        u = torch.empty_like(x, memory_format=torch.channels_last)
        saved = Saved(u, *(x.new_empty(x.shape[0], *x.shape[2:], dtype=torch.float32) for _ in range(2)))
    return _convolve(x, taps, epilogue, saved, eps), saved


def backward(
    grad_out: Tensor,  # as x
    x: Tensor,
    saved: Saved,  # of forward; not read without a gain
    taps: Tensor,  # (49, C) fp32
    gain: Tensor | None,  # (C,) fp32
    wants_x: bool = True,
    wants_taps: bool = True,
) -> Grads:
    """The sums over pixels are made in an order that the shape alone decides: results repeat to the bit."""
    batch, channels, height, width = x.shape
    options = launch_options(channels)
    programs = triton.cdiv(height * width, options["PIXELS"] * STEPS)
    partial = x.new_empty(batch, programs, 1 if gain is None else 3, channels, dtype=torch.float32)
    du = grad_out if gain is None else torch.empty_like(x, memory_format=torch.channels_last)
    norm = (None,) * 5 if gain is None else (*saved, gain, du)
    with torch.cuda.device_of(x):
        norm_backward[programs, batch](grad_out, *norm, partial, height * width, C=channels, STEPS=STEPS, **options)
    return Grads(
        x=_convolve(du, taps, Epilogue(), Saved(), 0.0, flip=True) if wants_x else None,
        taps=_weight_gradient(x, du) if wants_taps else None,
        shift=partial[:, :, 0].sum(1),
        gain=None if gain is None else partial[:, :, 1].sum((0, 1)),
        offset=None if gain is None else partial[:, :, 2].sum((0, 1)),
    )


def _convolve(
    x: Tensor,
    taps: Tensor,
    epilogue: Epilogue,
    saved: Saved,  # memory that is written
    eps: float,
    flip: bool = False,
) -> Tensor:
    batch, channels, height, width = x.shape
    options = convolution_options(channels)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    with torch.cuda.device_of(x):
        convolve[triton.cdiv(width, options["PIXELS"]), triton.cdiv(height, 4), batch](
            x, taps, *epilogue, out, *saved, height, width, eps, C=channels, FLIP=flip, **options
        )
    return out


def _weight_gradient(x: Tensor, du: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    options = launch_options(min(channels, GRADIENT_CHANNELS))
    strips, bands = triton.cdiv(width, options["PIXELS"]), triton.cdiv(height, BAND)
    partial = x.new_empty(batch, bands, strips, 49, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        weight_gradient[7 * strips, bands, batch * triton.cdiv(channels, options["CHANNELS"])](
            x, du, partial, height, width, C=channels, BAND=BAND, **options
        )
    return partial.sum((0, 1, 2))
