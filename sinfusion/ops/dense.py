"""The operator `dense`: k x k convolution + bias, then GELU or a residual, differentiable.

The other half of a ConvNeXt block. A CPU runs csrc/cpu, a GPU cuDNN with a fused epilogue or an implicit GEMM, both of
kernels/, whichever is measured to be faster.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import hopper_dense
from .checks import require, require_tensor
from .cpu_graph import CpuGraph, capturing
from .dispatch import backend, chosen_backend, native_or_reference
from .layout import channels_last, concatenate, empty_like, fp32, input_fields, split, total_channels
from .native import run, why_no_library, wrong_dtype
from .reduce import reduce_partials
from .registration import define, implement, register_backward, takes

# Error of a kernel against the reference in float64, relative to that of the reference in the same dtype, at most.
TOLERANCE = 2.0
# The same for 3x3 convolutions in fp32 on a CPU: Winograd's algorithm has errors of its own.
WINOGRAD_TOLERANCE = 10.0


class Dense(NamedTuple):
    x: Tensor  # (B, C, H, W) fp32 or bf16 (fp64: reference only), channels-last
    weight: Tensor  # (O, C, k, k) fp32, k odd
    bias: Tensor | None = None  # (O,) fp32
    residual: Tensor | None = None  # (B, O, H, W) as x; not with gelu
    gelu: bool = False
    skip: Tensor | None = None  # (B, S, H, W) as x: more channels of the input; the weight is (O, C + S, k, k)
    copy: Tensor | None = None  # the weight in the dtype of x, channels-last; None: made here


class DenseBackward(NamedTuple):
    grad_out: Tensor  # (B, O, H, W)
    z: Tensor  # (B, O, H, W), what GELU was taken of, as the same backend's forward returned it; empty without GELU
    x: Tensor  # this and the next five: as in Dense
    weight: Tensor
    bias: Tensor | None
    gelu: bool
    skip: Tensor | None
    copy: Tensor | None
    wants_input: bool  # whether the gradients of x and skip are wanted
    wants_weight: bool
    wants_bias: bool


class DenseGrads(NamedTuple):
    """As what they are the gradients of; empty where not wanted."""

    x: Tensor
    skip: Tensor
    weight: Tensor
    bias: Tensor


@takes(Dense)
def dense(a: Dense) -> Tensor:
    """z = convolution of x (and skip behind it), padded with zeros, + bias; GELU(z) (exact), or z + residual, or z.

    (B, O, H, W) as x.
    """
    if (graph := capturing()) is not None:
        return _capture(graph, a)
    inputs = (a.x, a.weight, a.bias, a.residual, a.skip)
    save = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in inputs)
    result: Tensor = torch.ops.sinfusion.dense(*a, save)[0]
    return result


def _check(a: Dense) -> None:
    x, weight, skip = a.x, a.weight, a.skip
    require(x.ndim == 4 and weight.ndim == 4, lambda: "x is (B, C, H, W), the weight (O, C, k, k)")
    batch, _, height, width = x.shape
    out_channels, channels, rows, columns = weight.shape
    if channels != total_channels(x, skip) or rows != columns or rows % 2 == 0:
        raise RuntimeError(
            f"weight is {tuple(weight.shape)}, for x {tuple(x.shape)}"
            + ("" if skip is None else f" and skip {tuple(skip.shape)}")
        )
    require(weight.device == x.device, lambda: f"the weight is on {weight.device}, x on {x.device}")
    require(not a.gelu or a.residual is None, lambda: "a residual is added where there is no GELU")
    require_tensor("bias", a.bias, x.device, [(out_channels,)])
    require_tensor("residual", a.residual, x.device, [(batch, out_channels, height, width)])


def _rounded_weight(a: Dense | DenseBackward) -> Tensor:
    """The weight in the dtype of the activations, channels-last."""
    return a.weight.to(a.x.dtype, memory_format=torch.channels_last) if a.copy is None else a.copy


def reference(a: Dense, save: bool) -> tuple[Tensor, Tensor]:
    _check(a)
    bias = None if a.bias is None else a.bias.to(a.x.dtype)
    z = F.conv2d(concatenate(a.x, a.skip), _rounded_weight(a), bias, padding=a.weight.shape[2] // 2)
    z = channels_last(z)
    if a.gelu:
        return F.gelu(z), z if save else a.x.new_empty(0)
    return z if a.residual is None else z + a.residual, a.x.new_empty(0)


def reference_backward(a: DenseBackward) -> DenseGrads:
    grad = torch.ops.aten.gelu_backward(a.grad_out, a.z) if a.gelu else a.grad_out
    wanted = [a.wants_input, a.wants_weight, a.wants_bias]
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, concatenate(a.x, a.skip), _rounded_weight(a), [len(a.weight)], [1, 1], [a.weight.shape[2] // 2] * 2,
        [1, 1], False, [0, 0], 1, wanted,
    )  # fmt: skip
    empty = a.weight.new_empty
    return DenseGrads(
        *split(grad_x if a.wants_input else None, a.x, a.skip),
        grad_weight.to(a.weight.dtype, memory_format=torch.channels_last) if a.wants_weight else empty(0),
        grad_bias.to(a.weight.dtype) if a.wants_bias else empty(0),
    )


def _wrong_arguments(a: Dense | DenseBackward) -> list[str]:
    """What no native implementation takes."""
    reasons = wrong_dtype("x", a.x.dtype, torch.float32, torch.bfloat16)
    reasons += wrong_dtype("the weight", a.weight.dtype, torch.float32)
    if a.weight.shape[2] not in (1, 3):
        reasons.append(f"the kernel is {a.weight.shape[2]} wide, not 1 or 3")
    if not a.x.numel():
        reasons.append("x is empty")
    return reasons


def unsupported_on_cpu(a: Dense | DenseBackward) -> list[str]:
    """Why csrc/cpu cannot run."""
    return why_no_library(a.x.device) + _wrong_arguments(a)


def _cpu(a: Dense, save: bool) -> tuple[Tensor, Tensor]:
    out = empty_like(a.x, len(a.weight))
    z = empty_like(a.x, len(a.weight)) if a.gelu and save else None
    run("dense_forward", a.x, **_forward_fields(a, out, z))
    return out, a.x.new_empty(0) if z is None else z


def _cpu_backward(a: DenseBackward) -> DenseGrads:
    grads = _fake_backward(a)
    grad_z = empty_like(a.x, len(a.weight)) if a.gelu else None
    wanted = {f"grad_{name}": grad if grad.numel() else None for name, grad in grads._asdict().items()}
    run("dense_backward", a.x, **_backward_fields(a), grad_z=grad_z, **wanted)
    return grads


def _common_fields(a: Dense | DenseBackward) -> dict[str, Any]:
    """What dense_forward and dense_backward of csrc/cpu have in common."""
    weight = channels_last(a.weight)
    return {**input_fields(a.x, a.skip), "weight": weight, "out_channels": len(weight), "kernel_size": weight.shape[2]}


def _forward_fields(a: Dense, out: Tensor, z: Tensor | None) -> dict[str, Any]:
    residual = None if a.residual is None else channels_last(a.residual.to(a.x.dtype))
    return {**_common_fields(a), "bias": fp32(a.bias), "residual": residual, "gelu": a.gelu, "out": out, "z": z}


def _backward_fields(a: DenseBackward) -> dict[str, Any]:
    """All but grad_z and the gradients."""
    grad_out = channels_last(a.grad_out.to(a.x.dtype))
    return {**_common_fields(a), "grad_out": grad_out, "z": channels_last(a.z) if a.gelu else None}


def _capture(graph: CpuGraph, a: Dense) -> Tensor:
    """Adds the call to a graph; and that of its backward, if there will be one."""
    _check(a)
    reasons = unsupported_on_cpu(a)
    require(not reasons, lambda: f"dense cannot be captured: {'; '.join(reasons)}")
    out = graph.empty_like(a.x, len(a.weight))
    z = graph.empty_like(a.x, len(a.weight)) if a.gelu and graph.saves else None
    graph.add("dense_forward", **_forward_fields(a, out, z))

    def backward() -> None:
        grad_out = graph.pop_grad(out)
        if grad_out is None:
            return
        grad_x, grad_skip = graph.empty_grads(a.x, a.skip)
        of_weight, of_bias = graph.grad_buffer(a.weight), graph.grad_buffer(a.bias)
        if not all(grad is None for grad in (grad_x, of_weight, of_bias)):
            b = DenseBackward(
                grad_out, out if z is None else z, a.x, a.weight, a.bias, a.gelu, a.skip, a.copy,
                wants_input=grad_x is not None, wants_weight=of_weight is not None, wants_bias=of_bias is not None,
            )  # fmt: skip
            grad_z = graph.empty_like(a.x, len(a.weight)) if a.gelu else None
            graph.add_backward(
                "dense_backward", **_backward_fields(b), grad_z=grad_z, grad_x=grad_x, grad_skip=grad_skip,
                grad_weight=of_weight, grad_bias=of_bias,
            )  # fmt: skip
        graph.accumulate_grad(a.x, grad_x)
        graph.accumulate_grad(a.skip, grad_skip)
        graph.accumulate_grad(a.residual, grad_out)

    if graph.saves:
        graph.on_backward(backward)
    return out


def unsupported_on_gpu(a: Dense | DenseBackward) -> list[str]:
    """Why Triton's kernels, and cuDNN with them around it, cannot run."""
    from .. import kernels

    x, weight = a.x, a.weight
    reasons = [kernels.why_not()] if kernels.why_not() else []
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        reasons.append("the GPU's compute capability is below 8.0")
    if x.shape[0] * x.shape[2] * x.shape[3] * max(weight.shape[:2]) >= 2**31:
        reasons.append(f"x is {tuple(x.shape)}: a batch has to be below 2^31 numbers")
    return reasons + _wrong_arguments(a)


