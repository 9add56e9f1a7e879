"""Names of files and folders: typed, as a folder is named after them, pasted, in order."""

import os
import random
import shlex
from pathlib import Path

import pytest

from sinfusion.errors import SinfusionError
from sinfusion.media import write_image
from sinfusion.names import as_path, in_frame_order, name_after, pasteable
from sinfusion.training.request import Source, TrainingRequest, run_folder


@pytest.mark.parametrize(
    "names",
    [
        [f"frame_{i}.png" for i in range(-3, 11)],
        [f"{i}.png" for i in range(-11, 3)],
        [f"frame.{i:+d}.png" for i in range(-6, 12)],
        [f"frame_{i:05d}.png" for i in range(-12, 11)],
        [f"frame{i}.png" for i in range(-12, 11)],
        [f"frame-{i}.png" for i in range(-12, 11)],
        [f"t_{i / 4:.2f}.png" for i in range(-9, 12)],
        [f"shot-{i}.png" for i in range(1, 12)],
        ["IMG.png", *(f"IMG-{i}.png" for i in range(1, 12))],
        ["IMG.png", *(f"IMG ({i}).png" for i in range(1, 12))],
        [f"2024-{month:02}-{day:02}.png" for month in (9, 10, 11) for day in range(1, 12)],
        ["a_-2.png", "a_-1.png", "a_0.png", "b_-1.png", "b_3.png"],
        ["IMG_1.png", "img_2.PNG", "Img_3.jpg", "img_0010.png"],
        ["01.png", "1.png", "2.png", "02b.png", "10.png"],
        ["1700000000000000001_b.png", "1700000000000000002_a.png"],
        ["٣.png", "٤.png"],
    ],
    ids=lambda names: names[0],
)
def test_frames_are_in_the_order_that_their_names_count(names):
    shuffled = random.Random(0).sample(names, len(names))
    assert in_frame_order(shuffled) == names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("fish.mp4", "fish"), ("clip.tar.mp4", "clip.tar"), ("clip_2024.01.02", "clip_2024.01.02"),
        ("a.b/fish.webm", "fish"), ("folder.d/", "folder.d"), ("folder.d/.", "folder.d"),
        ("folder.d/in/..", "folder.d"),        (".hidden", ".hidden"), ("-", "-"), ("/", "run"),
        ("https://example.org/fish.mp4", "fish"), ("v1.2", "v1.2"),
        ("fish.", "fish."), ("CON.mp4", "CON"), ("魚🐟.mp4", "魚🐟"),
    ],
)  # fmt: skip
def test_a_folder_is_named_after_a_whole_folder_name_or_a_file_without_its_ending(path, name, tmp_path, monkeypatch):
    (tmp_path / "folder.d/in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_after(Path(path)) == name


def test_run_folders_have_whole_names(tmp_path, monkeypatch, clip):
    write_image(tmp_path / "clip_2024.01.02/1.png", clip[0])
    monkeypatch.chdir(tmp_path / "clip_2024.01.02")
    for value in ("../clip_2024.01.02", "../clip_2024.01.02/", ".", "../clip_2024.01.02/.", str(tmp_path) + "/x/..//"):
        folder = TrainingRequest(source=Source(value)).folder
        assert folder == Path("runs") / (tmp_path.name if "x" in value else "clip_2024.01.02")


@pytest.mark.parametrize("name", ["fish", "-x", "my fish's", '"', "a\nb", "~x", "$HOME", "a:b", "*", "é", "", "a;b&c"])
def test_a_pasted_name_is_one_word_and_no_option(name):
    (word,) = shlex.split(pasteable(name))
    assert os.path.normpath(word) == os.path.normpath(name) and not word.startswith(("-", "~"))


def test_a_tilde_is_the_home_folder_unless_there_is_something_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert as_path("~/a.mp4") == tmp_path / "home/a.mp4" and as_path("~") == tmp_path / "home"
    assert as_path("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")
    Path("~").mkdir()
    assert as_path("~") == Path("~")


def test_an_empty_name_is_refused_in_python_too():
    for call in (lambda: Source("").read(), lambda: Source("").probe(), lambda: run_folder("")):
        with pytest.raises(SinfusionError, match="empty name"):
            call()
