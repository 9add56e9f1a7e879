"""--out and the names that commands print: dots, folders, ~, quotes."""

import re
import shlex

import numpy as np
import pytest

from sinfusion.cli import main
from sinfusion.media import read_media, write_image, write_video


@pytest.fixture
def fish(tmp_path, monkeypatch, clip):
    """fish.mp4 in the current folder; ~ is the folder home in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_video("fish.mp4", clip[:6], fps=10)
    return "fish.mp4"


def outputs(capsys, *words):
    """The files that a command of the patch engine names."""
    capsys.readouterr()
    assert main(["patches", "generate", *words, "--frames", "3"]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("out", "file"),
    [
        ("a.b.c", "a.b.c.mp4"), ("v1.2.gif", "v1.2.gif"), ("new.dir/", "new.dir/patches-generate-1.mp4"),
        ("old", "old/patches-generate-1.mp4"), ("old/", "old/patches-generate-1.mp4"), (".", "patches-generate-1.mp4"),
        ("old/..", "old/../patches-generate-1.mp4"), ("~/x.mp4", "home/x.mp4"), ("~/", "home/patches-generate-1.mp4"),
        ("-x.mp4", "-x.mp4"),
    ],
)  # fmt: skip
def test_out_takes_dots_folders_and_the_home_folder(fish, tmp_path, capsys, out, file):
    (tmp_path / "old").mkdir()
    named = outputs(capsys, fish, f"--out={out}")
    assert (tmp_path / named[0]).resolve() == (tmp_path / file).resolve()
    assert len(read_media(tmp_path / file).frames) == 3


def test_a_folder_given_twice_has_two_numbered_results(fish, tmp_path, capsys):
    for number in (1, 2):
        assert outputs(capsys, fish, "--out", "new/")[0] == f"new/patches-generate-{number}.mp4"


def test_a_folder_of_images_has_dots_and_is_replaced_only_when_asked(fish, tmp_path, capsys):
    words = (fish, "--out", "a.frames", "--format", "png")
    assert outputs(capsys, *words)[0] == "a.frames"
    assert main(["patches", "generate", *words, "--frames", "3"]) == 2
    assert outputs(capsys, *words, "--overwrite")[0] == "a.frames"
    (tmp_path / "other").mkdir()
    assert outputs(capsys, fish, "--out", "other", "--format", "png")[0] == "other/patches-generate-1"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fish.mp4", "--out", ""], "--out is empty"), (["fish.mp4", "--out="], "--out is empty"),
        ([""], "one of the names is empty"), (["fish.mp4", "--out", ".mp4"], "an ending without a name"),
        (["fish.mp4", "--out", "x.avi"], "must end in .mp4, .gif, .webp or .png, not .avi"),
        (["-x.mp4"], "given as ./-x.mp4"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused(fish, refused, clip, words, sentence):
    write_video("./-x.mp4", clip[:3], fps=10)
    assert sentence in refused("patches", "generate", *words)


def test_results_of_a_folder_are_named_after_all_of_its_name(fish, tmp_path, capsys, clip):
    for i in range(4):
        write_image(tmp_path / f"clip_2024.01.02/{i}.png", clip[i])
    assert outputs(capsys, "clip_2024.01.02/")[0] == "outputs/clip_2024.01.02/patches-generate-1.mp4"


def test_frames_of_several_sizes_are_accepted_with_the_option_that_the_refusal_names(fish, tmp_path, refused, capsys):
    frame = np.zeros((16, 24, 3), np.uint8)
    for i in range(4):
        write_image(tmp_path / f"frames/{i}.png", frame[: 16 - 2 * (i > 2)])
    sentence = refused("patches", "generate", "frames")
    words = re.search(r"(--input-size), such as (\d+x\d+)", sentence)
    assert outputs(capsys, "frames", *words.groups())


def test_a_printed_command_can_be_pasted(tmp_path, image_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--recipe fast --depth 2 --filters 4 --image-steps 2 --sampling-steps 2 --unconditional-sampling-steps 2"
    for number, name in enumerate(("my fish's", "-run", ".")):
        (tmp_path / f"{number}").mkdir()
        monkeypatch.chdir(tmp_path / f"{number}")
        assert main(["train", str(image_file), f"--out={name}", *words.split()]) == 0
        command = shlex.split(capsys.readouterr().out.split("next: ")[1])
        assert command[:2] == ["sinfusion", "generate"] and main(command[1:]) == 0


def test_what_is_no_run_is_told_with_what_to_do(refused, tmp_path, image_file, run_copy):
    assert refused("generate", image_file).endswith(f"train on it first: sinfusion train {image_file}")
    assert refused("generate", run_copy / "run.json").endswith(f"give the folder of the run: {run_copy}")
    assert refused("generate", run_copy / "predictor").endswith(f"give the folder of the run: {run_copy}")
    assert refused("generate", tmp_path).endswith(f"holds a run; give that: {run_copy}")
    assert f"such as {tmp_path / 'run'}" in refused("train", image_file, "--out", tmp_path)