def _gpu(a: Dense, save: bool) -> tuple[Tensor, Tensor]:
    x, rounded, bias = channels_last(a.x), _rounded_weight(a), fp32(a.bias)
    if _is_pointwise(a) and a.residual is None:
        from ..kernels import pointwise

        return pointwise.forward(pointwise.Input(x, channels_last(a.skip)), rounded, bias), x.new_empty(0)
    x = channels_last(concatenate(x, a.skip))
    out, z = gpu_forward(x, rounded, bias, channels_last(a.residual), a.gelu, save)
    return out, x.new_empty(0) if z is None else z


def _gpu_backward(a: DenseBackward) -> DenseGrads:
    """Unlike the reference's, z comes without the bias."""
    from ..kernels import gelu, pointwise

    found = _fake_backward(a._replace(wants_input=False))
    x, grad, rounded = channels_last(a.x), channels_last(a.grad_out.to(a.x.dtype)), _rounded_weight(a)
    sums = []
    if _is_pointwise(a):
        given = pointwise.Input(x, channels_last(a.skip))
        grads, of_weight, of_bias = pointwise.backward(grad, given, rounded, a.wants_input)
        sums += [(of_weight, found.weight[None])] * a.wants_weight + [(of_bias, found.bias[None])] * a.wants_bias
        if grads is not None:
            found = found._replace(x=grads.x, skip=found.skip if grads.skip is None else grads.skip)
    else:
        x = channels_last(concatenate(x, a.skip))
        if a.gelu or a.wants_bias:
            grad, of_bias = gelu.backward(grad, a.z, fp32(a.bias), a.gelu)
            sums += [(of_bias, found.bias[None])] * a.wants_bias
        if a.wants_weight:
            sums.append((gpu_weight_gradient(grad, x, rounded), found.weight[None]))
        if a.wants_input:
            of_x, of_skip = split(gpu_input_gradient(grad, x, rounded)[0], a.x, a.skip)
            found = found._replace(x=of_x, skip=of_skip)
    if sums:
        reduce_partials(sums)
    return found


