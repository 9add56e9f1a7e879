"""The door to native code: operators defined in plain PyTorch, with C++ and CUDA behind them where those can run.

ops.depthwise_norm(x, weight, bias, shift, gain, offset)
ops.adam_ema(value, exp_avg, exp_avg_sq, average, copy, gradient, coefficients)
ops.patch_match(query, key), ops.vote(value, offsets)
with ops.backend("reference"): ...            # or SINFUSION_BACKEND=reference: is it the kernel?
"""

from ._choice import backend
from ._native import status
from .adam_ema import adam_ema
from .depthwise_norm import depthwise_norm
from .patch_match import patch_match, places
from .philox import normal, uniform_bits
from .vote import vote


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bf16 (AVX512-BF16, and AMX with it)."""
    from ._native import cpu

    return cpu.loaded and bool(cpu.has_bf16())


__all__ = [
    "adam_ema",
    "backend",
    "cpu_has_bf16",
    "depthwise_norm",
    "normal",
    "patch_match",
    "places",
    "status",
    "uniform_bits",
    "vote",
]
