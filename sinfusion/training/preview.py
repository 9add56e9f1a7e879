"""Previews: what a model makes with the averaged weights that it has so far."""

from __future__ import annotations

import numpy as np

from ..generation.video import generate_images, stream, upsample
from ..network import NextNet
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, Role
from ..run import Run
from .trainer import Trainer


def preview(run: Run, role: Role, trainer: Trainer) -> np.ndarray:
    """(N, H, W, 3) uint8: some frames or images; neither the training nor `run` is changed."""
    averaged = run.build(role)
    assert isinstance(averaged.network, NextNet)
    weights = trainer.optimizer.average if run.recipe.ema_gamma > 0 else trainer.optimizer.parameters
    averaged.network.load_state_dict(weights)
    # A run of its own, so that sampling finds this denoiser and never the checkpoint's.
    now = run.to(str(run.device), graph=False)
    now.dtype = run.dtype
    now.recipe = run.recipe.replace(correction_timesteps=0)
    now._denoisers[role.name] = averaged
    if role is PREDICTOR:
        return np.stack([frames[0] for frames in stream(now, 8, start=0)])
    if role is INTERPOLATOR:
        return upsample(now, 2, now.frames[:3])
    if role is IMAGE:
        return generate_images(now, 4)
    now._denoisers[IMAGE.name] = averaged
    return generate_images(now, 2)
