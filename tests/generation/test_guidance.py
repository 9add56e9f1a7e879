"""Guidance in the reverse process and in `generate`: what it changes, and what it must not."""

import dataclasses

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.diffusion.samplers import SAMPLERS, Step, sample
from sinfusion.errors import SettingError, SinfusionError
from sinfusion.generation import guidance as asked
from sinfusion.generation.guidance import Guidance, guided_sigmas
from sinfusion.generation.reverse_process import reverse_process
from sinfusion.ops.philox import normal
from sinfusion.roles import IMAGE, PREDICTOR

SEEDS = torch.tensor([3, 8])
SIZE = (16, 24)


class Redder:
    """In place of a CLIP: the redder, the better it agrees."""

    side, multiple, device = 16, 8, torch.device("cpu")

    def target(self, text):
        return torch.tensor([1.0, -0.5, -0.5]) * (1 if text == "red" else -1)

    def target_of_image(self, image):
        return image.mean((1, 2)) - image.mean()

    def agreement(self, images, target):
        return (images * target[:, None, None]).mean((1, 2, 3)) + 0.01 * images.square().mean((1, 2, 3))


@pytest.fixture
def red(monkeypatch):
    monkeypatch.setattr(Guidance, "open_model", lambda self, device: Redder())


def redness(images):
    images = np.asarray(images, np.float64)
    return images[..., 0].mean() - images[..., 1:].mean()


# The hook -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
def test_a_guide_that_returns_what_it_is_given_changes_nothing_to_the_bit(image_run, sampler):
    run = dataclasses.replace(image_run, recipe=image_run.recipe.replace(sampler=sampler))
    process, seen = reverse_process(run, IMAGE), []

    def guide(clean, sigma, step):
        seen.append((tuple(clean.shape), sigma, step, clean.abs().max().item() <= 1))
        return clean

    plain, guided = process(SEEDS, 0, size=SIZE), process.guided(guide)(SEEDS, 0, size=SIZE)
    assert torch.equal(plain, guided)
    assert seen == [((2, 3, *SIZE), step.sigma, i, True) for i, step in enumerate(process.steps)]
    assert process.guided(None) is process and process.guide is None


@pytest.mark.parametrize("role", [IMAGE, PREDICTOR], ids=lambda role: role.name)
def test_guided_sampling_is_sampling_with_guided_clean_estimates(role, image_run, video_run):
    run, offset = (image_run, None) if role is IMAGE else (video_run, 1)
    process = reverse_process(run, role, frame_offset=offset)
    condition = None if role is IMAGE else torch.rand(2, 3 * run.recipe.conditions(role), *SIZE) * 2 - 1
    guide = lambda clean, sigma, step: (clean + 0.3 * torch.tensor([1.0, 0, 0])[:, None, None]).clamp(-1, 1)  # noqa: E731
    found = process.guided(guide)(SEEDS, 0, condition, size=SIZE)

    denoiser = run.denoiser(role)
    draws = iter(range(len(process.steps)))

    def denoise(x, sigma):
        offsets = None if offset is None else torch.tensor([offset] * len(x))
        return guide(denoiser(x, sigma, condition, offsets).clamp(-1, 1), sigma[0].item(), next(draws))

    start = torch.zeros(2, 3, *SIZE) if condition is None else denoiser.prior_mean(found, condition)
    first = normal(SEEDS, process.stream, int(process.draws[0]), (3, *SIZE))
    noise = lambda i: normal(SEEDS, process.stream, int(process.draws[i + 1]), (3, *SIZE))  # noqa: E731
    with torch.no_grad():
        wanted = sample(denoise, start + process.steps[0].sigma * first, process.steps, noise)
    assert (found - wanted).abs().max() < 0.05 and (found - process(SEEDS, 0, condition, size=SIZE)).abs().max() > 0.2


def test_known_pixels_hold_and_a_guide_sees_them(image_run):
    known_mask = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    known_mask[..., :12] = True
    known_image, seen = torch.full((1, 3, *SIZE), 0.25), []

    def guide(clean, sigma, step):
        seen.append(clean[:, :, :, :12].clone())
        return torch.full_like(clean, -0.5)

    found = reverse_process(image_run, IMAGE).guided(guide)(SEEDS, 0, None, None, SIZE, known_mask, known_image)
    assert torch.allclose(found[..., :12], torch.tensor(0.25), atol=0.02)
    assert torch.allclose(found[..., 12:], torch.tensor(-0.5), atol=0.02)
    assert all((part == 0.25).all() for part in seen)


