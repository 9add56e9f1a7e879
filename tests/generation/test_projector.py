"""The Projector at the size of its frames: whole results, known pixels, and what it leaves alone."""

import dataclasses

import numpy as np
import pytest
import torch

from sinfusion import extend, generate, retarget, train
from sinfusion.generation.projector import Projector, projector
from sinfusion.generation.reverse_process import reverse_process
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.pixels import to_unit
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR
from sinfusion.scene import render
from sinfusion.training.batch import BatchSampler
from sinfusion.training.preview import preview_images

SEEDS = torch.arange(2)
SIZE = 40, 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Whose Projector's frames are 39 pixels wide: three receptive fields of 13 pixels."""
    frames = np.asarray(render(8, SIZE))
    settings = {"filters": 8, "depth": 2, "projector_span": 3.0, "predictor_steps": 3, "projector_steps": 3}
    return train(frames, tmp_path_factory.mktemp("projector") / "run", recipe="tiny", settings=settings, device="cpu")


class Recorded:
    """In place of a reverse process: what it is called with; it returns the image, or a grey one."""

    def __init__(self, change=0.0):
        self.change = change

    def __call__(self, seeds, frame_index, condition, init_image, size, known_mask, known_image):
        self.size, self.known = size, (known_mask, known_image)
        image = torch.zeros(len(seeds), 3, *size) if init_image is None else init_image
        return image + self.change


def test_frames_of_the_projector_are_reduced_to_what_it_sees():
    assert TINY.receptive == 73 and TINY.frame_size(PROJECTOR, 72, 128) == (52, 92)
    assert TINY.frame_size(PROJECTOR, 144, 256) == (52, 92) and TINY.frame_size(PROJECTOR, 36, 64) == (36, 64)
    assert FAST.frame_size(PROJECTOR, 144, 256) == (114, 202)
    assert TINY.frame_size(PROJECTOR, 64, 256) == (32, 128)  # no side below 32 pixels
    for role in (IMAGE, PREDICTOR, INTERPOLATOR):
        assert TINY.frame_size(role, 144, 256) == (144, 256)
    assert PAPER.frame_size(PROJECTOR, 1440, 2560) == (1440, 2560)


def test_only_the_projector_learns_from_reduced_frames(run):
    samplers = [BatchSampler(run, role, run.build(role), range(4)) for role in (PREDICTOR, PROJECTOR)]
    assert [tuple(sampler.frames.shape[1:3]) for sampler in samplers] == [SIZE, run.recipe.frame_size(PROJECTOR, *SIZE)]
    height, width = run.recipe.frame_size(PROJECTOR, *SIZE)
    assert preview_images(run, PROJECTOR, run.denoiser(PROJECTOR)).shape == (2, height, width, 3)


def test_frames_that_are_not_reduced_are_the_reverse_process_to_the_bit(video_run):
    process = projector(video_run)
    assert process.reduction == 1
    size = video_run.size
    assert torch.equal(process(SEEDS, 3, size=size), reverse_process(video_run, PROJECTOR)(SEEDS, 3, size=size))


def test_what_it_returns_has_the_size_that_was_asked_for(run):
    process = projector(run)
    assert process.reduction < 1 and process(SEEDS, 0, size=(50, 90)).shape == (2, 3, 50, 90)
    assert process(SEEDS, 0, torch.zeros(2, 3, 33, 70)).shape == (2, 3, 33, 70)


def test_a_sample_is_the_same_alone_and_among_others(run):
    process = projector(run)
    assert torch.equal(process(SEEDS, 0, size=SIZE)[1:], process(SEEDS[1:], 0, size=SIZE))


def test_details_of_an_image_to_begin_with_stay_where_the_process_changes_nothing():
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(Projector(Recorded(), 0.5)(SEEDS, 0, image), image)
    torch.testing.assert_close(Projector(Recorded(0.1), 0.5)(SEEDS, 0, image), (image + 0.1).clamp(-1, 1))


def test_known_pixels_are_kept_and_known_when_reduced():
    mask = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    mask[:, :, 8:32, 16:48] = True
    image = torch.where(mask, 0.6, torch.rand(1, 3, *SIZE) * 2 - 1)
    process = Recorded()
    result = Projector(process, 0.5)(SEEDS, 0, None, SIZE, mask, image)
    assert torch.equal(result[:, :, 8:32, 16:48], torch.full((2, 3, 24, 32), 0.6))
    known, kept = process.known
    assert known.shape == (1, 1, 20, 32) and 0.9 * 12 * 16 <= known.sum() <= 12 * 16
    assert not known[:, :, :4].any() and not known[..., :8].any()
    inside = kept[known.expand_as(kept)]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.6), atol=1e-3, rtol=0)  # nothing from around it


def test_a_guide_sees_reduced_images(run):
    seen = []

    def guide(clean, sigma, step):
        seen.append(tuple(clean.shape[2:]))
        return clean

    plain, guided = projector(run), projector(run).guided(guide)
    assert torch.equal(plain(SEEDS, 0, size=SIZE), guided(SEEDS, 0, size=SIZE))
    assert set(seen) == {run.recipe.frame_size(PROJECTOR, *SIZE)} and len(seen) == len(plain.steps)


@pytest.mark.parametrize("projection", [None, 0.0])
def test_a_first_frame_is_patches_of_the_clip(run, projection):
    """Of the clip's detail, although the Projector's image has none; with and without projection of the rollout."""
    recipe = run.recipe.replace(burn_in_frames=0)
    frame = generate(dataclasses.replace(run, recipe=recipe), frames=1, projection=projection)[0]
    clip = np.asarray(run.frames)
    size = run.recipe.frame_size(PROJECTOR, *SIZE)
    assert frame.shape == (1, *SIZE, 3)
    far = nnfdist(nnf(np.random.default_rng(0).integers(0, 256, frame.shape, np.uint8), clip, (1, 3, 3), 0)[1])
    assert nnfdist(nnf(frame, clip, (1, 3, 3), 0)[1]) < 0.2 * far and size != SIZE


def test_retarget_and_extend_with_a_reduced_projector(run):
    assert retarget(run, (40, 80)).shape == (8, 40, 80, 3)
    larger = extend(run, (48, 80))
    assert larger.shape == (8, 48, 80, 3) and np.array_equal(larger[:, 4:44, 8:72], run.frames)


def test_a_correction_keeps_what_a_reduced_image_cannot_show(run):
    """As a correction of predicted frames, from a low noise level: nearer to them than they are when reduced."""
    frame = to_unit(torch.from_numpy(np.asarray(run.frames[:1])))
    process = projector(run, 3, 0.01)
    lost = process.enlarged(process.reduced(frame), frame) - frame
    changed = process(SEEDS[:1], 0, frame) - frame
    assert 0 < changed.square().mean() < 0.1 * lost.square().mean()
