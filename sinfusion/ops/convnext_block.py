"""A ConvNeXt block: `depthwise_norm`, two `dense` with a GELU between them, and a residual.

A CPU runs these operators one by one, which is the definition. On a GPU the block is one node of autograd, so that its
backward can do what operators by themselves cannot: gradients are added where they are written, sums over pixels are
made by one kernel, and GELU's derivative is taken where its gradient is at hand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dense import Dense, dense, gpu_forward, gpu_input_gradient, gpu_weight_gradient
from .dense import unsupported_on_gpu as dense_unsupported
from .depthwise_norm import DepthwiseNorm, depthwise_norm, gpu_kernels
from .depthwise_norm import unsupported_on_gpu as norm_unsupported
from .dispatch import use_native
from .layout import aligned, channels_last, empty_taps_first, fp32, taps_first
from .reduce import reduce_partials
from .registration import takes

VECTORS = ("taps_bias", "gain", "offset", "expand_bias", "project_bias", "residual_bias")  # of the parameters


class Gradients(NamedTuple):
    """Of a block's parameters, as they are; weights in a GPU's `weight_order`."""

    taps: Tensor
    taps_bias: Tensor
    gain: Tensor | None
    offset: Tensor | None
    expand: Tensor
    expand_bias: Tensor
    project: Tensor
    project_bias: Tensor
    residual: Tensor | None
    residual_bias: Tensor | None


class ConvNeXtBlock(NamedTuple):
    x: Tensor  # (B, C - S, H, W) fp32 or bf16, channels-last
    skip: Tensor | None  # (B, S, H, W) as x
    shift: Tensor  # (B, C) fp32, of which each row is contiguous
    taps: Tensor  # (C, 1, 7, 7) fp32, as all parameters
    taps_bias: Tensor  # (C,)
    gain: Tensor | None  # (C,); None: no norm
    offset: Tensor | None  # (C,), with gain
    expand: Tensor  # (E, C, k, k)
    expand_bias: Tensor  # (E,)
    project: Tensor  # (O, E, k, k)
    project_bias: Tensor  # (O,)
    residual: Tensor | None  # (O, C, 1, 1); None: x is added, O = C and there is no skip
    residual_bias: Tensor | None  # (O,), with residual
    expand_copy: Tensor | None = None  # the weights in the dtype of x, channels-last; None: made here
    project_copy: Tensor | None = None
    residual_copy: Tensor | None = None
    gradients: Gradients | None = (
        None  # on a GPU: where the parameters' gradients are written; None: memory of their own
    )


@takes(ConvNeXtBlock)
def convnext_block(a: ConvNeXtBlock) -> tuple[Tensor, Tensor]:
    """The block's output (B, O, H, W) as x, and x again, for whoever reads it after the block.

    On a GPU the gradient of that second x is added where the block writes its own.
    """
    if a.x.is_cuda and use_native("convnext_block", unsupported_on_gpu(a)):
        return fused(a)
    h = depthwise_norm(a.x, a.taps, a.taps_bias, a.shift, a.gain, a.offset, a.skip)
    residual = a.x
    if a.residual is not None:
        residual = dense(a.x, a.residual, a.residual_bias, skip=a.skip, copy=a.residual_copy)
    expanded = dense(h, a.expand, a.expand_bias, gelu=True, copy=a.expand_copy)
    return dense(expanded, a.project, a.project_bias, residual, copy=a.project_copy), a.x


def unsupported_on_gpu(a: ConvNeXtBlock) -> list[str]:
    """Why the GPU's kernels cannot run."""
    of_norm = DepthwiseNorm(a.x, a.taps, a.taps_bias, a.shift, a.gain, a.offset, a.skip)
    reasons = norm_unsupported(of_norm)
    return reasons + dense_unsupported(Dense(a.x, a.expand, a.expand_bias, gelu=True))


def fused(a: ConvNeXtBlock) -> tuple[Tensor, Tensor]:
    """`convnext_block` by the GPU's kernels."""
    a = _as_kernels_read(a)
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in a[:13]):
        results: tuple[Tensor, Tensor] = _Fused.apply(*a)
        return results
    return _forward(a, save=False)[0], a.x


def _as_kernels_read(a: ConvNeXtBlock) -> ConvNeXtBlock:
    def copy_of(weight: Tensor, copy: Tensor | None) -> Tensor:
        return weight.detach().to(a.x.dtype, memory_format=torch.channels_last) if copy is None else copy

    return a._replace(
        x=aligned(channels_last(a.x)),
        skip=aligned(channels_last(a.skip)),
        shift=(a.shift if a.shift.stride(1) == 1 else a.shift.contiguous()).float(),
        expand_copy=copy_of(a.expand, a.expand_copy),
        project_copy=copy_of(a.project, a.project_copy),
        residual_copy=None if a.residual is None else copy_of(a.residual, a.residual_copy),
        **{name: fp32(value) for name, value in a._asdict().items() if name in VECTORS},  # type: ignore[arg-type]
    )


