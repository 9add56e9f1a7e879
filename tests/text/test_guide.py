"""The rule of guidance, against outputs of SinDDM's code which `benchmarks/compare_sinddm.py` has written."""

from pathlib import Path

import compare_sinddm as comparison
import pytest
import torch
from safetensors.torch import load_file

from sinfusion.text import guide as rule
from sinfusion.text.guide import TextGuide, averaged, bounding_box, climbed, strongest

FIXTURE = Path(__file__).parent / "sinddm.safetensors"


@pytest.fixture(scope="module")
def released():
    values = load_file(FIXTURE)
    return values["cleans"], values["guided"]


def guide_of(seeds, **settings):
    model = comparison.RandomModel()
    return TextGuide(model, model.target(""), seeds, **settings)


def test_it_is_the_published_rule_to_the_last_digits(released):
    cleans, guided = released
    assert (comparison.ours(cleans) - guided).abs().max() < 1e-12
    assert (guided[:-3] - cleans[:-3]).square().mean().sqrt() > 0.1


@pytest.mark.parametrize("mistake", ["no momentum", "a mask of each step", "steps of a fixed length"])
def test_the_comparison_sees_mistakes(mistake, released, monkeypatch):
    cleans, guided = released
    if mistake == "no momentum":
        monkeypatch.setattr(comparison, "MOMENTUM", 1.0)
    elif mistake == "a mask of each step":
        monkeypatch.setattr(rule, "climbed", lambda start, gradient, mask, strength: climbed(
            start, *strongest(gradient, comparison.FILL), strength))  # fmt: skip
    else:
        monkeypatch.setattr(rule, "climbed", lambda start, gradient, mask, strength: (
            start + 30 * strength * gradient * mask).clamp(-1, 1))  # fmt: skip
    assert (comparison.ours(cleans) - guided).abs().max() > 0.01


def test_an_image_is_guided_alike_alone_and_among_others(released):
    cleans = released[0]
    together, alone = guide_of((4, 9)), guide_of((9,))
    for step, clean in enumerate(cleans[:3]):
        assert torch.equal(together(clean, 1.0, step)[1:], alone(clean[1:], 1.0, step))


def test_frames_of_one_seed_are_seen_alike_and_other_seeds_and_steps_otherwise(released):
    frame = released[0][0, 0]
    twice = guide_of((4, 4))(torch.stack((frame, frame)), 1.0, 0)
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(guide_of((5,))(frame[None], 1.0, 0)[0], twice[0])
    assert not torch.equal(guide_of((4,)).gradient(frame[None], 0), guide_of((4,)).gradient(frame[None], 1))


def test_the_agreement_rises(released):
    clean, guide = released[0][0], guide_of((4, 9), strength=0.05, fill=1.0)
    model = guide.model
    before = model.agreement(clean, guide.target)
    assert (model.agreement(guide(clean, 1.0, 0), guide.target) > before + 0.01).all()


def test_no_strength_and_levels_that_are_not_guided_give_back_what_they_were_given(released):
    clean = released[0][0]
    assert guide_of((4, 9), strength=0)(clean, 1.0, 0) is clean
    guide = guide_of((4, 9))
    guide.sigmas = 0.5, 2.0
    assert guide(clean, 3.0, 0) is clean and guide(clean, 0.4, 1) is clean and guide(clean, 1.0, 2) is not clean


def test_a_new_image_knows_nothing_of_the_one_before(released):
    clean, other = released[0][0], released[0][5]
    guide = guide_of((4, 9))
    for step in range(2):
        guide(other, 1.0, step)
    assert torch.equal(guide(clean, 1.0, 0), guide_of((4, 9))(clean, 1.0, 0))


@pytest.mark.parametrize("fill", [0.25, 0.5])
def test_the_share_of_pixels_that_change_is_as_asked(released, fill):
    clean, guide = released[0][0], guide_of((4, 9), fill=fill)
    changed = (guide(clean, 1.0, 0) != clean).any(1, keepdim=True)
    assert guide.mask.mean().item() == pytest.approx(fill, abs=0.01)
    assert not changed[guide.mask == 0].any() and changed[guide.mask == 1].float().mean() > 0.8


def test_pixels_outside_of_a_mask_stay_and_the_mask_is_what_is_looked_at(released):
    clean = released[0][0]
    where = torch.zeros(12, 18, dtype=torch.bool)
    where[2:9, 5:12] = True
    guide = guide_of((4, 9), where=where, fill=1.0)
    changed = (guide(clean, 1.0, 0) != clean).any(1)
    assert not changed[:, ~where].any() and changed[:, where].float().mean() > 0.8
    assert guide.box == pytest.approx((2 * 2 / 12 - 1, 2 * 9 / 12 - 1, 2 * 5 / 18 - 1, 2 * 12 / 18 - 1))
    far = clean.clone()
    far[:, :, 11] = 1.0
    inside = guide_of((4, 9), where=where, fill=1.0)(far, 1.0, 0)[:, :, where]
    unseen = [i for i, place in enumerate(where.nonzero().tolist()) if place[0] < 5]  # turned views see a little more
    assert (inside - guide(clean, 1.0, 0)[:, :, where])[..., unseen].abs().max() < 0.2


def test_a_gradient_of_nothing_moves_nothing():
    zeros, start = torch.zeros(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    assert torch.equal(climbed(start, *strongest(zeros, 0.5), 0.4), start)


def test_gradients_of_a_video_are_means_over_neighbours_in_time():
    frames = torch.randn(5, 3, 2, 4)
    mean = averaged(frames)
    assert torch.allclose(mean[2], frames[1:4].mean(0)) and mean.shape == frames.shape
    assert torch.equal(mean[0], mean[1]) and torch.allclose(mean[4], frames[2:].mean(0))


def test_frames_of_a_video_share_out_the_views_so_that_equal_frames_stay_equal(released):
    frame, seen = released[0][0, 0], []
    guide, alone = guide_of([4] * 5), guide_of([4])
    agreement = guide.model.agreement
    guide.model.agreement = lambda images, target: seen.append(len(images)) or agreement(images, target)
    guide.video = True
    gradients = guide.gradient(frame.expand(5, -1, -1, -1), 0)
    assert sum(seen[:3]) == 16 and (gradients - gradients[:1]).abs().max() < 1e-12
    whole = alone.gradient(frame[None], 0)[0]
    assert torch.nn.functional.cosine_similarity(gradients[0].flatten(), whole.flatten(), dim=0) > 0.95


def test_a_bounding_box_is_from_border_to_border():
    assert bounding_box(torch.ones(3, 7, dtype=torch.bool)) == (-1, 1, -1, 1)
