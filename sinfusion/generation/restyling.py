"""A clip in a new look: all of its frames are drawn to a text together, as a Projector's samples that begin with them.

restyled(run, Guidance("a coral reef"), seed=0)   # the same run, with other frames

Frames have the same noise and are seen alike, and gradients are means over neighbours in time, so nothing flickers that
did not move before. Beside them the Projector makes the same of the clip without guidance: only what differs between
the two is added to the clip, so what the Projector cannot make stays as it was.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ..pixels import to_uint8, to_unit
from ..run import Run
from ..text.guide import TextGuide
from .guidance import Guidance
from .projector import Projector, projector

# RMS by which a clip is moved, at most: so many times the strength, in RMS changes between its frames. Videos of a run
# err by about as much, and on what hardly moves more shows as grain.
FARTHEST = 11.0
LEAST_CHANGE = 0.02  # RMS in place of the change of a clip that moves less


def restyled(run: Run, guidance: Guidance, amount: float = 0.25, seed: int = 0) -> Run:
    """The run of a video with its frames restyled; its folder stays as it is.

    amount: in (0, 1], the share of the noise that guidance begins with, as the strength of `retarget`.
    """
    clip = to_unit(torch.from_numpy(np.ascontiguousarray(run.frames)).to(run.device))
    process = projector(run, strength=amount)
    seeds = [seed] * len(clip)
    guide = guidance.guide(process.steps, seeds, run.size, run.device, from_noise=False)
    assert guide is not None
    guide.video = True
    both = process.guided(_Beside(guide, clip, process))(
        torch.tensor(2 * seeds, device=run.device), 0, clip.repeat(2, 1, 1, 1)
    )
    guided, plain = both.chunk(2)
    moved = _no_farther(guided - plain, FARTHEST * guide.strength * _change(clip))
    return dataclasses.replace(run, frames=to_uint8(clip + moved).cpu().numpy())


class _Beside:
    """A guide of a batch whose first half is guided and whose second is not: it shows a guide the clip, moved as the
    halves differ."""

    def __init__(self, guide: TextGuide, clip: Tensor, process: Projector):
        self.guide, self.clip, self.process = guide, clip, process  # clip: (T, 3, H, W) in [-1, 1]

    def __call__(self, clean: Tensor, sigma: float, step: int) -> Tensor:
        guided, plain = clean.chunk(2)
        seen = (self.clip + self.process.enlarged(guided - plain, self.clip)).clamp(-1, 1)
        climbed = self.guide(seen, sigma, step)
        return clean if climbed is seen else torch.cat((plain + self.process.reduced(climbed - self.clip), plain))


def _no_farther(moved: Tensor, limit: Tensor) -> Tensor:
    """All of it (T, 3, H, W) made smaller by one factor, where its RMS is above the limit ()."""
    return moved * (limit / moved.square().mean().sqrt()).nan_to_num(posinf=1.0).clamp(max=1.0)


def _change(clip: Tensor) -> Tensor:
    """() RMS change between frames of a clip (T, 3, H, W), or `LEAST_CHANGE`."""
    squares = (clip[1:] - clip[:-1]).square()
    return squares.mean().sqrt().clamp(min=LEAST_CHANGE) if len(squares) else clip.new_tensor(LEAST_CHANGE)