def _is_pointwise(a: Dense | DenseBackward) -> bool:
    """Whether kernels/pointwise.py serves."""
    return a.weight.shape[2] == 1 and not a.gelu


# What a GPU computes, of tensors that are channels-last and weights (O, C, k, k) in their dtype; biases are fp32.


def gpu_forward(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,  # (B, O, H, W)
    gelu: bool,
    save: bool,
    shortcut: tuple[Any, Tensor, Tensor | None] | None = None,  # as kernels/pointwise.py takes it: makes the residual
) -> tuple[Tensor, Tensor | None]:
    """GELU(z + bias), or z + bias + residual, with z = conv(x); and z if gelu and save."""
    from ..kernels import dense as implicit
    from ..kernels import gelu as epilogue
    from ..kernels import pointwise

    def cudnn() -> tuple[Tensor, Tensor | None]:
        with deterministic_cudnn():
            z = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        added = residual if shortcut is None else pointwise.forward(*shortcut)
        return epilogue.forward(channels_last(z), bias, added, gelu), z if gelu and save else None

    def triton(config: int) -> tuple[Tensor, Tensor | None]:
        made_here = None if shortcut is None else implicit.Shortcut(*shortcut)
        return implicit.forward(x, weight, bias, residual, gelu, save, config, made_here)

    others: dict[str, Callable[[], Any]] = {}
    if hopper_dense.takes_forward(x, weight, residual, gelu, shortcut):
        others["hopper"] = lambda: hopper_dense.forward(x, weight, bias, residual, gelu, save, shortcut)
    elif shortcut is not None and hopper_dense.takes_forward(x, weight, None, gelu, None):
        others["hopper"] = lambda: hopper_dense.forward(x, weight, bias, pointwise.forward(*shortcut), gelu, save)
    found: tuple[Tensor, Tensor | None] = _fastest(
        "dense", x, weight, (gelu, residual is not None, save, shortcut is not None), cudnn, triton, others
    )()
    return found


