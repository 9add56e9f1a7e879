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
                      previous_frames=1, max_frame_offset=1, offset_milestones=(), predictor_steps=STEPS)  # fmt: skip


def psnr(outputs, frames):
    """Decibels, for images in [-1, 1]."""
    return 10 * math.log10(4 / (outputs - frames).square().mean().item())


def conditional_mean(denoiser, condition, frame_offset):
    """One evaluation at the highest level, where the noisy input says nothing that the condition does not."""
    offset = torch.tensor([frame_offset])
    sigma = denoiser.sigma_data_of(offset, 1, condition.device) * RECIPE.sigma_max
    last = condition[:, :3]
    noise = torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser(last + sigma * noise, sigma, condition, offset)


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


@pytest.fixture(scope="module", params=[1, 2], ids=["one previous frame", "two"])
def to_and_fro(request, tmp_path_factory):
    """How many frames a Predictor sees of a clip, and the clip: a blob that goes right in its first half, then left."""
    steps, place = torch.arange(12.0), torch.arange(24.0)
    across = (-((place - 4 - 1.5 * torch.cat((steps, steps.flip(0)))[:, None]) ** 2) / 6).exp()  # (24, W)
    down = (-((torch.arange(16.0) - 8) ** 2) / 6).exp()
    clip = (200 * across[:, None] * down[:, None])[..., None].expand(-1, -1, -1, 3).to(torch.uint8).numpy().copy()
    models = {"predictor": {"steps": STEPS, "minutes": None, "sigma_data": [rms_change(clip, 1)]}}
    run = Run(tmp_path_factory.mktemp("blob"), "video", RECIPE.replace(previous_frames=request.param), clip, 20.0, 0,
              models).to("cpu", "fp32")  # fmt: skip
    trainer = Trainer(run, PREDICTOR, STEPS)
    for _ in range(STEPS):
        trainer.step()
    trainer.denoiser.network.load_state_dict(trainer.optimizer.average)
    return request.param, trainer.denoiser, to_unit(torch.from_numpy(clip))


def test_two_previous_frames_say_which_way_an_object_moves_and_one_does_not(to_and_fro):
    count, denoiser, clip = to_and_fro
    right, left = clip[:12], clip[12:]  # frame i of one is frame 11 - i of the other
    for way, ahead, behind in ((right, right[3:11], right[1:9]), (left, left[3:11], left[1:9])):
        condition = torch.cat((way[2:10], way[1:9])[:count], 1)
        outputs = conditional_mean(denoiser, condition, 1)
        goes_on = ((outputs - ahead).square() - (outputs - behind).square()).mean((1, 2, 3)) < 0
        if count == 2:
            assert goes_on.all()
            assert psnr(outputs, ahead) > psnr(way[2:10], ahead) + 6
        else:
            assert psnr(outputs, ahead) < psnr(way[2:10], ahead) + 3
