"""What is gone comes back: where nothing enters in the clip, a place that has emptied goes on as the clip.

Where a camera follows a flock, birds stand where they stand in the clip, and none come over the border. So what a
rollout loses, since level wings are no more than a line, is lost for good, and a long video thins out. But the clip,
which runs along with the rollout (`Border`), says where there should be something.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pixels import mean_around

SIDES = 5  # surroundings of a pixel have this part of the shorter side: 15 pixels of 72
CELLS = 5  # from one side of these to the other; contrast is measured for each cell
FRAMES = 24  # of the clip, whose contrast is what is expected
TIME = 30  # frames over which contrast is averaged
DELAY = 2.0  # times the clip's contrast that is assumed before the first frame: for 60 frames nothing comes back
# Shares of the clip's contrast: below the first one a place begins to go on as the clip, below the second one it does.
EMPTYING, EMPTY = 0.25, 0.225
SUBJECT = 0.5  # times the mean contrast: places with less have nothing to lose
# What is large would come back in pieces. Things are small where this share of the contrast in twice the surroundings
# is also in half of them.
SMALL = 0.5
TINY = 1e-6


class Renewal:
    """How much of the clip's contrast one rollout still has in each place; where that is gone, the clip is let in.

    What it keeps has memory of its own, always the same, so that a CUDA graph can replay it.
    """

    def __init__(self, clip: Tensor):  # (T, H, W, 3) in [-1, 1]
        side = min(clip.shape[1:3]) // SIDES
        self.side, self.step = side // 2 * 2 + 1, max(1, side // CELLS)
        frames = clip[torch.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).long()].movedim(-1, 1)
        half, twice = (float(_contrast(frames, s, self.step).mean()) for s in (side // 4 * 2 + 1, 2 * side + 1))
        self.active = half > SMALL * twice
        self.expected = self._measure(frames).mean(0, keepdim=True)  # (1, 1, h, w)
        self.subject = (self.expected > SUBJECT * self.expected.mean()).float()
        self.contrast: Tensor  # (B, 1, h, w): of the rollout, averaged over time

    def begin(self, frame: Tensor) -> None:
        """Start after this frame, (B, 3, H, W) of the clip's size."""
        self.contrast = DELAY * self.expected.repeat(len(frame), 1, 1, 1)

    def __call__(self, image: Tensor, coming: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1]: the next frame, and where it has long been empty `coming`, the clip's."""
        if not self.active:
            return image
        self.contrast.lerp_(self._measure(image), 1 / TIME)
        share = self.contrast / (self.expected + TINY)
        empty = ((EMPTYING - share) / (EMPTYING - EMPTY)).clamp(0, 1) * self.subject
        whole = F.max_pool2d(empty, CELLS, 1, CELLS // 2)  # things come back in one piece
        mask = F.interpolate(mean_around(whole, 3), image.shape[2:], mode="bilinear", align_corners=False)
        return image + mask * (coming - image)

    def _measure(self, images: Tensor) -> Tensor:
        """(B, 1, h, w): the contrast of images (B, 3, H, W) in and around the surroundings of each cell."""
        return mean_around(_contrast(images, self.side, self.step), CELLS)


def _contrast(images: Tensor, side: int, step: int) -> Tensor:
    """(B, 1, h, w): variance of images (B, 3, H, W) in squares of an odd side, each `step` pixels; colours' mean."""
    images = images.contiguous()
    mean, square = (F.avg_pool2d(x, side, step, side // 2, count_include_pad=False) for x in (images, images.square()))
    return (square - mean.square()).mean(1, keepdim=True).clamp(min=0)
