"""The operator `depthwise_norm`: 7x7 depthwise convolution + bias + shift + LayerNorm over channels, differentiable.

Half of a ConvNeXt block in one pass over the activation. The reference is the definition. A CPU runs csrc/cpu
(PyTorch's own bf16 depthwise weight gradient takes 20 to 50 times as long), a GPU kernels/depthwise_norm.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import require, require_tensor
from .cpu_graph import CpuGraph, capturing
from .dispatch import backend, chosen_backend, native_or_reference
from .layout import (
    aligned,
    channels_last,
    concatenate,
    empty_like,
    empty_taps_first,
    fp32,
    input_fields,
    split,
    taps_first,
    total_channels,
)
from .native import run, why_no_library, wrong_dtype
from .reduce import reduce_partials
from .registration import define, implement, register_backward, takes

# Error of a kernel against the reference in float64, relative to that of the reference in the same dtype, at most.
TOLERANCE = 2.0


class DepthwiseNorm(NamedTuple):
    x: Tensor  # (B, C, H, W) fp32 or bf16 (fp64: reference only), channels-last
    weight: Tensor  # (C, 1, 7, 7) fp32
    bias: Tensor  # (C,) fp32
    shift: Tensor | None = None  # (B, C) fp32
    gain: Tensor | None = None  # (C,) fp32; None: no norm
    offset: Tensor | None = None  # (C,) fp32, with gain
    skip: Tensor | None = None  # (B, S, H, W) as x: more channels of the input; C is then C + S in all the others
    eps: float = 1e-5


class DepthwiseNormOutput(NamedTuple):
    out: Tensor  # (B, C, H, W) as x
    u: Tensor  # as out, the input of the norm; this and the next two are empty without a norm or without save
    mean: Tensor  # (B, H, W) fp32
    rstd: Tensor  # (B, H, W) fp32


class DepthwiseNormBackward(NamedTuple):
    grad_out: Tensor  # (B, C, H, W)
    u: Tensor  # this and the next two: as in DepthwiseNormOutput
    mean: Tensor
    rstd: Tensor
    x: Tensor  # this and the next three: as in DepthwiseNorm
    weight: Tensor
    gain: Tensor | None
    skip: Tensor | None
    wants_input: bool  # whether the gradients of x and skip are wanted
    wants_shift: bool
    wants_parameters: bool  # those of weight, bias, gain and offset


class DepthwiseNormGrads(NamedTuple):
    """As what they are the gradients of; empty where not wanted."""

    x: Tensor
    skip: Tensor
    weight: Tensor
    bias: Tensor
    shift: Tensor
    gain: Tensor
    offset: Tensor


@takes(DepthwiseNorm)
def depthwise_norm(a: DepthwiseNorm) -> Tensor:
    """u = depthwise(x) + bias + shift; LayerNorm over the channels of u if there is a gain, else u itself.

    As x, and skip behind it.
    """
    if (graph := capturing()) is not None:
        return _capture(graph, a)
    inputs = (a.x, a.weight, a.bias, a.shift, a.gain, a.offset, a.skip)
    save = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in inputs)
    result: Tensor = torch.ops.sinfusion.depthwise_norm(*a, save)[0]
    return result


def _check(a: DepthwiseNorm) -> None:
    x, device = a.x, a.x.device
    require(x.ndim == 4, lambda: f"x is (B, C, H, W), not {tuple(x.shape)}")
    require((a.gain is None) == (a.offset is None), lambda: "gain and offset come together")
    channels = total_channels(x, a.skip)
    require_tensor("weight", a.weight, device, [(channels, 1, 7, 7)])
    require_tensor("shift", a.shift, device, [(x.shape[0], channels)])
    require_tensor("bias", a.bias, device, [(channels,)])
    require_tensor("gain", a.gain, device, [(channels,)])
    require_tensor("offset", a.offset, device, [(channels,)])


def reference(a: DepthwiseNorm, save: bool) -> DepthwiseNormOutput:
    _check(a)
    x = concatenate(a.x, a.skip)
    u = F.conv2d(x, a.weight.to(x.dtype), a.bias.to(x.dtype), padding=3, groups=x.shape[1])
    if a.shift is not None:
        u = u + a.shift[:, :, None, None].to(u.dtype)
    u = channels_last(u)
    if a.gain is None or a.offset is None:
        # No two outputs of an operator may be one tensor. Nothing needs u where there is no norm.
        return DepthwiseNormOutput(u, *_nothing_saved(x))
    wide = u if u.dtype == torch.float64 else u.float()
    mean = wide.mean(1)
    rstd = (wide.var(1, unbiased=False) + a.eps).rsqrt()
    out = (wide - mean[:, None]) * rstd[:, None] * a.gain[:, None, None] + a.offset[:, None, None]
    out = channels_last(out.to(x.dtype))
    return DepthwiseNormOutput(out, u, mean, rstd) if save else DepthwiseNormOutput(out, *_nothing_saved(x))


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _nothing_saved(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    statistics = _statistics_dtype(x)
    return x.new_empty(0), x.new_empty(0, dtype=statistics), x.new_empty(0, dtype=statistics)


def reference_backward(a: DepthwiseNormBackward) -> DepthwiseNormGrads:
    statistics = _statistics_dtype(a.x)
    grad = a.grad_out.to(statistics)
    grads: dict[str, Tensor | None] = {}
    if a.gain is not None:
        normed = (a.u.to(statistics) - a.mean[:, None]) * a.rstd[:, None]
        if a.wants_parameters:
            grads.update(gain=(grad * normed).sum((0, 2, 3)), offset=grad.sum((0, 2, 3)))
        scaled = grad * a.gain[:, None, None]
        parallel = (scaled * normed).mean(1, keepdim=True)
        grad = (scaled - scaled.mean(1, keepdim=True) - normed * parallel) * a.rstd[:, None]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.to(a.x.dtype), concatenate(a.x, a.skip), a.weight.to(a.x.dtype), None, [1, 1], [3, 3], [1, 1], False,
        [0, 0], len(a.weight), [a.wants_input, a.wants_parameters, False],
    )  # fmt: skip
    if a.wants_shift or a.wants_parameters:
        grad_shift = grad.sum((2, 3))  # (B, C)
        if a.wants_parameters:
            grads.update(weight=grad_weight.to(a.weight.dtype), bias=grad_shift.sum(0))
        if a.wants_shift:
            grads.update(shift=grad_shift)
    grads["x"], grads["skip"] = split(grad_x if a.wants_input else None, a.x, a.skip)
    return _empty_where_none(grad, grads)


def _empty_where_none(like: Tensor, grads: dict[str, Tensor | None]) -> DepthwiseNormGrads:
    found = ((name, grads.get(name)) for name in DepthwiseNormGrads._fields)
    return DepthwiseNormGrads(**{name: like.new_empty(0) if grad is None else grad for name, grad in found})


def _wrong_dtypes(a: DepthwiseNorm | DepthwiseNormBackward) -> list[str]:
    reasons = wrong_dtype("x", a.x.dtype, torch.float32, torch.bfloat16)
    return reasons + wrong_dtype("the weight", a.weight.dtype, torch.float32)


def unsupported_on_cpu(a: DepthwiseNorm | DepthwiseNormBackward) -> list[str]:
    """Why csrc/cpu cannot run."""
    return why_no_library(a.x.device) + _wrong_dtypes(a)


def _cpu(a: DepthwiseNorm, save: bool) -> DepthwiseNormOutput:
    output = _empty_output(a, save)
    run("depthwise_norm_forward", a.x, **_forward_fields(a, output))
    return output


def _cpu_backward(a: DepthwiseNormBackward) -> DepthwiseNormGrads:
    grads = _fake_backward(a)
    wanted = {name: grad if grad.numel() else None for name, grad in grads._asdict().items()}
    run("depthwise_norm_backward", a.x, **_backward_fields(a, wanted))
    return grads


def _common_fields(a: DepthwiseNorm | DepthwiseNormBackward) -> dict[str, Any]:
    """What depthwise_norm_forward and depthwise_norm_backward of csrc/cpu have in common."""
    return {**input_fields(a.x, a.skip), "weight": fp32(a.weight), "gain": fp32(a.gain)}


def _forward_fields(a: DepthwiseNorm, output: DepthwiseNormOutput) -> dict[str, Any]:
    shift, saves = a.shift, output.u.numel() > 0
    if shift is not None and (shift.dtype != torch.float32 or shift.stride(1) != 1):
        shift = fp32(shift)
    return {
        **_common_fields(a),
        "bias": fp32(a.bias),
        "shift": shift,
        "shift_stride": 0 if shift is None else shift.stride(0),
        "offset": fp32(a.offset),
        "eps": a.eps,
        "out": output.out,
        "norm_input": output.u if saves else None,
        "mean": output.mean if saves else None,
        "rstd": output.rstd if saves else None,
    }


def _backward_fields(a: DepthwiseNormBackward, grads: dict[str, Tensor | None]) -> dict[str, Any]:
    """grads: memory, by DepthwiseNormGrads' names; None where not wanted."""
    norm, grad_shift = a.gain is not None, grads["shift"]
    return {
        **_common_fields(a),
        "grad_out": channels_last(a.grad_out.to(a.x.dtype)),
        "norm_input": channels_last(a.u) if norm else None,
        "mean": a.mean if norm else None,
        "rstd": a.rstd if norm else None,
        "grad_shift_stride": 0 if grad_shift is None else grad_shift.stride(0),
        **{f"grad_{name}": grad for name, grad in grads.items()},
    }


