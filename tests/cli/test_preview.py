"""`sinfusion preview` through the real entry point, on a tiny folder of frames."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sinfusion import closed_form
from sinfusion.cli import main
from sinfusion.media import read_image, read_media, write_image, write_video


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Results without --out go to outputs/ in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def frames(texture):
    return texture(7, (16, 24), 2)


@pytest.fixture
def fish(tmp_path, frames):
    write_video(tmp_path / "fish", frames, fps=20)
    return str(tmp_path / "fish")


def test_a_preview_is_what_python_generates(tmp_path, fish, frames):
    assert main(["preview", fish, "--frames", "3", "--seed", "5", "--out", "after", "--format", "png"]) == 0
    found = read_media(tmp_path / "after")
    assert np.array_equal(found.frames, closed_form.generate(frames, 3, seed=5)[0])
    record = json.loads((tmp_path / "after.json").read_text())
    assert record["seed"] == 5 and record["arguments"]["wholeness"] == 0.5
    assert read_image(tmp_path / "after-sheet.png", max_side=None).size


def test_results_are_numbered_where_no_name_is_given(tmp_path, fish):
    assert main(["preview", fish, "--frames", "2", "--count", "2", "--stop", "5", "--wholeness", "0"]) == 0
    names = {path.name for path in (tmp_path / "outputs" / "fish").iterdir()}
    assert {"preview-1-1.mp4", "preview-1-2.mp4"} <= names


def test_what_cannot_go_on_is_refused_in_words(tmp_path, fish, frames, refused):
    write_image(tmp_path / "photo.png", frames[0])
    assert "is an image, in which nothing moves; give a video." in refused("preview", str(tmp_path / "photo.png"))
    assert "takes at least 3 frames of it, not 2." in refused("preview", fish, "--stop", "2")
    assert "wholeness must be from 0 to 1" in refused("preview", fish, "--wholeness", "2")
    assert "length must be at least 1, not 0" in refused("preview", fish, "--frames", "0")
    assert not (tmp_path / "outputs").exists()
