"""Where the training examples of step n are cut: a pure function of (seed, n).

Frames stay uint8 on the training device; positions come from the counter-based generator, so a resumed run, or one
spread over several processes, sees exactly what an uninterrupted run in one process sees. Everything is drawn where the
frames are: nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops

# Streams of the generator: one a purpose, so that no two draws share numbers.
STREAM_CROP, STREAM_SIGMA, STREAM_NOISE, STREAM_SIGMA_MAX = range(1, 5)
STREAM_WHITE_CONDITION_NOISE, STREAM_COARSE_CONDITION_NOISE, STREAM_CONDITION_NOISE_SHARE = range(5, 8)


def sample_seeds(seed: int, samples: range) -> Tensor:
    """(len(samples),) int64: one generator key a sample of the global batch."""
    return torch.tensor([(seed * 1_000_003 + b) & (2**62 - 1) for b in samples], dtype=torch.int64)


def draw(
    clip: tuple[int, int, int],  # frames, height, width
    conditions: int,  # 0, 1 (the frame at target - offset) or 2 (the frames around the target)
    crop: tuple[int, int],  # height, width
    seeds: Tensor,  # (B,) int64
    step: Tensor,  # () int64 on the same device
    largest_offset: Tensor
    | int = 1,  # () int64: frame offsets to choose from, for one condition: up to this, both ways
    every_triple: bool = True,  # two conditions: any middle frame, not only the odd ones
) -> Tensor:  # (B, 4) int64: frame of the target, frame offset, top, left
    """Where each sample of a step is cut, so that its conditions exist; as `ops.sample_crops` takes it."""
    count, height, width = clip
    bits = ops.uniform_bits(seeds, STREAM_CROP, step, 4, seeds.device)
    top, left = _pick(height - crop[0] + 1, bits[:, 2]), _pick(width - crop[1] + 1, bits[:, 3])
    offset = torch.ones_like(top)
    if conditions == 0:
        target = _pick(count, bits[:, 0])
    elif conditions == 1:
        offset = _pick(2 * largest_offset, bits[:, 1]) - largest_offset
        offset = offset + (offset >= 0)  # never 0
        target = offset.clamp(min=0) + _pick(count - offset.abs(), bits[:, 0])
    elif every_triple:
        target = 1 + _pick(count - 2, bits[:, 0])
    else:
        target = 1 + 2 * _pick((count - 1) // 2, bits[:, 0])
    return torch.stack((target, offset, top, left), 1)


def _pick(choices: Tensor | int, bits: Tensor) -> Tensor:
    """Whole numbers in [0, choices) from 32 uniform bits."""
    return bits * choices >> 32
