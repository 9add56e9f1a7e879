"""sinfusion loop through the real entry point."""

import json

import numpy as np
import pytest
from PIL import Image

from sinfusion.cli import main
from sinfusion.media import read_media, write_video


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Results without --out go to outputs/ in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fish(tmp_path, texture):
    """A folder of nine frames."""
    write_video(tmp_path / "fish", texture(9, (16, 24), 2), fps=20)
    return tmp_path / "fish"


def do(*words):
    assert main(["loop", *map(str, words)]) == 0


def test_a_clip_loops_and_its_figures_are_printed_and_kept(fish, tmp_path, capsys):
    do(fish, "--frames", 6)
    assert "the seam: the last frame to the first changes " in capsys.readouterr().err
    assert read_media(tmp_path / "outputs/fish/loop-1.mp4").frames.shape == (6, 16, 24, 3)
    record = json.loads((tmp_path / "outputs/fish/loop-1.mp4.json").read_text())
    assert record["command"] == "loop" and record["loop_frames"] == 6 and record["loop"]["seam"] > 0


def test_where_a_clip_cannot_loop_it_is_said_in_words(fish, capsys, monkeypatch):
    monkeypatch.setattr("sinfusion.metrics.loops.MOST", 0.01)
    do(fish)
    assert "it does not loop without a jump" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_the_file_has_the_loop_as_often_as_asked_and_plays_for_ever(fish, tmp_path, ending):
    do(fish, "--frames", 5, "--times", 3, "--out", f"a.{ending}")
    frames = read_media(tmp_path / f"a.{ending}").frames
    assert len(frames) == 15 and np.abs(frames[:5].astype(int) - frames[5:10]).mean() < 3
    with Image.open(tmp_path / f"a.{ending}") as image:
        assert image.info["loop"] == 0


def test_the_seams_of_a_tile_are_printed(fish, tmp_path, capsys):
    do(fish, "--tile", "x,y", "--out", "a.gif")
    assert "across the borders changes, over the median: x " in capsys.readouterr().err
    assert set(json.loads((tmp_path / "a.gif.json").read_text())["tile"]) == {"x", "y"}


@pytest.mark.parametrize(
    "words, said",
    [
        (("--times", 0), "--times must be at least 1, not 0"),
        (("--frames", 10), "as many as the input, 9, not 10"),
        (("--tile", "z"), "tile must be x, y or x,y, not 'z'"),
        (("--out", "a.avi"), ".mp4, .gif, .webp or .png"),
    ],
)
def test_what_cannot_be_is_refused(fish, refused, words, said):
    assert said in refused("loop", fish, *words)


def test_an_image_does_not_loop(image_file, refused):
    assert "a loop needs a video" in refused("loop", image_file)


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_loops_too(run_copy, capsys):
    do(run_copy, "--frames", 5, "--times", 2, "--format", "webp", "--projection", 0.5)
    assert "the seam: the last frame to the first changes " in capsys.readouterr().err
    assert len(read_media(run_copy / "outputs/loop-1.webp").frames) == 10
    assert json.loads((run_copy / "outputs/loop-1.webp.json").read_text())["loop_frames"] == 5


def test_an_image_run_does_not_loop(image_run, refused):
    assert "this needs a run trained on a video" in refused("loop", image_run.path)


def test_options_without_effect_are_refused(fish, run_copy, refused):
    assert "--max-side is for the loop of a clip" in refused("loop", run_copy, "--max-side", 9)
    assert "--tile is for the loop of a clip" in refused("loop", run_copy, "--tile", "x")
    assert "--projection is for a loop from a run" in refused("loop", fish, "--projection", 1)
