"""The operator `dense`: k x k convolution + bias, then GELU or a residual, differentiable.

The other half of a ConvNeXt block. A CPU runs csrc/cpu, a GPU cuDNN with a fused epilogue or an implicit GEMM, both of
kernels/, whichever is measured to be faster.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._choice import backend, chosen_backend, use_native
from ._layout import both, channels_of, fp32, last, like, parts
from ._native import run, why_no_library
from ._require import require, require_shape
from .cpu_graph import CpuGraph, capturing

# Error of a kernel against the reference in float64, relative to that of the reference in the same dtype, at most.
TOLERANCE = 2.0
# The same for 3x3 convolutions in fp32 on a CPU: Winograd's algorithm adds what direct sums do not.
WINOGRAD_TOLERANCE = 10.0

_library = torch.library.Library("sinfusion", "FRAGMENT")  # lives as long as the process
_library.define(
    "dense(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? skip, Tensor? copy, bool gelu, bool save) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "dense_backward(Tensor grad_out, Tensor x, Tensor? skip, Tensor z, Tensor weight, Tensor? bias, Tensor? copy, "
    "bool gelu, bool input) -> (Tensor, Tensor, Tensor, Tensor)"
)


def dense(
    x: Tensor,  # (B, C, H, W) fp32 or bf16 (fp64: reference only), channels-last
    weight: Tensor,  # (O, C, k, k) fp32, k odd
    bias: Tensor | None = None,  # (O,) fp32
    residual: Tensor | None = None,  # (B, O, H, W) as x; not with gelu
    gelu: bool = False,
    skip: Tensor | None = None,  # (B, S, H, W) as x: more channels of the input; the weight is (O, C + S, k, k)
    copy: Tensor | None = None,  # the weight in the dtype of x, channels-last; None: made here
) -> Tensor:  # (B, O, H, W) as x
    """z = convolution of x (and skip behind it), padded with zeros, + bias; GELU(z) (exact), or z + residual, or z."""
    if (graph := capturing()) is not None:
        return _record(graph, x, weight, bias, residual, skip, gelu)
    values = (x, weight, bias, residual, skip)
    save = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)
    result: Tensor = torch.ops.sinfusion.dense(*values, copy, gelu, save)[0]
    return result


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, skip: Tensor | None, gelu: bool
) -> None:
    require(x.ndim == 4 and weight.ndim == 4, lambda: "x is (B, C, H, W), the weight (O, C, k, k)")
    batch, _, height, width = x.shape
    out, channels, rows, columns = weight.shape
    if channels != channels_of(x, skip) or rows != columns or rows % 2 == 0:
        raise RuntimeError(
            f"weight is {tuple(weight.shape)}, for x {tuple(x.shape)}"
            + ("" if skip is None else f" and skip {tuple(skip.shape)}")
        )
    require(weight.device == x.device, lambda: f"the weight is on {weight.device}, x on {x.device}")
    require(not gelu or residual is None, lambda: "a residual is added where there is no GELU")
    require_shape("bias", bias, (out,), x.device)
    require_shape("residual", residual, (batch, out, height, width), x.device)


def _rounded(weight: Tensor, copy: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight in the dtype of the activations, channels-last."""
    return weight.to(dtype, memory_format=torch.channels_last) if copy is None else copy


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, skip, gelu)
    rounded = _rounded(weight, copy, x.dtype)
    z = F.conv2d(both(x, skip), rounded, None if bias is None else bias.to(x.dtype), padding=weight.shape[2] // 2)
    z = last(z)
    if gelu:
        return F.gelu(z), z if save else x.new_empty(0)
    return z if residual is None else z + residual, x.new_empty(0)


def _reference_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad = torch.ops.aten.gelu_backward(grad_out, z) if gelu else grad_out
    rounded, wanted = _rounded(weight, copy, x.dtype), [input, True, bias is not None]
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, both(x, skip), rounded, [len(weight)], [1, 1], [weight.shape[2] // 2] * 2, [1, 1], False, [0, 0], 1,
        wanted,
    )  # fmt: skip
    return (
        *parts(grad_x if input else None, x, skip),
        grad_weight.to(weight.dtype, memory_format=torch.channels_last),
        grad_bias.to(weight.dtype) if bias is not None else weight.new_empty(0),
    )


def unsupported_on_cpu(x: Tensor, weight: Tensor) -> list[str]:
    """Why csrc/cpu cannot run."""
    reasons = why_no_library(x.device)
    if x.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"x is {x.dtype}, not float32 or bfloat16")
    if weight.dtype != torch.float32:
        reasons.append(f"the weight is {weight.dtype}, not float32")
    if weight.shape[2] not in (1, 3):
        reasons.append(f"the kernel is {weight.shape[2]} wide, not 1 or 3")
    if not x.numel():
        reasons.append("x is empty")
    return reasons


