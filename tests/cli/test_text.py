"""Guidance by text through the real commands, with a CLIP of random weights."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra: pip install 'sinfusion[text]'")

from PIL import Image

import sinfusion
from sinfusion.cli import main
from sinfusion.media import read_image


def do(*words):
    assert main([*map(str, words)]) == 0


@pytest.fixture
def half(tmp_path, image_run):
    height, width = image_run.size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    Image.fromarray(mask).save(tmp_path / "half.png")
    return tmp_path / "half.png"


def test_generate_guides_images_and_records_what_guided_them(image_run, clip_folder, tmp_path, half):
    plain, guided = tmp_path / "plain.png", tmp_path / "guided.png"
    do("generate", image_run.path, "--out", plain)
    do("generate", image_run.path, "--text", "the man", "--text-model", clip_folder, "--where", half, "--out", guided)
    assert not np.array_equal(read_image(plain), read_image(guided))
    record = json.loads(guided.with_name("guided.png.json").read_text())
    assert record["arguments"]["text"] == "the man" and record["arguments"]["text_model"] == str(clip_folder)
    weights = (clip_folder / "model.safetensors").read_bytes()
    assert record["text_model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert "text_model_sha256" not in json.loads(plain.with_name("plain.png.json").read_text())


def test_generate_takes_the_looks_of_a_picture(image_run, clip_folder, tmp_path, half):
    do("generate", image_run.path, "--style", half, "--text-model", clip_folder, "--out", tmp_path / "styled.png")
    assert (tmp_path / "styled.png").exists()


def test_edit_changes_a_part_by_words(image_run, clip_folder, tmp_path, half):
    picture, out = tmp_path / "picture.png", tmp_path / "edited.png"
    Image.fromarray(image_run.frames[0]).save(picture)
    words = ["--mask", half, "--text", "the man", "--text-model", clip_folder, "--out", out]
    do("edit", image_run.path, picture, *words)
    right = slice(image_run.size[1] // 2, None)
    assert np.array_equal(read_image(out)[:, right], image_run.frames[0][:, right])
    assert not np.array_equal(read_image(out), image_run.frames[0])


def test_restyle_makes_a_run_that_other_commands_take(video_run, clip_folder, tmp_path, capsys):
    words = ["--text", "the man", "--text-model", clip_folder, "--minutes", 0.01, "--out", tmp_path / "new"]
    do("restyle", video_run.path, *words)
    clip, said = tmp_path / "new/outputs/restyled.mp4", capsys.readouterr().out
    assert said == f"{clip}\nrestyled {tmp_path / 'new'}; next: sinfusion generate {tmp_path / 'new'}\n"
    assert len(sinfusion.read_video(clip).frames) == len(video_run.frames)
    do("extrapolate", tmp_path / "new", "--after", 2)
    assert main(["restyle", str(video_run.path), *map(str, words)]) == 2
    assert "exists; pass --overwrite or choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--text-fill", "0.5"], "--text-fill is about guidance by --text or --style; give one of them, too."),
        (["--text", "a", "--text-strength", "-1"], "--text-strength must be from 0 to 10, not -1.0."),
        (["--text", "a", "--text-model", "nowhere"], "nowhere is not a folder; bring a folder with a CLIP"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(image_run, words, sentence, capsys):
    assert main(["generate", str(image_run.path), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_the_help_of_guidance_is_a_page_of_its_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    do("generate", "--help-text")
    text = capsys.readouterr().out
    for option in ("--text-model", "--text-strength", "--text-fill", "--style", "--where"):
        assert option in text
    do("generate", "--help")
    assert "sinfusion generate --help-text" in capsys.readouterr().out
