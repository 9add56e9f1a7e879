"""Videos whose patches an operator compares: how many patches there are, checks, and their values in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import require, require_patch

BEHIND = 32  # int16 behind the end of a video in steps


def places(video: Tensor, patch: Sequence[int]) -> tuple[int, int, int]:
    """How many patches fit into a video (T, H, W, C), by frames, rows and columns."""
    t, y, x = (size - side + 1 for size, side in zip(video.shape[:3], patch, strict=True))
    return t, y, x


def _check_video(name: str, video: Tensor, patch: Sequence[int], in_steps: bool = False) -> None:
    shape = tuple(video.shape)
    require(len(shape) == 4, lambda: f"{name} is (T, H, W, C), not {shape}")
    require(video.dtype.is_floating_point or in_steps, lambda: f"{name} is floating, not {video.dtype}")
    require(min(places(video, patch)) > 0, lambda: f"{name} {shape} is smaller than the patch {tuple(patch)}")
    require(
        max(shape[:3]) < 2**15 and math.prod(shape[:3]) < 2**31,
        lambda: f"{name} is {shape}: each side is below 2^15, the pixels below 2^31",
    )


def check_videos(query: Tensor, key: Tensor, patch: Sequence[int], in_steps: bool = False) -> None:
    """Two floating videos (T, H, W, C) with the same channels, on one device, that hold a patch each.

    in_steps: the key is in steps, see `key_in_steps`.
    """
    require_patch(patch)
    _check_video("query", query, patch)
    _check_video("key", key, patch, in_steps)
    require(
        query.shape[3] == key.shape[3] > 0 and query.device == key.device,
        lambda: (
            f"query {tuple(query.shape)} {query.device} and key {tuple(key.shape)} {key.device} differ in channels "
            "or device, or have no channels"
        ),
    )


def _value_range(query: Tensor, key: Tensor) -> tuple[float, float]:
    """The common range of both videos: its lower end, and its extent. Values have to be finite."""
    ends = [end.item() for video in (query, key) for end in (video.amin(), video.amax())]
    require(all(map(math.isfinite, ends)), lambda: "query and key are finite")
    return min(ends), max(ends) - min(ends)


def quantize(
    query: Tensor,
    key: Tensor,  # floating, or in steps already: then with the value_range that it was made with
    patch: Sequence[int],
    value_range: Sequence[float] = (),  # low and high, where values are cut off; (): the common range of both
) -> tuple[Tensor, Tensor, float]:
    """Both videos as int16 from 0 upwards, and the size of a step: of their range, as fine as lets the sum of a patch's
    squares stay below 2^31."""
    low, extent = (value_range[0], value_range[1] - value_range[0]) if value_range else _value_range(query, key)
    step, most = _steps(extent, patch, query.shape[3])
    whole = key if key.dtype == torch.int16 else _in_steps(key, low, step, most)
    return _in_steps(query, low, step, most), whole, step


def key_in_steps(key: Tensor, patch: Sequence[int], value_range: Sequence[float]) -> Tensor:
    """(T, H, W, C) int16: of a key (T, H, W, C), floating, what `patch_match` makes of it in each call with this range.

    For a key that many queries are compared with.
    """
    require_patch(patch)
    _check_video("key", key, patch)
    low, high = value_range
    return _in_steps(key, low, *_steps(high - low, patch, key.shape[3]))


def _steps(extent: float, patch: Sequence[int], channels: int) -> tuple[float, int]:
    """The size of a step of this range, and how many there are."""
    most = min(2**15 - 1, math.isqrt((2**31 - 1) // (math.prod(patch) * channels)))
    return extent / most if extent > 1e-30 else 1.0, most  # smaller squares vanish in fp32


def _in_steps(video: Tensor, low: float, step: float, most: int) -> Tensor:
    # Not divided: on a GPU PyTorch divides by a number as it likes, and the field has to be the same everywhere.
    shifted = video.to(torch.promote_types(video.dtype, torch.float32)) - low
    # The kernels read whole vectors: 64 bytes behind the end.
    memory = video.new_zeros(video.numel() + BEHIND, dtype=torch.int16)
    return memory[: video.numel()].view(video.shape).copy_(shifted.mul_(1 / step).round_().clamp_(0, most))