def _capture(graph: CpuGraph, a: DepthwiseNorm) -> Tensor:
    """Adds the call to a graph; and that of its backward, if there will be one."""
    _check(a)
    reasons = unsupported_on_cpu(a)
    require(not reasons, lambda: f"depthwise_norm cannot be captured: {'; '.join(reasons)}")
    out, saved = graph.empty_like(a.x, len(a.weight)), (torch.empty(0),) * 3
    if graph.saves and a.gain is not None:
        u, pixels = graph.empty_like(a.x, len(a.weight)), (len(a.x), *a.x.shape[2:])
        saved = u, graph.empty(pixels, torch.float32), graph.empty(pixels, torch.float32)
    output = DepthwiseNormOutput(out, *saved)
    graph.add("depthwise_norm_forward", **_forward_fields(a, output))

    def backward() -> None:
        grad_out = graph.pop_grad(out)
        if grad_out is None:
            return
        require(
            a.shift is None or len(a.x) == 1 or a.shift.stride(0) > 0, lambda: "each sample needs a shift of its own"
        )
        grad_x, grad_skip = graph.empty_grads(a.x, a.skip)
        parameters = {
            name: graph.grad_buffer(getattr(a, name)) for name in ("weight", "bias", "shift", "gain", "offset")
        }
        grads = {"x": grad_x, "skip": grad_skip, **parameters}
        if any(grad is not None for grad in grads.values()):
            b = DepthwiseNormBackward(
                grad_out, *saved, a.x, a.weight, a.gain, a.skip, wants_input=grad_x is not None,
                wants_shift=grads["shift"] is not None, wants_parameters=grads["weight"] is not None,
            )  # fmt: skip
            graph.add_backward("depthwise_norm_backward", **_backward_fields(b, grads))
        graph.accumulate_grad(a.x, grad_x)
        graph.accumulate_grad(a.skip, grad_skip)

    if graph.saves:
        graph.on_backward(backward)
    return out


