"""Where what is made meets what is kept: the brightness of one goes over into that of the other.

A denoiser that is given known pixels makes what lies around them of the right kind, but often a little darker or
lighter, so that a frame shows. Near the seam it is moved by how far it is from what is kept there. Then the pixels next
to the seam become what patches of the clip have there that fit both sides, so that lines go on across it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..pixels import mean_around

SIDE = 3  # rows and columns in which what is made and what is kept are compared
ALONG = 2.0  # pixels along the seam in which the weight of a difference falls to 1/e
INTO = 12  # pixels from the seam in which the correction falls to 0
OBJECT = 0.2  # RMS difference at which 1/e of the correction is left: larger ones are objects that the seam cuts off
LEAST_SIGMA = 0.05  # below it the denoiser has the last word
TINY = 1e-6  # in place of an area of 0
SEED, VALUES = 0, (-1.0, 1.0)  # of the search: its random numbers matter little; the range of values
# Of `SeamPatches`: rows and columns of a patch; pixels from the seam that are drawn to them; how often, in each frame;
# rounds of the search, from a random field and from the last one.
PATCH, NEAR, TIMES, FIRST_ROUNDS, ROUNDS = 5, 3, 3, 10, 3


class Seam:
    """The border of what is known of an image; a guide of the reverse process, see `reverse_process.Guide`."""

    def __init__(self, known: Tensor):  # (H, W) bool
        self.kept = known.float()[None, None]
        self.made = 1 - self.kept
        self.areas = tuple(mean_around(of, SIDE).clamp(min=TINY) for of in (self.kept, self.made))
        near_kept, near_made = (F.max_pool2d(of, SIDE, 1, SIDE // 2) for of in (self.kept, self.made))
        self.seam = near_kept * near_made  # (1, 1, H, W): 1 where both are near, else 0
        self.weight = _smooth(self.seam).clamp(min=TINY)
        self.share = self.made * _falling(self.kept)  # (1, 1, H, W): of the correction; 0 where something is kept

    def __call__(self, clean: Tensor, sigma: float, step: int) -> Tensor:
        return self.bridged(clean) if sigma >= LEAST_SIGMA else clean

    def bridged(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], like the image, whose known pixels are there and stay as they are."""
        kept, made = (
            mean_around(image * of, SIDE) / area for of, area in zip((self.kept, self.made), self.areas, strict=True)
        )
        difference = (kept - made) * self.seam
        difference = difference * torch.exp(-difference.square().mean(1, keepdim=True) / OBJECT**2)
        return (image + _smooth(difference) / self.weight * self.share).clamp(-1, 1)


def _smooth(values: Tensor) -> Tensor:
    """(B, C, H, W): the sum of the values up to INTO pixels away in each direction, the less of one the farther it is.

    It is added up place by place, so that a sample is the same alone and in a batch.
    """
    for axis in (2, 3):
        padded = F.pad(values, (0, 0, INTO, INTO) if axis == 2 else (INTO, INTO))
        values = torch.zeros_like(values)
        for place in range(2 * INTO + 1):
            weight = math.exp(-abs(place - INTO) / ALONG)
            values = values + weight * padded.narrow(axis, place, values.shape[axis])
    return values


def _falling(kept: Tensor) -> Tensor:
    """(1, 1, H, W): 1 beside what is kept, and less with every pixel away from it."""
    share, reached = torch.zeros_like(kept), kept
    for _ in range(INTO):
        reached = F.max_pool2d(reached, 3, 1, 1)
        share = share + reached / INTO
    return share


class SeamPatches:
    """Draws what is made next to the seam to patches of a clip that lie across it, several times; `begin` comes first.

    Each time all patches find their nearest ones in the clip, whose means the pixels near the seam become: the
    distances of all these patches together become smaller each time (as in Wexler et al. 2007).
    """

    def __init__(self, known: Tensor, clip: Tensor):  # (H, W) bool; (T, H', W', 3) in [-1, 1], on the same device
        near = known.float()[None, None]
        for _ in range(NEAR):
            near = F.max_pool2d(near, 3, 1, 1)
        self.near = (near[0, 0] > 0) & ~known  # (H, W)
        sides = (min(PATCH, *sizes) for sizes in zip(known.shape, clip.shape[1:3], strict=True))
        self.clip, self.patch = clip, (1, *sides)
        self.key = ops.key_in_steps(clip, self.patch, VALUES)
        self.fields: Tensor  # (B, 1, H'', W'', 3) int16

    def begin(self, images: Tensor) -> None:
        """Find the patches of images like those to come, (B, 3, H, W) in [-1, 1]."""
        videos = images.movedim(1, -1)[:, None].contiguous()
        self.fields = torch.stack([self._search(video, FIRST_ROUNDS, None) for video in videos])

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], like the images, of which only the pixels near the seam change."""
        videos = images.movedim(1, -1)[:, None].contiguous()
        for _ in range(TIMES):
            drawn = []
            for video, field in zip(videos, self.fields, strict=True):
                field.copy_(self._search(video, ROUNDS, field))
                drawn.append(ops.vote(self.clip, field, self.patch, mean=True))
            videos = torch.where(self.near[:, :, None], torch.stack(drawn), videos)
        return videos[:, 0].movedim(-1, 1).contiguous(memory_format=torch.channels_last)

    def _search(self, video: Tensor, rounds: int, start: Tensor | None) -> Tensor:
        """(1, H'', W'', 3) int16, of a video (1, H, W, 3)."""
        return ops.patch_match(video, self.key, self.patch, rounds, SEED, start, value_range=VALUES)[0]
