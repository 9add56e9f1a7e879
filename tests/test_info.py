"""`sinfusion info`: ten lines that answer 'what runs where, and why not'."""

from __future__ import annotations

import shutil

import torch

from sinfusion import __version__
from sinfusion.cli import main
from sinfusion.info import describe, describe_run
from sinfusion.ops import status
from sinfusion.run import load


def test_info_says_versions_device_and_native_code_in_ten_lines():
    lines = describe()
    text = "\n".join(lines)
    assert len(lines) <= 10
    assert __version__ in text and torch.__version__ in text
    assert status()["cpu"] in text and status()["cuda"] in text
    assert "cuda" in text if torch.cuda.is_available() else "sees no GPU" in text
    assert "H.264" in text


def test_info_of_a_run_says_what_it_holds_and_how_far_it_is(video_run):
    text = "\n".join(describe_run(video_run))
    steps = video_run.models["interpolator"]["steps"]
    assert "2 previous frames" in text
    assert "video run" in text and "24x16" in text and f"interpolator {steps} of {steps} steps" in text


def test_info_of_a_run_that_is_not_trained_to_its_end_says_how_far_it_is(video_run, tmp_path):
    shutil.copytree(video_run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/interpolator")
    text = "\n".join(describe_run(load(tmp_path / "run")))
    assert f"interpolator 0 of {video_run.models['interpolator']['steps']} steps" in text


def test_the_command_prints_both_in_a_few_lines(image_run, video_run, capsys):
    for run in (image_run, video_run):
        assert main(["info", str(run.path)]) == 0
        printed = capsys.readouterr().out
        assert f"{run.kind} run" in printed and __version__ in printed
        assert len(printed.splitlines()) <= 11
