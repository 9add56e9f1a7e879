"""The operator `vote`: folds matched patches into a video, each pixel the median or the mean of what they suggest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import require, require_patch, require_tensor
from .dispatch import native_or_reference
from .native import run, why_no_library, wrong_dtype
from .registration import define, implement, takes


class Vote(NamedTuple):
    value: Tensor  # (T', H', W', C) floating, for the median finite; native in fp32 and bf16: where the matches lie
    offsets: Tensor  # (T - pt + 1, H - ph + 1, W - pw + 1, 3) int16, as of patch_match: leading inside of value
    patch: Sequence[int] = (3, 7, 7)  # frames, rows, columns
    mean: bool = False  # else the median, the lower one of an even number
    weight: Tensor | None = None  # fp32 above 0, one for each patch: of the mean
    # The part of each patch, like it frames, rows, columns, that votes for pixels that such middles cover: of the mean.
    # Pixels nearer to the border get all votes. Empty: all of a patch votes everywhere.
    middle: Sequence[int] = ()


@takes(Vote)
def vote(a: Vote) -> Tensor:
    """(T, H, W, C) as `value`: each pixel is the median, or the weighted mean, of what all patches over it suggest."""
    out: Tensor = torch.ops.sinfusion.vote(*a)
    return out


def _check(a: Vote) -> None:
    value, offsets, device = a.value, a.offsets, a.value.device
    require_patch(a.patch)
    require(value.ndim == 4, lambda: f"value is (T, H, W, C), not {tuple(value.shape)}")
    require(value.dtype.is_floating_point, lambda: f"value is floating, not {value.dtype}")
    require(math.prod(value.shape[:3]) < 2**31, lambda: f"value is {tuple(value.shape)}: 2^31 pixels or more")
    require(
        offsets.ndim == 4
        and offsets.shape[3] == 3
        and offsets.numel() > 0
        and offsets.dtype == torch.int16
        and offsets.device == device,
        lambda: (
            f"offsets are (T, H, W, 3) int16 on {device}, not {tuple(offsets.shape)} {offsets.dtype} on "
            f"{offsets.device}"
        ),
    )
    require(a.weight is None or a.mean, lambda: "a weight is for the mean")
    if a.middle:
        require_patch(a.middle)
        fits = all(part <= side for part, side in zip(a.middle, a.patch, strict=True))
        require(a.mean and fits, lambda: f"a middle, {tuple(a.middle)}, is for the mean, and no larger than the patch")
    require_tensor("weight", a.weight, device, [offsets.shape[:3]], torch.float32)


def _check_values(a: Vote) -> None:
    if a.value.device.type != "cpu":  # reading them would wait for a GPU
        return
    if not a.mean:  # which the order of a median's votes needs
        require(bool(a.value.isfinite().all()), lambda: "value is finite")
    # The kernels compute addresses from the offsets, so those of another video must not pass.
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        match = a.offsets[..., axis] + torch.arange(a.offsets.shape[axis], device=a.offsets.device).view(shape)
        fits = bool((match.amin() >= 0) & (match.amax() <= a.value.shape[axis] - a.patch[axis]))
        require(fits, lambda: f"the offsets lead outside of value {tuple(a.value.shape)}")


def _output_size(a: Vote) -> list[int]:
    """T, H and W of the result."""
    return [count + side - 1 for count, side in zip(a.offsets.shape[:3], a.patch, strict=True)]


def _reference(a: Vote) -> Tensor:
    _check(a)
    _check_values(a)
    if a.middle and tuple(a.middle) != tuple(a.patch):
        return _with_middle(a)
    value, offsets, patch, mean, weight, _ = a
    count, size = offsets.shape[:3], _output_size(a)
    axes = torch.meshgrid(*(torch.arange(n, device=value.device) for n in count), indexing="ij")
    match = torch.stack(axes, -1) + offsets
    statistics = torch.promote_types(value.dtype, torch.float32)
    sides = [torch.arange(side) for side in patch]
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


def _with_middle(a: Vote) -> Tensor:
    """The votes of all, in place of which come those of the middles, which are patches that begin a little later."""
    out = _reference(a._replace(middle=()))
    before = [(side - part) // 2 for side, part in zip(a.patch, a.middle, strict=True)]
    value = a.value[before[0] :, before[1] :, before[2] :]
    found = _reference(a._replace(value=value, patch=a.middle, middle=()))
    covered = [slice(first, first + size) for first, size in zip(before, found.shape, strict=False)]
    out[covered[0], covered[1], covered[2]] = found
    return out


def unsupported(a: Vote) -> list[str]:
    """Why the native kernels cannot run."""
    return why_no_library(a.value.device) + wrong_dtype("value", a.value.dtype, torch.float32, torch.bfloat16)


def _native(a: Vote) -> Tensor:
    _check_values(a)
    frames, height, width, channels = a.value.shape
    out = a.value.new_empty(*_output_size(a), channels)
    run(
        "vote", a.value, value=a.value.contiguous(), frames=frames, height=height, width=width,
        bf16=a.value.dtype == torch.bfloat16, channels=channels, patch=a.patch, middle=a.middle or a.patch,
        count=a.offsets.shape[:3], field=a.offsets.contiguous(), mean=a.mean,
        weight=None if a.weight is None else a.weight.contiguous(), out=out,
    )  # fmt: skip
    return out


def _fake(a: Vote) -> Tensor:
    _check(a)
    return a.value.new_empty([*_output_size(a), a.value.shape[3]])


_on_device = native_or_reference("vote", _native, _reference, unsupported, _check)
define("vote", Vote, "Tensor")
implement("vote", Vote, reference=_reference, cpu=_on_device, cuda=_on_device, fake=_fake)