def unsupported_on_gpu(a: DepthwiseNorm | DepthwiseNormBackward) -> list[str]:
    """Why the Triton kernels cannot run."""
    from .. import kernels

    x, channels = a.x, len(a.weight)
    reasons = [kernels.why_not()] if kernels.why_not() else []
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        reasons.append("the GPU's compute capability is below 8.0")
    if channels > 1024:
        reasons.append(f"the input has {channels} channels, more than 1024")
    if channels * x.shape[2:].numel() >= 2**31 or x.shape[0] >= 2**12:
        reasons.append(f"x is {tuple(x.shape)}: an image has to be below 2^31 numbers, a batch below 2^12 images")
    if not x.numel():
        reasons.append("x is empty")
    return reasons + _wrong_dtypes(a)


def gpu_kernels(given: Any) -> Any:
    """The module of kernels for an `Input`: Triton's, or on a Hopper GPU csrc/cuda's with the same functions."""
    from ..kernels import depthwise_norm as triton_kernels
    from . import hopper_depthwise

    return hopper_depthwise if hopper_depthwise.takes(given) else triton_kernels


def _gpu(a: DepthwiseNorm, save: bool) -> DepthwiseNormOutput:
    from ..kernels import depthwise_norm as triton_kernels

    given = triton_kernels.Input(aligned(channels_last(a.x)), aligned(channels_last(a.skip)))
    shift = a.shift if a.shift is None or a.shift.stride(1) == 1 else a.shift.contiguous()
    epilogue = triton_kernels.Epilogue(
        fp32(a.bias), None if shift is None else shift.float(), fp32(a.gain), fp32(a.offset)
    )
    out, saved = gpu_kernels(given).forward(given, taps_first(a.weight), epilogue, a.eps, save)
    return DepthwiseNormOutput(out, *(saved if save and a.gain is not None else _nothing_saved(a.x)))


def _gpu_backward(a: DepthwiseNormBackward) -> DepthwiseNormGrads:
    from ..kernels import depthwise_norm as triton_kernels

    found = _fake_backward(a._replace(wants_input=False))
    given = triton_kernels.Input(aligned(channels_last(a.x)), aligned(channels_last(a.skip)))
    u = a.u if a.gain is None else channels_last(a.u)
    saved, module = triton_kernels.Saved(u, a.mean, a.rstd), gpu_kernels(given)
    du, of_norm = module.norm_gradient(channels_last(a.grad_out.to(a.x.dtype)), saved, fp32(a.gain))
    if a.wants_input:
        grads = module.input_gradient(du, taps_first(a.weight), given.channels[1])
        found = found._replace(x=grads.x, skip=a.x.new_empty(0) if grads.skip is None else grads.skip)
    sums = [(of_norm[0], found.shift)] if a.wants_shift else []
    if a.wants_parameters:
        found = found._replace(weight=empty_taps_first(a.weight))  # as a weight that nobody has to copy
        outs = (found.bias, found.gain, found.offset)
        sums += [(partial.flatten(0, 1)[None], out[None]) for partial, out in zip(of_norm, outs, strict=False)]
        sums.append((module.taps_gradient(given, du), found.weight[None]))
    if sums:
        reduce_partials(sums)
    return found