def _shapes(x: Tensor, skip: Tensor | None, weight: Tensor) -> tuple[int | bool, ...]:
    """What both native functions begin with."""
    batch, channels, *size = x.shape
    more = 0 if skip is None else skip.shape[1]
    return batch, *size, channels, more, len(weight), weight.shape[2], x.dtype == torch.bfloat16


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, skip, gelu)
    if not use_native("dense", unsupported_on_cpu(x, weight)):
        return _reference(x, weight, bias, residual, skip, copy, gelu, save)
    out = like(x, len(weight))
    z = like(x, len(weight)) if gelu and save else None
    run("dense_forward", x, *_forward(x, weight, bias, residual, skip, gelu, out, z))
    return out, x.new_empty(0) if z is None else z


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    gelu: bool,
    out: Tensor,
    z: Tensor | None,
) -> tuple[Any, ...]:
    """What dense_forward of csrc/cpu takes."""
    x, weight = last(x), last(weight)
    skip = None if skip is None else last(skip)
    residual = None if residual is None else last(residual.to(x.dtype))
    return *_shapes(x, skip, weight), x, skip, weight, fp32(bias), residual, gelu, out, z


def _cpu_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not use_native("dense", unsupported_on_cpu(x, weight)):
        return _reference_backward(grad_out, x, skip, z, weight, bias, copy, gelu, input)
    graph = _fake_backward(grad_out, x, skip, z, weight, bias, copy, gelu, input)
    grads = [
        grad if wanted else None
        for grad, wanted in zip(graph, (input, input and skip is not None, True, bias is not None), strict=True)
    ]
    grad_z = like(x, len(weight)) if gelu else None
    run("dense_backward", x, *_backward_of(x, skip, weight, grad_out, z if gelu else None, grad_z, *grads))
    return graph


def _backward_of(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    grad_out: Tensor,
    z: Tensor | None,  # with GELU
    grad_z: Tensor | None,  # likewise: memory
    *grads: Tensor | None,  # of x, skip, weight and bias; None: not wanted
) -> tuple[Any, ...]:
    """What dense_backward of csrc/cpu takes."""
    x, weight = last(x), last(weight)
    skip = None if skip is None else last(skip)
    z = None if z is None else last(z)
    return *_shapes(x, skip, weight), x, skip, weight, last(grad_out.to(x.dtype)), z, grad_z, *grads


def _record(
    graph: CpuGraph,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    gelu: bool,
) -> Tensor:
    """`dense` for later; and its derivative, if there will be one."""
    _check(x, weight, bias, residual, skip, gelu)
    cannot = unsupported_on_cpu(x, weight)
    require(not cannot, lambda: f"dense cannot be recorded: {'; '.join(cannot)}")
    out = graph.like(x, len(weight))
    z = graph.like(x, len(weight)) if gelu and graph.saves else None
    graph.add("dense_forward", *_forward(x, weight, bias, residual, skip, gelu, out, z))

    def derivative() -> None:
        grad = graph.pop_grad(out)
        if grad is None:
            return
        grad_x, grad_skip = graph.grads_like(x, skip)
        grad_z = graph.like(x, len(weight)) if gelu else None
        of_bias = None if bias is None else graph.grad_buffer(bias)
        grads = grad_x, grad_skip, graph.grad_buffer(weight), of_bias
        graph.add_backward("dense_backward", *_backward_of(x, skip, weight, grad, z, grad_z, *grads))
        graph.accumulate_grad(x, grad_x)
        graph.accumulate_grad(skip, grad_skip)
        graph.accumulate_grad(residual, grad)

    if graph.saves:
        graph.on_backward(derivative)
    return out


def unsupported_on_gpu(x: Tensor, weight: Tensor) -> list[str]:
    """Why Triton's kernels, and cuDNN with them around it, cannot run."""
    from .. import kernels

    reasons = [kernels.why_not()] if kernels.why_not() else []
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        reasons.append("the GPU's compute capability is below 8.0")
    if x.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"x is {x.dtype}, not float32 or bfloat16")
    if weight.dtype != torch.float32:
        reasons.append(f"the weight is {weight.dtype}, not float32")
    if weight.shape[2] not in (1, 3):
        reasons.append(f"the kernel is {weight.shape[2]} wide, not 1 or 3")
    if x.shape[0] * x.shape[2] * x.shape[3] * max(weight.shape[:2]) >= 2**31:
        reasons.append(f"x is {tuple(x.shape)}: a batch has to be below 2^31 numbers")
    if not x.numel():
        reasons.append("x is empty")
    return reasons