def test_the_first_and_the_last_levels_are_not_guided():
    steps = [Step(float(sigma), 0, 0, 0, 0) for sigma in range(20, 0, -1)]
    assert guided_sigmas(steps) == (4.0, 14.0)
    assert guided_sigmas(steps, from_noise=False) == (4.0, 20.0)
    assert guided_sigmas(steps[:1]) == (20.0, 20.0)
    heun = SAMPLERS["heun"](np.arange(20, -1, -1.0))  # a level twice
    assert guided_sigmas(heun) == (4.0, 14.0)


# Asking for it ------------------------------------------------------------------------------------------------------


def test_text_steers_images_and_no_strength_is_no_text_to_the_bit(image_run, red):
    plain = sinfusion.generate(image_run, count=2, seed=3)
    none = sinfusion.generate(image_run, count=2, seed=3, text="red", text_strength=0)
    redder = sinfusion.generate(image_run, count=2, seed=3, text="red")
    bluer = sinfusion.generate(image_run, count=2, seed=3, text="anything else")
    assert np.array_equal(plain, none)
    assert redness(redder) > redness(plain) + 0.5 > redness(bluer) + 1


def test_a_guided_sample_depends_on_its_own_seed_alone(image_run, red):
    two = sinfusion.generate(image_run, count=2, seed=3, text="red")
    assert np.array_equal(two[1:], sinfusion.generate(image_run, seed=4, text="red"))
    assert np.array_equal(two, sinfusion.generate(image_run, count=2, seed=3, text="red"))


def test_a_picture_may_stand_for_words(image_run, red):
    looks = np.zeros((8, 8, 3), np.uint8)
    looks[..., 0] = 255
    plain, redder = sinfusion.generate(image_run), sinfusion.generate(image_run, style=looks)
    assert redness(redder) > redness(plain) + 0.5


def test_a_region_is_where_most_of_the_change_is(image_run, red):
    where = np.zeros(image_run.size, bool)
    where[:, : image_run.size[1] // 2] = True
    plain = sinfusion.generate(image_run, count=2)
    change = np.abs(sinfusion.generate(image_run, count=2, text="red", where=where).astype(int) - plain).mean((0, -1))
    assert change[where].mean() > 2 * change[~where].mean()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"text": ""}, "text must be some words"),
        ({"text": "a", "style": np.zeros((8, 8, 3), np.uint8)}, "text and style are two guides"),
        ({"text": "a", "text_strength": -1}, "text_strength must be from 0 to 10, not -1"),
        ({"text": "a", "text_fill": 2}, "text_fill must be from 0 to 1, not 2"),
        ({"text_fill": 0.5}, "text_fill is about guidance by text or style"),
        ({"where": np.ones((16, 24), bool)}, "where is about guidance by text or style"),
        ({"text": "a", "where": np.ones((5, 5), bool)}, "rows and columns must agree"),
        ({"text": "a", "where": np.zeros((16, 24), bool)}, "dark everywhere"),
    ],
)
def test_what_makes_no_sense_is_refused(image_run, red, wrong, sentence):
    with pytest.raises(SettingError, match=sentence):
        sinfusion.generate(image_run, size=(16, 24), **wrong)


def test_without_a_model_one_sentence_says_what_to_bring(image_run, monkeypatch, tmp_path):
    monkeypatch.setattr(asked.labels, "installed", lambda: False)
    with pytest.raises(SettingError, match=r"clip-vit-base-patch32.*pip install 'sinfusion\[labels\]'"):
        sinfusion.generate(image_run, text="a volcano")
    with pytest.raises(SinfusionError, match=r"model\.safetensors|sinfusion\[text\]"):
        sinfusion.generate(image_run, text="a volcano", text_model=tmp_path)


def test_a_clip_guides(image_run, clip_folder):
    plain = sinfusion.generate(image_run, seed=1)
    guided = sinfusion.generate(image_run, seed=1, text="the man", text_model=clip_folder)
    assert guided.shape == plain.shape and not np.array_equal(guided, plain)


def test_an_edit_with_words_changes_what_its_mask_lets_change(image_run, red):
    image, mask = image_run.frames[0], np.zeros(image_run.size, bool)
    mask[:, : image_run.size[1] // 2] = True
    plain = sinfusion.edit(image_run, image, mask)
    words = sinfusion.edit(image_run, image, mask, text="red")
    assert np.array_equal(words[:, ~mask], image[None][:, ~mask])
    assert redness(words[:, mask]) > redness(plain[:, mask]) + 0.5
    assert np.array_equal(plain, sinfusion.edit(image_run, image, mask, text="red", text_strength=0))


def test_the_training_picture_can_be_given_another_look(image_run, red):
    image = image_run.frames[0]
    plain, words = (sinfusion.edit(image_run, image, strength=0.3, text=text)[0] for text in (None, "red"))
    assert redness(words) > redness(plain) + 0.1  # by how much depends on what the run has learnt
    assert 0 < np.abs(words.astype(int) - plain).mean() < 60