def _fake(a: DepthwiseNorm, save: bool) -> DepthwiseNormOutput:
    _check(a)
    return _empty_output(a, save)


def _empty_output(a: DepthwiseNorm, save: bool) -> DepthwiseNormOutput:
    out = empty_like(a.x, len(a.weight))
    if not save or a.gain is None:
        return DepthwiseNormOutput(out, *_nothing_saved(a.x))
    pixels = (a.x.shape[0], a.x.shape[2], a.x.shape[3])
    mean, rstd = (a.x.new_empty(pixels, dtype=_statistics_dtype(a.x)) for _ in range(2))
    return DepthwiseNormOutput(out, empty_like(a.x, len(a.weight)), mean, rstd)


def _fake_backward(a: DepthwiseNormBackward) -> DepthwiseNormGrads:
    x, channels, statistics = a.x, len(a.weight), _statistics_dtype(a.x)

    def empty(wanted: bool, *shape: int) -> Tensor:
        return x.new_empty(shape if wanted else 0, dtype=statistics)

    weight = torch.empty_like(a.weight, memory_format=torch.contiguous_format)
    weight = empty_taps_first(a.weight) if x.is_cuda else weight
    norm = a.wants_parameters and a.gain is not None
    return DepthwiseNormGrads(
        x=empty_like(x, x.shape[1]) if a.wants_input else x.new_empty(0),
        skip=empty_like(x, a.skip.shape[1]) if a.wants_input and a.skip is not None else x.new_empty(0),
        weight=weight if a.wants_parameters else empty(False),
        bias=empty(a.wants_parameters, channels),
        shift=empty(a.wants_shift, len(x), channels),
        gain=empty(norm, channels),
        offset=empty(norm, channels),
    )


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    a, save, found = DepthwiseNorm._make(inputs[:-1]), inputs[-1], DepthwiseNormOutput._make(output)
    if save:
        ctx.save_for_backward(*found[1:], a.x, a.weight, a.gain, a.skip)
    ctx.saved, ctx.backend = save, chosen_backend()
    ctx.mark_non_differentiable(*found[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    grads: dict[str, Tensor | None] = dict.fromkeys((*DepthwiseNorm._fields, "save"))
    if grad_out is None:
        return tuple(grads.values())
    if not ctx.saved:
        raise RuntimeError("depthwise_norm ran with save=False: nothing was kept for its backward")
    u, mean, rstd, x, weight, gain, skip = ctx.saved_tensors
    needs = dict(zip(grads, ctx.needs_input_grad, strict=True))
    a = DepthwiseNormBackward(
        grad_out, u, mean, rstd, x, weight, gain, skip, wants_input=needs["x"] or needs["skip"],
        wants_shift=needs["shift"], wants_parameters=any(needs[name] for name in ("weight", "bias", "gain", "offset")),
    )  # fmt: skip
    with backend(ctx.backend):  # on a GPU this is another thread, which does not know the caller's choice
        computed = DepthwiseNormGrads(*torch.ops.sinfusion.depthwise_norm_backward(*a))
    grads.update(computed._asdict())
    return tuple(grad if needs[name] else None for name, grad in grads.items())


on_cpu = native_or_reference("depthwise_norm", _cpu, reference, unsupported_on_cpu, _check)
on_gpu = native_or_reference("depthwise_norm", _gpu, reference, unsupported_on_gpu, _check)
on_cpu_backward = native_or_reference("depthwise_norm", _cpu_backward, reference_backward, unsupported_on_cpu)
on_gpu_backward = native_or_reference("depthwise_norm", _gpu_backward, reference_backward, unsupported_on_gpu)
define("depthwise_norm", DepthwiseNorm, "(Tensor, Tensor, Tensor, Tensor)", flags=("save",))
define("depthwise_norm_backward", DepthwiseNormBackward, "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
implement("depthwise_norm", DepthwiseNorm, reference=reference, cpu=on_cpu, cuda=on_gpu, fake=_fake)
implement(
    "depthwise_norm_backward", DepthwiseNormBackward,
    reference=reference_backward, cpu=on_cpu_backward, cuda=on_gpu_backward, fake=_fake_backward,
)  # fmt: skip
register_backward("depthwise_norm", _backward, _setup_context)
