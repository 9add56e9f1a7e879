"""The training examples of step n: random crops of the frames, a pure function of (seed, n).

Frames stay uint8 on the training device; positions come from the counter-based generator, so a resumed run, or one
spread over several processes, sees exactly what an uninterrupted run in one process sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops

# Streams of the generator: one a purpose, so that no two draws share numbers.
STREAM_CROP, STREAM_LEVEL, STREAM_NOISE, STREAM_TOP = range(1, 5)
STREAM_CONDITION_NOISE, STREAM_CONDITION_DRIFT, STREAM_CONDITION_SHARE = range(5, 8)


@dataclass(frozen=True)
class Examples:
    """One batch, fp32 in [-1, 1], on the device of the frames."""

    clean: Tensor  # (B, 3, h, w)
    condition: Tensor | None  # (B, 3 n, h, w)
    frame_offset: Tensor | None  # (B,) int64


def sample_seeds(seed: int, samples: range) -> Tensor:
    """(len(samples),) int64: one generator key a sample of the global batch."""
    return torch.tensor([(seed * 1_000_003 + b) & (2**62 - 1) for b in samples], dtype=torch.int64)


def to_unit(frames: Tensor) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) fp32 in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_uint8(pictures: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded to the nearest."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def draw(
    frames: Tensor,  # (T, H, W, 3) uint8
    conditions: int,  # 0, 1 (the frame at target - offset) or 2 (the frames around the target)
    crop: tuple[int, int],  # height, width
    seed: int,
    step: int,
    samples: range,  # which samples of the global batch
    offsets: tuple[int, ...] = (),  # frame offsets to choose from, for one condition
    every_triple: bool = True,  # two conditions: any middle frame, not only the odd ones
) -> Examples:
    """Crops for one step, condition and target cut at the same place."""
    count, height, width = frames.shape[:3]
    bits = ops.uniform_bits(sample_seeds(seed, samples), STREAM_CROP, step, 4).tolist()
    cuts: list[Tensor] = []
    used: list[int] = []
    for frame_bits, offset_bits, y_bits, x_bits in bits:
        top, left = _pick(height - crop[0] + 1, y_bits), _pick(width - crop[1] + 1, x_bits)
        offset = offsets[_pick(len(offsets), offset_bits)] if conditions == 1 else 1
        target = _target(count, conditions, offset, every_triple, frame_bits)
        picks = {0: (target,), 1: (target - offset, target), 2: (target - 1, target + 1, target)}[conditions]
        cuts.append(torch.stack([frames[i, top : top + crop[0], left : left + crop[1]] for i in picks]))
        used.append(offset)
    pictures = to_unit(torch.stack(cuts))  # (B, conditions + 1, 3, h, w)
    frame_offset = torch.tensor(used, device=frames.device) if conditions == 1 else None
    condition = pictures[:, :-1].flatten(1, 2).contiguous() if conditions else None
    return Examples(pictures[:, -1].contiguous(), condition, frame_offset)


def _pick(choices: int, bits: int) -> int:
    """A whole number in [0, choices) from 32 uniform bits."""
    return bits * choices >> 32


def _target(count: int, conditions: int, offset: int, every_triple: bool, bits: int) -> int:
    """Index of the frame to be learned, so that its conditions exist."""
    if conditions == 0:
        return _pick(count, bits)
    if conditions == 1:
        return max(offset, 0) + _pick(count - abs(offset), bits)
    return 1 + (_pick(count - 2, bits) if every_triple else 2 * _pick((count - 1) // 2, bits))