def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, skip, gelu)
    if not use_native("dense", unsupported_on_gpu(x, weight)):
        return _reference(x, weight, bias, residual, skip, copy, gelu, save)
    from ..kernels import dense as implicit
    from ..kernels import gelu as epilogue

    x, rounded = last(both(x, skip)), _rounded(weight, copy, x.dtype)
    residual = None if residual is None else last(residual)
    bias = fp32(bias)

    def cudnn() -> tuple[Tensor, Tensor | None]:
        with _cudnn():
            z = F.conv2d(x, rounded, padding=weight.shape[2] // 2)
        return epilogue.forward(last(z), bias, residual, gelu), z

    def triton(config: int) -> tuple[Tensor, Tensor | None]:
        return implicit.forward(x, rounded, bias, residual, gelu, save, config)

    how = (gelu, residual is not None, save)
    out, z = _fastest("dense", x, weight, how, cudnn, triton)()
    return out, z if gelu and save and z is not None else x.new_empty(0)


def _cuda_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    z: Tensor,  # without the bias, unlike the reference's
    weight: Tensor,
    bias: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not use_native("dense", unsupported_on_gpu(x, weight)):
        return _reference_backward(grad_out, x, skip, z, weight, bias, copy, gelu, input)
    from ..kernels import dense as implicit
    from ..kernels import gelu as epilogue

    of_x, of_skip = x, skip
    x, grad = last(both(x, skip)), last(grad_out.to(x.dtype))
    rounded, kernel = _rounded(weight, copy, x.dtype), weight.shape[2]
    grad_bias = weight.new_empty(0)
    if gelu or bias is not None:
        grad, sums = epilogue.backward(grad, z, fp32(bias), gelu)
        grad_bias = grad_bias if bias is None else sums

    def cudnn(which: int) -> Tensor:
        mask = [which == 0, which == 1, False]
        sizes = [[kernel // 2] * 2, [1, 1]]
        with _cudnn():
            graph: Tensor = torch.ops.aten.convolution_backward(
                grad, x, rounded, None, [1, 1], *sizes, False, [0, 0], 1, mask
            )[which]
        return graph.to(weight.dtype if which else x.dtype, memory_format=torch.channels_last)

    of_weight = _fastest(
        "dense weight gradient", x, weight, (), functools.partial(cudnn, 1),
        lambda config: implicit.weight_gradient(grad, x, kernel, config),
    )  # fmt: skip
    if not input:
        return x.new_empty(0), x.new_empty(0), of_weight(), grad_bias
    of_input = _fastest(
        "dense input gradient", x, weight, (), functools.partial(cudnn, 0),
        lambda config: implicit.input_gradient(grad, rounded, config),
    )  # fmt: skip
    return *parts(of_input(), of_x, of_skip), of_weight(), grad_bias


def _cudnn() -> contextlib.AbstractContextManager[None]:
    """The same algorithm, and the same bits, each time; fp32 is not rounded."""
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _fastest(
    operator: str,
    x: Tensor,
    weight: Tensor,
    how: tuple[bool, ...],
    cudnn: Callable[[], Any],
    triton: Callable[[int], Any],
) -> Callable[[], Any]:
    """Whichever was measured to be the fastest here."""
    from ..kernels import tuning

    candidates = {"cudnn": cudnn}
    # To compile more configurations takes longer than they can win; the few other convolutions of a network, too.
    worth_it = weight.shape[2] == 3 and weight.shape[1] >= 32
    for config in () if not worth_it else (0, 1, 4) if x.dtype == torch.bfloat16 else (0,):
        candidates[f"triton {config}"] = functools.partial(triton, config)
    key = (*x.shape, *weight.shape, str(x.dtype), *how)
    return candidates[tuning.choose(operator, key, candidates, x.device)]


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    skip: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, weight, bias, residual, skip, gelu)
    return like(x, len(weight)), like(x, len(weight)) if gelu and save else x.new_empty(0)


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    copy: Tensor | None,
    gelu: bool,
    input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        like(x, x.shape[1]) if input else x.new_empty(0),
        like(x, skip.shape[1]) if input and skip is not None else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.channels_last),
        weight.new_empty(0 if bias is None else len(weight)),
    )


def _setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual, skip, copy, gelu, save = inputs
    _, z = output
    if save:
        ctx.save_for_backward(x, skip, z, weight, bias, copy)
    ctx.saved, ctx.gelu, ctx.residual, ctx.backend = save, gelu, residual is not None, chosen_backend()
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 8
    if not ctx.saved:
        raise RuntimeError("dense ran with save=False: nothing was kept for its backward")
    x, skip, z, weight, bias, copy = ctx.saved_tensors
    needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[4]
    with backend(ctx.backend):  # on a GPU this is another thread, where the caller's choice is not known
        gx, gskip, gweight, gbias = torch.ops.sinfusion.dense_backward(
            grad_out, x, skip, z, weight, bias, copy, ctx.gelu, needed
        )
    return (gx if needed else None, gweight, None if bias is None else gbias, grad_out if ctx.residual else None,
            gskip if needed and skip is not None else None, None, None, None)  # fmt: skip


_library.impl("dense", _reference, "CompositeExplicitAutograd")
_library.impl("dense_backward", _reference_backward, "CompositeExplicitAutograd")
_library.impl("dense", _cpu, "CPU")
_library.impl("dense_backward", _cpu_backward, "CPU")
_library.impl("dense", _cuda, "CUDA")
_library.impl("dense_backward", _cuda_backward, "CUDA")
torch.library.register_fake("sinfusion::dense", _fake, lib=_library)
torch.library.register_fake("sinfusion::dense_backward", _fake_backward, lib=_library)
torch.library.register_autograd("sinfusion::dense", _backward, setup_context=_setup_context, lib=_library)
