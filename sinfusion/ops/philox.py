"""Random numbers that are a function of (seed, stream, step, index): Philox 4x32-10 (Salmon et al. 2011).

The same on every backend: bits exactly; normals are computed in float64 and rounded once, so they agree except where
two libms differ in the last place right at a rounding boundary (never seen in 10 million).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import use_native
from .native import run, why_no_library

_MASK = 0xFFFFFFFF


# Below 2^63; a tensor is () int64 on the device asked for, so that a CUDA graph can read it anew, or (B,), one a row.
Step = int | Tensor


def uniform_bits(
    seeds: Tensor | Sequence[int],  # (B,) int64
    stream: int,  # what the numbers are for, below 2^32
    step: Step,  # when
    count: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(B, count) int64: uniform whole numbers in [0, 2^32), one row for each seed."""
    keys = _on(seeds, device)
    if _one_a_row(step) or not use_native("uniform_bits", why_no_library(keys.device)):
        return _reference_bits(keys, stream, step, count)
    out = torch.empty(len(keys), count, dtype=torch.int64, device=device)
    run("uniform_bits", out, seeds=keys, batch=len(keys), stream=stream, count=count, out=out, **_step_fields(step))
    return out


def normal(
    seeds: Tensor | Sequence[int],  # (B,) int64
    stream: int,  # what the numbers are for, below 2^32
    step: Step,  # when
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """(B, *shape) fp32 standard normals; row b depends on seeds[b], stream, step and the flat index alone."""
    keys, count = _on(seeds, device), math.prod(shape)
    if _one_a_row(step) or not use_native("normal", why_no_library(keys.device)):
        return _reference_normal(keys, stream, step, count).view(len(keys), *shape)
    out = torch.empty(len(keys), count, device=device)
    run("normal", out, seeds=keys, batch=len(keys), stream=stream, count=count, out=out, **_step_fields(step))
    return out.view(len(keys), *shape)


def _on(seeds: Tensor | Sequence[int], device: torch.device | str) -> Tensor:
    return torch.as_tensor(seeds, dtype=torch.int64).to(device).contiguous()


def _one_a_row(step: Step) -> bool:
    """Whether rows have steps of their own, which only the reference takes: many steps are drawn once, not in each."""
    return isinstance(step, Tensor) and step.ndim > 0


def _step_fields(step: Step) -> dict[str, Any]:
    """As native code takes it: a number, or the tensor to read it from."""
    tensor = isinstance(step, Tensor)
    return {"step": 0 if tensor else step, "step_address": step if tensor else None}


def _reference_bits(keys: Tensor, stream: int, step: Step, count: int) -> Tensor:
    """Ten rounds on int64 tensors that hold 32-bit words; products wrap, which leaves their 64 bits intact."""
    blocks = torch.arange((count + 3) // 4, device=keys.device)
    step = step[:, None] if isinstance(step, Tensor) and _one_a_row(step) else step
    c0, c1, c2, c3 = torch.broadcast_tensors(
        blocks[None], *(torch.full((len(keys), 1), w, device=keys.device) for w in (stream, 0, 0))
    )
    c2, c3 = c2 + (step & _MASK), c3 + (step >> 32)
    k0, k1 = (keys & _MASK)[:, None], (keys >> 32 & _MASK)[:, None]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack((c0, c1, c2, c3), -1).flatten(1)[:, :count]


def _reference_normal(keys: Tensor, stream: int, step: Step, count: int) -> Tensor:
    """Box-Muller on pairs of words."""
    even, odd = _reference_bits(keys, stream, step, (count + 3) // 4 * 4).double().unflatten(1, (-1, 2)).unbind(-1)
    radius, angle = (-2 * ((even + 0.5) * 2.0**-32).log()).sqrt(), 2 * math.pi * (odd * 2.0**-32)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)[:, :count].float()