def gpu_input_gradient(
    grad: Tensor,  # (B, O, H, W)
    x: Tensor,  # (B, C, H, W), whose numbers do not matter
    weight: Tensor,
    z: Tensor | None = None,  # (B, C, H, W): x was GELU(z + bias), and the gradient is that of z
    bias: Tensor | None = None,  # (C,)
) -> tuple[Tensor, Tensor | None]:
    """(B, C, H, W), and with z partial sums of it over pixels, (1, n, C) fp32."""
    from ..kernels import dense as implicit
    from ..kernels import gelu as epilogue

    def cudnn() -> tuple[Tensor, Tensor | None]:
        of_x = _cudnn_gradient(grad, x, weight, of_input=True)
        return (of_x, None) if z is None else epilogue.backward(of_x, z, bias, True)

    def triton(config: int) -> tuple[Tensor, Tensor | None]:
        return implicit.input_gradient(grad, weight, z, bias, config)

    others: dict[str, Callable[[], Any]] = {}
    if hopper_dense.takes_input_gradient(grad, weight, z):
        others["hopper"] = lambda: hopper_dense.input_gradient(grad, weight, z, bias)
    found: tuple[Tensor, Tensor | None] = _fastest(
        "dense input gradient", x, weight, (z is not None,), cudnn, triton, others, lambda gradients: gradients[0]
    )()
    return found


def gpu_weight_gradient(
    grad: Tensor,  # (B, O, H, W)
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # whose numbers do not matter
) -> Tensor:
    """(1, n, O, k, k, C): partial sums, for `reduce_partials`."""
    from ..kernels import dense as implicit

    def cudnn() -> Tensor:
        return _cudnn_gradient(grad, x, weight, of_input=False).permute(0, 2, 3, 1)[None, None]

    def triton(config: int) -> Tensor:
        return implicit.weight_gradient(grad, x, weight.shape[2], config)

    def add_up(partial: Tensor) -> Tensor:
        out = partial.new_empty(1, *partial.shape[2:], dtype=torch.float32)
        reduce_partials([(partial, out)])
        return out

    others: dict[str, Callable[[], Any]] = {}
    if hopper_dense.takes_weight_gradient(grad, x, weight.shape[2]):
        others["hopper"] = lambda: hopper_dense.weight_gradient(grad, x)
    partial: Tensor = _fastest("dense weight gradient", x, weight, (), cudnn, triton, others, add_up)()
    return partial


