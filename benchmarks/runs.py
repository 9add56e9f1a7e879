"""Runs of frames in memory, as the benchmarks train them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sinfusion.media import Clip
from sinfusion.recipe import Recipe
from sinfusion.roles import IMAGE, Role
from sinfusion.run import Run
from sinfusion.training.run_setup import plan_run


def new_run(frames: np.ndarray, folder: Path, recipe: Recipe, roles: Sequence[Role], seed: int = 0) -> Run:
    """A run without weights; frames (T, H, W, 3) uint8."""
    clip = Clip(frames, 20.0, "image" if IMAGE in roles else "video", frames.shape[1:3])
    run = plan_run(folder, clip, recipe, roles, seed=seed)
    run.save(anew=True)
    return run
