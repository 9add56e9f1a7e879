"""The operator `adam_ema`: a step of Adam, the moving average of the weights and their bf16 copy in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ._choice import use_native
from ._native import run, why_no_library

_library = torch.library.Library("sinfusion", "FRAGMENT")
_library.define(
    "adam_ema(Tensor(a!) value, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) average, Tensor(e!)? copy, "
    "Tensor gradient, Tensor coefficients, float beta1, float beta2, float eps) -> ()"
)


def adam_ema(
    value: Tensor,  # (N,) fp32 (fp64: reference only), contiguous: the weights; changed in place, as the next four
    exp_avg: Tensor,  # (N,) as value: Adam's first moment
    exp_avg_sq: Tensor,  # (N,) as value: Adam's second moment
    average: Tensor,  # (N,) as value: moving average of the weights
    copy: Tensor | None,  # (N,) bf16: the weights rounded to the nearest, ties to even; None: not wanted
    gradient: Tensor,  # (N,) as value
    coefficients: Tensor,  # (3,) as value: step size, factor of sqrt(exp_avg_sq), weight of value in the average
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """One step. Those of torch.optim.Adam in step t, with a rate: rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t).

    The coefficients are read where they lie: a CUDA graph of this can be replayed with others. An average of weight 1
    is `value` exactly.
    """
    torch.ops.sinfusion.adam_ema(
        value, exp_avg, exp_avg_sq, average, copy, gradient, coefficients, betas[0], betas[1], eps
    )


def _check(
    value: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor,
    copy: Tensor | None,
    gradient: Tensor,
    coefficients: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    torch._check(value.ndim == 1, lambda: f"value is (N,), not {tuple(value.shape)}")
    torch._check(value.dtype.is_floating_point, lambda: f"value is floating, not {value.dtype}")
    for name, other, shape, dtype in (
        ("value", value, value.shape, value.dtype),
        ("exp_avg", exp_avg, value.shape, value.dtype),
        ("exp_avg_sq", exp_avg_sq, value.shape, value.dtype),
        ("average", average, value.shape, value.dtype),
        ("copy", copy, value.shape, torch.bfloat16),
        ("gradient", gradient, value.shape, value.dtype),
        ("coefficients", coefficients, (3,), value.dtype),
    ):
        if other is None:
            continue
        torch._check(
            other.shape == shape and other.dtype == dtype and other.device == value.device,
            lambda n=name, o=other, s=shape, d=dtype: (  # type: ignore[misc]
                f"{n} is {tuple(s)} {d} on {value.device}, not {tuple(o.shape)} {o.dtype} on {o.device}"
            ),
        )
        torch._check(other.is_contiguous(), lambda n=name: f"{n} is contiguous")  # type: ignore[misc]
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        torch._check(0 <= beta < 1, lambda n=name, b=beta: f"{n} is at least 0 and below 1, not {b}")  # type: ignore[misc]
    torch._check(eps >= 0, lambda: f"eps is at least 0, not {eps}")


def _reference(
    value: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor,
    copy: Tensor | None,
    gradient: Tensor,
    coefficients: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Every product and sum rounded, in the order in which the native code has them."""
    _check(value, exp_avg, exp_avg_sq, average, copy, gradient, coefficients, beta1, beta2, eps)
    step_size, root_factor, weight = coefficients.unbind()
    exp_avg.copy_(_between(exp_avg, gradient, coefficients.new_full((), 1 - beta1)))
    exp_avg_sq.mul_(beta2).add_(gradient * (1 - beta2) * gradient)
    root = exp_avg_sq.double().sqrt().to(value.dtype)  # that of fp32 is not always the nearest on a CPU
    value.sub_(exp_avg * step_size / (root * root_factor + eps))
    average.copy_(_between(average, value, weight))
    if copy is not None:
        copy.copy_(value)


def _between(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """As torch.lerp, whose last place differs between devices: exactly `end` with weight 1."""
    difference = end - start
    return torch.where(weight < 0.5, start + difference * weight, end - difference * (1 - weight))


def unsupported(value: Tensor) -> list[str]:
    """Why the native kernels cannot run."""
    reasons = why_no_library(value.device)
    if value.dtype != torch.float32:
        reasons.append(f"value is {value.dtype}, not float32")
    return reasons


def _native(
    value: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor,
    copy: Tensor | None,
    gradient: Tensor,
    coefficients: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    changed = (value, exp_avg, exp_avg_sq, average, copy)
    if not use_native("adam_ema", unsupported(value)):
        return _reference(*changed, gradient, coefficients, beta1, beta2, eps)
    _check(*changed, gradient, coefficients, beta1, beta2, eps)
    run("adam_ema", value, *changed, gradient, coefficients, value.numel(), 1 - beta1, beta2, 1 - beta2, eps)
    # Autograd must know that what it may have kept is there no more; the dispatcher does not tell it.
    torch.autograd.graph.increment_version([tensor for tensor in changed if tensor is not None])


_library.impl("adam_ema", _reference, "CompositeExplicitAutograd")
_library.impl("adam_ema", _native, "CPU")
_library.impl("adam_ema", _native, "CUDA")
torch.library.register_fake("sinfusion::adam_ema", _check, lib=_library)
