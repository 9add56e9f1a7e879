"""A clip in a new look: all of its frames are drawn to a text together, as a Projector's samples that begin with them.

restyled(run, Guidance("a coral reef"), seed=0)   # the same run, with other frames

Frames have the same noise and are seen alike, and gradients are means over neighbours in time, so nothing flickers that
did not move before.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..pixels import to_uint8, to_unit
from ..roles import PROJECTOR
from ..run import Run
from .guidance import Guidance
from .reverse_process import reverse_process


def restyled(run: Run, guidance: Guidance, amount: float = 0.25, seed: int = 0) -> Run:
    """The run of a video with its frames restyled; its folder stays as it is. amount: as the strength of `retarget`."""
    frames = to_unit(torch.from_numpy(np.ascontiguousarray(run.frames)).to(run.device))
    process = reverse_process(run, PROJECTOR, strength=amount)
    seeds = [seed] * len(frames)
    guide = guidance.guide(process.steps, seeds, run.size, run.device, from_noise=False)
    assert guide is not None
    guide.video = True
    images = process.guided(guide)(torch.tensor(seeds, device=run.device), 0, init_image=frames)
    return dataclasses.replace(run, frames=to_uint8(images).cpu().numpy())
