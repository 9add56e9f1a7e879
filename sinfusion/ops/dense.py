"""The operator `dense`: k x k convolution + bias, then GELU or a residual, differentiable.

The other half of a ConvNeXt block. The reference is the definition and what a CPU runs (oneDNN does the products); on
a GPU cuDNN with a fused epilogue or an implicit GEMM, both of kernels/, whichever is measured to be faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._choice import backend, chosen_backend

# Error of a kernel against the reference in float64, relative to that of the reference in the same dtype, at most.
TOLERANCE = 2.0

_library = torch.library.Library("sinfusion", "FRAGMENT")  # lives as long as the process
_library.define(
    "dense(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? copy, bool gelu, bool save) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "dense_backward(Tensor grad_out, Tensor x, Tensor z, Tensor weight, Tensor? copy, bool bias, bool gelu, "
    "bool input) -> (Tensor, Tensor, Tensor)"
)


def dense(
    x: Tensor,  # (B, C, H, W) fp32 or bf16 (fp64: reference only), channels-last
    weight: Tensor,  # (O, C, k, k) fp32, k odd
    bias: Tensor | None = None,  # (O,) fp32
    residual: Tensor | None = None,  # (B, O, H, W) as x; not with gelu
    gelu: bool = False,
    copy: Tensor | None = None,  # the weight in the dtype of x, channels-last; None: made here
) -> Tensor:  # (B, O, H, W) as x
    """z = convolution of x, padded with zeros, + bias; GELU(z) (exact), or z + residual, or z."""
    values = (x, weight, bias, residual)
    save = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)
    out: Tensor = torch.ops.sinfusion.dense(*values, copy, gelu, save)[0]
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool) -> None:
    torch._check(x.ndim == 4 and weight.ndim == 4, lambda: "x is (B, C, H, W), the weight (O, C, k, k)")
    out, channels, *kernel = weight.shape
    torch._check(
        channels == x.shape[1] and kernel[0] == kernel[1] and kernel[0] % 2 == 1,
        lambda: f"weight is {tuple(weight.shape)}, for x {tuple(x.shape)}",
    )
    torch._check(bias is None or tuple(bias.shape) == (out,), lambda: "bias is one number for each output channel")
    torch._check(not gelu or residual is None, lambda: "a residual is added where there is no GELU")
    shape = (x.shape[0], out, *x.shape[2:])
    torch._check(residual is None or tuple(residual.shape) == shape, lambda: f"residual is not {shape}")


def _rounded(weight: Tensor, copy: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight in the dtype of the activations, channels-last."""
    return weight.to(dtype, memory_format=torch.channels_last) if copy is None else copy


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, gelu)
    rounded = _rounded(weight, copy, x.dtype)
    z = F.conv2d(x, rounded, None if bias is None else bias.to(x.dtype), padding=weight.shape[2] // 2)
    z = z.contiguous(memory_format=torch.channels_last)
    if gelu:
        return F.gelu(z), z if save else x.new_empty(0)
    return z if residual is None else z + residual, x.new_empty(0)


def _reference_backward(
    grad_out: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    copy: Tensor | None,
    bias: bool,
    gelu: bool,
    input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = torch.ops.aten.gelu_backward(grad_out, z) if gelu else grad_out
    padding = weight.shape[2] // 2
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, x, _rounded(weight, copy, x.dtype), [weight.shape[0]], [1, 1], [padding, padding], [1, 1], False, [0, 0],
        1, [input, True, bias],
    )  # fmt: skip
    return (
        grad_x.contiguous(memory_format=torch.channels_last) if input else x.new_empty(0),
        grad_weight.to(weight.dtype, memory_format=torch.channels_last),
        grad_bias.to(weight.dtype) if bias else weight.new_empty(0),
    )


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, gelu)
    out = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    return out, torch.empty_like(out) if gelu and save else x.new_empty(0)


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    copy: Tensor | None,
    bias: bool,
    gelu: bool,
    input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.channels_last) if input else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.channels_last),
        weight.new_empty(weight.shape[0] if bias else 0),
    )


def _setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, copy, gelu, save = inputs
    _, z = output
    if save:
        ctx.save_for_backward(x, z, weight, copy)
    ctx.saved, ctx.gelu, ctx.bias, ctx.residual, ctx.backend = (
        save, gelu, bias is not None, residual is not None, chosen_backend(),
    )  # fmt: skip
    ctx.mark_non_differentiable(z)


def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    if not ctx.saved:
        raise RuntimeError("dense ran with save=False: nothing was kept for its backward")
    x, z, weight, copy = ctx.saved_tensors
    needed = ctx.needs_input_grad[0]
    with backend(ctx.backend):  # on a GPU this is another thread, where the caller's choice is not known
        gx, gweight, gbias = torch.ops.sinfusion.dense_backward(
            grad_out, x, z, weight, copy, ctx.bias, ctx.gelu, needed
        )
    return (gx if needed else None, gweight, gbias if ctx.bias else None, grad_out if ctx.residual else None,
            None, None, None)  # fmt: skip


_library.impl("dense", _reference, "CompositeExplicitAutograd")
_library.impl("dense_backward", _reference_backward, "CompositeExplicitAutograd")
torch.library.register_fake("sinfusion::dense", _fake, lib=_library)
torch.library.register_fake("sinfusion::dense_backward", _fake_backward, lib=_library)
torch.library.register_autograd("sinfusion::dense", _backward, setup_context=_setup_context, lib=_library)
