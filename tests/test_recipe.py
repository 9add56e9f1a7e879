"""Recipes: the paper's numbers, the curriculum, every setting documented, typed and checked."""

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest

from sinfusion.errors import SinfusionError
from sinfusion.recipe import FAST, PAPER, RECIPES, TINY, Recipe, differences, from_dict
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, ROLES

EVERY = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def test_paper_has_the_numbers_of_the_paper():
    assert (PAPER.filters, PAPER.depth, PAPER.dense_kernel) == (64, 16, 3)
    assert (PAPER.timesteps, PAPER.schedule, PAPER.sampler, PAPER.sampling_steps) == (50, "cosine", "ddpm", 50)
    assert (PAPER.correction_timesteps, PAPER.correction_steps) == (3, 3)
    assert (PAPER.batch_size, PAPER.learning_rate, PAPER.decay, PAPER.crop) == (1, 2e-4, "step", 0.95)
    assert [PAPER.steps(ROLES[name]) for name in ("image", "predictor", "projector", "interpolator")] == [
        50_000, 200_000, 100_000, 50_000,
    ]  # fmt: skip
    assert {name: PAPER.parameterization_of(role) for name, role in ROLES.items()} == {
        "image": "x0", "predictor": "noise", "projector": "x0", "interpolator": "x0",
    }  # fmt: skip
    assert PAPER.previous_frames == 1 and PAPER.conditions(ROLES["predictor"]) == 1
    assert PAPER.ema_gamma == 0 and PAPER.white_condition_noise == 0 and PAPER.warmup == 0


@pytest.mark.parametrize("total", [200_000, 5_000])  # as published, and as a time budget may scale it
def test_the_curriculum_of_the_paper_advances(total):
    largest = PAPER.largest_offset(np.arange(total) / total)
    second, third = total * 75 // 200, total * 150 // 200
    assert set(largest[:second]) == {1} and set(largest[second:third]) == {2} and set(largest[third:]) == {3}


@EVERY
def test_the_curriculum_ends_with_every_offset_that_can_be_asked_for(recipe):
    largest = recipe.max_frame_offset
    assert recipe.largest_offset(np.array([1 - 1e-6])) == largest
    assert recipe.offsets() == tuple(k for k in range(-largest, largest + 1) if k)


def test_a_short_clip_bounds_the_offsets():
    assert PAPER.replace(max_frame_offset=2).offsets() == (-2, -1, 1, 2)
    assert PAPER.replace(max_frame_offset=1, offset_milestones=()).offsets() == (-1, 1)


def test_crops_are_squares_as_published_or_follow_the_image():
    assert PAPER.crop_size(PREDICTOR, 100, 200) == (95, 190)
    for role in (IMAGE, PROJECTOR, INTERPOLATOR):
        assert PAPER.crop_size(role, 100, 200) == (95, 95)
        assert PAPER.replace(square_crops=False).crop_size(role, 100, 200) == (95, 190)


def test_every_setting_has_a_comment_that_becomes_its_help():
    source = inspect.getsource(Recipe)
    for field in dataclasses.fields(Recipe):
        assert re.search(rf"    # [^\n]{{15,}}\n    {field.name}: ", source), field.name


