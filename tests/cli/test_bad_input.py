"""Whatever is wrong with a request: one sentence, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import sinfusion
from sinfusion.cli import main
from sinfusion.media import read_media, write_image, write_video

QUICK = "--recipe fast --depth 2 --filters 4 --predictor-steps 4 --projector-steps 4 --image-steps 4".split()


# Inputs --------------------------------------------------------------------------------------------------------------


def test_no_such_file(refused, video_run, image_run, tmp_path, video_file):
    missing, out = tmp_path / "missing.mp4", tmp_path / "out"
    for words in (
        ("train", missing),
        ("generate", video_run.path, "--start", missing),
        ("upsample", video_run.path, "--input", missing),
        ("retarget", video_run.path, "--size", "32x16", "--input", missing),
        ("edit", image_run.path, missing),
        ("edit", image_run.path, video_file, "--mask", missing),
    ):
        assert f"{missing} does not exist" in refused(*words, "--out", out)


@pytest.mark.parametrize("name", ["noise.mp4", "text.png", "text.mp4", "noise.gif"])
def test_something_that_is_no_video_and_no_image(refused, tmp_path, name):
    bad = tmp_path / name
    bad.write_bytes(b"just some words\n" * 40 if "text" in name else np.random.default_rng(0).bytes(5000))
    assert str(bad) in refused("train", bad, "--out", tmp_path / "run")


def test_an_empty_file_and_an_empty_folder(refused, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    assert "is empty" in refused("train", tmp_path / "empty.mp4", "--out", tmp_path / "run")
    assert "no images" in refused("train", tmp_path / "folder", "--out", tmp_path / "run")


@pytest.mark.parametrize("name", ["fish.mp4", "fish.gif", "fish.png"])
def test_a_truncated_file(refused, tmp_path, texture, name):
    whole, bad = tmp_path / name, tmp_path / f"half-{name}"
    frames = texture(24, (64, 96))
    write_image(whole, frames[0]) if whole.suffix == ".png" else write_video(whole, frames, fps=10)
    bad.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert str(bad) in refused("train", bad, "--out", tmp_path / "run")


def test_fewer_frames_than_the_model_needs(refused, tmp_path, clip):
    write_video(tmp_path / "one.mp4", clip[:1], fps=10)
    write_video(tmp_path / "two.mp4", clip[:2], fps=10)
    assert "needs at least 2" in refused("train", tmp_path / "one.mp4", "--out", tmp_path / "run")
    sentence = refused("train", tmp_path / "two.mp4", "--out", tmp_path / "run", "--tasks", "generate", "upsample")
    assert "interpolator needs at least 3" in sentence


def test_frames_of_different_sizes(refused, tmp_path, clip):
    write_image(tmp_path / "frames/1.png", clip[0])
    write_image(tmp_path / "frames/2.png", clip[0][:-2])
    sentence = refused("train", tmp_path / "frames", "--out", tmp_path / "run")
    assert "different sizes: 1.png is 24x16, 2.png is 24x14" in sentence


def test_sizes_and_crops_too_small_for_the_network(refused, tmp_path, video_file, video_run, image_run):
    out = ("--out", tmp_path / "out")
    assert "at least 8" in refused("train", video_file, "--size", "7x30", *out)
    assert "at least 8" in refused("train", video_file, "--max-side", "8", *out)
    assert "crop" in refused("train", video_file, "--size", "30x8", *QUICK, *out)
    assert "at least 8" in refused("generate", video_run.path, "--size", "30x7", *out)
    assert "at least 8" in refused("generate", image_run.path, "--size", "0x0", *out)
    assert "at least 8" in refused("retarget", video_run.path, "--size", "4x4", *out)


@pytest.mark.parametrize(
    "words",
    [
        "--frames 0", "--frames -3", "--count 0", "--steps 0", "--size 24", "--size 16:24", "--start 12",
        "--start -13", "--frame-offset 0", "--frame-offset 100", "--device abacus",
        "--steps 5000", "--seed -1", "--seed 99999999999999999999",
    ],
)  # fmt: skip
def test_values_that_make_no_sense_for_generate(refused, video_run, tmp_path, words):
    option, value = words.split()
    assert value.lstrip("-") in refused("generate", video_run.path, option, value, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        "--minutes 0",
        "--stride 0",
        "--start -1",
        "--start 99",
        "--filters 5",
        "--depth 1",
        "--batch-size 0",
        "--seed -1",
        "--sampling-steps 0",
        "--learning-rate nan",
        "--warmup 2",
        "--predictor-steps 0",
    ],
)
def test_values_that_make_no_sense_for_train(refused, video_file, tmp_path, words):
    option, value = words.split()
    assert value.lstrip("-") in refused("train", video_file, option, value, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--sigma-min 25", ("--sigma-min (25)", "--sigma-max (20)")),
        ("--unconditional-sigma-max 0.01", ("--unconditional-sigma-min (0.02)", "--unconditional-sigma-max (0.01)")),
        ("--offset-milestones 0.9 0.1", ("--offset-milestones must rise",)),
        ("--max-frame-offset 5", ("--max-frame-offset 5 needs 4 --offset-milestones",)),
        ("--recipe paper --timesteps 2", ("--correction-timesteps must be at most --timesteps, 2",)),
        ("--filters 5", ("--filters must be even",)),
    ],
)
def test_recipes_whose_settings_do_not_fit_together_are_refused_by_the_names_of_the_options(
    refused, tmp_path, words, names
):
    """Before any work: the input is not even looked for."""
    sentence = refused("train", tmp_path / "nothing.mp4", *words.split(), "--out", tmp_path / "out")
    assert all(name in sentence for name in names), sentence


def test_two_settings_that_contradict_each_other(refused, video_file, video_run, tmp_path):
    sentence = refused("train", video_file, "--minutes", 1, "--predictor-steps", 9, "--out", tmp_path / "run")
    assert "--predictor-steps" in sentence
    assert "agree" in refused("generate", video_run.path, "--out", tmp_path / "x.gif", "--format", "mp4")
    assert ".avi" in refused("generate", video_run.path, "--out", tmp_path / "x.avi")


def test_a_loss_that_is_not_finite_stops_with_a_sentence(video_file, tmp_path, capsys):
    words = ["train", str(video_file), "--out", str(tmp_path / "run"), *QUICK, "--learning-rate", "1e9"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "lower --learning-rate" in said and "Traceback" not in said
    assert not list((tmp_path / "run").rglob("step-*"))


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "extrapolate --after 2", "retarget --size 32x16", "info"])
def test_an_unknown_run(refused, tmp_path, command):
    name, *rest = command.split()
    assert "does not exist" in refused(name, tmp_path / "nothing", *rest)
    (tmp_path / "folder").mkdir()
    assert "is not a run folder" in refused(name, tmp_path / "folder", *rest)


def test_options_of_upsample_that_would_have_no_effect(refused, video_run, video_file):
    for words in (("--steps", 3), ("--seed", 1), ("--input", video_file), ("--no-graph",), ("--precision", "fp32")):
        assert f"{words[0].replace('no-', '')} is for a run" in refused("upsample", video_file, *words)
    assert "--max-side is for a clip" in refused("upsample", video_run.path, "--max-side", 16)


def test_a_run_of_another_kind(refused, video_run, image_run, video_file, tmp_path):
    out = ("--out", tmp_path / "out")
    for words in (
        ("extrapolate", image_run.path, "--after", 2),
        ("upsample", image_run.path),
        ("generate", image_run.path, "--frames", 3),
        ("generate", image_run.path, "--start", 3),
        ("generate", image_run.path, "--frame-offset", 2),
        ("generate", image_run.path, "--format", "mp4"),
    ):
        assert "image run" in refused(*words, *out)
    assert "video run" in refused("edit", video_run.path, video_file, *out)


def test_a_run_without_the_model_that_is_needed(refused, run_copy, tmp_path):
    out = ("--out", tmp_path / "out")
    shutil.rmtree(run_copy / "interpolator")
    sentence = refused("upsample", run_copy, *out)
    go_on = f"go on with: sinfusion train {run_copy}"
    assert sentence.endswith(f"stopped before its interpolator was trained; {go_on}")
    shutil.rmtree(run_copy / "projector")
    assert refused("generate", run_copy, *out).endswith(f"projector was trained; {go_on}, or --start 0")
    assert refused("retarget", run_copy, "--size", "32x16", *out).endswith(f"projector was trained; {go_on}")
    shutil.rmtree(run_copy / "predictor")
    assert refused("extrapolate", run_copy, "--after", 1, *out).endswith(f"predictor was trained; {go_on}")
    run = json.loads((run_copy / "run.json").read_text())
    del run["models"]["interpolator"]
    (run_copy / "run.json").write_text(json.dumps(run))
    sentence = refused("upsample", run_copy, *out)
    assert sentence.endswith(f"add it with: sinfusion train {run_copy} --tasks upsample")


@pytest.mark.parametrize("name", ["run.json", "input.safetensors", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "missing"])
def test_a_damaged_run(refused, run_copy, tmp_path, name, damage):
    for path in run_copy.rglob(name):
        whole = path.read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "noise": whole[::-1]}.get(damage, b""))
        if damage == "missing":
            path.unlink()
    assert str(run_copy) in refused("generate", run_copy, "--out", tmp_path / "out")


def test_a_damaged_optimizer_state_is_an_error_when_training_goes_on(run_copy, capsys, error_sentence):
    run = json.loads((run_copy / "run.json").read_text())
    run["models"]["predictor"]["steps"] += 5
    (run_copy / "run.json").write_text(json.dumps(run))
    state = next(run_copy.glob("predictor/step-*/optimizer.pt"))
    state.write_bytes(state.read_bytes()[:-200])
    assert main(["train", str(run_copy)]) == 2
    said = capsys.readouterr().err
    error_sentence(said)
    assert "optimizer.pt is damaged" in said and "not trained further" in said


def test_a_run_of_another_version(refused, run_copy, tmp_path):
    path = run_copy / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "format": 99}))
    assert "format 99" in refused("generate", run_copy, "--out", tmp_path / "out")


def test_a_file_that_is_no_released_checkpoint(refused, video_run, video_file, tmp_path):
    out = ("--out", tmp_path / "run")
    assert f"{tmp_path / 'no.ckpt'} does not exist" in refused("import", tmp_path / "no.ckpt", *out)
    assert "is not a PyTorch checkpoint" in refused("import", video_file, *out, "--frames", video_file)
    weights = next(video_run.path.glob("predictor/step-*/optimizer.pt"))
    assert "not a PyTorch Lightning checkpoint" in refused("import", weights, *out, "--frames", video_file)


# Outputs -------------------------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_any_work(
    refused, video_run, image_run, video_file, tmp_path, monkeypatch
):
    def no_work(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr("sinfusion.generation.reverse_process.ReverseProcess.__call__", no_work)
    for name in ("x.mp4", "x.mp4-sheet.png", "x.mp4.json"):
        (tmp_path / name).write_text("precious")
        for words in (("generate",), ("extrapolate", "--after", 1), ("upsample",), ("retarget", "--size", "32x16")):
            assert "exists" in refused(words[0], video_run.path, *words[1:], "--out", tmp_path / "x.mp4")
        (tmp_path / name).unlink()
    (tmp_path / "x-2.png").write_text("precious")
    assert "x-2.png exists" in refused("generate", image_run.path, "--count", 3, "--out", tmp_path / "x.png")
    assert "x-2.png exists" in refused("edit", image_run.path, video_file, "--count", 3, "--out", tmp_path / "x.png")


def test_train_never_writes_over_a_run_unasked_nor_over_anything_else(refused, run_copy, video_file, tmp_path):
    sentence = refused("train", video_file, "--out", run_copy)
    assert "--overwrite" in sentence and f"sinfusion train {run_copy}" in sentence
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("precious")
    assert "exists" in refused("train", video_file, "--out", tmp_path / "thesis")
    assert "not a run folder" in refused("train", video_file, "--out", tmp_path / "thesis", "--overwrite")
    assert "exists" in refused("demo", "--out", run_copy)


def test_a_place_that_cannot_be_written_to(refused, video_run, video_file, tmp_path):
    assert "not a folder" in refused("generate", video_run.path, "--out", video_file / "x.mp4")
    assert str(video_file) in refused("train", video_file, "--out", video_file / "run", *QUICK)


def _limited(bytes_, *words):
    """A process in which no file can grow beyond a number of bytes: writing fails halfway, as on a full disk."""
    import resource

    return subprocess.run(
        [sys.executable, "-m", "sinfusion", *map(str, words)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_)),
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_an_image_that_cannot_be_written_to_its_end_leaves_nothing(image_run, tmp_path, error_sentence):
    done = _limited(3000, "generate", image_run.path, "--size", "160x120", "--out", tmp_path / "x.png")
    assert done.returncode == 2 and f"{tmp_path / 'x.png'} cannot be written: File too large" in done.stderr
    error_sentence(done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_checkpoint_that_cannot_be_written_to_its_end_leaves_nothing(tmp_path, video_file):
    out = tmp_path / "run"
    done = _limited(30_000, "train", video_file, "--out", out, *QUICK)
    assert done.returncode == 2 and "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(("step-", "writing-")) or path.suffix == ".tmp"]


def test_a_disk_that_fills_up_while_a_run_is_begun(tmp_path, video_file, monkeypatch, capsys):
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("sinfusion.run.save_file", _raises(error))
    assert main(["train", str(video_file), "--out", str(tmp_path / "run"), *QUICK]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _raises(error):
    def call(*_, **__):
        raise error

    return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "call",
    [
        "sinfusion.media.writing.Mp4Encoder.write",
        "sinfusion.media.writing.Mp4Encoder.close",
        "sinfusion.generation.reverse_process.ReverseProcess.__call__",
    ],
)
def test_a_disk_that_fills_up_while_generating_leaves_nothing(refused, video_run, tmp_path, monkeypatch, call, code):
    monkeypatch.setattr(call, _raises(OSError(code, os.strerror(code))))
    sentence = refused("generate", video_run.path, "--frames", 2, "--out", tmp_path / "x.mp4")
    assert "disk" in sentence and "full" in sentence


@pytest.mark.parametrize("call", ["PIL.Image.Image.save", "sinfusion.cli.outputs.json.dumps"])
def test_a_disk_that_fills_up_after_the_video_keeps_it_whole(video_run, tmp_path, monkeypatch, capsys, call):
    monkeypatch.setattr(call, _raises(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["generate", str(video_run.path), "--frames", "2", "--out", str(tmp_path / "x.mp4")]) == 2
    said = capsys.readouterr().err
    assert "disk" in said and "full" in said and "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} <= {"x.mp4", "x.mp4-sheet.png"}
    assert len(read_media(tmp_path / "x.mp4").frames) == 2


# Machine -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_asked_for_and_absent(refused, video_run, video_file, tmp_path):
    for words in (("train", video_file), ("generate", video_run.path), ("upsample", video_run.path)):
        assert "no GPU" in refused(*words, "--device", "cuda", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_says_which_setting_to_lower(
    refused, capsys, error, video_run, image_run, video_file, tmp_path, monkeypatch
):
    def greedy(*_, **__):
        raise error

    monkeypatch.setattr("sinfusion.network.NextNet.evaluate", greedy)
    out = tmp_path / "out"
    for words, setting in (
        (("generate", video_run.path), "--size or --count"),
        (("retarget", video_run.path, "--size", "32x16"), "--size"),
        (("extend", video_run.path, "--size", "32x20"), "--size"),
        (("upsample", video_run.path), "--max-side"),
        (("edit", image_run.path, video_file), "--count or --canvas"),
    ):
        sentence = refused(*words, "--out", out)
        assert "out of memory" in sentence and setting in sentence
    assert main(["train", str(video_file), "--out", str(tmp_path / "run"), *QUICK]) == 2
    said = capsys.readouterr().err
    assert "out of memory" in said and "--max-side" in said and "--batch-size" in said and "Traceback" not in said


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for words in (
        ["--debug", "generate", str(tmp_path / "nothing")],
        ["generate", str(tmp_path / "nothing"), "--debug"],
    ):
        with pytest.raises(sinfusion.errors.SinfusionError):
            main(words)


def test_what_is_nobodys_fault_but_ours_keeps_its_traceback(video_run, tmp_path, monkeypatch):
    def bug(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("sinfusion.generation.video.stream", bug)
    with pytest.raises(ZeroDivisionError):
        main(["generate", str(video_run.path), "--out", str(tmp_path / "x.mp4")])


@pytest.mark.parametrize(
    "command", ["generate --frames 5 --count 2", "extrapolate --after 3 --mark", "upsample", "retarget --size 32x16"]
)
def test_ctrl_c_ends_with_130_and_one_line_and_leaves_nothing(video_run, tmp_path, monkeypatch, capsys, command):
    from sinfusion.generation.reverse_process import ReverseProcess

    call, calls = ReverseProcess.__call__, []

    def interrupted(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(*given, **named)

    monkeypatch.setattr("sinfusion.generation.reverse_process.ReverseProcess.__call__", interrupted)
    name, *rest = command.split()
    assert main([name, str(video_run.path), *rest, "--out", str(tmp_path / "x.mp4")]) == 130
    assert capsys.readouterr().err.endswith("interrupted.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    ["sinfusion.media.writing.Mp4Encoder.write", "sinfusion.media.writing.Mp4Encoder.close", "PIL.Image.Image.save"],
)
def test_ctrl_c_while_writing_leaves_nothing_half_written(video_run, tmp_path, monkeypatch, call):
    monkeypatch.setattr(call, _raises(KeyboardInterrupt()))
    assert main(["generate", str(video_run.path), "--frames", "2", "--out", str(tmp_path / "x.mp4")]) == 130
    assert [path.name for path in tmp_path.iterdir()] in ([], ["x.mp4"])
