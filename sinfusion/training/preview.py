"""Previews: what a model generates with the averaged weights that it has so far."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..diffusion.denoiser import Denoiser
from ..generation.reverse_process import reverse_process
from ..generation.upsampling import frame_between
from ..generation.video import NextFrame, rollout
from ..pixels import to_uint8, to_unit
from ..roles import IMAGE, INTERPOLATOR, PREDICTOR, Role
from ..run import Run
from .trainer import Trainer


def preview(run: Run, role: Role, trainer: Trainer) -> np.ndarray:
    """(N, H, W, 3) uint8: some frames or images; neither the training nor `run` is changed."""
    averaged = run.build(role)
    weights = trainer.optimizer.average if run.recipe.ema_gamma > 0 else trainer.optimizer.parameters
    averaged.network.load_state_dict(weights)
    return preview_images(dataclasses.replace(run, graph=False), role, averaged)


def preview_images(run: Run, role: Role, denoiser: Denoiser) -> np.ndarray:
    """(N, H, W, 3) uint8: a few images or frames that a denoiser of the run generates."""
    seeds = torch.arange(4, device=run.device)
    if role is INTERPOLATOR:
        shown, between = [run.frames[0]], frame_between(run, denoiser=denoiser)
        for i in range(2):
            pair = to_unit(torch.from_numpy(run.frames[i : i + 2]).to(run.device)).flatten(0, 1)[None]
            shown += [to_uint8(between(pair, seeds[:1], i))[0].cpu().numpy(), run.frames[i + 1]]
        return np.stack(shown)
    process = reverse_process(run, role, denoiser, 1 if role.frame_offset else None)
    if role is PREDICTOR:
        first = to_unit(torch.from_numpy(run.frames[:1]).to(run.device))
        frames = rollout(NextFrame(process), first, seeds[:1], 8, graph=False)
        return np.concatenate([frame.cpu().numpy() for frame in frames])
    size = run.recipe.frame_size(role, *run.size)
    return to_uint8(process(seeds[: 4 if role is IMAGE else 2], 0, size=size)).cpu().numpy()
