"""`block_shifts`: what a network adds to its blocks for time and frame offset, differentiable in the parameters.

Single vectors go through its layers, so that on a GPU launching PyTorch's operators takes longer than computing: there
kernels/embedding.py makes all of it in two launches, and its gradients in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import use_native


class Mlp(NamedTuple):
    """Two layers with GELU between them."""

    inner: Tensor  # (H, E)
    inner_bias: Tensor  # (H,)
    outer: Tensor  # (E, H)
    outer_bias: Tensor  # (E,)


class Layer(NamedTuple):
    weight: Tensor  # (C, E times the number of MLPs)
    bias: Tensor  # (C,)


def block_shifts(
    values: Sequence[Tensor],  # what is embedded, by an MLP each: the first (B,), others (B,) or (1,)
    frequencies: Tensor,  # (E / 2,) fp32
    mlps: Sequence[Mlp],  # fp32 (fp64: reference only), as layers
    layers: Sequence[Layer],  # of the blocks
    gradients: Sequence[Tensor]
    | None = None,  # on a GPU: where those of mlps, then layers, are written; None: anywhere
) -> Tensor:
    """(B, sum of all C): each layer of GELU(m), m what the MLPs make of sines and cosines of value times frequency."""
    if runs_on_gpu(values[0]) and use_native("block_shifts", _unsupported(layers)):
        values = [value.expand(len(values[0])).contiguous() for value in values]
        parameters = [each for group in (*mlps, *layers) for each in group]
        result: Tensor = _Shifts.apply(len(values), gradients, frequencies, *values, *parameters)
        return result
    embeddings = [_embed(value, frequencies, mlp) for value, mlp in zip(values, mlps, strict=True)]
    embedding = embeddings[0]
    for other in embeddings[1:]:
        embedding = torch.cat((embedding, other.expand(len(embedding), -1)), 1)
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return F.linear(F.gelu(embedding), weight, bias)  # one product for all blocks


def _embed(value: Tensor, frequencies: Tensor, mlp: Mlp) -> Tensor:
    angle = value.float()[:, None] * frequencies
    inside = F.gelu(F.linear(torch.cat((angle.sin(), angle.cos()), 1), mlp.inner, mlp.inner_bias))
    return F.linear(inside, mlp.outer, mlp.outer_bias)


def runs_on_gpu(value: Tensor) -> bool:
    return value.is_cuda


def _unsupported(layers: Sequence[Layer]) -> list[str]:
    """Why the GPU's kernels cannot run."""
    from .. import kernels

    reasons = [kernels.why_not()] if kernels.why_not() else []
    return reasons + ["weights are not fp32"] * (layers[0].weight.dtype != torch.float32)


def _grouped(parameters: Sequence[Any], mlps: int) -> tuple[list[Mlp], list[Layer]]:
    first, others = parameters[: 4 * mlps], parameters[4 * mlps :]
    return (
        [Mlp._make(first[i : i + 4]) for i in range(0, len(first), 4)],
        [Layer._make(others[i : i + 2]) for i in range(0, len(others), 2)],
    )


class _Shifts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mlps: int, gradients: Sequence[Tensor] | None, frequencies: Tensor, *tensors: Tensor
    ) -> Tensor:
        from ..kernels import embedding

        values, parameters = tensors[:mlps], tensors[mlps:]
        out, kept = embedding.forward(values, frequencies, *_grouped([p.detach() for p in parameters], mlps))
        ctx.save_for_backward(frequencies, *kept, *tensors)
        ctx.mlps, ctx.gradients = mlps, gradients
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from ..kernels import embedding

        (frequencies, *kept), tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        values, parameters = tensors[: ctx.mlps], tensors[ctx.mlps :]
        found = ctx.gradients or [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
        embedding.backward(
            grads[0].contiguous(), values, frequencies, *_grouped(parameters, ctx.mlps), embedding.Kept._make(kept),
            *_grouped(found, ctx.mlps),
        )  # fmt: skip
        return None, None, None, *(None for _ in values), *found
