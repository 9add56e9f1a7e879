"""Guidance by text, as in SinDDM (Kulikov et al., ICML 2023): clean estimates climb what a model says of how well they
agree with a text.

guide = TextGuide(model, model.target("a volcano"), seeds, last_sigma=0.3)
reverse_process(run, IMAGE).guided(guide)(seeds, 0, size=(64, 96))

The gradient is that with respect to the clean estimate: the denoiser is not differentiated. The first step chooses the
pixels where it is largest, and these are the ones that change; each step moves them by a share of their own length,
from a mean of what they were and of what the denoiser makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .views import draw_views, size_of_views

STRENGTH, FILL, MOMENTUM = 0.1, 0.5, 0.2
VIEWS = 16
FRAMES_AVERAGED = 3  # of a video, whose gradients are averaged


class TextModel(Protocol):
    """What knows pictures and words."""

    @property
    def side(self) -> int:
        """Pixels of the shorter side of what it sees."""

    @property
    def multiple(self) -> int:
        """What both sides are multiples of."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def target(self, text: str) -> Tensor:
        """What pictures are compared with; SinfusionError for words that it does not know."""

    def target_of_image(self, image: Tensor) -> Tensor:
        """The same of a picture (3, H, W) in [-1, 1], whose looks are wanted."""

    def agreement(self, images: Tensor, target: Tensor) -> Tensor:
        """(N,), with gradients: how well each of the images (N, 3, H, W) in [-1, 1] agrees with a target."""


class TextGuide:
    """A guide of the reverse process: (clean, sigma, step) -> clean. It remembers which pixels change, and to what."""

    def __init__(
        self,
        model: TextModel,
        target: Tensor,
        seeds: Sequence[int],  # of the images; frames of one video have the same, and are seen alike
        strength: float = STRENGTH,  # of a step, as a share of the length of what changes; 0: no guidance
        fill: float = FILL,  # share of the pixels that change
        momentum: float = MOMENTUM,  # of what the denoiser makes of the pixels that change, in where a step begins
        where: Tensor | None = None,  # (H, W) bool: pixels that may change, whose surroundings are looked at
    ):
        self.model, self.target, self.seeds = model, target, seeds
        self.strength, self.fill, self.momentum = strength, fill, momentum
        self.where, self.box = where, None if where is None else bounding_box(where)
        self.sigmas = 0.0, float("inf")  # lowest and highest noise level of guided steps
        self.video = False  # whether the images are frames of one video
        self.mask: Tensor | None = None  # (B, 1, H, W): pixels that change
        self.previous: Tensor | None = None  # (B, 3, H, W): what they were after the last step

    def __call__(self, clean: Tensor, sigma: float, step: int) -> Tensor:
        if step == 0:
            self.mask = self.previous = None
        if self.strength == 0 or not self.sigmas[0] <= sigma <= self.sigmas[1]:
            return clean
        start = clean
        if self.mask is not None and self.previous is not None:
            kept = (1 - self.momentum) * self.previous + self.momentum * clean
            start = clean * (1 - self.mask) + kept * self.mask
        gradient = self.gradient(start, step)
        if self.mask is None:
            gradient, self.mask = strongest(gradient, self.fill, self.where)
        self.previous = climbed(start, gradient, self.mask, self.strength)
        return self.previous

    @torch.enable_grad()
    def gradient(self, images: Tensor, step: int) -> Tensor:
        """(B, 3, H, W): of the mean agreement of each image's views, an image at a time: none knows of others.

        Each frame of a video is seen in a third of the views, and the mean is over three frames, which share them out.
        """
        shared = FRAMES_AVERAGED if self.video and len(images) >= FRAMES_AVERAGED else 1
        size = size_of_views((images.shape[2], images.shape[3]), self.model.side, self.model.multiple)
        found = []
        for i, (image, seed) in enumerate(zip(images, self.seeds, strict=True)):
            image = image.detach().to(self.model.device).contiguous().requires_grad_()
            views = draw_views(seed, step, VIEWS, self.box).part(i % shared, shared)
            agreement = self.model.agreement(views.of(image, size), self.target).mean()
            found.append(torch.autograd.grad(agreement, image)[0].to(images.device))
        return averaged(torch.stack(found)) if shared > 1 else torch.stack(found)


def strongest(gradient: Tensor, fill: float, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradient (B, 3, H, W) less its length's quantile, and (B, 1, H, W) fp: 1 where that leaves something.

    fill: the share of the pixels that are left, of those in `where`, (H, W) bool, if that is given.
    """
    length = gradient.norm(dim=1, keepdim=True)  # (B, 1, H, W)
    counted = length.flatten(1) if where is None else length.flatten(1)[:, where.flatten()]
    threshold = torch.quantile(counted, 1 - fill, dim=1, interpolation="nearest")[:, None, None, None]
    mask = length > threshold
    if where is not None:
        mask = mask & where
    left = (length - threshold) * mask
    return left * torch.nan_to_num(gradient / length), mask.to(gradient.dtype)


def climbed(start: Tensor, gradient: Tensor, mask: Tensor, strength: float) -> Tensor:
    """(B, 3, H, W) in [-1, 1]: a step along the gradient, as long as `strength` times the pixels that change."""
    step = mask * gradient
    length = (start * mask).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
    return (start + strength * torch.nan_to_num(length, posinf=0)[:, None, None, None] * step).clamp(-1, 1)


def averaged(gradient: Tensor) -> Tensor:
    """(T, 3, H, W): mean over three frames that follow each other, of which each frame is the middle, if it can be."""
    means = gradient.unfold(0, FRAMES_AVERAGED, 1).mean(-1)  # (T - 2, 3, H, W)
    ends = (FRAMES_AVERAGED - 1) // 2
    return torch.cat((*[means[:1]] * ends, means, *[means[-1:]] * ends))


def bounding_box(where: Tensor) -> tuple[float, float, float, float]:
    """Top, bottom, left, right of what is True in (H, W), from -1 to 1."""
    found = []
    for dimension in (1, 0):
        inside = where.any(dimension).nonzero()[:, 0]
        count = where.shape[1 - dimension]
        found += [2 * int(inside[0]) / count - 1, 2 * (int(inside[-1]) + 1) / count - 1]
    return found[0], found[1], found[2], found[3]
