"""The operator `depthwise_norm`: 7x7 depthwise convolution + bias + shift + LayerNorm over channels, differentiable.

Half of a ConvNeXt block in one pass over the activation. The reference is the definition; csrc/cpu/depthwise_norm.cpp
is the fast way on a CPU (PyTorch's own bf16 depthwise weight gradient takes 20 to 50 times as long), and
kernels/depthwise_norm.py on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._choice import backend, chosen_backend, use_native
from ._layout import both, channels_of, fp32, last, like, parts
from ._native import cpu
from ._require import require, require_shape
from .cpu_graph import CpuGraph, capturing

# Error of a kernel against the reference in float64, relative to that of the reference in the same dtype, at most.
TOLERANCE = 2.0

_library = torch.library.Library("sinfusion", "DEF")  # lives as long as the process
_library.define(
    "depthwise_norm(Tensor x, Tensor weight, Tensor bias, Tensor? shift, Tensor? gain, Tensor? offset, "
    "Tensor? skip, float eps, bool save) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "depthwise_norm_backward(Tensor grad_out, Tensor x, Tensor? skip, Tensor u, Tensor mean, Tensor rstd, "
    "Tensor weight, Tensor? gain, bool shift, bool input) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def depthwise_norm(
    x: Tensor,  # (B, C, H, W) fp32 or bf16 (fp64: reference only), channels-last
    weight: Tensor,  # (C, 1, 7, 7) fp32
    bias: Tensor,  # (C,) fp32
    shift: Tensor | None = None,  # (B, C) fp32
    gain: Tensor | None = None,  # (C,) fp32; None: no norm
    offset: Tensor | None = None,  # (C,) fp32, with gain
    skip: Tensor | None = None,  # (B, S, H, W) as x: more channels of the input; C is then C + S in all the others
    eps: float = 1e-5,
) -> Tensor:  # as x and skip behind it
    """u = depthwise(x) + bias + shift; LayerNorm over the channels of u if there is a gain, else u itself."""
    if (graph := capturing()) is not None:
        return _record(graph, x, weight, bias, shift, gain, offset, skip, eps)
    inputs = (x, weight, bias, shift, gain, offset, skip)
    save = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in inputs)
    result: Tensor = torch.ops.sinfusion.depthwise_norm(*inputs, eps, save)[0]
    return result


def unsupported(x: Tensor, weight: Tensor) -> list[str]:
    """Why the native CPU kernel cannot run."""
    return ([] if cpu.loaded else [cpu.why_not]) + _wrong_dtypes(x, weight)


def _wrong_dtypes(x: Tensor, weight: Tensor) -> list[str]:
    reasons = []
    if x.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"x is {x.dtype}, not float32 or bfloat16")
    if weight.dtype != torch.float32:
        reasons.append(f"the weight is {weight.dtype}, not float32")
    return reasons


def unsupported_on_gpu(x: Tensor, weight: Tensor) -> list[str]:
    """Why the Triton kernels cannot run."""
    from .. import kernels

    reasons = [kernels.why_not()] if kernels.why_not() else []
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        reasons.append("the GPU's compute capability is below 8.0")
    if len(weight) > 1024:
        reasons.append(f"the input has {len(weight)} channels, more than 1024")
    if len(weight) * x.shape[2:].numel() >= 2**31 or x.shape[0] >= 2**12:
        reasons.append(f"x is {tuple(x.shape)}: an image has to be below 2^31 numbers, a batch below 2^12 images")
    if not x.numel():
        reasons.append("x is empty")
    return reasons + _wrong_dtypes(x, weight)


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    eps: float,
    save: bool,
) -> Four:
    _check(x, weight, bias, shift, gain, offset, skip)
    x = both(x, skip)
    u = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=3, groups=x.shape[1])
    if shift is not None:
        u = u + shift[:, :, None, None].to(u.dtype)
    u = u.contiguous(memory_format=torch.channels_last)
    if gain is None or offset is None:
        # An operator's outputs may not be one tensor twice: nothing needs u where there is no norm.
        return u, x.new_empty(0), x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.float32)
    wide = u if u.dtype == torch.float64 else u.float()
    mean = wide.mean(1)
    rstd = (wide.var(1, unbiased=False) + eps).rsqrt()
    out = (wide - mean[:, None]) * rstd[:, None] * gain[:, None, None] + offset[:, None, None]
    out = out.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return (out, u, mean, rstd) if save else (out, x.new_empty(0), mean.new_empty(0), mean.new_empty(0))


def _reference_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    u: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    shift: bool,
    input: bool,
) -> Seven:
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad = grad_out.to(statistics)
    grad_gain = grad_offset = grad.new_empty(0)
    if gain is not None:
        normed = (u.to(statistics) - mean[:, None]) * rstd[:, None]
        grad_gain, grad_offset = (grad * normed).sum((0, 2, 3)), grad.sum((0, 2, 3))
        scaled = grad * gain[:, None, None]
        parallel = (scaled * normed).mean(1, keepdim=True)
        grad = (scaled - scaled.mean(1, keepdim=True) - normed * parallel) * rstd[:, None]
    grad_shift = grad.sum((2, 3))  # (B, C)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.to(x.dtype), both(x, skip), weight.to(x.dtype), None, [1, 1], [3, 3], [1, 1], False, [0, 0], len(weight),
        [input, True, False],
    )  # fmt: skip
    # Outputs may not alias each other or an input.
    return (
        *parts(grad_x if input else None, x, skip),
        grad_weight.to(weight.dtype),
        grad_shift.sum(0),
        grad_shift if shift else grad_shift.new_empty(0),
        grad_gain,
        grad_offset if gain is not None else grad.new_empty(0),
    )


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
) -> None:
    require(x.ndim == 4, lambda: f"x is (B, C, H, W), not {tuple(x.shape)}")
    require((gain is None) == (offset is None), lambda: "gain and offset come together")
    channels, device = channels_of(x, skip), x.device
    require_shape("weight", weight, (channels, 1, 7, 7), device)
    require_shape("shift", shift, (x.shape[0], channels), device)
    for name, value in (("bias", bias), ("gain", gain), ("offset", offset)):
        require_shape(name, value, (channels,), device)


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    eps: float,
    save: bool,
) -> Four:
    if not use_native("depthwise_norm", unsupported(x, weight)):
        return _reference(x, weight, bias, shift, gain, offset, skip, eps, save)
    out, u, mean, rstd = _fake(x, weight, bias, shift, gain, offset, skip, eps, save)
    kept = (u, mean, rstd) if save and gain is not None else None
    cpu.call("depthwise_norm_forward", *_forward(x, weight, bias, shift, gain, offset, skip, eps, out, kept))
    return out, u, mean, rstd


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    eps: float,
    out: Tensor,
    kept: tuple[Tensor, Tensor, Tensor] | None,  # u, mean and rstd
) -> tuple[Any, ...]:
    """What depthwise_norm_forward of csrc/cpu takes."""
    if shift is not None and (shift.dtype != torch.float32 or shift.stride(1) != 1):
        shift = fp32(shift)
    return (
        *_shapes(x, skip), last(x), None if skip is None else last(skip), fp32(weight), fp32(bias),
        shift, 0 if shift is None else shift.stride(0), fp32(gain), fp32(offset), eps, out, *(kept or (None,) * 3),
    )  # fmt: skip


def _cpu_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    u: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    shift: bool,
    input: bool,
) -> Seven:
    if not use_native("depthwise_norm", unsupported(x, weight)):
        return _reference_backward(grad_out, x, skip, u, mean, rstd, weight, gain, shift, input)
    graph = _fake_backward(grad_out, x, skip, u, mean, rstd, weight, gain, shift, input)
    grad_x, grad_skip, grad_weight, grad_bias, grad_shift, grad_gain, grad_offset = graph
    norm = gain is not None
    cpu.call("depthwise_norm_backward", *_backward_of(
        x, skip, weight, gain, grad_out, (u, mean, rstd) if norm else None,
        grad_x if input else None, grad_skip if input and skip is not None else None, grad_weight, grad_bias,
        grad_shift if shift else None, grad_gain if norm else None, grad_offset if norm else None,
    ))  # fmt: skip
    return graph


def _backward_of(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    gain: Tensor | None,
    grad_out: Tensor,
    kept: tuple[Tensor, Tensor, Tensor] | None,  # u, mean and rstd, with a norm
    grad_x: Tensor | None,
    grad_skip: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_shift: Tensor | None,
    grad_gain: Tensor | None,
    grad_offset: Tensor | None,
) -> tuple[Any, ...]:
    """What depthwise_norm_backward of csrc/cpu takes."""
    u, mean, rstd = kept or (None, None, None)
    return (
        *_shapes(x, skip), last(x), None if skip is None else last(skip), fp32(weight), fp32(gain),
        last(grad_out.to(x.dtype)), None if u is None else last(u), mean, rstd, grad_x, grad_skip, grad_weight,
        grad_bias, grad_shift, 0 if grad_shift is None else grad_shift.stride(0), grad_gain, grad_offset,
    )  # fmt: skip


def _record(
    graph: CpuGraph,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    eps: float,
) -> Tensor:
    """`depthwise_norm` for later; and its derivative, if there will be one."""
    _check(x, weight, bias, shift, gain, offset, skip)
    cannot = unsupported(x, weight)
    require(not cannot, lambda: f"depthwise_norm cannot be recorded: {'; '.join(cannot)}")
    out, kept = graph.like(x, len(weight)), None
    if graph.saves and gain is not None:
        places = (len(x), *x.shape[2:])
        kept = graph.like(x, len(weight)), graph.empty(places, torch.float32), graph.empty(places, torch.float32)
    graph.add("depthwise_norm_forward", *_forward(x, weight, bias, shift, gain, offset, skip, eps, out, kept))

    def derivative() -> None:
        grad = graph.pop_grad(out)
        if grad is None:
            return
        grad_x, grad_skip = graph.grads_like(x, skip)
        require(shift is None or len(x) == 1 or shift.stride(0) > 0, lambda: "each sample needs a shift of its own")
        of_others = [None if value is None else graph.grad_buffer(value) for value in (shift, gain, offset)]
        graph.add_backward("depthwise_norm_backward", *_backward_of(
            x, skip, weight, gain, grad, kept, grad_x, grad_skip, graph.grad_buffer(weight), graph.grad_buffer(bias),
            *of_others,
        ))  # fmt: skip
        graph.accumulate_grad(x, grad_x)
        graph.accumulate_grad(skip, grad_skip)

    if graph.saves:
        graph.on_backward(derivative)
    return out


def _shapes(x: Tensor, skip: Tensor | None) -> tuple[int | bool, ...]:
    """What both native functions begin with."""
    batch, channels, *size = x.shape
    return batch, *size, channels, 0 if skip is None else skip.shape[1], x.dtype == torch.bfloat16


def _cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    eps: float,
    save: bool,
) -> Four:
    _check(x, weight, bias, shift, gain, offset, skip)
    if not use_native("depthwise_norm", unsupported_on_gpu(x, weight)):
        return _reference(x, weight, bias, shift, gain, offset, skip, eps, save)
    from ..kernels import depthwise_norm as triton_kernels

    x = last(both(x, skip))
    out, u, mean, rstd = triton_kernels.forward(
        x, _taps(weight), fp32(bias), fp32(shift), fp32(gain), fp32(offset), eps, save
    )
    if u is None or mean is None or rstd is None:
        return out, x.new_empty(0), x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.float32)
    return out, u, mean, rstd


def _cuda_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    u: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    shift: bool,
    input: bool,
) -> Seven:
    if not use_native("depthwise_norm", unsupported_on_gpu(x, weight)):
        return _reference_backward(grad_out, x, skip, u, mean, rstd, weight, gain, shift, input)
    from ..kernels import depthwise_norm as triton_kernels

    grad_out = last(grad_out.to(x.dtype))
    if gain is not None:
        u = last(u)
    grad, taps, grad_shift, grad_gain, grad_offset = triton_kernels.backward(
        grad_out, last(both(x, skip)), u, mean, rstd, _taps(weight), fp32(gain)
    )
    grad_bias, grad_weight = grad_shift.sum(0), taps.t().contiguous().view(weight.shape)
    empty = [taps.new_empty(0) for _ in range(3)]
    if grad_gain is None or grad_offset is None:
        grad_gain, grad_offset = empty[:2]
    of_inputs = parts(grad if input else None, x, skip)
    return *of_inputs, grad_weight, grad_bias, grad_shift if shift else empty[2], grad_gain, grad_offset


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, 7, 7) -> (49, C), channels innermost as the kernel reads them."""
    return weight.detach().view(-1, 49).t().contiguous()


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    eps: float,
    save: bool,
) -> Four:
    _check(x, weight, bias, shift, gain, offset, skip)
    keep = save and gain is not None
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (x.shape[0], x.shape[2], x.shape[3]) if keep else (0,)
    mean, rstd = x.new_empty(shape, dtype=statistics), x.new_empty(shape, dtype=statistics)
    return like(x, len(weight)), like(x, len(weight)) if keep else x.new_empty(0), mean, rstd


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    u: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    shift: bool,
    input: bool,
) -> Seven:
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = len(weight)

    def empty(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=statistics)

    norm = channels if gain is not None else 0
    return (
        like(x, x.shape[1]) if input else x.new_empty(0),
        like(x, skip.shape[1]) if input and skip is not None else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        empty(channels),
        empty(len(x), channels) if shift else empty(0),
        empty(norm),
        empty(norm),
    )


