"""What leaves the view: where nothing enters in the clip, a rollout's subject stays as near its place as the clip's.

A Predictor sees crops, so it knows how things move but not where they are. In the clip a camera follows its subject; in
a rollout the subject drifts, leaves the picture after a few hundred frames, and nothing comes instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .border import change_around, ring

# Share of the RMS change between frames that the clip has at its border, from which on things enter, and may leave.
ENTERS = 0.3
MOST = 1 / 240  # of the shorter side by which a frame is moved back: 0.3 pixels of 72
# RMS change around a pixel, in units of sigma_data, at which half of the way is gone: what stands still stays.
MOVES = 0.3
RIDGE, TINY = 1e-3, 1e-6  # added to squared gradients, as a share of theirs and as such, where one direction has none


class Framing:
    """How far one rollout has drifted, and what takes it back once that is more than in the clip.

    What it keeps has memory of its own, always the same, so that a CUDA graph can replay it.
    """

    def __init__(
        self,
        clip: Tensor,  # (T, H, W, 3) in [-1, 1], in the order of the rollout
        follows: Tensor,  # (T - 1,) bool: whether each frame's next one follows it
        width: int,  # pixels of the border
        sigma_data: float,  # RMS change between frames
    ):
        frames = clip.movedim(-1, 1)
        before, after = frames[:-1][follows], frames[1:][follows]
        change = (after - before).square().mean((0, 1))
        at_border = change[ring(clip, width) > 0].mean()
        self.active = len(before) > 0 and bool(at_border.sqrt() < ENTERS * change.mean().sqrt())
        self.still = MOVES * sigma_data
        if self.active:
            path = F.pad(drift(before, after).cumsum(0), (0, 0, 1, 0))
            self.reach = (path.amax(0) - path.amin(0)) / 2  # (2,) pixels, x and y, on each side of the start
        self.drifted: Tensor  # (B, 2) pixels, x and y, since the start

    def begin(self, frame: Tensor) -> None:
        """Start after this frame, (B, 3, H, W)."""
        self.drifted = frame.new_zeros(len(frame), 2)

    def __call__(self, image: Tensor, previous: Tensor) -> Tensor:
        """(B, 3, H, W): the next frame after `previous`, both (B, 3, H, W) in [-1, 1], what moves there moved back."""
        if not self.active:
            return image
        ahead = self.drifted + drift(previous, image)
        most = MOST * min(image.shape[2:])
        back = (ahead - ahead.clamp(-self.reach, self.reach)).clamp(-most, most)
        change = change_around(image, previous)
        step = (torch.stack(_gradients(image), 1) * back[:, :, None, None, None]).sum(1)
        return (image + change / (change + self.still**2) * step).clamp(-1, 1)

    def follow(self, image: Tensor, previous: Tensor) -> None:
        """Note where the next frame after `previous`, both (B, 3, H, W), came to be."""
        if self.active:
            self.drifted.add_(drift(previous, image))


def drift(before: Tensor, after: Tensor) -> Tensor:
    """(B, 2): by how many pixels, x and y, frames (B, C, H, W) moved as a whole.

    It is the least squares solution of after - before = -gradient . drift (Lucas and Kanade 1981), so what has
    contrast counts.
    """
    across, down = _gradients((before + after) / 2)
    change = after - before
    xx, xy, yy = ((a * b).sum((1, 2, 3)) for a, b in ((across, across), (across, down), (down, down)))
    x, y = ((a * change).sum((1, 2, 3)) for a in (across, down))
    ridge = RIDGE * (xx + yy) + TINY
    xx, yy = xx + ridge, yy + ridge
    return torch.stack((xy * y - yy * x, xy * x - xx * y), 1) / (xx * yy - xy.square())[:, None]


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) each: central differences to the right and down, 0 at the border."""
    across = F.pad(images[..., 1:-1, 2:] - images[..., 1:-1, :-2], (1, 1, 1, 1)) / 2
    down = F.pad(images[..., 2:, 1:-1] - images[..., :-2, 1:-1], (1, 1, 1, 1)) / 2
    return across, down
