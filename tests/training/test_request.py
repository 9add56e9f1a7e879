"""What was asked of a training is done, or refused: from Python and from the command line, by the same checks."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import sinfusion
from sinfusion.errors import SinfusionError
from sinfusion.media import Clip, Source, write_image, write_video
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.training.request import Compute, ContinuationRequest, TrainingRequest, roles_for

SETTINGS = {"filters": 4, "depth": 2, "batch_size": 2, "sampling_steps": 2, "unconditional_sampling_steps": 2}


# The source ----------------------------------------------------------------------------------------------------------


def test_range_size_and_longer_side_apply_to_frames_in_memory(clip, begun):
    for frames in (clip, Clip(clip, 20, "video", (16, 24)), list(clip), torch.from_numpy(clip)):
        run = begun(frames, recipe="fast", start=1, stop=10, stride=2, size=(12, 20))
        assert run.frames.shape == (5, 12, 20, 3) and run.fps == 10
    assert begun(clip, recipe="fast", max_side=15).frames.shape == (12, 10, 15, 3)


def test_large_frames_in_memory_are_scaled_down_as_those_of_a_file(texture, begun):
    large = texture(4, (200, 300))
    assert begun(large, recipe="fast").size == (171, 256)
    tiny = begun(large, recipe="tiny", minutes=1e-6).size
    assert tiny == (32, 48)  # the smallest
    assert begun(large, recipe="tiny", minutes=5, max_side=0).size == (200, 300)


def test_an_image_of_any_kind_is_trained_on_and_takes_no_range_and_no_tasks(clip, begun, tmp_path, refused):
    write_image(tmp_path / "a.png", clip[0])
    for image in (clip[0], Image.fromarray(clip[0]), tmp_path / "a.png", str(tmp_path / "a.png"), [clip[0]]):
        assert list(begun(image, recipe="fast").models) == ["image"]
        with pytest.raises(SinfusionError, match="start is for videos"):
            sinfusion.train(image, tmp_path / "no", start=0)
        with pytest.raises(SinfusionError, match=r"tasks are for videos.*--tasks"):
            sinfusion.train(image, tmp_path / "no", tasks=("generate",))
    out = ("--out", tmp_path / "no")
    assert "start is for videos" in refused(tmp_path / "a.png", "--start", 0, *out)
    assert "tasks are for videos" in refused(tmp_path / "a.png", "--tasks", "generate", *out)
    assert not (tmp_path / "no").exists()


def test_what_contradicts_itself_is_refused_from_both_sides(clip, video_file, tmp_path, refused):
    for options, words, sentence in (
        ({"size": (16, 24), "max_side": 20}, ["--size", "24x16", "--max-side", 20], "size and max_side both"),
        ({"fps": 0}, ["--fps", 0], "fps must be above 0"),
        ({"minutes": 1, "steps": 5}, ["--minutes", 1, "--steps", 5], "--minutes and --steps both"),
        ({"steps": 0}, ["--steps", 0], "steps must be a whole number from 1"),
        ({"minutes": -1}, ["--minutes", -1], "minutes must be above 0"),
        ({"minutes": 1, "settings": {"predictor_steps": 9}}, ["--minutes", 1, "--predictor-steps", 9],
         "--minutes and --predictor-steps both"),
        ({"receptive": 73, "settings": {"depth": 9}}, ["--receptive", 73, "--depth", 9], "both say how deep"),
        ({"receptive": 12, "recipe": "tiny"}, ["--receptive", 12, "--recipe", "tiny"], "from 13 to 1537, not 12"),
        ({"receptive": 20, "recipe": "fast"}, ["--receptive", 20, "--recipe", "fast"], "from 21 to 2561, not 20"),
        ({"steps": 5, "settings": {"image_steps": 9}}, ["--steps", 5, "--image-steps", 9], "--steps and --image-steps"),
    ):  # fmt: skip
        with pytest.raises(SinfusionError, match=sentence):
            sinfusion.train(video_file, tmp_path / "run", **options)
        assert sentence in refused(video_file, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_frames_per_second_are_for_a_folder_of_frames(clip, tmp_path, command, begun):
    write_video(tmp_path / "frames", clip, fps=20)
    assert command(tmp_path / "frames", "--fps", 8, "--stride", 2).fps == 4
    assert begun(tmp_path / "frames", fps=8).fps == 8 and begun(clip).fps == 20


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "depth", "sees"), [("tiny", 6, 37), ("fast", 4, 41)])
def test_pixels_that_the_network_sees_choose_its_depth(video_file, begun, command, capsys, recipe, depth, sees):
    of_python = begun(video_file, recipe=recipe, minutes=90, receptive=40).recipe
    of_command = command(video_file, "--recipe", recipe, "--minutes", 90, "--receptive", 40).recipe
    assert of_python == of_command and (of_python.depth, of_python.receptive) == (depth, sees)
    assert f"(depth {depth}, which sees {sees} pixels across, " in capsys.readouterr().err
    other = {"dense_kernel": 1 if recipe == "fast" else 3}
    assert begun(video_file, recipe=recipe, receptive=40, settings=other).recipe.depth == 10 - depth


def test_a_run_that_goes_on_has_its_own_depth(video_run, refused):
    assert "leave out --receptive" in refused(video_run.path, "--receptive", 73)
    with pytest.raises(SinfusionError, match="leave out --receptive"):
        sinfusion.train(video_run.path, receptive=73)


def test_what_was_set_stays_though_it_equals_the_default_of_tiny(video_file, clip, begun, command):
    settings = {"filters": TINY.filters, "depth": TINY.depth}
    kept = begun(clip, recipe="tiny", minutes=90, settings=settings).recipe
    assert (kept.filters, kept.depth) == (TINY.filters, TINY.depth)
    half = command(video_file, "--recipe", "tiny", "--minutes", 90, "--filters", TINY.filters).recipe
    assert half.filters == TINY.filters


def test_steps_that_were_set_stay_though_they_equal_the_default_of_tiny(video_file, clip, begun, command):
    for run in (begun(clip, recipe="tiny", settings={"predictor_steps": TINY.predictor_steps}),
                command(video_file, "--recipe", "tiny", "--predictor-steps", TINY.predictor_steps)):  # fmt: skip
        assert run.models["predictor"]["steps"] == TINY.predictor_steps
        assert run.models["predictor"]["minutes"] is None
    assert begun(clip, recipe="tiny").models["predictor"]["minutes"] > 1


def test_a_recipe_object_is_taken_as_it_is(clip, begun):
    run = begun(clip, recipe=TINY)
    assert run.recipe == TINY and run.models["predictor"]["steps"] == TINY.predictor_steps
    assert begun(clip, recipe=TINY, minutes=90).recipe == TINY
    changed = begun(clip, recipe=TINY, settings={"crop": 0.9}).recipe
    assert changed == TINY.replace(crop=0.9)


def test_minutes_do_not_beat_the_steps_of_a_recipe_in_silence(clip, tmp_path):
    with pytest.raises(SinfusionError, match="--minutes and --predictor-steps both say how long"):
        sinfusion.train(clip, tmp_path / "run", PAPER.replace(predictor_steps=7), minutes=1)


def test_steps_are_those_of_each_model(clip, video_file, begun, command):
    for run in (begun(clip, recipe="fast", steps=7), command(video_file, "--steps", 7)):
        assert {name: model["steps"] for name, model in run.models.items()} == {"predictor": 7, "projector": 7}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"filtres": 8}}, "no setting 'filtres'"), ({"settings": {"name": "mine"}}, "no setting 'name'"),
        ({"settings": {"filters": "many"}}, "filters must be"), ({"recipe": {"filters": 8}}, "a Recipe, not"),
        ({"recipe": 7}, "a Recipe, not 7"), ({"tasks": "dance"}, "not dance"), ({"minutes": "5"}, "minutes must be"),
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(clip, tmp_path, options, words):
    with pytest.raises(SinfusionError, match=words):
        sinfusion.train(clip, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_one_task_may_be_a_word(clip, begun):
    assert list(begun(clip, tasks="upsample").models) == ["interpolator"]


# Requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"minutes": 0}, "minutes must be above 0, not 0"), ({"steps": 0}, "steps must be a whole number from 1"),
        ({"minutes": 1, "steps": 1}, "--minutes and --steps both say"), ({"seed": -1}, "seed must be from 0"),
        ({"recipe": "huge"}, "paper, fast, tiny"), ({"settings": {"filtres": 8}}, "no setting 'filtres'"),
        ({"settings": {"filters": 3}}, "filters must be"), ({"tasks": ("dance",)}, "not dance"),
        ({"tasks": ()}, "not none"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_cannot_be_made_and_nothing_is_read(tmp_path, options, sentence):
    with pytest.raises(SinfusionError, match=sentence):
        TrainingRequest(source=Source(tmp_path / "no such file.mp4"), **options)
    if not {"seed", "recipe", "settings"} & set(options):
        with pytest.raises(SinfusionError, match=sentence):
            ContinuationRequest(folder=tmp_path / "no such run", **options)


def test_a_size_that_no_network_takes_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SinfusionError, match="too small"):
        TrainingRequest(source=Source(tmp_path / "no such file.mp4", size=(4, 4)))


def test_a_request_is_frozen_and_has_the_name_of_its_folder(clip, tmp_path):
    request = TrainingRequest(source=Source(tmp_path / "fish.mp4"), seed=np.int64(3))
    assert str(request.folder) == "runs/fish" and type(request.seed) is int
    assert str(TrainingRequest(source=Source(clip)).folder) == "runs/frames"
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.minutes = 5


def test_the_device_and_the_minutes_decide_the_recipe_where_nothing_is_said(clip):
    request = TrainingRequest(source=Source(clip))
    assert request.resolve(torch.device("cpu")) == (TINY, 10.0)
    assert request.resolve(torch.device("cuda")) == (FAST, None)
    five = TrainingRequest(source=Source(clip), steps=5).resolve(torch.device("cpu"))
    assert five[1] is None and five[0].predictor_steps == five[0].image_steps == 5


@pytest.mark.parametrize(
    ("options", "sentence"), [({"device": "tpu"}, "device must be"), ({"precision": "int8"}, "precision must be")]
)
def test_what_cannot_compute_is_refused(options, sentence):
    with pytest.raises(SinfusionError, match=sentence):
        Compute(**options)


def test_tasks_decide_the_models():
    assert [role.name for role in roles_for("video", 3, None)] == ["predictor", "projector"]
    assert [role.name for role in roles_for("video", 3, ("upsample", "generate"))] == [
        "predictor", "projector", "interpolator",
    ]  # fmt: skip
    assert [role.name for role in roles_for("image", 1, None)] == ["image"]
