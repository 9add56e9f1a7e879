"""The commands of the patch engine through the real entry point, on a tiny folder of frames and on an image."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from sinfusion.cli import main
from sinfusion.media import read_image, read_media, write_image, write_video

COMMANDS = ("generate", "retarget", "analogy", "inpaint")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Results without --out go to outputs/ in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def frames(texture):
    return texture(7, (16, 24), 2)


@pytest.fixture
def fish(tmp_path, frames):
    """A folder of seven frames."""
    write_video(tmp_path / "fish", frames, fps=20)
    return tmp_path / "fish"


@pytest.fixture
def photo(tmp_path, frames):
    write_image(tmp_path / "photo.png", frames[0])
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path):
    """White in its middle."""
    write_image(tmp_path / "mask.png", _white(4, 10))
    return tmp_path / "mask.png"


def _white(first, last):
    image = np.zeros((16, 24, 3), np.uint8)
    image[4:10, first:last] = 255
    return image


def do(*words):
    assert main(["patches", *map(str, words)]) == 0


@pytest.fixture
def refused(refused):
    """refused(said, *words): a command that must be refused, in a sentence that holds `said`."""

    def run(said, *words):
        sentence = refused("patches", *words)
        assert said in sentence and sentence.endswith(".")

    return run


ENDINGS = (".mp4", ".gif", ".png")


def checked(base):
    """The record of a result; its files and its sheet must be there."""
    (path,) = (
        path for path in base.parent.glob("*.json") if path.stem in (base.name, *(base.name + e for e in ENDINGS))
    )
    record = json.loads(path.read_text())
    assert all((base.parent / name).exists() for name in record["files"])
    assert read_image(path.with_name(f"{path.stem}-sheet.png"), max_side=None).size
    assert record["seconds"] >= 0 and record["version"] and "run" not in record
    return record


# Help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_patches_alone_lists_its_commands(capsys, words):
    do(*words)
    text = capsys.readouterr().out
    assert "usage: sinfusion patches COMMAND" in text and "without training" in text
    for command in COMMANDS:
        assert sum(line.startswith(f"  {command} ") and line.endswith(".") for line in text.split("\n")) == 1
    assert main([]) == 0
    assert "\n  patches      New videos and images from one in seconds, " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_fits_and_ends_with_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    do(command, "--help")
    lines = capsys.readouterr().out.rstrip().split("\n")
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    assert lines[-1].startswith(f"  sinfusion patches {command} fish.mp4") or command == "analogy"
    shared = ("--out", "--format", "--max-side", "--start", "--stop", "--stride", "--seed", "--device", "--overwrite")
    assert all(any(f"{option} " in line or line.endswith(option) for line in lines) for option in shared)


def test_a_command_that_is_not_there_is_refused(refused):
    refused("there is no command 'patches train'; there are patches generate, patches retarget", "train", "fish")


# Generate ------------------------------------------------------------------------------------------------------------


def test_generate_writes_a_video_a_sheet_and_a_record_numbered_in_outputs(fish, frames, tmp_path, capsys):
    for number in (1, 2):
        do("generate", fish)
        base = tmp_path / f"outputs/fish/patches-generate-{number}"
        record = checked(base)
        assert record["command"] == "patches generate" and record["input"] == str(fish)
        assert (record["frames"], record["size"], record["fps"], record["seed"]) == (4, "24x16", 20, 0)
        assert record["arguments"]["noise"] == 5
        assert read_media(base.with_suffix(".mp4")).frames.shape == (4, 16, 24, 3)
        assert f"outputs/fish/patches-generate-{number}.mp4" in capsys.readouterr().out
    assert len(list((tmp_path / "outputs/fish").iterdir())) == 6


def test_generate_writes_several_of_another_size_and_length_one_file_each(fish, frames, tmp_path):
    do("generate", fish, "--count", 3, "--size", "30x20", "--frames", 5, "--format", "png", "--out", "many")
    assert checked(tmp_path / "many")["files"] == ["many-1", "many-2", "many-3"]
    outputs = [read_media(tmp_path / f"many-{n}").frames for n in (1, 2, 3)]
    assert outputs[0].shape == (5, 20, 30, 3) and not np.array_equal(outputs[0], outputs[1])
    assert read_image(tmp_path / "many-sheet.png", max_side=None).shape[0] > 3 * 20  # a row each
    do("generate", fish, "--seed", 1, "--size", "30x20", "--frames", 5, "--format", "png", "--out", "one")
    assert np.array_equal(read_media(tmp_path / "one").frames, outputs[1])


def test_generate_takes_scale_noise_and_a_part_of_the_input(fish, frames, tmp_path):
    part = ("--start", 1, "--stop", 6, "--stride", 2, "--format", "png")
    do("generate", fish, *part, "--noise", 0, "--out", "same")
    assert checked(tmp_path / "same")["fps"] == 10
    assert np.abs(read_media(tmp_path / "same").frames.astype(int) - frames[1:6:2]).mean() < 2
    do("generate", fish, "--scale", 0.5, "--out", "small.gif")
    assert read_media(tmp_path / "small.gif").frames.shape[1:] == (8, 12, 3)


def test_generate_writes_images_for_an_image(photo, tmp_path):
    do("generate", photo, "--count", 2)
    base = tmp_path / "outputs/photo/patches-generate-1"
    assert checked(base)["files"] == ["patches-generate-1-1.png", "patches-generate-1-2.png"]
    one, two = (read_image(base.with_name(name)) for name in checked(base)["files"])
    assert one.shape == (16, 24, 3) and not np.array_equal(one, two)


def test_a_video_file_of_one_frame_gives_videos_of_one_frame(frames, tmp_path):
    write_video(tmp_path / "one.mp4", frames[:1], fps=10)
    do("generate", "one.mp4", "--out", "new.mp4")
    assert read_media(tmp_path / "new.mp4").frames.shape == (1, 16, 24, 3)


def test_the_current_folder_and_the_one_above_have_names_too(fish, tmp_path, monkeypatch):
    monkeypatch.chdir(fish)
    do("generate", ".")
    assert (fish / "outputs/fish/patches-generate-1.mp4").exists()
    (fish / "below").mkdir()
    monkeypatch.chdir(fish / "below")
    do("generate", "..")
    assert (fish / "below/outputs/fish/patches-generate-1.mp4").exists()


def test_a_larger_input_is_scaled_down_unless_its_size_is_to_be_kept(fish, tmp_path, capsys):
    do("generate", fish, "--max-side", 12, "--format", "png", "--out", "small")
    assert checked(tmp_path / "small")["size"] == "12x8" and "scaled 24x16 to 12x8" in capsys.readouterr().err


# Retarget ------------------------------------------------------------------------------------------------------------


def test_retarget_brings_a_video_to_a_size_and_a_length(fish, tmp_path):
    do("retarget", fish, "--size", "40x16", "--out", "wide.mp4")
    assert checked(tmp_path / "wide")["size"] == "40x16"
    assert read_media(tmp_path / "wide.mp4").frames.shape == (7, 16, 40, 3)
    do("retarget", fish, "--frames", 10, "--format", "png", "--out", "long")
    assert checked(tmp_path / "long")["frames"] == 10 and read_media(tmp_path / "long").frames.shape == (10, 16, 24, 3)


def test_retarget_brings_an_image_to_a_size(photo, tmp_path):
    do("retarget", photo, "--size", "40x16")
    assert read_image(tmp_path / "outputs/photo/patches-retarget-1.png").shape == (16, 40, 3)


# Analogy -------------------------------------------------------------------------------------------------------------


def test_analogy_gives_the_content_the_look_of_the_style(fish, texture, tmp_path):
    style = texture(5, (20, 20), 1, seed=1) // 2
    style[..., 2] = 7
    write_video(tmp_path / "style", style, fps=20)
    do("analogy", fish, tmp_path / "style", "--format", "png")
    outputs = read_media(tmp_path / "outputs/fish/patches-analogy-1").frames
    assert outputs.shape == (7, 16, 24, 3) and (outputs[..., 2] == 7).all()
    assert checked(tmp_path / "outputs/fish/patches-analogy-1")["arguments"]["style"] == str(tmp_path / "style")
    do("analogy", fish, tmp_path / "style", "--sketch", "--format", "png", "--out", "sketched")
    assert not np.array_equal(read_media(tmp_path / "sketched").frames, outputs)


def test_analogy_of_images(photo, texture, tmp_path):
    write_image(tmp_path / "style.png", texture(1, (20, 20), seed=1)[0] // 2)
    do("analogy", photo, "style.png", "--out", "new.png")
    assert read_image(tmp_path / "new.png").shape == (16, 24, 3) and read_image(tmp_path / "new.png").max() < 128


# Inpaint -------------------------------------------------------------------------------------------------------------


def test_inpaint_fills_a_masked_image_and_nothing_else(photo, mask, frames, tmp_path):
    do("inpaint", photo, "--mask", mask)
    outputs = read_image(tmp_path / "outputs/photo/patches-inpaint-1.png")
    changed = (outputs != frames[0]).any(2)
    assert changed.any() and not (changed & (_white(4, 10)[..., 0] == 0)).any()
    assert checked(tmp_path / "outputs/photo/patches-inpaint-1")["arguments"]["mask"] == str(mask)


def test_inpaint_takes_an_image_for_all_frames_of_a_video(fish, mask, frames, tmp_path):
    do("inpaint", fish, "--mask", mask, "--format", "png", "--out", "new")
    changed = (read_media(tmp_path / "new").frames != frames).any(3)
    assert changed.any((1, 2)).all() and not (changed & (_white(4, 10)[..., 0] == 0)).any()


@pytest.mark.parametrize("kind", ["frames", "frames.mp4"])
def test_inpaint_takes_a_video_as_mask_and_the_same_part_of_it_as_of_the_input(fish, frames, tmp_path, kind):
    masks = [_white(2 * t, 2 * t + 6) for t in range(7)]
    write_video(tmp_path / kind, masks, fps=20)
    part = ("--start", 1, "--stop", 6, "--stride", 2) if kind == "frames" else ()
    do("inpaint", fish, "--mask", tmp_path / kind, *part, "--format", "png", "--out", "new")
    outputs, used = read_media(tmp_path / "new").frames, slice(1, 6, 2) if part else slice(None)
    kept = np.stack(masks)[used, ..., 0] == 0
    assert len(outputs) == len(kept) and np.array_equal(outputs[kept], frames[used][kept])
    assert ((outputs != frames[used]).any(3) & ~kept).any((1, 2)).all()


def test_inpaint_takes_hints_and_large_masks_of_large_inputs(tmp_path, texture):
    large = texture(1, (32, 48))[0]
    white = _white(8, 20).repeat(2, 0).repeat(2, 1)
    large[white[..., 0] > 0] = (255, 0, 0)
    write_image(tmp_path / "large.png", large)
    write_image(tmp_path / "mask.png", white)
    for name, words in (("with", ("--hints",)), ("without", ())):
        do("inpaint", "large.png", "--mask", "mask.png", "--max-side", 24, "--out", f"{name}.png", *words)
    outputs = [read_image(tmp_path / f"{name}.png") for name in ("with", "without")]
    assert outputs[0].shape == (16, 24, 3) and not np.array_equal(*outputs)


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_result_that_exists_is_written_over_only_when_asked(fish, photo, mask, refused, tmp_path):
    for words in (
        ("generate", fish),
        ("generate", fish, "--count", 2),
        ("retarget", fish, "--frames", 5),
        ("analogy", fish, fish),
        ("inpaint", fish, "--mask", mask),
    ):
        (tmp_path / ("new-2.mp4" if "--count" in words else "new.mp4")).write_text("precious")
        refused("exists; pass --overwrite", *words, "--out", "new.mp4")
        do(*words, "--out", "new.mp4", "--overwrite")
        assert checked(tmp_path / "new")["command"] == f"patches {words[0]}"
        for path in tmp_path.glob("new*"):
            path.unlink()


def test_no_such_file_is_refused(refused, fish, photo, tmp_path):
    for words in (
        ("generate", "none.mp4"),
        ("retarget", "none.mp4", "--size", "30x20"),
        ("analogy", "none.mp4", fish),
        ("analogy", fish, "none.mp4"),
        ("inpaint", "none.mp4", "--mask", photo),
        ("inpaint", photo, "--mask", "none.mp4"),
    ):
        refused("none.mp4 does not exist", *words)


def test_masks_that_do_not_fit_are_refused(refused, fish, photo, mask, tmp_path):
    for name, images in (
        ("short", [_white(4, 10)] * 6),
        ("long", [_white(4, 10)] * 8),
        ("narrow", [_white(4, 10)[:, :16]]),
        ("black", [_white(4, 4)]),
        ("white", [np.full((16, 24, 3), 255, np.uint8)]),
    ):
        write_video(tmp_path / name, images, fps=20)
    refused("short has 6 frame(s); give a mask of 7", "inpaint", fish, "--mask", "short")
    refused("long has 8 frame(s); give a mask of 7", "inpaint", fish, "--mask", "long")
    refused("short has 1 frame(s); give a mask of 2", "inpaint", fish, "--mask", "short", "--start", 5)
    refused("long has 8 frame(s); give a mask of 1", "inpaint", photo, "--mask", "long")
    refused("the mask narrow is 16x16; it must have the aspect ratio of 24x16", "inpaint", fish, "--mask", "narrow")
    refused("the mask is empty", "inpaint", fish, "--mask", "black")
    refused("leaves too little", "inpaint", fish, "--mask", "white")
    assert main(["patches", "inpaint", str(fish)]) == 2  # without a mask


def test_inputs_that_are_too_small_are_refused(refused, fish, photo, frames, tmp_path):
    write_image(tmp_path / "low.png", frames[0, :6])
    refused("the input is 1 frame(s) of 24x6; at least 1 frame(s) of 7x7", "generate", "low.png")
    refused("the input is 7 frame(s) of 9x6; at least 3 frame(s)", "retarget", fish, "--max-side", 9, "--frames", 5)
    refused("the input is 1 frame(s) of 24x6", "analogy", photo, "low.png")
    refused("the input is 1 frame(s) of 24x6", "inpaint", "low.png", "--mask", "low.png")


@pytest.mark.parametrize(
    "words, said",
    [
        ("--frames 2", "2 frame(s)"), ("--frames 40000", "at most 32767"), ("--count 0", "--count must be at least 1"),
        ("--noise -1", "noise must be from 0"), ("--noise nan", "noise must be from 0"), ("--noise 1e39", "1e+39"),
        ("--scale 0", "scale must be above 0"), ("--scale 0.1", "2x2"), ("--size 24", "WIDTHxHEIGHT"),
        ("--size 6x24", "7x7"), ("--size 30x20 --scale 2", "give one of them"), ("--seed -1", "--seed must be"),
        ("--seed 4294967296", "--seed must be"), ("--device abacus", "abacus"), ("--max-side -1", "max_side"),
        ("--start 7", "no frames from 7"), ("--stop 0", "stop"), ("--stride 0", "stride"), ("--out a.avi", ".avi"),
        ("--out a.mp4 --format gif", "do not agree"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(refused, fish, words, said):
    refused(said, "generate", fish, *words.split())


def test_requests_that_do_not_go_together_are_refused(refused, fish, photo, mask, tmp_path):
    refused("give the size or the length of the result: --size, --frames or both", "retarget", fish)
    refused("an image has no length", "retarget", photo, "--frames", 5)
    refused("an image has no length", "generate", photo, "--frames", 5)
    refused("is an image input: its results are png images, not mp4", "generate", photo, "--out", "a.mp4")
    refused("not one of each", "analogy", fish, photo)
    refused("not one of each", "analogy", photo, fish, "--sketch")


def test_optical_flow_without_its_library_is_refused(refused, fish, monkeypatch):
    for name in ("cv2", "torchvision", "torchvision.models", "torchvision.models.optical_flow"):
        monkeypatch.setitem(sys.modules, name, None)
    refused("pip install opencv-python-headless", "analogy", fish, fish)
    refused("pip install torchvision", "analogy", fish, fish, "--raft", "raft.pth")


def test_a_place_that_cannot_be_written_to_is_refused(refused, fish, photo):
    refused("is not a folder that can be written to", "generate", fish, "--out", photo / "new.mp4")


def test_a_clip_is_resampled_and_the_result_plays_as_fast(frames, mask, tmp_path, capsys):
    write_video(tmp_path / "fish.mp4", frames, fps=20)
    write_video(tmp_path / "mask.mp4", np.stack([read_image(mask, max_side=None)] * len(frames)), fps=20)
    out = tmp_path / "a.mp4"
    capsys.readouterr()
    do("inpaint", tmp_path / "fish.mp4", "--mask", tmp_path / "mask.mp4", "--fps", 10, "--out", out)
    result = read_media(out)
    assert result.fps == 10 and len(result.frames) == 4
    printed = capsys.readouterr()
    assert "20 frames a second resampled to 10" in printed.err and "a second" not in printed.out


def test_a_rate_is_that_of_a_folder_of_frames(fish, mask, frames, tmp_path):
    do("inpaint", fish, "--mask", mask, "--fps", 10, "--out", tmp_path / "a.mp4")
    result = read_media(tmp_path / "a.mp4")
    assert result.fps == 10 and len(result.frames) == len(frames)
