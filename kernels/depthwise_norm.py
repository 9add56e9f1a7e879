"""Triton kernels of the operator `depthwise_norm`, which sinfusion/ops/depthwise_norm.py defines.

out, saved = forward(Input(x, skip), taps, Epilogue(bias, shift, gain, offset), eps, save)
du, partial = norm_gradient(grad_out, saved, gain)
grads = input_gradient(du, taps, skip_channels)
partial = taps_gradient(Input(x, skip), du)

Activations are channels-last, fp32 or bf16; sums are fp32. With 49 multiplications for each number read, arithmetic is
the limit and not memory (a number in bf16 on an H200: 98 operations take 1.5 ps, 4 bytes 0.8 ps). So numbers are
reused from registers: a program makes 4 rows of a strip of pixels, each number loaded serves up to 4 of them, and its
neighbours to the left and right come from L1. Sums over pixels are left as partial sums, for kernels/reduce.py.

Checked without a GPU: results, in Triton's interpreter; compiled code for sm_80 and sm_90, which spills no registers
(Triton 3.9, but for 4 words of wide ones in fp32; other versions up to 8 words). On an H200 results are right too, and
the block sizes were measured.
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
def _place(x, skip, pixel, channel, C: tl.constexpr, S: tl.constexpr):
    """Where channels (1, CHANNELS) of pixels (PIXELS, 1) lie; the last S of C are those of skip, if there is one."""
    if skip is None:
        return x + (pixel * C + channel)
    else:
        from_x = channel < C - S
        if C == 2 * S:
            place = tl.where(from_x, x, skip - S) + (pixel * S + channel)
        else:
            stride, inside = tl.where(from_x, C - S, S), tl.where(from_x, channel, channel - (C - S))
            place = tl.where(from_x, x, skip) + (pixel * stride + inside)
        if C % 16 == 0 and S % 16 == 0:  # which Triton does not see
            place = tl.max_contiguous(tl.multiple_of(place, (1, 16)), (1, 16))
        return place


@triton.jit
def _load_row(x, skip, row, column, channel, height, width, C: tl.constexpr, S: tl.constexpr):
    """Pixels `column` (PIXELS, 1), channels `channel` (1, CHANNELS) of one row of an image (H, W, C); 0 outside it."""
    mask = (column >= 0) & (channel < C) & (column < tl.where((row >= 0) & (row < height), width, 0))
    if skip is None:
        place = x + row * width * C + (column * C + channel)
    else:
        place = _place(x, skip, row * width + column, channel, C, S)
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


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
def _store_pixels(x, skip, value, pixel, inside, channel, C: tl.constexpr, S: tl.constexpr):
    place = _place(x, skip, pixel, channel, C, S)
    tl.store(place, value.to(x.dtype.element_ty), mask=inside & (channel < C))


@triton.jit
def _load_pixels(x, skip, pixel, inside, channel, C: tl.constexpr, S: tl.constexpr):
    place = _place(x, skip, pixel, channel, C, S)
    return tl.load(place, mask=inside & (channel < C), other=0.0).to(tl.float32)


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


@triton.jit
def _sums(
    x,
    skip,
    taps,
    row,
    column,
    channel,
    height,
    width,
    C: tl.constexpr,
    S: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    FLIP: tl.constexpr,  # taps in reverse
):
    """(PIXELS, CHANNELS) four times: the convolution at the row and the three below it."""
    a0 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a1 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a2 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    a3 = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for dx in range(7):
        neighbour = column + (dx - 3)
        for dy in tl.static_range(7):  # equal loads are merged: 10 rows and 7 taps
            tap = _load_tap(taps, dy, dx, channel, C, FLIP)
            a0 += tap * _load_row(x, skip, row + (dy - 3), neighbour, channel, height, width, C, S)
            a1 += tap * _load_row(x, skip, row + (dy - 2), neighbour, channel, height, width, C, S)
            a2 += tap * _load_row(x, skip, row + (dy - 1), neighbour, channel, height, width, C, S)
            a3 += tap * _load_row(x, skip, row + dy, neighbour, channel, height, width, C, S)
    return a0, a1, a2, a3


@triton.jit(do_not_specialize=["height", "width", "shift_stride"], do_not_specialize_on_alignment=["shift"])
def convolve(
    x,  # (B, H, W, C - S)
    skip,  # (B, H, W, S) or None
    taps,  # (49, C) fp32
    bias,  # (C,) fp32 or None
    shift,  # (B, C) fp32 or None
    shift_stride,  # numbers from a sample's to the next; 0: all have the same
    gain,  # (C,) fp32 or None
    offset,  # (C,) fp32, with gain
    out,  # (B, H, W, C), written
    u,  # as out, written, or None; kept for the backward
    mean,  # (B, H, W) fp32, with u
    rstd,  # (B, H, W) fp32, with u
    height,
    width,
    eps,
    C: tl.constexpr,
    S: tl.constexpr,
    CHANNELS: tl.constexpr,  # C up to a power of two
    PIXELS: tl.constexpr,
):
    """A program: 4 rows of a strip of PIXELS, all channels. Grid: strips, groups of 4 rows, images."""
    column = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    row = tl.program_id(1) * 4
    image = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    start = image * height * width
    x += start * (C - S)
    if skip is not None:
        skip += start * S
    a0, a1, a2, a3 = _sums(x, skip, taps, row, column, channel, height, width, C, S, CHANNELS, PIXELS, False)
    constant = tl.zeros((1, CHANNELS), tl.float32)
    if bias is not None:
        constant += _load_channels(bias, channel, C)
    if shift is not None:
        constant += _load_channels(shift + image * shift_stride, channel, C)
    out += start * C
    if u is not None:
        u += start * C
        mean += start
        rstd += start
    for i in tl.static_range(4):
        value = constant + (a0 if i == 0 else a1 if i == 1 else a2 if i == 2 else a3)
        pixel, inside = _pixels(row + i, column, height, width)
        if u is not None:
            _store_pixels(u, None, value, pixel, inside, channel, C, 0)
            _store_statistics(value, pixel, inside, channel, mean, rstd, eps, C)
        _store_pixels(out, None, _normalize(value, channel, gain, offset, eps, C), pixel, inside, channel, C, 0)


@triton.jit(do_not_specialize=["height", "width"])
def convolve_gradient(
    du,  # (B, H, W, C)
    taps,  # (49, C) fp32
    residual,  # (B, H, W, C - S) or None: added to out, as the next
    passed,  # as residual
    residual_skip,  # (B, H, W, S) or None: added to out_skip
    out,  # (B, H, W, C - S), written
    out_skip,  # (B, H, W, S), written; None without a skip
    height,
    width,
    C: tl.constexpr,
    S: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """The same with taps in reverse, for the gradient. What is added may be what is written."""
    column = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    row = tl.program_id(1) * 4
    channel = tl.arange(0, CHANNELS)[None, :]
    start = tl.program_id(2).to(tl.int64) * height * width
    a0, a1, a2, a3 = _sums(
        du + start * C, None, taps, row, column, channel, height, width, C, 0, CHANNELS, PIXELS, True
    )
    out += start * (C - S)
    if out_skip is not None:
        out_skip += start * S
    if residual is not None:
        residual += start * (C - S)
    if residual_skip is not None:
        residual_skip += start * S
    if passed is not None:
        passed += start * (C - S)
    for i in tl.static_range(4):
        value = a0 if i == 0 else a1 if i == 1 else a2 if i == 2 else a3
        pixel, inside = _pixels(row + i, column, height, width)
        if residual is not None:
            value += _load_pixels(residual, residual_skip, pixel, inside, channel, C, S)
        if passed is not None:
            value += _load_pixels(passed, None, pixel, inside & (channel < C - S), channel, C - S, 0)
        _store_pixels(out, out_skip, value, pixel, inside, channel, C, S)


@triton.jit(do_not_specialize=["pixels"])
def norm_backward(
    grad,  # (B, H, W, C), of the output
    u,  # (B, H, W, C), or None without a norm, as the next four
    mean,  # (B, H, W) fp32
    rstd,  # (B, H, W) fp32
    gain,  # (C,) fp32
    du,  # (B, H, W, C), written
    other,  # (B, H, W, C) or None: a gradient of which sums are wanted, too
    partial,  # (1 to 4, B, programs of an image, C) fp32, written: sums for shift, gain and offset if any, of other
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
    if other is not None:
        other += image * pixels * C
    if gain is not None:
        u += image * pixels * C
        du += image * pixels * C
        mean += image * pixels
        rstd += image * pixels

    for_shift = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for_gain = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for_offset = tl.zeros((PIXELS, CHANNELS), tl.float32)
    of_other = tl.zeros((PIXELS, CHANNELS), tl.float32)
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
        if other is not None:
            of_other += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)

    partial += (image * tl.num_programs(0) + tl.program_id(0)) * C
    further = tl.num_programs(1).to(tl.int64) * tl.num_programs(0) * C
    _store_sums(partial, for_shift, channel, C)
    if gain is not None:
        _store_sums(partial + further, for_gain, channel, C)
        _store_sums(partial + 2 * further, for_offset, channel, C)
    if other is not None:
        _store_sums(partial + (further if gain is None else 3 * further), of_other, channel, C)


@triton.jit(do_not_specialize=["height", "width"])
def weight_gradient(
    x,  # (B, H, W, C - S)
    skip,  # (B, H, W, S) or None
    du,  # (B, H, W, C)
    partial,  # (B, bands, strips, 49, C) fp32, written
    height,
    width,
    C: tl.constexpr,
    S: tl.constexpr,
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
    x += image * height * width * (C - S)
    if skip is not None:
        skip += image * height * width * S
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
            g = _load_row(du, None, row + t, column, channel, height, width, C, 0)
            a0 += g * _load_row(x, skip, row + (t - 3), neighbour, channel, height, width, C, S)
            a1 += g * _load_row(x, skip, row + (t - 2), neighbour, channel, height, width, C, S)
            a2 += g * _load_row(x, skip, row + (t - 1), neighbour, channel, height, width, C, S)
            a3 += g * _load_row(x, skip, row + t, neighbour, channel, height, width, C, S)
            a4 += g * _load_row(x, skip, row + (t + 1), neighbour, channel, height, width, C, S)
            a5 += g * _load_row(x, skip, row + (t + 2), neighbour, channel, height, width, C, S)
            a6 += g * _load_row(x, skip, row + (t + 3), neighbour, channel, height, width, C, S)
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
    """Half a strip up to 64 channels: on an H200 that is faster, but not at 128. There two programs fit."""
    options = launch_options(channels)
    return options | ({"PIXELS": options["PIXELS"] // 2} if options["CHANNELS"] <= 64 else {"maxnreg": 128})


class Input(NamedTuple):
    """Tensors whose channels follow each other."""

    x: Tensor  # (B, C - S, H, W) fp32 or bf16, channels-last in memory, as every (B, ., H, W) here
    skip: Tensor | None = None  # (B, S, H, W) as x

    @property
    def channels(self) -> tuple[int, int]:
        """C and S."""
        of_skip = 0 if self.skip is None else self.skip.shape[1]
        return self.x.shape[1] + of_skip, of_skip

    def empty(self, channels: int) -> Tensor:
        """(B, channels, H, W) as x."""
        return _empty(self.x, channels)


class Epilogue(NamedTuple):
    """What follows the convolution of a pixel."""

    bias: Tensor | None = None  # (C,) fp32, contiguous, as every fp32 argument
    shift: Tensor | None = None  # (B, C) fp32, of which each row is contiguous
    gain: Tensor | None = None  # (C,) fp32
    offset: Tensor | None = None  # (C,) fp32, with gain


class Saved(NamedTuple):
    """What backward needs of forward."""

    u: Tensor | None = None  # (B, C, H, W) as x, the input of the norm
    mean: Tensor | None = None  # (B, H, W) fp32
    rstd: Tensor | None = None  # (B, H, W) fp32


def forward(
    given: Input,
    taps: Tensor,  # (49, C) fp32
    epilogue: Epilogue,
    eps: float,
    save: bool,
) -> tuple[Tensor, Saved]:
    """The output (B, C, H, W) as x; and what backward needs, if there is a gain and `save`."""
    (batch, _, height, width), (channels, of_skip) = given.x.shape, given.channels
    bias, shift, gain, offset = epilogue
    out, saved = _empty(given.x, channels), Saved()
    if save and gain is not None:
        statistics = (given.x.new_empty(batch, height, width, dtype=torch.float32) for _ in range(2))
        saved = Saved(_empty(given.x, channels), *statistics)
    options = convolution_options(channels)
    with torch.cuda.device_of(given.x):
        convolve[_convolution_grid(given.x, options)](
            *given, taps, bias, shift, 0 if shift is None else shift.stride(0), gain, offset, out, *saved,
            height, width, eps, C=channels, S=of_skip, **options,
        )  # fmt: skip
    return out, saved


def norm_gradient(
    grad_out: Tensor,  # (B, C, H, W)
    saved: Saved,  # of forward; not read without a gain
    gain: Tensor | None,  # (C,) fp32
    other: Tensor | None = None,  # (B, C, H, W), of which sums are wanted, too
) -> tuple[Tensor, Tensor]:
    """du as grad_out (itself without a gain); partial sums (1 to 4, B, n, C) fp32, as `norm_backward` has them."""
    batch, channels, height, width = grad_out.shape
    options = launch_options(channels)
    programs = triton.cdiv(height * width, options["PIXELS"] * STEPS)
    kinds = (1 if gain is None else 3) + (other is not None)
    partial = grad_out.new_empty(kinds, batch, programs, channels, dtype=torch.float32)
    du = grad_out if gain is None else _empty(grad_out, channels)
    norm = (None,) * 5 if gain is None else (*saved, gain, du)
    with torch.cuda.device_of(grad_out):
        norm_backward[programs, batch](
            grad_out, *norm, other, partial, height * width, C=channels, STEPS=STEPS, **options
        )
    return du, partial


def input_gradient(
    du: Tensor,  # (B, C, H, W)
    taps: Tensor,  # (49, C) fp32
    skip_channels: int = 0,  # S
    residual: Input | None = None,  # added to both
    passed: Tensor | None = None,  # (B, C - S, H, W): added to the first
) -> Input:
    """The gradients of x and skip. They are written to the residual's memory where there is a skip."""
    (_, channels, height, width), options = du.shape, convolution_options(du.shape[1])
    if residual is None or not skip_channels:
        out = Input(_empty(du, channels - skip_channels), _empty(du, skip_channels) if skip_channels else None)
    else:
        out = residual
    residual = residual or Input(None, None)  # type: ignore[arg-type]
    with torch.cuda.device_of(du):
        convolve_gradient[_convolution_grid(du, options)](
            du, taps, residual.x, passed, residual.skip, *out, height, width, C=channels, S=skip_channels, **options
        )
    return out


def taps_gradient(given: Input, du: Tensor) -> Tensor:
    """(1, n, 49, C) fp32: partial sums."""
    (batch, channels, height, width), of_skip = du.shape, given.channels[1]
    options = launch_options(min(channels, GRADIENT_CHANNELS))
    strips, bands = triton.cdiv(width, options["PIXELS"]), triton.cdiv(height, BAND)
    partial = du.new_empty(1, batch * bands * strips, 49, channels, dtype=torch.float32)
    with torch.cuda.device_of(du):
        weight_gradient[7 * strips, bands, batch * triton.cdiv(channels, options["CHANNELS"])](
            *given, du, partial, height, width, C=channels, S=of_skip, BAND=BAND, **options
        )
    return partial


def _empty(x: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) as x (B, C, H, W)."""
    batch, _, height, width = x.shape
    return torch.empty(
        batch, channels, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _convolution_grid(x: Tensor, options: dict[str, int]) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[3], options["PIXELS"]), triton.cdiv(x.shape[2], 4), x.shape[0]
