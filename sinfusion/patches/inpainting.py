"""Inpainting by nearest patches: a hole in a video or image is filled from what is around it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import as_mask, as_pixels
from ..errors import SinfusionError
from ..precision import choose_device
from ..progress import OnProgress
from ..seeds import check_seed
from .engine import Effort, Level, coarse_to_fine
from .pyramid import Scale, Shape, level_scales, resample, scaled_shape, shape_of
from .tasks import COARSEST, FACTORS
from .videos import Frames, as_video, like_input, patch_size, plain_levels, to_frames, to_tensor

COARSEST_PASSES = 10  # the coarsest level begins with a smooth filling
EDGE = 0.25  # a larger colour difference is an edge of the image; black and white are 2 apart on each channel
WHOLE_SHARE = 0.1  # of the patches of the coarsest level, at least, are not touched by the hole


def inpaint(
    video: Frames,
    mask: np.ndarray,
    hints: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Frames:
    """The video or image with the masked places filled from what is around them; the rest stays as it is, to the bit.

    mask: (T, H, W), or (H, W) for all frames, bool or what `as_mask` accepts, True where to fill.
    hints: the colours under the mask say roughly what should be there.
    """
    seed, device = check_seed(seed), choose_device(device)
    video = as_pixels(video, "the input")
    source = as_video(video)
    hole = torch.from_numpy(_full_mask(mask, source)).to(device)
    original, effort = to_tensor(source, device), Effort(patch_size(source), coarsest_passes=COARSEST_PASSES)
    filled = fill_smoothly(original, hole)
    scales = _scales(hole, effort.patch)
    shapes, plain_level_at = plain_levels(filled, shape_of(source), scales, effort.patch)

    def level_at(n: int) -> Level:
        level, hole_here = plain_level_at(n), _hole_at(hole, scales[n], effort.patch)
        weight = torch.where(hole_here, torch.inf, 1.0)
        return Level(level.source, level.shape, None, weight, ~hole_here, level.source)

    first = resample(original if hints else filled, shapes[0])
    output = coarse_to_fine(shapes, level_at, first, effort, seed, on_progress)
    output = _blend_border(output, hole, original)
    return like_input(video, np.where(hole.cpu().numpy()[..., None], to_frames(output), source)[None])[0]


def _full_mask(mask: np.ndarray, source: Frames) -> np.ndarray:
    """(T, H, W) bool; SinfusionError unless the mask fits the video and has something to fill."""
    mask = as_mask(mask)
    if mask.shape not in (source.shape[:3], source.shape[1:3]):
        expected = " or ".join(map(str, (source.shape[:3], source.shape[1:3])))
        raise SinfusionError(f"the mask must be {expected} bool, not {mask.shape}.")
    if not mask.any():
        raise SinfusionError("the mask is empty: there is nothing to fill.")
    return np.broadcast_to(mask, source.shape[:3]).copy()


def _scales(hole: Tensor, patch: Shape) -> list[Scale]:
    """Of the levels, from the coarsest on that has enough patches without a pixel of the hole."""

    def whole_share(scale: Scale) -> float:
        touched = F.max_pool3d(_hole_at(hole, scale, patch)[None, None].float(), patch, stride=1)
        return 1 - float(touched.mean())

    scales = level_scales(shape_of(hole), FACTORS, COARSEST)
    while len(scales) > 1 and whole_share(scales[0]) < WHOLE_SHARE:
        scales = scales[1:]
    if whole_share(scales[0]) < WHOLE_SHARE:
        raise SinfusionError("the mask leaves too little of the video to fill it from; make it smaller.")
    return scales


def _hole_at(hole: Tensor, scale: Scale, patch: Shape) -> Tensor:
    """(t, y, x) bool at a scale: every pixel that the hole has a part in."""
    part = resample(hole[..., None].float(), scaled_shape(shape_of(hole), scale, patch))[..., 0]
    return part.abs() > 0.01


def _blend_border(output: Tensor, hole: Tensor, original: Tensor) -> Tensor:
    """The output without a step in colour at the border of the hole.

    The difference between the outermost pixels of the hole and their neighbours outside is spread smoothly inwards;
    where it is large it is a true edge, and counts little.
    """
    outside = (~hole)[..., None].float()
    count = _sum_of_neighbours(outside)
    step = torch.where(count > 0, _sum_of_neighbours(original * outside) / count.clamp(min=1) - output, 0.0)
    weight = hole[..., None] * (count > 0) / (1 + (step.norm(dim=-1, keepdim=True) / EDGE) ** 4)
    blocks = (len(step), -(-step.shape[1] // 4), -(-step.shape[2] // 4))
    total, share = _pool(step * weight, blocks), _pool(weight, blocks)
    smooth = fill_smoothly(total / (share + 0.02), (share == 0)[..., 0])
    return output + resample(smooth, shape_of(step))


def _sum_of_neighbours(video: Tensor) -> Tensor:
    """(T, H, W, C): the sum of the four neighbours of each pixel in its frame; beyond the edge they are 0."""
    padded = F.pad(video, (0, 0, 1, 1, 1, 1))
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def fill_smoothly(video: Tensor, hole: Tensor) -> Tensor:
    """(T, H, W, C) with the hole, (T, H, W) bool, filled by means of its surroundings, over ever larger blocks."""
    known = (~hole)[..., None].float()
    colours, shares = [video * known], [known]
    while bool((shares[-1] == 0).any()) and max(shares[-1].shape[:3]) > 1:
        t, y, x = (-(-side // 2) for side in shape_of(shares[-1]))
        colours.append(_pool(colours[-1], (t, y, x)))
        shares.append(_pool(shares[-1], (t, y, x)))
    result = colours[-1] / shares[-1].clamp(min=1e-6)
    for colour, share in zip(colours[-2::-1], shares[-2::-1], strict=True):
        coarser = resample(result, shape_of(colour))
        result = torch.where(share > 0, colour / share.clamp(min=1e-6), coarser)
    return result


def _pool(video: Tensor, shape: Shape) -> Tensor:
    """(T, H, W, C) -> means over blocks, of another (T, H, W)."""
    return F.adaptive_avg_pool3d(video.permute(3, 0, 1, 2)[None], shape)[0].permute(1, 2, 3, 0)
