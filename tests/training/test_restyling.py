"""A run in a new look: its clip is drawn to a text, and its models learn that."""

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.checkpoint import last_checkpoint
from sinfusion.errors import SettingError, SinfusionError
from sinfusion.generation.guidance import Guidance
from sinfusion.generation.restyling import FARTHEST, LEAST_CHANGE, restyled
from sinfusion.metrics.fidelity import change


class Redder:
    """In place of a CLIP: the redder, the better it agrees."""

    side, multiple, device = 16, 8, torch.device("cpu")

    def target(self, text):
        return torch.tensor([1.0, -0.5, -0.5])

    def target_of_image(self, image):
        return image.mean((1, 2))

    def agreement(self, images, target):
        return (images * target[:, None, None]).mean((1, 2, 3)) + 0.01 * images.square().mean((1, 2, 3))


@pytest.fixture(autouse=True)
def red(monkeypatch):
    monkeypatch.setattr(Guidance, "open_model", lambda self, device: Redder())


def redness(frames):
    return frames[..., 0].mean(dtype=float) - frames[..., 1:].mean(dtype=float)


def test_a_restyled_run_has_another_clip_and_models_that_learnt_it(video_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in video_run.path.rglob("*")}
    new = sinfusion.restyle(video_run, tmp_path / "red", text="red", minutes=0.02, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in video_run.path.rglob("*")} == before
    assert new.frames.shape == video_run.frames.shape and redness(new.frames) > redness(video_run.frames) + 1
    assert new.models.keys() == video_run.models.keys() and new.fps == video_run.fps
    for name in new.models:
        assert new.steps_done(name) > video_run.steps_done(name)
    assert (new.recipe.projection_weight, new.recipe.projection_tolerance) == (1, 0)
    again = sinfusion.load(tmp_path / "red")
    assert np.array_equal(again.frames, new.frames)
    assert sinfusion.generate(again, frames=3, start=0).shape == (1, 3, *video_run.frames.shape[1:])


def test_without_minutes_the_models_stay_and_videos_are_made_of_the_new_look(video_run, tmp_path):
    new = sinfusion.restyle(video_run, tmp_path / "red", text="red", text_strength=0.2, quiet=True)
    for name in new.models:
        assert new.steps_done(name) == video_run.steps_done(name)
    plain, red = (sinfusion.generate(run, frames=6, start=0)[0] for run in (video_run, new))
    assert all(redness(ours) > redness(theirs) + 0.5 for ours, theirs in zip(red, plain, strict=True))
    assert np.array_equal(red, sinfusion.generate(sinfusion.load(tmp_path / "red"), frames=6, start=0)[0])


def test_frames_are_restyled_together_so_that_nothing_flickers(video_run):
    plain = restyled(video_run, Guidance("red", strength=0.0))
    red = restyled(video_run, Guidance("red"))
    still = restyled(video_run.to(), Guidance("red"), seed=0)
    assert np.array_equal(red.frames, still.frames) and np.array_equal(video_run.frames, video_run.to().frames)
    assert change(red.frames) < 1.3 * change(plain.frames)
    video_of_one = video_run.to()
    video_of_one.frames = video_run.frames[:1].repeat(4, 0)
    assert change(restyled(video_of_one, Guidance("red")).frames) < 0.05


def test_what_the_projector_cannot_make_stays_and_only_what_guidance_moves_is_new(video_run):
    assert np.array_equal(restyled(video_run, Guidance("red", strength=0.0)).frames, video_run.frames)
    part = np.zeros(video_run.size, bool)
    part[:, : part.shape[1] // 2] = True
    moved = restyled(video_run, Guidance("red", where=part)).frames.astype(float) - video_run.frames
    assert np.abs(moved[:, part]).mean() > 2 * np.abs(moved[:, ~part]).mean()


def test_a_clip_is_moved_no_farther_than_its_motion_and_the_strength_say(video_run):
    slow = video_run.to()
    slow.frames = np.rint(0.9 * video_run.frames[:1] + 0.1 * video_run.frames).astype(np.uint8)
    change = np.sqrt(np.square(np.diff(slow.frames.astype(float), axis=0)).mean())
    for strength in (0.05, 0.1):
        moved = restyled(slow, Guidance("red", strength=strength)).frames.astype(float) - slow.frames
        farthest = FARTHEST * strength * max(change, LEAST_CHANGE * 127.5)
        assert 0.8 * farthest < np.sqrt(np.square(moved).mean()) < 1.1 * farthest  # rounded to whole numbers


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, "restyle needs text, or style"),
        ({"text": "red", "minutes": -1}, "minutes must be at least 0"),
        ({"text": "red", "amount": 0}, "amount must be above 0 and at most 1, not 0"),
        ({"text": "red", "seed": -1}, "seed must be from 0"),
        ({"text": "red", "out": "itself"}, "the run itself"),
        ({"text": "red", "out": "taken"}, "is not a run folder, so it is not overwritten"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(video_run, tmp_path, wrong, sentence):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    out = {"itself": video_run.path, "taken": tmp_path / "taken"}.get(wrong.pop("out", ""), tmp_path / "new")
    with pytest.raises((SettingError, SinfusionError), match=sentence):
        sinfusion.restyle(video_run, out, quiet=True, **wrong)
    assert not (tmp_path / "new").exists()


def test_runs_of_images_are_guided_as_they_generate_and_runs_of_videos_are_restyled(image_run, video_run, tmp_path):
    with pytest.raises(SinfusionError, match="needs a run trained on a video"):
        sinfusion.restyle(image_run, tmp_path / "new", text="red")
    with pytest.raises(SinfusionError, match=r"sinfusion restyle .* --text"):
        sinfusion.generate(video_run, text="red")


def test_a_kill_between_copies_leaves_a_run_that_can_be_trained(video_run, tmp_path, monkeypatch):
    import sinfusion.training.restyling as module

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        sinfusion.restyle(video_run, tmp_path / "red", text="red", quiet=True)
    left = sinfusion.load(tmp_path / "red")
    assert redness(left.frames) > redness(video_run.frames) and last_checkpoint(left.path / "predictor") is None
