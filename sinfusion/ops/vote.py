"""The operator `vote`: folds matched patches into a video, each pixel the median or the mean of what they suggest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._choice import use_native
from ._native import run, why_no_library

_library = torch.library.Library("sinfusion", "FRAGMENT")
_library.define("vote(Tensor value, Tensor offsets, int[] patch, bool mean, Tensor? weight) -> Tensor")


def vote(
    value: Tensor,  # (T', H', W', C) floating, finite; native in fp32 and bf16: where the matches lie
    offsets: Tensor,  # (T - pt + 1, H - ph + 1, W - pw + 1, 3) int16, as of patch_match
    patch: Sequence[int] = (3, 7, 7),  # frames, rows, columns
    mean: bool = False,  # else the median, the lower one of an even number
    weight: Tensor | None = None,  # fp32 above 0, one for each patch: of the mean
) -> Tensor:
    """(T, H, W, C) as `value`: each pixel is the median, or the weighted mean, of what all patches over it suggest."""
    out: Tensor = torch.ops.sinfusion.vote(value, offsets, list(patch), mean, weight)
    return out


def _check(value: Tensor, offsets: Tensor, patch: Sequence[int], mean: bool, weight: Tensor | None) -> None:
    torch._check(len(patch) == 3 and min(patch) > 0, lambda: f"patch is three sizes above 0, not {tuple(patch)}")
    torch._check(value.ndim == 4, lambda: f"value is (T, H, W, C), not {tuple(value.shape)}")
    torch._check(value.dtype.is_floating_point, lambda: f"value is floating, not {value.dtype}")
    torch._check(math.prod(value.shape[:3]) < 2**31, lambda: f"value is {tuple(value.shape)}: 2^31 pixels or more")
    torch._check(
        offsets.ndim == 4
        and offsets.shape[3] == 3
        and offsets.numel() > 0
        and offsets.dtype == torch.int16
        and offsets.device == value.device,
        lambda: (
            f"offsets are (T, H, W, 3) int16 on {value.device}, not {tuple(offsets.shape)} {offsets.dtype} on "
            f"{offsets.device}"
        ),
    )
    torch._check(weight is None or mean, lambda: "a weight is for the mean")
    if weight is not None:
        torch._check(
            weight.shape == offsets.shape[:3] and weight.dtype == torch.float32 and weight.device == value.device,
            lambda: (
                f"weight is {tuple(offsets.shape[:3])} float32 on {value.device}, not {tuple(weight.shape)} "
                f"{weight.dtype} on {weight.device}"
            ),
        )


def _check_values(value: Tensor, offsets: Tensor, patch: Sequence[int]) -> None:
    torch._check(bool(value.isfinite().all()), lambda: "value is finite")
    # Addresses are made of the offsets: those of another video must not pass.
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        match = offsets[..., axis] + torch.arange(offsets.shape[axis], device=offsets.device).view(shape)
        fits = bool((match.amin() >= 0) & (match.amax() <= value.shape[axis] - patch[axis]))
        torch._check(fits, lambda: f"the offsets lead outside of value {tuple(value.shape)}")


def _reference(value: Tensor, offsets: Tensor, patch: Sequence[int], mean: bool, weight: Tensor | None) -> Tensor:
    _check(value, offsets, patch, mean, weight)
    _check_values(value, offsets, patch)
    count = offsets.shape[:3]
    axes = torch.meshgrid(*(torch.arange(n, device=value.device) for n in count), indexing="ij")
    match = torch.stack(axes, -1) + offsets
    statistics = torch.promote_types(value.dtype, torch.float32)
    sides = [torch.arange(side) for side in patch]
    size = [n + side - 1 for n, side in zip(count, patch, strict=True)]
    frames = []
    for frame in range(size[0]):  # one at a time: there are as many suggestions as a patch has pixels
        suggested, weights = [], []
        for t, y, x in torch.cartesian_prod(*sides).view(-1, 3).tolist():
            if not 0 <= frame - t < count[0]:
                continue
            place = match[frame - t]
            layer = value.new_full((size[1], size[2], value.shape[3]), torch.nan, dtype=statistics)
            there = (slice(y, y + count[1]), slice(x, x + count[2]))
            layer[there] = value[place[..., 0] + t, place[..., 1] + y, place[..., 2] + x].to(statistics)
            suggested.append(layer)
            if mean:
                of_layer = layer.new_zeros(size[1], size[2], 1)
                of_layer[there] = 1 if weight is None else weight[frame - t][..., None].to(statistics)
                weights.append(of_layer)
        layers = torch.stack(suggested)
        if mean:
            total = torch.stack(weights)
            frames.append((layers.nan_to_num() * total).sum(0) / total.sum(0))
        else:
            frames.append(layers.nanmedian(0).values)
    return torch.stack(frames).to(value.dtype)


def unsupported(value: Tensor) -> list[str]:
    """Why the native kernels cannot run."""
    reasons = why_no_library(value.device)
    if value.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"value is {value.dtype}, not float32 or bfloat16")
    return reasons


def _native(value: Tensor, offsets: Tensor, patch: Sequence[int], mean: bool, weight: Tensor | None) -> Tensor:
    if not use_native("vote", unsupported(value)):
        return _reference(value, offsets, patch, mean, weight)
    _check(value, offsets, patch, mean, weight)
    _check_values(value, offsets, patch)
    size = [count + side - 1 for count, side in zip(offsets.shape[:3], patch, strict=True)]
    out = value.new_empty(*size, value.shape[3])
    run(
        "vote", value, value.contiguous(), *value.shape[1:3], value.dtype == torch.bfloat16, value.shape[3], *patch,
        *offsets.shape[:3], offsets.contiguous(), mean, None if weight is None else weight.contiguous(), out,
    )  # fmt: skip
    return out


def _fake(value: Tensor, offsets: Tensor, patch: Sequence[int], mean: bool, weight: Tensor | None) -> Tensor:
    _check(value, offsets, patch, mean, weight)
    return value.new_empty([n + side - 1 for n, side in zip(offsets.shape[:3], patch, strict=True)] + [value.shape[3]])


_library.impl("vote", _reference, "CompositeExplicitAutograd")
_library.impl("vote", _native, "CPU")
_library.impl("vote", _native, "CUDA")
torch.library.register_fake("sinfusion::vote", _fake, lib=_library)
