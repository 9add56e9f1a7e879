"""CLIP in `evaluate`: how well the frames of retold videos go together, and with their texts."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'sinfusion[tune]'")

import sinfusion
from sinfusion.cli import main
from sinfusion.errors import SinfusionError
from sinfusion.media import write_video
from sinfusion.metrics.clip_scores import recorded_prompt, scores
from sinfusion.text.clip import load


@pytest.fixture(scope="module")
def model(clip_folder):
    return load(clip_folder)


def test_scores_are_the_cosines_of_what_transformers_computes(model, texture):
    frames = texture(5, (16, 16))
    pixels = (torch.from_numpy(frames).movedim(-1, 1) / 255 - model.mean) / model.std
    ids = model.tokenizer(["the man"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        outputs = model.model(input_ids=ids, pixel_values=pixels)
    cosines = torch.nn.functional.cosine_similarity(outputs.image_embeds[:, None], outputs.image_embeds[None], dim=-1)
    found = scores(model, frames, "the man")
    assert found["clip_frames"] == pytest.approx(100 * cosines[~torch.eye(5, dtype=bool)].mean().item(), abs=1e-3)
    assert found["clip_text"] == pytest.approx(
        100 * (outputs.image_embeds @ outputs.text_embeds.T).mean().item(), abs=1e-3
    )


def test_equal_frames_go_together_and_one_image_has_a_text_alone(model, texture):
    frames = texture(1, (20, 30)).repeat(3, 0)
    assert scores(model, frames)["clip_frames"] == pytest.approx(100, abs=1e-3)
    assert scores(model, frames[0], "the man").keys() == {"clip_text"} and scores(model, frames[0]) == {}


def test_features_have_gradients(model):
    image = torch.zeros(2, 3, 40, 24, requires_grad=True)
    (model.image_features(image) @ model.words(["the man"]).T).sum().backward()
    assert image.grad[:, :, 20].abs().sum() > 0 and not image.grad[:, :, 0].any()  # of the middle square


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, stable_diffusion, texture):
    out = tmp_path_factory.mktemp("runs") / "ski"
    settings = {"frames": 6, "size": (64, 64), "steps": 1, "device": "cpu", "really_on_cpu": True, "quiet": True}
    sinfusion.tune(texture(6, (48, 48)), out, "a man is skiing", stable_diffusion, **settings)
    words = ["retell", out, "--prompt", "the man", "skiing", "--steps", 2, "--really-on-cpu", "--device", "cpu"]
    assert main([*map(str, words)]) == 0
    return out


def test_retold_videos_are_measured_against_what_they_were_told(run_folder, clip_folder, tmp_path, capsys):
    videos = [run_folder / "outputs" / f"retell-1-{i}.mp4" for i in (1, 2)]
    assert [recorded_prompt(video) for video in videos] == ["the man", "skiing"]
    words = ["evaluate", run_folder, *videos, "--clip", clip_folder, "--json", tmp_path / "numbers.json"]
    assert main([*map(str, words)]) == 0
    table = capsys.readouterr().out
    assert "CLIP frames" in table and "CLIP text" in table and "100 times the cosine" in table
    rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert [row["prompt"] for row in rows] == ["a man is skiing", "the man", "skiing"]
    assert all(-100 <= row[key] <= 100 for row in rows for key in ("clip_frames", "clip_text"))


def test_a_prompt_may_be_given_instead_and_needs_a_model(run_folder, clip_folder, texture, tmp_path):
    write_video(tmp_path / "other.mp4", texture(6, (64, 64), seed=1), fps=5)
    video = tmp_path / "other.mp4"
    assert recorded_prompt(video) is None
    rows = sinfusion.evaluate(run_folder, video, clip=clip_folder)
    assert "clip_text" in rows[0] and "clip_text" not in rows[1] and "clip_frames" in rows[1]
    assert sinfusion.evaluate(run_folder, video, clip=clip_folder, prompt="the")[1]["prompt"] == "the"
    with pytest.raises(SinfusionError, match="prompt is for CLIP"):
        sinfusion.evaluate(run_folder, video, prompt="the")
    with pytest.raises(SinfusionError, match="give videos that sinfusion retell has made"):
        sinfusion.evaluate(run_folder)


def test_folders_that_are_no_clip_are_refused(stable_diffusion, tmp_path, clip_folder):
    for folder in (tmp_path / "nothing", stable_diffusion, stable_diffusion / "text_encoder"):
        with pytest.raises(SinfusionError, match="bring a folder with a CLIP"):
            load(folder)
    with pytest.raises(SinfusionError, match="shorten it"):
        load(clip_folder).words(["man " * 40])
    assert np.isfinite(load(clip_folder).words(["the man"]).numpy()).all()