class _Kept(NamedTuple):
    """What the backward needs beside the block's arguments."""

    h: Tensor  # (B, C, H, W), what the norm made
    u: Tensor | None  # its input, mean and 1 / standard deviation
    mean: Tensor | None
    rstd: Tensor | None
    expanded: Tensor  # (B, E, H, W), what GELU made
    z: Tensor  # what GELU was taken of, without the bias


def _forward(a: ConvNeXtBlock, save: bool) -> tuple[Tensor, _Kept | None]:
    from ..kernels import depthwise_norm as norm

    given = norm.Input(a.x, a.skip)
    epilogue = norm.Epilogue(a.taps_bias, a.shift, a.gain, a.offset)
    h, saved = gpu_kernels(given).forward(
        given, taps_first(a.taps), epilogue, DepthwiseNorm._field_defaults["eps"], save
    )
    assert a.expand_copy is not None and a.project_copy is not None
    shortcut = None if a.residual_copy is None else (given, a.residual_copy, a.residual_bias)
    residual = a.x if shortcut is None else None
    expanded, z = gpu_forward(h, a.expand_copy, a.expand_bias, None, True, save)
    out, _ = gpu_forward(expanded, a.project_copy, a.project_bias, residual, False, save, shortcut)
    return out, None if z is None else _Kept(h, saved.u, saved.mean, saved.rstd, expanded, z)


def _backward(
    a: ConvNeXtBlock, kept: _Kept, grad: Tensor, passed: Tensor | None, wants_input: bool
) -> tuple[Any, Tensor, Gradients]:
    """Gradients of x and skip as an `Input` (None if not wanted), of shift, and of the parameters."""
    from ..kernels import depthwise_norm as norm
    from ..kernels import pointwise

    given = norm.Input(a.x, a.skip)
    residual: Any = norm.Input(grad)
    found = a.gradients or _empty_gradients(a)
    grad_shift = torch.empty_like(a.shift, memory_format=torch.contiguous_format)
    assert a.expand_copy is not None and a.project_copy is not None
    sums: list[tuple[Any, Any]] = []
    if a.residual_copy is not None:
        residual, of_weight, of_bias = pointwise.backward(grad, given, a.residual_copy, wants_input)
        sums += [(of_weight, found.residual), (of_bias, found.residual_bias), (of_bias, found.project_bias)]
    sums.append((gpu_weight_gradient(grad, kept.expanded, a.project_copy), found.project))
    dz, of_expand_bias = gpu_input_gradient(grad, kept.expanded, a.project_copy, kept.z, a.expand_bias)
    sums.append((of_expand_bias, found.expand_bias))
    sums.append((gpu_weight_gradient(dz, kept.h, a.expand_copy), found.expand))
    dh, _ = gpu_input_gradient(dz, kept.h, a.expand_copy)
    module, other = gpu_kernels(given), grad if a.residual_copy is None else None
    du, of_norm = module.norm_gradient(dh, norm.Saved(kept.u, kept.mean, kept.rstd), a.gain, other)
    outs = [found.taps_bias] + ([] if a.gain is None else [found.gain, found.offset]) + [found.project_bias]
    sums += [(partial.flatten(0, 1)[None], out) for partial, out in zip(of_norm, outs, strict=False)]
    sums.append((module.taps_gradient(given, du), found.taps))
    reduce_partials([(of_norm[0], grad_shift), *((partial, out[None]) for partial, out in sums)])
    of_input = None
    if wants_input:
        of_input = module.input_gradient(du, taps_first(a.taps), given.channels[1], residual, passed)
    return of_input, grad_shift, found


def _empty_gradients(a: ConvNeXtBlock) -> Gradients:
    def like(value: Tensor | None) -> Tensor | None:
        order = torch.channels_last if value is not None and value.ndim == 4 else torch.contiguous_format
        return None if value is None else torch.empty_like(value, memory_format=order)

    return Gradients(empty_taps_first(a.taps), *map(like, a[4:13]))  # type: ignore[arg-type]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        a = ConvNeXtBlock._make(arguments)
        out, kept = _forward(a, save=True)
        assert kept is not None
        ctx.save_for_backward(*a[:-1], *kept)
        ctx.gradients = a.gradients
        ctx.set_materialize_grads(False)
        return out, a.x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        a = ConvNeXtBlock._make((*ctx.saved_tensors[:16], ctx.gradients))
        grad_out, passed = (None if grad is None else channels_last(grad.to(a.x.dtype)) for grad in grads)
        if grad_out is None:
            return passed, *(None,) * 16
        wants_input = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        of_input, of_shift, found = _backward(a, _Kept(*ctx.saved_tensors[16:]), grad_out, passed, wants_input)
        return *(of_input or (None, None)), of_shift, *found, *(None,) * 4
