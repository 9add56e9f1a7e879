"""The operator `adam_ema`: a step of Adam, the moving average of the weights and their bf16 copy in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import require, require_tensor
from .dispatch import native_or_reference
from .native import mark_written, run, why_no_library, wrong_dtype
from .registration import define, implement, takes


class AdamEma(NamedTuple):
    value: Tensor  # (N,) fp32 (fp64: reference only), contiguous: the weights; changed in place, as the next four
    exp_avg: Tensor  # (N,) as value: Adam's first moment
    exp_avg_sq: Tensor  # (N,) as value: Adam's second moment
    average: Tensor  # (N,) as value: moving average of the weights
    copy: Tensor | None  # (N,) bf16: the weights rounded to the nearest, ties to even; None: not wanted
    gradient: Tensor  # (N,) as value
    coefficients: Tensor  # (3,) as value: step size, factor of sqrt(exp_avg_sq), weight of value in the average
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@takes(AdamEma)
def adam_ema(a: AdamEma) -> None:
    """One step. Those of torch.optim.Adam in step t, with a rate: rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t).

    The operator reads the coefficients from memory, so a CUDA graph of it can be replayed with others. An average of
    weight 1 is `value` exactly.
    """
    torch.ops.sinfusion.adam_ema(*a)


def _check(a: AdamEma) -> None:
    value, device = a.value, a.value.device
    require(value.ndim == 1, lambda: f"value is (N,), not {tuple(value.shape)}")
    require(value.dtype.is_floating_point, lambda: f"value is floating, not {value.dtype}")
    for name, other, shape, dtype in (
        ("value", value, value.shape, value.dtype),
        ("exp_avg", a.exp_avg, value.shape, value.dtype),
        ("exp_avg_sq", a.exp_avg_sq, value.shape, value.dtype),
        ("average", a.average, value.shape, value.dtype),
        ("copy", a.copy, value.shape, torch.bfloat16),
        ("gradient", a.gradient, value.shape, value.dtype),
        ("coefficients", a.coefficients, (3,), value.dtype),
    ):
        require_tensor(name, other, device, [shape], dtype)
        require(other is None or other.is_contiguous(), lambda name=name: f"{name} is contiguous")  # type: ignore[misc]
    require(len(a.betas) == 2, lambda: f"betas are two, not {tuple(a.betas)}")
    for name, beta in zip(("beta1", "beta2"), a.betas, strict=True):
        require(0 <= beta < 1, lambda name=name, beta=beta: f"{name} is at least 0 and below 1, not {beta}")  # type: ignore[misc]
    require(a.eps >= 0, lambda: f"eps is at least 0, not {a.eps}")


def _reference(a: AdamEma) -> None:
    """Rounds every product and sum, in the order of the native code."""
    _check(a)
    beta1, beta2 = a.betas
    step_size, sqrt_factor, weight = a.coefficients.unbind()
    a.exp_avg.copy_(_lerp(a.exp_avg, a.gradient, a.coefficients.new_full((), 1 - beta1)))
    a.exp_avg_sq.mul_(beta2).add_(a.gradient * (1 - beta2) * a.gradient)
    root = a.exp_avg_sq.double().sqrt().to(a.value.dtype)  # a CPU's fp32 root is not always the nearest
    a.value.sub_(a.exp_avg * step_size / (root * sqrt_factor + a.eps))
    a.average.copy_(_lerp(a.average, a.value, weight))
    if a.copy is not None:
        a.copy.copy_(a.value)


def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """As torch.lerp, whose last place differs between devices: exactly `end` with weight 1."""
    difference = end - start
    return torch.where(weight < 0.5, start + difference * weight, end - difference * (1 - weight))


def unsupported(a: AdamEma) -> list[str]:
    """Why the native kernels cannot run."""
    return why_no_library(a.value.device) + wrong_dtype("value", a.value.dtype, torch.float32)


def _native(a: AdamEma) -> None:
    beta1, beta2 = a.betas
    run(
        "adam_ema", a.value, value=a.value, exp_avg=a.exp_avg, exp_avg_sq=a.exp_avg_sq, average=a.average, copy=a.copy,
        gradient=a.gradient, coefficients=a.coefficients, count=a.value.numel(), one_minus_beta1=1 - beta1, beta2=beta2,
        one_minus_beta2=1 - beta2, eps=a.eps,
    )  # fmt: skip
    mark_written(a.value, a.exp_avg, a.exp_avg_sq, a.average, a.copy)


_on_device = native_or_reference("adam_ema", _native, _reference, unsupported, _check)
define("adam_ema", AdamEma, "()", written=("value", "exp_avg", "exp_avg_sq", "average", "copy"))
implement("adam_ema", AdamEma, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_check)