def _setup_context(ctx: Any, inputs: Any, output: Four) -> None:
    x, weight, _, shift, gain, _, skip, _, save = inputs
    _, u, mean, rstd = output
    if save:
        ctx.save_for_backward(x, skip, u, mean, rstd, weight, gain)
    ctx.saved, ctx.with_shift, ctx.backend = save, shift is not None, chosen_backend()
    ctx.mark_non_differentiable(u, mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 9
    if not ctx.saved:
        raise RuntimeError("depthwise_norm ran with save=False: nothing was kept for its backward")
    x, skip, u, mean, rstd, weight, gain = ctx.saved_tensors
    needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[6]
    with backend(ctx.backend):  # on a GPU this is another thread, where the caller's choice is not known
        gx, gskip, gweight, gbias, gshift, ggain, goffset = torch.ops.sinfusion.depthwise_norm_backward(
            grad_out, x, skip, u, mean, rstd, weight, gain, ctx.with_shift, needed
        )
    norm = gain is not None
    return (gx if needed else None, gweight, gbias, gshift if ctx.with_shift else None, ggain if norm else None,
            goffset if norm else None, gskip if needed and skip is not None else None, None, None)  # fmt: skip


_library.impl("depthwise_norm", _reference, "CompositeExplicitAutograd")
_library.impl("depthwise_norm_backward", _reference_backward, "CompositeExplicitAutograd")
_library.impl("depthwise_norm", _cpu, "CPU")
_library.impl("depthwise_norm_backward", _cpu_backward, "CPU")
_library.impl("depthwise_norm", _cuda, "CUDA")
_library.impl("depthwise_norm_backward", _cuda_backward, "CUDA")
torch.library.register_fake("sinfusion::depthwise_norm", _fake, lib=_library)
torch.library.register_fake("sinfusion::depthwise_norm_backward", _fake_backward, lib=_library)
torch.library.register_autograd("sinfusion::depthwise_norm", _backward, setup_context=_setup_context, lib=_library)
