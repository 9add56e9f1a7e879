"""Triton kernels of what a network adds for time and frame offset: sinusoids, MLPs, a linear layer for each block.

shifts, kept = forward(values, frequencies, mlps, layers)
grads = backward(grad, values, frequencies, mlps, layers, kept, of_mlps, of_layers)

All is fp32. These are products of matrices and single vectors: what takes time is that they follow each other, so each
way is two launches: one of a program for each MLP and sample, or hidden part, and one for each block of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.embedding import Layer, Mlp
from .gelu import activate, slope

HIDDEN = 32  # hidden numbers at a time
OUTPUTS = 32  # of the linear layers, of a program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _sinusoids(values, frequencies, sample, F: tl.constexpr, WIDTH: tl.constexpr):
    """(WIDTH,): sines, then cosines, of a sample's value times each frequency; 0 beyond F."""
    at = tl.arange(0, WIDTH)
    frequency = tl.load(frequencies + at % (F // 2), mask=at < F, other=0.0)
    angle = tl.load(values + sample).to(tl.float32) * frequency
    return tl.where(at < F // 2, tl.sin(angle), tl.where(at < F, tl.cos(angle), 0.0))


@triton.jit
def _matrix(x, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A part of a matrix (ROWS, COLUMNS); 0 outside it."""
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    return tl.load(x + row[:, None] * COLUMNS + column[None, :], mask=mask, other=0.0)


@triton.jit
def embed(
    values,  # of each MLP (B,): what is embedded
    frequencies,  # (F / 2,)
    inner,  # of each MLP
    inner_bias,
    outer,
    outer_bias,
    hidden,  # (B, MLPs, H), written: before GELU, as the next
    embedding,  # (B, MLPs, F)
    F: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,  # F up to a power of two
    HIDDEN: tl.constexpr,
):
    """A program: a sample, an MLP."""
    sample, count = tl.program_id(0), tl.num_programs(1)
    at = tl.arange(0, WIDTH)
    for i in tl.static_range(len(inner)):
        if tl.program_id(1) == i:
            x = _sinusoids(values[i], frequencies, sample, F, WIDTH)
            sums = tl.load(outer_bias[i] + at, mask=at < F, other=0.0)
            for first in range(0, H, HIDDEN):
                h = first + tl.arange(0, HIDDEN)
                before = tl.sum(_matrix(inner[i], h, at, H, F) * x[None, :], 1)
                before += tl.load(inner_bias[i] + h, mask=h < H, other=0.0)
                tl.store(hidden + (sample * count + i) * H + h, before, mask=h < H)
                sums += tl.sum(_matrix(outer[i], at, h, F, H) * activate(before, tl.float32)[None, :], 1)
            tl.store(embedding + (sample * count + i) * F + at, sums, mask=at < F)


@triton.jit
def _layer(starts, OUTPUTS: tl.constexpr):
    """The layer of a program, the first output of its block, and the first and the number of the layer's outputs."""
    layer, block, start, rows, first = 0, 0, 0, 0, 0
    for i in tl.static_range(len(starts) - 1):
        if tl.program_id(0) >= first:
            layer, block, start, rows = i, tl.program_id(0) - first, starts[i], starts[i + 1] - starts[i]
        first += tl.cdiv(starts[i + 1] - starts[i], OUTPUTS)
    return layer, block * OUTPUTS, start, rows


@triton.jit
def _of(pointers, layer):
    """That of a layer."""
    pointer = pointers[0]
    for i in tl.static_range(len(pointers)):
        pointer = tl.where(layer == i, pointers[i], pointer)
    return pointer


@triton.jit
def shift(
    embedding,  # (B, E)
    weights,  # of each layer
    biases,
    out,  # (B, outputs of all layers), written
    starts,  # of each layer: its first output; then the number of all
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """A program: a block of outputs of a layer, a sample."""
    sample = tl.program_id(1)
    at = tl.arange(0, WIDTH)
    x = activate(tl.load(embedding + sample * E + at, mask=at < E, other=0.0), tl.float32)
    layer, first, start, rows = _layer(starts, OUTPUTS)
    row = first + tl.arange(0, OUTPUTS)
    mask = (row < rows)[:, None] & (at < E)[None, :]
    weight = tl.load(_of(weights, layer) + row[:, None] * E + at[None, :], mask=mask, other=0.0)
    value = tl.sum(weight * x[None, :], 1) + tl.load(_of(biases, layer) + row, mask=row < rows, other=0.0)
    tl.store(out + sample * starts[len(weights)] + start + row, value, mask=row < rows)


@triton.jit
def shift_backward(
    grad,  # (B, outputs of all layers)
    embedding,  # (B, E)
    weights,  # of each layer
    of_weights,  # as weights, written, as all that follows
    of_biases,
    partial,  # (programs, B, E): sums for the gradient of GELU of the embedding
    starts,
    samples,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """A program: a block of outputs of a layer."""
    at = tl.arange(0, WIDTH)
    layer, first, start, rows = _layer(starts, OUTPUTS)
    row = first + tl.arange(0, OUTPUTS)
    place = row[:, None] * E + at[None, :]
    mask = (row < rows)[:, None] & (at < E)[None, :]
    weight = tl.load(_of(weights, layer) + place, mask=mask, other=0.0)
    of_weight = tl.zeros((OUTPUTS, WIDTH), tl.float32)
    of_bias = tl.zeros((OUTPUTS,), tl.float32)
    for sample in range(samples):
        x = activate(tl.load(embedding + sample * E + at, mask=at < E, other=0.0), tl.float32)
        g = tl.load(grad + sample * starts[len(weights)] + start + row, mask=row < rows, other=0.0)
        of_weight += g[:, None] * x[None, :]
        of_bias += g
        target = partial + (tl.program_id(0) * samples + sample) * E + at
        tl.store(target, tl.sum(weight * g[:, None], 0), mask=at < E)
    tl.store(_of(of_weights, layer) + place, of_weight, mask=mask)
    tl.store(_of(of_biases, layer) + row, of_bias, mask=row < rows)


@triton.jit
def embed_backward(
    values,  # of each MLP (B,)
    frequencies,
    outer,  # of each MLP
    hidden,  # (B, MLPs, H)
    embedding,  # (B, MLPs, F)
    partial,  # (programs, B, MLPs, F)
    of_inner,  # of each MLP, written, as all that follows
    of_inner_bias,
    of_outer,
    of_outer_bias,
    programs,
    samples,
    F: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    PROGRAMS: tl.constexpr,  # up to a power of two
):
    """A program: HIDDEN hidden numbers, an MLP."""
    count = tl.num_programs(1)
    at = tl.arange(0, WIDTH)
    h = tl.program_id(0) * HIDDEN + tl.arange(0, HIDDEN)
    program = tl.arange(0, PROGRAMS)
    for i in tl.static_range(len(outer)):
        if tl.program_id(1) == i:
            weight = _matrix(outer[i], at, h, F, H)
            first = tl.zeros((HIDDEN, WIDTH), tl.float32)
            first_bias = tl.zeros((HIDDEN,), tl.float32)
            second = tl.zeros((WIDTH, HIDDEN), tl.float32)
            second_bias = tl.zeros((WIDTH,), tl.float32)
            for sample in range(samples):
                place = ((program[:, None] * samples + sample) * count + i) * F + at[None, :]
                mask = (program < programs)[:, None] & (at < F)[None, :]
                g = tl.sum(tl.load(partial + place, mask=mask, other=0.0), 0)
                g *= slope(tl.load(embedding + (sample * count + i) * F + at, mask=at < F, other=0.0), tl.float32)
                before = tl.load(hidden + (sample * count + i) * H + h, mask=h < H, other=0.0)
                second += g[:, None] * activate(before, tl.float32)[None, :]
                second_bias += g
                g = tl.sum(weight * g[:, None], 0) * slope(before, tl.float32)
                first += g[:, None] * _sinusoids(values[i], frequencies, sample, F, WIDTH)[None, :]
                first_bias += g
            mask = (h < H)[:, None] & (at < F)[None, :]
            tl.store(of_inner[i] + h[:, None] * F + at[None, :], first, mask=mask)
            tl.store(of_inner_bias[i] + h, first_bias, mask=h < H)
            tl.store(of_outer[i] + at[:, None] * H + h[None, :], second, mask=(at < F)[:, None] & (h < H)[None, :])
            tl.store(of_outer_bias[i] + at, second_bias, mask=at < tl.where(tl.program_id(0) == 0, F, 0))


class Kept(NamedTuple):
    """What backward needs of forward."""

    hidden: Tensor  # (B, MLPs, H), before GELU, as the next
    embedding: Tensor  # (B, MLPs, F)


def _starts(layers: Sequence[Layer]) -> tuple[int, ...]:
    starts = [0]
    for layer in layers:
        starts.append(starts[-1] + len(layer.bias))
    return tuple(starts)


def _programs(layers: Sequence[Layer]) -> int:
    return sum(triton.cdiv(len(layer.bias), OUTPUTS) for layer in layers)


def forward(
    values: Sequence[Tensor],  # of each MLP (B,), fp32 or int64: what is embedded
    frequencies: Tensor,  # (F / 2,)
    mlps: Sequence[Mlp],
    layers: Sequence[Layer],  # of E = F times the number of MLPs
) -> tuple[Tensor, Kept]:
    """(B, outputs of all layers): each layer of GELU of the MLPs' results; and what backward needs."""
    batch, (hidden, width), count = len(values[0]), mlps[0].inner.shape, len(mlps)
    kept = Kept(frequencies.new_empty(batch, count, hidden), frequencies.new_empty(batch, count, width))
    starts, padded = _starts(layers), triton.next_power_of_2
    out = frequencies.new_empty(batch, starts[-1])
    with torch.cuda.device_of(out):
        embed[batch, count](
            tuple(values), frequencies, *zip(*mlps, strict=True), *kept,
            F=width, H=hidden, WIDTH=padded(width), HIDDEN=HIDDEN, **OPTIONS,
        )  # fmt: skip
        shift[_programs(layers), batch](
            kept.embedding, *zip(*layers, strict=True), out, starts,
            E=count * width, WIDTH=padded(count * width), OUTPUTS=OUTPUTS, **OPTIONS,
        )  # fmt: skip
    return out, kept


def backward(
    grad: Tensor,  # (B, outputs of all layers)
    values: Sequence[Tensor],
    frequencies: Tensor,
    mlps: Sequence[Mlp],
    layers: Sequence[Layer],
    kept: Kept,
    of_mlps: Sequence[Mlp],  # the gradients, written
    of_layers: Sequence[Layer],
) -> None:
    """Sums over samples are made in their order: results repeat to the bit."""
    batch, (hidden, width), count = len(grad), mlps[0].inner.shape, len(mlps)
    programs, padded = _programs(layers), triton.next_power_of_2
    partial = grad.new_empty(programs, batch, count, width)
    weights, outer = (tuple(each) for each in ([layer.weight for layer in layers], [mlp.outer for mlp in mlps]))
    with torch.cuda.device_of(grad):
        shift_backward[(programs,)](
            grad, kept.embedding, weights, *zip(*of_layers, strict=True), partial, _starts(layers), batch,
            E=count * width, WIDTH=padded(count * width), OUTPUTS=OUTPUTS, **OPTIONS,
        )  # fmt: skip
        embed_backward[triton.cdiv(hidden, HIDDEN), count](
            tuple(values), frequencies, outer, *kept, partial, *zip(*of_mlps, strict=True), programs, batch,
            F=width, H=hidden, WIDTH=padded(width), HIDDEN=HIDDEN, PROGRAMS=padded(programs), **OPTIONS,
        )  # fmt: skip