def _cudnn_gradient(grad: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> Tensor:
    padding = [weight.shape[2] // 2] * 2
    with deterministic_cudnn():
        gradients = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [of_input, not of_input, False]
        )
    return channels_last(gradients[0 if of_input else 1])


def deterministic_cudnn() -> contextlib.AbstractContextManager[None]:
    """cuDNN takes the same algorithm each time, so results repeat to the bit; it does not round fp32."""
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _fastest(
    operator: str,
    x: Tensor,
    weight: Tensor,
    flags: tuple[bool, ...],
    cudnn: Callable[[], Any],
    triton: Callable[[int], Any],
    others: dict[str, Callable[[], Any]],  # by name; where there is one, it is the default, and Triton's are not tried
    finish: Callable[[Any], Any] = lambda result: result,  # what makes results comparable; measured with them
) -> Callable[[], Any]:
    """The implementation that was measured to be the fastest here."""
    from ..kernels import tuning

    candidates = {"cudnn": cudnn, **others}
    # On a Hopper GPU its kernels were the fastest at all of 45 shapes, and compiling Triton's takes a second each.
    for config in () if others else triton_configs(weight.shape, x.dtype):
        candidates[f"triton {config}"] = functools.partial(triton, config)
    key = (*x.shape, *weight.shape, str(x.dtype), *flags)
    finished: dict[str, Callable[[], Any]] = {
        name: functools.partial(_then, run, finish) for name, run in candidates.items()
    }
    return candidates[tuning.choose(operator, key, finished, x.device, default=next(iter(others), "cudnn"))]


def _then(run: Callable[[], Any], finish: Callable[[Any], Any]) -> Any:
    return finish(run())


def triton_configs(weight: torch.Size, dtype: torch.dtype) -> tuple[int, ...]:
    """Those that are worth compiling for a weight (O, C, k, k): cuDNN is good at 1x1, and poor at few channels.

    Of bf16, one of these or cuDNN was within 4% of the fastest of 24 at every layer of the released network on an H200.
    """
    if weight[2] != 3:
        return ()
    if dtype != torch.bfloat16:
        return (0,) if weight[1] >= 32 else ()
    return (0, 3, 4) if weight[1] >= 32 else (3, 4)


def _fake(a: Dense, save: bool) -> tuple[Tensor, Tensor]:
    _check(a)
    z = empty_like(a.x, len(a.weight)) if a.gelu and save else a.x.new_empty(0)
    return empty_like(a.x, len(a.weight)), z


def _fake_backward(a: DenseBackward) -> DenseGrads:
    x, weight = a.x, a.weight
    return DenseGrads(
        x=empty_like(x, x.shape[1]) if a.wants_input else x.new_empty(0),
        skip=empty_like(x, a.skip.shape[1]) if a.wants_input and a.skip is not None else x.new_empty(0),
        weight=torch.empty_like(weight, memory_format=torch.channels_last) if a.wants_weight else weight.new_empty(0),
        bias=weight.new_empty(len(weight) if a.wants_bias else 0),
    )


def _setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    a, save = Dense._make(inputs[:-1]), inputs[-1]
    z = output[1]
    if save:
        ctx.save_for_backward(z, a.x, a.weight, a.bias, a.skip, a.copy)
    ctx.saved, ctx.gelu, ctx.backend = save, a.gelu, chosen_backend()
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    grads: dict[str, Tensor | None] = dict.fromkeys((*Dense._fields, "save"))
    if grad_out is None:
        return tuple(grads.values())
    if not ctx.saved:
        raise RuntimeError("dense ran with save=False: nothing was kept for its backward")
    z, x, weight, bias, skip, copy = ctx.saved_tensors
    needs = dict(zip(grads, ctx.needs_input_grad, strict=True))
    a = DenseBackward(
        grad_out, z, x, weight, bias, ctx.gelu, skip, copy,
        wants_input=needs["x"] or needs["skip"], wants_weight=needs["weight"], wants_bias=needs["bias"],
    )  # fmt: skip
    grads["residual"] = grad_out
    if a.wants_input or a.wants_weight or a.wants_bias:
        with backend(ctx.backend):  # on a GPU this is another thread, which does not know the caller's choice
            grads.update(DenseGrads(*torch.ops.sinfusion.dense_backward(*a))._asdict())
    return tuple(grad if needs[name] else None for name, grad in grads.items())


on_cpu = native_or_reference("dense", _cpu, reference, unsupported_on_cpu, _check)
on_gpu = native_or_reference("dense", _gpu, reference, unsupported_on_gpu, _check)
on_cpu_backward = native_or_reference("dense", _cpu_backward, reference_backward, unsupported_on_cpu)
on_gpu_backward = native_or_reference("dense", _gpu_backward, reference_backward, unsupported_on_gpu)
define("dense", Dense, "(Tensor, Tensor)", flags=("save",))
define("dense_backward", DenseBackward, "(Tensor, Tensor, Tensor, Tensor)")
implement("dense", Dense, reference=reference, cpu=on_cpu, cuda=on_gpu, fake=_fake)
implement(
    "dense_backward", DenseBackward,
    reference=reference_backward, cpu=on_cpu_backward, cuda=on_gpu_backward, fake=_fake_backward,
)  # fmt: skip
register_backward("dense", _backward, _setup_context)
