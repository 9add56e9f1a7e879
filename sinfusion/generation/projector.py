"""The Projector's reverse process, at the size of the frames that it learned from.

Where these are smaller than the clip's, the network sees most of a frame at once, so things are whole, and where they
belong. What is finer than such frames show is left to others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.samplers import Step
from ..roles import PROJECTOR
from ..run import Run
from .reverse_process import Guide, ReverseProcess, reverse_process

WHOLLY = 0.9  # share of a reduced pixel that is known, from which on it is kept


class Projector:
    """Generates first frames, and frames from frames; images of any size are reduced for it as its frames were."""

    def __init__(self, process: ReverseProcess, reduction: float):  # reduction: in (0, 1], of height and width
        self.process, self.reduction = process, reduction

    @property
    def steps(self) -> Sequence[Step]:
        """Those of the sampler."""
        return self.process.steps

    def resampling(self, jumps: int) -> Projector:
        """The same with jumps back to more noise, see `ReverseProcess.resampling`; a guide comes after this."""
        return self._with(self.process.resampling(jumps))

    def guided(self, guide: Guide | None) -> Projector:
        """The same with this guide, which sees reduced images."""
        return self._with(self.process.guided(guide))

    def _with(self, process: ReverseProcess) -> Projector:
        projector = copy.copy(self)
        projector.process = process
        return projector

    def reduced(self, images: Tensor) -> Tensor:
        """(B, C, h, w) of images (B, C, H, W)."""
        return _resized(images, self._size((images.shape[2], images.shape[3])))

    def enlarged(self, images: Tensor, like: Tensor) -> Tensor:
        """(B, C, H, W), as large as the images `like`, of reduced ones (B, C, h, w)."""
        return _resized(images, (like.shape[2], like.shape[3]))

    def known(self, mask: Tensor) -> Tensor:
        """(B, 1, h, w) bool, where of a reduced image all is known: mask (B, 1, H, W) bool."""
        return self.reduced(mask.float()) > WHOLLY

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (max(1, round(side * self.reduction)) for side in size)
        return height, width

    @torch.no_grad()
    def __call__(
        self,
        seeds: Tensor,  # (B,) int64
        frame_index: int | Tensor,  # as for `ReverseProcess`
        init_image: Tensor | None = None,  # (B, 3, H, W) in [-1, 1], to which noise is added
        size: tuple[int, int] | None = None,  # (H, W), where there is no such image
        known_mask: Tensor | None = None,  # (B or 1, 1, H, W) bool: where the result is known_image
        known_image: Tensor | None = None,  # (B or 1, 3, H, W) in [-1, 1]
    ) -> Tensor:
        """One image a seed, (B, 3, H, W) fp32 in [-1, 1]; what a reduced image cannot show is as in init_image."""
        if self.reduction == 1:
            return self.process(seeds, frame_index, None, init_image, size, known_mask, known_image)
        kept: tuple[Tensor | None, Tensor | None] = None, None
        if known_mask is not None and known_image is not None:
            share = self.reduced(known_mask.float())  # beyond what is known there may be anything
            kept = share > WHOLLY, self.reduced(known_image * known_mask) / share.clamp(min=WHOLLY)
        if init_image is None:
            assert size is not None
            image = _resized(self.process(seeds, frame_index, None, None, self._size(size), *kept), size)
        else:
            small = self.reduced(init_image)
            made = self.process(seeds, frame_index, None, small, None, *kept)
            image = init_image + self.enlarged(made - small, init_image)
        if known_mask is not None and known_image is not None:
            image = torch.where(known_mask, known_image, image)
        return image.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def projector(
    run: Run,
    steps: int | None = None,  # None: the recipe's
    sigma_start: float | None = None,  # None: the highest
    strength: float = 1.0,  # in (0, 1]: start at this fraction of the timesteps
) -> Projector:
    """The run's Projector, as its recipe has it."""
    process = reverse_process(run, PROJECTOR, steps=steps, sigma_start=sigma_start, strength=strength)
    return Projector(process, max(run.recipe.frame_size(PROJECTOR, *run.size)) / max(run.size))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, *size): bicubic, antialiased where images (B, C, H, W) shrink."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
