"""The door to native code: operators defined in plain PyTorch, with C++ and CUDA behind them where those can run.

ops.depthwise_norm(x, weight, bias, shift, gain, offset), ops.dense(x, weight, bias)     # the network,
ops.convnext_block(x, skip, shift, ...)                                                   # made of these
ops.sample_crops(frames, places, ...), ops.adam_ema(...), ops.ddpm_step(x, output, ...)   # around it
ops.patch_match(query, key), ops.vote(value, offsets)                                     # patches
ops.nearest_patches(query, key), ops.posterior(rows, distance, values, of_distance)       # the closed form
with ops.backend("reference"): ...            # or SINFUSION_BACKEND=reference: is it the kernel?
"""

from . import native
from .adam_ema import adam_ema
from .convnext_block import Gradients, convnext_block
from .ddpm_step import ddpm_step
from .dense import dense
from .depthwise_norm import depthwise_norm
from .dispatch import backend
from .embedding import Layer, Mlp, block_shifts
from .graphed_callable import cpu_graphed
from .mean_square import mean_square
from .native import status
from .nearest_patches import nearest_patches
from .patch_match import patch_match
from .philox import normal, uniform_bits
from .posterior import posterior
from .sample_crops import sample_crops
from .threads import torch_alone
from .videos import key_in_steps, places
from .vote import vote


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bf16 (AVX512-BF16, and AMX with it)."""
    return native.cpu.loaded and bool(native.cpu.has_bf16())


def keep_memory() -> None:
    """From now on this process keeps freed blocks of up to 32 MB (glibc) for steps that ask for them again.

    Steps of a training then ask the system for less; what that is worth depends on the machine and its allocator. The
    command line does so; in a program of your own it is yours to call, once, since it holds for the whole process.
    """
    if native.cpu.loaded:
        native.cpu.keep_memory()


__all__ = [
    "Gradients",
    "Layer",
    "Mlp",
    "adam_ema",
    "backend",
    "block_shifts",
    "convnext_block",
    "cpu_graphed",
    "cpu_has_bf16",
    "ddpm_step",
    "dense",
    "depthwise_norm",
    "keep_memory",
    "key_in_steps",
    "mean_square",
    "nearest_patches",
    "normal",
    "patch_match",
    "places",
    "posterior",
    "sample_crops",
    "status",
    "torch_alone",
    "uniform_bits",
    "vote",
]
