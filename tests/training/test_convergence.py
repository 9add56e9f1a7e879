"""Training learns what moves: on a sliding texture the Predictor soon beats repeating the last frame."""

import math

import pytest
import torch

from sinfusion.diffusion.denoiser import rms_change
from sinfusion.pixels import to_unit
from sinfusion.recipe import TINY
from sinfusion.roles import PREDICTOR
from sinfusion.run import Run
from sinfusion.training.trainer import Trainer

STEPS = 250
RECIPE = TINY.replace(filters=8, depth=4, batch_size=4, learning_rate=8e-3, sigma_max=20.0, sigma_max_share=0.5,
                      max_frame_offset=1, offset_milestones=(), predictor_steps=STEPS)  # fmt: skip


def psnr(outputs, frames):
    """Decibels, for images in [-1, 1]."""
    return 10 * math.log10(4 / (outputs - frames).square().mean().item())


def conditional_mean(denoiser, condition, frame_offset):
    """One evaluation at the highest level, where the noisy input says nothing that the condition does not."""
    offset = torch.tensor([frame_offset])
    sigma = denoiser.sigma_data_of(offset, 1, condition.device) * RECIPE.sigma_max
    noise = torch.randn(condition.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser(condition + sigma * noise, sigma, condition, offset)


@pytest.fixture(scope="module")
def trained(texture, tmp_path_factory):
    """A Predictor trained on the first 16 of 22 frames, and all frames in [-1, 1]."""
    clip = texture(22)
    models = {"predictor": {"steps": STEPS, "minutes": None, "sigma_data": [rms_change(clip[:16], 1)]}}
    path = tmp_path_factory.mktemp("convergence")
    run = Run(path, "video", RECIPE, clip[:16], 20.0, 0, models).to("cpu", "fp32")
    trainer = Trainer(run, PREDICTOR, STEPS)
    for _ in range(STEPS):
        trainer.step()
    trainer.denoiser.network.load_state_dict(trainer.optimizer.average)
    return trainer.denoiser, to_unit(torch.from_numpy(clip))


@pytest.mark.parametrize("frame_offset", [1, -1])
@pytest.mark.parametrize(("frames", "gain"), [(slice(0, 16), 5.0), (slice(15, 22), 3.0)], ids=["trained", "unseen"])
def test_the_conditional_mean_beats_repeating_the_last_frame_by_several_decibels(trained, frames, gain, frame_offset):
    denoiser, clip = trained
    before, after = clip[frames][:-1], clip[frames][1:]
    if frame_offset < 0:
        before, after = after, before
    assert psnr(conditional_mean(denoiser, before, frame_offset), after) > psnr(before, after) + gain
