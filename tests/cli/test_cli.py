"""Every command through the real entry point, on tiny runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tyro.conf import Positional

import sinfusion
from sinfusion.cli import COMMANDS, main
from sinfusion.cli.command import Command, Group, command_name
from sinfusion.cli.options import File, Format, parse_size
from sinfusion.cli.outputs import Outputs
from sinfusion.media import read_image, read_media, write_image
from sinfusion.recipe import RECIPES, Recipe
from sinfusion.run import load
from sinfusion.training.trainer import Trainer

SHORT = "--recipe fast --depth 2 --filters 4 --sampling-steps 2 --unconditional-sampling-steps 2".split()
STEPS = "--predictor-steps 4 --projector-steps 4 --interpolator-steps 4 --image-steps 4".split()


def do(*words):
    """Run a command that must succeed."""
    assert main([str(word) for word in words]) == 0


def process(*words, module="sinfusion", **options):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, **options,
    )  # fmt: skip


def checked(out: Path):
    """The record of a result; sheet and files must be there."""
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert all((out.parent / name).exists() for name in record["files"])
    assert read_image(out.with_name(f"{out.name}-sheet.png"), max_side=None).size
    assert record["seconds"] > 0 and record["version"] and record["run"]
    return record


def every_command(commands=COMMANDS, before=""):
    """The words and the class of every command, those in groups too."""
    for name, found in commands.items():
        if isinstance(found, Group):
            yield from every_command(found.commands, f"{before}{name} ")
        else:
            yield before + name, found


EVERY = dict(every_command())


# Help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", EVERY)
def test_help_fits_a_screen_and_ends_with_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().split("\n")
    assert lines[-2] == "example:" and lines[-1].startswith(f"  sinfusion {command} ")
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", EVERY)
def test_the_example_of_the_help_is_accepted(command):
    import tyro

    words, name = shlex.split(EVERY[command].example), command.split()
    assert words[: 1 + len(name)] == ["sinfusion", *name]
    assert tyro.cli(EVERY[command], args=words[1 + len(name) :])


@pytest.mark.parametrize("command", EVERY)
def test_the_class_of_a_command_is_named_like_it(command):
    assert command_name(EVERY[command]) == command


def test_every_setting_of_a_recipe_is_an_option_with_its_comment(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    assert "sinfusion train --help-recipe" in capsys.readouterr().out
    assert main(["train", "--help-recipe"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert field.name == "name" or f"--{field.name.replace('_', '-')} " in text
    assert "Peak learning rate of Adam. (0.0002, " in text


def test_help_and_version_do_not_import_torch():
    code = "import sys; from sinfusion.cli import main; main(['generate', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert process("--version").stdout.startswith("sinfusion 0.")


def test_output_that_nobody_reads_to_its_end_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sinfusion", "--help"],
        cwd=Path(__file__).parents[2], stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def test_without_a_command_all_commands_are_listed(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)


def test_unknown_options_and_commands_are_refused(capsys):
    assert main(["generate", "runs/x", "--fames", "3"]) == 2
    assert "--fames" in capsys.readouterr().err
    assert main(["frob"]) == 2
    assert "frob" in capsys.readouterr().err


# Groups --------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ClayKnead(Command):
    """Soften the clay. Takes strength."""

    example: ClassVar[str] = "sinfusion clay knead --times 3"
    lower: ClassVar[str] = "--times"

    # How many times.
    times: int = 1

    def __call__(self):
        print(f"kneaded {self.times} times")


@dataclass(kw_only=True)
class ClayKilnFire(Command):
    """Copies of an image, made without a run."""

    example: ClassVar[str] = "sinfusion clay kiln fire fish.png"
    lower: ClassVar[str] = "--count"

    # The image.
    input: Positional[Path]
    # File to write.
    out: File = None
    # Format.
    format: Format = None
    # Seed.
    seed: int = 0
    # How many.
    count: int = 1
    # Write over files that exist.
    overwrite: bool = False

    def __call__(self):
        with Outputs(self, "image", self.input.parent / "outputs", {"input": self.input}, self.count) as outputs:
            outputs.write_images(np.stack([read_image(self.input)] * self.count))


@pytest.fixture
def clay(monkeypatch):
    kiln = Group("What makes clay hard.", {"fire": ClayKilnFire})
    group = Group("Everything of clay. Needs no run.", {"knead": ClayKnead, "kiln": kiln})
    monkeypatch.setitem(COMMANDS, "clay", group)


def test_the_overview_has_a_line_for_a_group(clay, capsys):
    assert main([]) == 0
    assert "\n  clay         Everything of clay.\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["clay"], ["clay", "--help"], ["clay", "-h"]])
def test_a_group_alone_lists_its_commands_as_the_overview_does(clay, capsys, words):
    assert main(words) == 0
    assert capsys.readouterr().out.split("\n") == [
        "usage: sinfusion clay COMMAND ... [--debug]",
        "",
        "Everything of clay. Needs no run.",
        "",
        "  knead        Soften the clay.",
        "  kiln         What makes clay hard.",
        "",
        "sinfusion clay COMMAND --help lists the options of a command; --debug shows where an error comes from.",
        "",
        "example:",
        "  sinfusion clay knead --times 3",
        "  sinfusion clay kiln fire fish.png",
        "",
    ]


def test_a_command_in_a_group_has_help_with_all_its_words(clay, capsys):
    assert main(["clay", "knead", "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().split("\n")
    assert lines[0].startswith("usage: sinfusion clay knead ")
    assert lines[-2:] == ["example:", "  sinfusion clay knead --times 3"]
    assert any("How many times." in line for line in lines)


def test_a_command_in_a_group_does_its_work_at_any_depth(clay, capsys, image_file):
    do("clay", "knead", "--times", 4)
    assert capsys.readouterr().out == "kneaded 4 times\n"
    do("clay", "kiln", "fire", image_file)
    assert str(image_file.parent / "outputs/clay-kiln-fire-1.png") in capsys.readouterr().out


def test_an_unknown_command_of_a_group_is_refused_in_one_sentence(clay, capsys):
    for words, named in ((["clay", "frob"], "clay knead, clay kiln"), (["clay", "kiln", "frob"], "clay kiln fire")):
        assert main(words) == 2
        assert capsys.readouterr().err == f"error: there is no command {' '.join(words)!r}; there are {named}.\n"
    assert main(["clay", "knead", "--tmes", "3"]) == 2
    assert "--tmes" in capsys.readouterr().err


def test_results_without_a_run_are_numbered_and_recorded_with_their_input(clay, capsys, image_file):
    outputs = image_file.parent / "outputs"
    do("clay", "kiln", "fire", image_file)
    do("clay", "kiln", "fire", image_file, "--count", 2)
    assert {p.name for p in outputs.glob("*.png")} == {
        "clay-kiln-fire-1.png", "clay-kiln-fire-1.png-sheet.png",
        "clay-kiln-fire-2-1.png", "clay-kiln-fire-2-2.png", "clay-kiln-fire-2.png-sheet.png",
    }  # fmt: skip
    record = json.loads((outputs / "clay-kiln-fire-2.png.json").read_text())
    assert record["command"] == "clay kiln fire"
    assert record["files"] == ["clay-kiln-fire-2-1.png", "clay-kiln-fire-2-2.png"]
    assert record["input"] == str(image_file.resolve()) and "run" not in record
    capsys.readouterr()
    assert main(["clay", "kiln", "fire", str(image_file), "--format", "mp4"]) == 2
    assert f"{image_file} is an image input: its results are png images, not mp4." in capsys.readouterr().err


# Options -------------------------------------------------------------------------------------------------------------


def test_a_size_is_width_first_on_the_command_line():
    assert parse_size("256x144") == (144, 256)
    assert parse_size(None) is None


# Training ------------------------------------------------------------------------------------------------------------


def test_train_as_a_module_is_sinfusion_train(video_file, tmp_path):
    done = process(video_file, "--out", tmp_path / "run", *SHORT, *STEPS, "--crop", 0.9, module="sinfusion.train")
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout and "Traceback" not in done.stderr
    run = load(tmp_path / "run")
    assert run.recipe == RECIPES["fast"].replace(
        depth=2, filters=4, sampling_steps=2, unconditional_sampling_steps=2, crop=0.9, predictor_steps=4,
        projector_steps=4, interpolator_steps=4, image_steps=4, max_frame_offset=run.recipe.max_frame_offset,
    )  # fmt: skip
    assert {name: model["steps"] for name, model in run.models.items()} == {"predictor": 4, "projector": 4}


def test_train_takes_frames_size_and_tasks_from_the_command_line(video_file, tmp_path):
    do("train", video_file, "--out", tmp_path / "run", "--size", "20x12", "--start", 1, "--stop", 9, "--stride", 2,
       "--tasks", "upsample", "--seed", 5, *SHORT, *STEPS)  # fmt: skip
    run = load(tmp_path / "run")
    assert run.frames.shape == (4, 12, 20, 3) and list(run.models) == ["interpolator"] and run.seed == 5


def test_an_image_trains_the_image_model(image_file, tmp_path):
    do("train", image_file, "--out", tmp_path / "run", *SHORT, *STEPS)
    assert list(load(tmp_path / "run").models) == ["image"]


def test_steps_on_the_command_line_hold_for_tiny_too(image_file, tmp_path):
    do("train", image_file, "--out", tmp_path / "run", "--recipe", "tiny", "--filters", 4, "--depth", 2,
       "--image-steps", 3)  # fmt: skip
    run = load(tmp_path / "run")
    assert run.models["image"]["steps"] == 3 and run.recipe.filters == 4


def test_an_interrupted_training_goes_on_with_the_command_it_prints(image_file, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def interrupted(trainer):
        if trainer.done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        words = ["train", str(image_file), "--out", str(tmp_path / "run"), *SHORT, "--image-steps", "9"]
        assert main(words) == 130
    said = capsys.readouterr().err
    assert f"sinfusion train {tmp_path / 'run'}\n" in said and said.endswith("interrupted.\n")
    assert (tmp_path / "run/image/step-00000004").exists()
    do("train", tmp_path / "run")
    assert (tmp_path / "run/image/step-00000009").exists()


def test_continuing_a_run_refuses_other_settings(image_run, capsys):
    assert main(["train", str(image_run.path), "--seed", "7"]) == 2
    assert "--seed" in capsys.readouterr().err
    assert main(["train", str(image_run.path), "--depth", "4"]) == 2
    assert "--depth" in capsys.readouterr().err


# Making --------------------------------------------------------------------------------------------------------------


def test_generate_writes_a_video_a_sheet_and_a_record_into_the_run(video_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(video_run.path, run)
    for number in (1, 2):
        done = process("generate", run, "--frames", 5) if number == 1 else main(["generate", str(run), "--frames", "5"])
        assert done == 0 or done.returncode == 0, done.stderr
        record = checked(run / f"outputs/generate-{number}.mp4")
        assert (record["frames"], record["size"], record["fps"]) == (5, "24x16", video_run.fps)
        assert len(read_media(run / f"outputs/generate-{number}.mp4").frames) == 5


def test_generate_writes_several_videos_of_another_size_one_file_each(video_run, tmp_path):
    out = tmp_path / "many.gif"
    do("generate", video_run.path, "--frames", 4, "--count", 2, "--size", "32x20", "--start", 3, "--out", out)
    assert checked(out)["files"] == ["many-1.gif", "many-2.gif"]
    outputs = [read_media(tmp_path / name).frames for name in ("many-1.gif", "many-2.gif")]
    assert outputs[0].shape == (4, 20, 32, 3)
    assert not np.array_equal(*outputs)


def test_generate_can_write_a_folder_of_numbered_images(video_run, tmp_path):
    do("generate", video_run.path, "--frames", 3, "--format", "png", "--out", tmp_path / "frames", "--start", -1)
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"{n:05d}.png" for n in (1, 2, 3)]
    assert np.array_equal(read_image(tmp_path / "frames/00001.png"), video_run.frames[-1])


def test_generate_starts_from_an_image_file(video_run, image_file, tmp_path):
    do("generate", video_run.path, "--frames", 2, "--start", image_file, "--format", "png", "--out", tmp_path / "new")
    assert np.array_equal(read_image(tmp_path / "new/00001.png"), read_image(image_file))


def test_generate_is_repeatable_and_the_seed_changes_it(video_run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        do("generate", video_run.path, "--frames", 2, "--seed", seed, "--format", "png", "--out", tmp_path / name)
    a, b, c = (read_image(tmp_path / name / "00002.png") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_generate_writes_images_of_an_image_run(image_run, tmp_path):
    do("generate", image_run.path, "--count", 2, "--size", "30x18", "--out", tmp_path / "new.png")
    assert checked(tmp_path / "new.png")["size"] == "30x18"
    assert read_image(tmp_path / "new-2.png").shape == (18, 30, 3)


def test_extrapolate_keeps_the_clip_and_marks_what_is_new(video_run, tmp_path):
    do("extrapolate", video_run.path, "--after", 2, "--before", 1, "--mark", "--format", "png", "--out", tmp_path / "x")
    outputs, marked = (read_media(tmp_path / name).frames for name in ("x", "x-marked"))
    assert checked(tmp_path / "x")["files"] == ["x", "x-marked"]
    assert len(outputs) == len(video_run.frames) + 3
    assert np.array_equal(outputs[1:-2], video_run.frames) and np.array_equal(marked[1:-2], video_run.frames)
    assert not np.array_equal(marked[0], outputs[0]) and not np.array_equal(marked[-1], outputs[-1])


def test_upsample_keeps_the_originals_and_multiplies_the_rate(video_run, tmp_path):
    do("upsample", video_run.path, "--factor", 2, "--format", "png", "--out", tmp_path / "up")
    outputs = read_media(tmp_path / "up").frames
    assert np.array_equal(outputs[::2], video_run.frames) and len(outputs) == 2 * len(video_run.frames) - 1
    assert checked(tmp_path / "up")["fps"] == 2 * video_run.fps


def test_upsample_takes_another_video_with_its_own_rate(video_run, video_file, tmp_path):
    do("upsample", video_run.path, "--factor", 4, "--input", video_file, "--out", tmp_path / "up.mp4")
    outputs = read_media(tmp_path / "up.mp4")
    assert outputs.fps == pytest.approx(40) and len(outputs.frames) == 4 * 11 + 1


def test_upsample_takes_a_clip_without_a_run(video_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    do("upsample", video_file, "--factor", 4, "--max-side", 20)
    (found,) = (tmp_path / "outputs").rglob("upsample-*.mp4")
    outputs = read_media(found)
    assert outputs.fps == pytest.approx(40) and outputs.frames.shape[0] == 4 * 11 + 1
    assert max(outputs.frames.shape[1:3]) == 20


def test_extend_continues_a_video_or_a_picture_on_all_sides(video_run, image_file, clip, tmp_path):
    do("extend", video_run.path, "--size", "34x20", "--format", "png", "--out", tmp_path / "large")
    frames = read_media(tmp_path / "large", max_side=None).frames
    assert np.array_equal(frames[:, 2:18, 5:29], clip)
    how = "--input", image_file, "--length", 5, "--jumps", 0, "--format", "png", "--out", tmp_path / "still"
    do("extend", video_run.path, "--size", "34x20", *how)
    frames = read_media(tmp_path / "still", max_side=None).frames
    assert np.array_equal(frames[:, 2:18, 5:29], np.stack([clip[0]] * 5))


def test_retarget_scales_a_video_and_an_image_to_the_size_asked_for(video_run, image_run, video_file, tmp_path):
    do("retarget", video_run.path, "--size", "40x16", "--input", video_file, "--out", tmp_path / "wide.mp4")
    assert read_media(tmp_path / "wide.mp4").frames.shape == (12, 16, 40, 3)
    assert checked(tmp_path / "wide.mp4")["fps"] == pytest.approx(10)
    do("retarget", image_run.path, "--size", "40x16", "--out", tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").shape == (16, 40, 3)


def test_edit_keeps_what_the_mask_keeps(image_run, image_file, tmp_path):
    mask = np.zeros((16, 24, 3), np.uint8)
    mask[4:12, 6:18] = 255
    write_image(tmp_path / "mask.png", mask)
    do("edit", image_run.path, image_file, "--mask", tmp_path / "mask.png", "--strength", 1, "--out", tmp_path / "e")
    outputs, before = read_image(tmp_path / "e.png"), read_image(image_file)
    changed = (outputs != before).any(2)
    assert changed.any() and not changed[mask[..., 0] == 0].any()


def test_edit_scales_image_and_mask_down_to_the_training_size(image_run, tmp_path):
    write_image(tmp_path / "large.png", np.zeros((64, 96, 3), np.uint8))
    write_image(tmp_path / "mask.png", np.full((64, 96, 3), 255, np.uint8))
    do("edit", image_run.path, tmp_path / "large.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "e.png")
    assert read_image(tmp_path / "e.png").shape == (16, 24, 3)


def test_edit_continues_an_image_onto_a_larger_canvas(image_run, image_file, tmp_path):
    do("edit", image_run.path, image_file, "--canvas", "32x24", "--count", 2, "--out", tmp_path / "out.png")
    outputs = read_image(tmp_path / "out-2.png")
    assert outputs.shape == (24, 32, 3) and np.array_equal(outputs[4:20, 4:28], read_image(image_file))


def test_overwrite_replaces_results_and_a_run(video_run, image_run, image_file, tmp_path):
    for seed in (1, 2):
        do("generate", image_run.path, "--seed", seed, "--out", tmp_path / "x.png", "--overwrite")
        do("generate", video_run.path, "--seed", seed, "--frames", 2, "--out", tmp_path / "v.mp4", "--overwrite")
        do("train", image_file, "--out", tmp_path / "run", "--seed", seed, "--overwrite", *SHORT, *STEPS)
    assert checked(tmp_path / "x.png")["seed"] == 2 and load(tmp_path / "run").seed == 2


def test_fp32_is_a_choice_of_every_making_command(image_run, tmp_path):
    do("generate", image_run.path, "--precision", "fp32", "--device", "cpu", "--out", tmp_path / "x.png")
    assert checked(tmp_path / "x.png")["arguments"]["precision"] == "fp32"


def test_nothing_but_the_results_is_left(video_run, tmp_path):
    do("generate", video_run.path, "--frames", 2, "--out", tmp_path / "x.mp4")
    assert sorted(os.listdir(tmp_path)) == ["x.mp4", "x.mp4-sheet.png", "x.mp4.json"]


# Import --------------------------------------------------------------------------------------------------------------


def test_import_hands_everything_on_and_says_what_there_is(image_run, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("sinfusion.released.import_released", lambda *given: calls.append(given) or image_run)
    do("import", "a.ckpt", "--out", "runs/a", "--frames", "fish.png", "--role", "image", "--fps", 5)
    do("import", "b.ckpt", "--out", "runs/b")
    assert calls == [
        (Path("a.ckpt"), Path("runs/a"), Path("fish.png"), "image", 5.0),
        (Path("b.ckpt"), Path("runs/b"), None, None, None),
    ]
    said = capsys.readouterr().out
    assert f"{image_run.path} is a run with image" in said and f"sinfusion info {image_run.path}" in said


def test_import_is_a_function_of_the_package_too():
    from sinfusion.released import import_released

    assert sinfusion.import_released is import_released and "import_released" in sinfusion.__all__


# Frames per second ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("generate", "--frames", 3), ("extrapolate", "--after", 1), ("upsample",), ("retarget", "--size", "24x16")],
)
def test_results_of_a_run_play_at_the_rate_that_was_asked_for(video_run, tmp_path, words):
    do(words[0], video_run.path, *words[1:], "--fps", 7, "--out", tmp_path / "a.mp4")
    assert read_media(tmp_path / "a.mp4").fps == 7 and checked(tmp_path / "a.mp4")["fps"] == 7


def test_a_rate_is_not_for_images_and_above_zero(image_run, video_run, refused):
    assert "--fps is for videos" in refused("generate", image_run.path, "--fps", 7)
    assert "fps must be above 0" in refused("generate", video_run.path, "--fps", 0)


def test_a_run_is_trained_at_the_rate_that_was_asked_for(video_file, tmp_path):
    do("train", video_file, "--out", tmp_path / "run", "--fps", 5, *SHORT, *STEPS)
    run = load(tmp_path / "run")
    assert (len(run.frames), run.fps) == (6, 5)


# Sound ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_with_sound(video_run, tmp_path):
    """A copy of a run whose clip has a sound, a tone of AAC; and its file."""
    import av

    file, seconds = tmp_path / "fish.mkv", len(video_run.frames) / video_run.fps
    with av.open(str(file), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        wave = np.sin(np.arange(int(44100 * seconds)) / 20).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        sound.sample_rate = 44100
        out.mux([*stream.encode(sound), *stream.encode()])
    shutil.copytree(video_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("outputs"))
    description = json.loads((tmp_path / "run/run.json").read_text())
    description["sound"] = {
        "path": str(file), "start": 0.0, "stop": seconds, "bytes": file.stat().st_size, "in_step": True,
    }  # fmt: skip
    (tmp_path / "run/run.json").write_text(json.dumps(description))
    return tmp_path / "run", file


@pytest.mark.parametrize(
    "words", [("extrapolate", "--after", 1, "--before", 1), ("upsample",), ("retarget", "--size", "24x16")]
)
def test_results_that_run_beside_the_clip_keep_its_sound(run_with_sound, tmp_path, capsys, words):
    run, file = run_with_sound
    do(words[0], run, *words[1:], "--out", tmp_path / "a.mp4")
    assert "with the sound of fish.mkv" in capsys.readouterr().err
    assert read_media(tmp_path / "a.mp4").sound is not None
    do(words[0], run, *words[1:], "--fps", 3, "--out", tmp_path / "slow.mp4")
    assert "the sound of fish.mkv is left out: the result plays for" in capsys.readouterr().err
    assert read_media(tmp_path / "slow.mp4").sound is None
    file.unlink()
    do(words[0], run, *words[1:], "--out", tmp_path / "b.mp4")
    assert "left out: the file is not there any more" in capsys.readouterr().err


def test_a_run_remembers_the_sound_of_its_clip(run_with_sound):
    run, file = run_with_sound
    sound = load(run).sound
    assert sound.path == str(file) and load(run).description()["sound"]["stop"] == sound.stop
