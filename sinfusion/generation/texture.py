"""The fine texture of a rollout, kept within that of the clip.

What is fine and stands still fades, a little with every frame: each denoising and each mean of patches takes a part of
it. So the responses of random linear filters to a frame are compared with those to the clip's frames, as distributions:
sorted responses that are weaker than in any of these become stronger, and pixels with them. That is a step down the
sliced Wasserstein distance of patches (Elnekave & Weiss 2022), to a range in place of one image, since frames differ.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops

SIDE = 7  # rows and columns of a filter, fewer than any frame has
STRIDE = 2  # pixels from one place of a filter to the next
FILTERS, GROUPS = 16, 4  # filters of a frame; sets of them, which take turns
FRAMES = 12  # of the clip, whose responses are the range
QUANTILES = 256
SHARE = 0.05  # of the way that a frame goes
STREAM_FILTERS = 0x54657874  # of the random number generator


class Texture:
    """The clip's range of texture; called with each frame of a rollout."""

    def __init__(self, clip: Tensor, weight: float = 1.0):  # clip: (T, H, W, 3) in [-1, 1]; weight: of SHARE
        self.share, shape = weight * SHARE, (GROUPS, FILTERS, 3, SIDE, SIDE)
        filters = ops.normal([0], STREAM_FILTERS, 0, shape, clip.device)[0]
        filters = filters - filters.mean((3, 4), keepdim=True)  # brightness and colour may change
        self.filters = filters / filters.square().sum((2, 3, 4), keepdim=True).sqrt()
        chosen = torch.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).long().tolist()
        frames = [clip[i].movedim(-1, 0)[None] for i in chosen]
        ranges = [self._range(frames, filters) for filters in self.filters]
        self.least, self.most = (torch.stack(bounds) for bounds in zip(*ranges, strict=True))  # (GROUPS, FILTERS, Q)

    def _range(self, frames: list[Tensor], filters: Tensor) -> tuple[Tensor, Tensor]:
        """(FILTERS, QUANTILES): the least and the most of each quantile of the responses to frames (1, 3, H, W)."""
        quantiles = [
            at_ranks(F.conv2d(frame, filters, stride=STRIDE)[0].flatten(1).sort(1).values, QUANTILES)
            for frame in frames
        ]
        return torch.stack(quantiles).amin(0), torch.stack(quantiles).amax(0)

    def __call__(self, images: Tensor, frame_index: int | Tensor) -> Tensor:
        """(B, 3, H, W), channels last: images of this shape, in [-1, 1], a share of the way to as strong a texture.

        frame_index: chooses the filters; a tensor is () int64 on the device.
        """
        group = torch.as_tensor(frame_index, device=images.device).reshape(1) % GROUPS
        filters, *bounds = (value.index_select(0, group)[0] for value in (self.filters, self.least, self.most))
        moves = [self._move(image[None], filters, *bounds) for image in images]  # one by one: the same in any batch
        return (images + torch.cat(moves)).clamp(-1, 1).contiguous(memory_format=torch.channels_last)

    def _move(self, image: Tensor, filters: Tensor, least: Tensor, most: Tensor) -> Tensor:
        """(1, 3, H, W): what to add to an image of this shape."""
        responses = F.conv2d(image, filters, stride=STRIDE)
        in_order, order = responses.flatten(2)[0].sort(1)
        count = in_order.shape[1]
        # Nothing is weakened: a rollout may have more things than any frame of the clip.
        above, below = at_ranks(least, count) - in_order, at_ranks(most, count) - in_order
        missing = torch.where(in_order > 0, above.clamp(min=0), below.clamp(max=0))
        missing = torch.empty_like(missing).scatter_(1, order, missing).view_as(responses)
        # Pixels beyond the last place of a filter.
        beyond = [(side - SIDE) % STRIDE for side in image.shape[2:]]
        sums = F.conv_transpose2d(missing, filters, stride=STRIDE, output_padding=beyond)
        one = torch.ones(1, 1, SIDE, SIDE, device=image.device)
        patches = F.conv_transpose2d(torch.ones_like(missing[:, :1]), one, stride=STRIDE, output_padding=beyond)
        # Of directions drawn evenly, `filters[0].numel() / FILTERS` times the sum of projections is the vector.
        return self.share * filters[0].numel() / FILTERS * sums / patches.clamp(min=1)


def at_ranks(values: Tensor, count: int) -> Tensor:
    """(N, count): sorted values (N, M), evenly picked, with those between by interpolation."""
    return F.interpolate(values[None], size=count, mode="linear", align_corners=True)[0]
