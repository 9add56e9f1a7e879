"""What comes into view: the border of a rollout goes on as the clip's did, where both looked alike before.

No frame tells what will enter the next one from outside. A Predictor that learns what is likely lets things leave and
none come, and a long video empties. The clip itself is a sample of what enters: its frames run along with the rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..pixels import mean_around

SURROUNDINGS = 7  # rows and columns that are compared around each pixel
SHARE = 8  # the border is at most this part of the shorter side wide
FADE = 2  # pixels in which it ends inwards
# RMS differences, in units of sigma_data, at which half of it is left: between the last frames of rollout and clip; and
# between the next ones, for what changes nothing is not worth copying.
LIKE, NEWS = 3.0, 3.0


class Border:
    """The clip's border beside one rollout; `begin` chooses the moment of the clip that looks most like its frame.

    What it keeps has memory of its own, always the same, so that a CUDA graph can replay it.
    """

    def __init__(
        self,
        clip: Tensor,  # (T, H, W, 3) in [-1, 1], in the order of the rollout
        follows: Tensor,  # (T - 1,) bool: whether each frame's next one follows it
        width: int,  # pixels
        sigma_data: float,  # RMS change between frames
    ):
        self.frames = clip.movedim(-1, 1)  # (T, 3, H, W)
        self.sigma_data = sigma_data
        self.moments = (1 + follows.nonzero()[:, 0]).to(clip.device)  # (N,) int64: frames that follow the one before
        self.share = ring(clip, width)  # (H, W): of what enters
        self.at: Tensor  # (B,) int64: of the last frame, in `moments`
        # After the end: on from the moment of the first half that looks most like the last one.
        half = self.frames[self.moments[: max(1, len(self.moments) // 2)] - 1]
        self.again = self._nearest(self.frames[-1:], half) if len(half) else torch.zeros(1, dtype=torch.int64)

    def begin(self, frame: Tensor) -> None:
        """Start after this frame, (B, 3, H, W) in [-1, 1]; of a size other than the clip's nothing enters."""
        self.active = frame.shape[2:] == self.frames.shape[2:] and len(self.moments) > 0
        if self.active:
            self.at = self._nearest(frame, self.frames[self.moments - 1])

    def coming(self) -> Tensor:
        """(B, 3, H, W): the clip's next frame, which the next call looks at; of an active border."""
        return self.frames[self.moments[self.at]]

    def __call__(self, image: Tensor, previous: Tensor) -> Tensor:
        """(B, 3, H, W): the next frame after `previous`, both (B, 3, H, W) in [-1, 1], with what enters."""
        if not self.active:
            return image
        before, entering = self.frames[self.moments[self.at] - 1], self.coming()
        likeness = 1 / (1 + (change_around(previous, before) / (LIKE * self.sigma_data) ** 2).square())
        difference = change_around(entering, image)
        news = difference / (difference + (NEWS * self.sigma_data) ** 2)
        self.at.copy_(torch.where(self.at + 1 < len(self.moments), self.at + 1, self.again))
        return image + self.share * likeness * news * (entering - image)

    def _nearest(self, frames: Tensor, among: Tensor) -> Tensor:
        """(B,) int64: for each of the frames (B, 3, H, W), which of some others (N, 3, H, W) has the nearest border."""
        inside = self.share > 0
        borders = among[:, :, inside]
        return torch.stack([(borders - frame[:, inside]).square().mean((1, 2)).argmin() for frame in frames])


def ring(clip: Tensor, width: int) -> Tensor:
    """(H, W) in [0, 1]: 1 at the border of frames (T, H, W, 3), 0 from `width` pixels on."""
    height, columns = clip.shape[1:3]
    width = min(width, min(height, columns) // SHARE)
    from_edge = [torch.arange(side).minimum(side - 1 - torch.arange(side)) for side in (height, columns)]
    distance = torch.minimum(from_edge[0][:, None], from_edge[1])
    return ((width - distance) / FADE).clamp(0, 1).to(clip)


def change_around(images: Tensor, others: Tensor) -> Tensor:
    """(B, 1, H, W): mean square difference around each pixel."""
    return mean_around((images - others).square().mean(1, keepdim=True), SURROUNDINGS)
