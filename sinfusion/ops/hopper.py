"""Whether the kernels for Hopper GPUs (compute capability 9.0; csrc/cuda) can run: bf16, channels multiples of 64."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .native import cuda


@functools.cache
def available(device: torch.device) -> bool:
    """Whether the library has these kernels, and the GPU can run them."""
    return (
        device.type == "cuda"
        and cuda.loaded
        and hasattr(cuda.module, "convolve_sm90")
        and torch.cuda.get_device_capability(device) == (9, 0)
    )


def takes(*tensors: Tensor | None) -> bool:
    """Whether the copy engine can read and write these (B, C, H, W)."""
    return all(
        one is None
        or (
            available(one.device)
            and one.dtype == torch.bfloat16
            and one.shape[1] % 64 == 0
            and one.data_ptr() % 16 == 0
            and one.numel() > 0
        )
        for one in tensors
    )