@EVERY
def test_a_recipe_comes_back_from_json(recipe):
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_settings_that_are_gone_are_left_out_and_new_ones_are_as_before_there_were_any():
    settings = {**dataclasses.asdict(TINY), "momentum": 1}
    del settings["sigma_max_share"]
    assert from_dict(settings) == TINY.replace(sigma_max_share=PAPER.sigma_max_share)
    assert differences(settings) == (["momentum"], ["sigma_max_share"])
    assert differences(dataclasses.asdict(PAPER)) == ([], [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filters", 2), ("filters", 7), ("depth", 1), ("timesteps", 1), ("sampling_steps", 0), ("batch_size", 0),
        ("crop", 0.0), ("crop", 1.1), ("predictor_steps", 0), ("correction_timesteps", -1), ("decay", "linear"),
        ("learning_rate", float("nan")), ("filters", 8.0), ("square_crops", 1), ("offset_milestones", ("half",)),
        ("previous_frames", 0), ("previous_frames", 4), ("sampler", "plms"), ("dense_kernel", 5),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(SinfusionError, match=name):
        TINY.replace(**{name: value})


def test_the_presets_are_named_and_only_paper_is_as_published():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {"paper": "paper", "fast": "fast", "tiny": "tiny"}
    for recipe in (FAST, TINY):
        assert recipe.parameterization == "preconditioned" and recipe.ema_gamma > 0 and recipe.decay == "cosine"
        assert recipe.sampling_steps <= 12
        assert {name: recipe.conditions(role) for name, role in ROLES.items()} == {
            "image": 0, "predictor": 2, "projector": 0, "interpolator": 2,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sigma_min": 20.0}, r"sigma_min \(20\) must be below sigma_max \(20\)"),
        ({"sigma_max": 0.01}, r"sigma_min \(0.05\) must be below sigma_max \(0.01\)"),
        (
            {"unconditional_sigma_min": 31.0},
            r"unconditional_sigma_min \(31\) must be below unconditional_sigma_max \(30\)",
        ),
        ({"offset_milestones": (0.6, 0.4)}, "offset_milestones must rise, from 0 on and below 1, not 0.6 0.4"),
        ({"offset_milestones": (-0.1, 0.4)}, "offset_milestones must rise"),
        ({"offset_milestones": (0.4, 1.0)}, "offset_milestones must rise"),  # the last offset would never be trained
        ({"max_frame_offset": 4}, "max_frame_offset 4 needs 3 offset_milestones, one for each offset from 2 on, not 2"),
        ({"offset_milestones": ()}, "max_frame_offset 3 needs 2 offset_milestones, .* not 0"),
        ({"parameterization": "noise", "correction_timesteps": 3, "timesteps": 2},
         "correction_timesteps must be at most timesteps, 2, not 3"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused_in_a_sentence_with_their_names(settings, sentence):
    with pytest.raises(SinfusionError, match=f"^{sentence}.*\\.$"):
        TINY.replace(**settings)


def test_settings_that_fit_together_at_their_limits_are_taken():
    TINY.replace(sigma_min=1.0, sigma_max=1.001, offset_milestones=(0.0, 0.0), max_frame_offset=3)
    TINY.replace(correction_timesteps=50, timesteps=2)  # preconditioned: of 50, whatever the schedule
    PAPER.replace(correction_timesteps=2, timesteps=2, max_frame_offset=1)


@pytest.mark.parametrize(
    "stored",
    [
        {"offset_milestones": [], "max_frame_offset": 3},
        {"offset_milestones": [0.7, 0.2, -1.0, 1.5], "max_frame_offset": 9},
        {"offset_milestones": [0.3, 0.6], "max_frame_offset": 7},
    ],
)
def test_a_run_stored_before_settings_were_checked_together_goes_on_as_it_went(stored):
    recipe = from_dict({**dataclasses.asdict(PAPER), "correction_timesteps": 9, "timesteps": 5, **stored})
    progress = np.linspace(0, 1, 101)
    reached = np.add.outer(progress, -np.array(stored["offset_milestones"])) >= 0
    assert np.array_equal(recipe.largest_offset(progress), np.minimum(1 + reached.sum(-1), stored["max_frame_offset"]))
    assert recipe.correction_timesteps == 5  # what sampling used of 9


def test_conditional_models_have_smaller_crops_but_none_below_32_pixels():
    assert TINY.crop_size(PREDICTOR, 144, 256) == (72, 128) and TINY.crop_size(PROJECTOR, 144, 256) == (49, 49)
    assert TINY.crop_size(PREDICTOR, 36, 64) == (32, 32) and TINY.crop_size(PREDICTOR, 20, 24) == (19, 22)
    assert PAPER.crop_size(PREDICTOR, 144, 256) == (136, 243)


def test_a_recipe_of_before_has_one_crop_for_all_models():
    settings = {name: value for name, value in dataclasses.asdict(TINY).items() if name != "unconditional_crop"}
    assert from_dict(settings | {"crop": 0.7}).unconditional_crop == 0.7


def test_an_interpolator_has_sampling_steps_of_its_own_or_those_of_the_other_conditional_models():
    recipe = TINY.replace(sampling_steps=7, interpolator_sampling_steps=2, unconditional_sampling_steps=5)
    assert [recipe.sampling_steps_of(ROLES[name]) for name in ("predictor", "interpolator", "projector")] == [7, 2, 5]
    assert recipe.replace(interpolator_sampling_steps=0).sampling_steps_of(ROLES["interpolator"]) == 7
