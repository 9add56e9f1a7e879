"""`sinfusion info`: ten lines that answer 'what runs where, and why not'."""

from __future__ import annotations

import torch

from sinfusion import __version__
from sinfusion.cli import main
from sinfusion.info import describe, describe_run
from sinfusion.ops import status


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
    assert "video run" in text and "24x16" in text and f"interpolator: {steps} of {steps} steps" in text


def test_the_command_prints_both(image_run, capsys):
    assert main(["info", str(image_run.path)]) == 0
    printed = capsys.readouterr().out
    assert "image run" in printed and __version__ in printed
