"""What commands leave when streams are closed, signals come, or others write at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sinfusion import console
from sinfusion.cli import main
from sinfusion.cli.generation import Generate
from sinfusion.cli.outputs import Outputs
from sinfusion.files import acquire, release
from sinfusion.generation.reverse_process import ReverseProcess
from sinfusion.media import write_image, write_video

ROOT = Path(__file__).parents[2]


def shell(line, **options):
    """A line of sh, in which $SINFUSION is the command."""
    environment = {**os.environ, "SINFUSION": f"{sys.executable} -m sinfusion"}
    return subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, env=environment,
                          **options)  # fmt: skip


# Streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "out", "err"),
    [("2>&-", True, False), (">&-", False, True), (">&- 2>&-", False, False), ("<&- >&- 2>&-", False, False)],
)
def test_closed_streams_end_nothing_and_results_are_named_on_the_other(image_file, tmp_path, streams, out, err):
    done = shell(f"$SINFUSION patches generate {image_file} --seed 1 --out {tmp_path}/x.png {streams}")
    assert done.returncode == 0
    assert (f"{tmp_path}/x.png\n" in done.stdout, f"{tmp_path}/x.png\n" in done.stderr) == (out, err)
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"fish.png", "x.png", "x.png-sheet.png", "x.png.json"}


def test_a_reader_that_leaves_ends_nothing(image_file, tmp_path):
    line = f"{{ $SINFUSION patches generate {image_file} --out {tmp_path}/x.png; echo $? >{tmp_path}/code; }}"
    done = shell(f"{line} 2>{tmp_path}/err | true; {line.replace('x.png', 'y.png')} 2>&1 | true; cat {tmp_path}/code")
    assert done.stdout == "0\n"
    assert f"{tmp_path}/x.png\n" in (tmp_path / "err").read_text()
    assert (tmp_path / "y.png.json").exists() and "rror" not in (tmp_path / "err").read_text()


def test_a_training_without_streams_is_a_training(image_file, tmp_path):
    done = shell(f"$SINFUSION train {image_file} --out {tmp_path}/run --image-steps 3 --filters 4 --depth 2 >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "run/image/step-00000003/weights.safetensors").exists()


def test_only_results_go_to_standard_output(run_copy, tmp_path, clip, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    write_image(tmp_path / "large.png", np.zeros((64, 96, 3), np.uint8))
    write_video(tmp_path / "fish.mp4", clip, fps=10)
    words = "--recipe tiny --filters 4 --depth 2 --predictor-steps 2 --projector-steps 2 --max-side 16".split()
    for line in (
        ["generate", run_copy, "--frames", 3, "--start", tmp_path / "large.png"],
        ["upsample", run_copy],
        ["patches", "generate", tmp_path / "fish.mp4", "--max-side", 16, "--out", tmp_path / "new.mp4"],
        ["train", tmp_path / "fish.mp4", "--out", tmp_path / "other", *words],
    ):
        assert main([str(word) for word in line]) == 0
        printed = capsys.readouterr()
        assert printed.err and "\r" not in printed.err and "\x1b" not in printed.err
        lines = printed.out.splitlines()
        assert all(Path(text).exists() for text in lines) or lines == [
            f"trained {tmp_path / 'other'}; next: sinfusion generate {tmp_path / 'other'}"
        ]


# Names ---------------------------------------------------------------------------------------------------------------


def test_results_of_concurrent_commands_have_numbers_of_their_own(run_copy):
    start, outputs = threading.Barrier(4), []

    def one():
        start.wait()
        with Outputs(Generate(run=run_copy), "image", run_copy / "outputs", {"run": run_copy}) as files:
            outputs.append(files.files[0].name)
            files.write_images(np.zeros((1, 8, 8, 3), np.uint8))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(outputs)) == 4 and all((run_copy / "outputs" / name).exists() for name in outputs)
    assert len(list((run_copy / "outputs").iterdir())) == 12


def test_a_number_that_another_process_has_taken_is_passed_over(run_copy):
    (run_copy / "outputs").mkdir()
    assert acquire(run_copy / "outputs/.generate-1.lock") is None
    assert main(["generate", str(run_copy), "--frames", "2"]) == 0
    release(run_copy / "outputs/.generate-1.lock")
    assert (run_copy / "outputs/generate-2.mp4").exists() and not (run_copy / "outputs/generate-1.mp4").exists()


def test_a_name_that_another_process_writes_is_refused(run_copy, tmp_path, capsys):
    assert acquire(tmp_path / ".x.mp4.lock") is None
    assert main(["generate", str(run_copy), "--frames", "2", "--out", str(tmp_path / "x.mp4"), "--overwrite"]) == 2
    assert f"x.mp4 is being written by process {os.getpid()}; choose another --out." in capsys.readouterr().err
    assert (tmp_path / ".x.mp4.lock").exists()


def test_what_a_killed_process_left_of_a_name_goes_with_the_next_of_that_name(run_copy, tmp_path):
    for name in ("x.mp4", "x.mp4.json", "xylophone.mp4"):
        (tmp_path / f".writing-1-{name}").write_text("half")
    assert main(["generate", str(run_copy), "--frames", "2", "--out", str(tmp_path / "x.mp4")]) == 0
    assert [path.name for path in tmp_path.glob(".*")] == [".writing-1-xylophone.mp4"]


def test_results_of_two_formats_share_neither_sheet_nor_record(run_copy, tmp_path):
    for name in ("p.mp4", "p.gif", "p"):
        words = [] if "." in name else ["--format", "png"]
        assert main(["generate", str(run_copy), "--frames", "2", "--out", str(tmp_path / name), *words]) == 0
    for name in ("p.mp4", "p.gif", "p"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["files"] == [name]
        assert (tmp_path / f"{name}-sheet.png").exists()


# Signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize(
    "command",
    ["generate --count 2", "extrapolate --after 3 --mark", "upsample", "retarget --size 32x16", "evaluate --steps 1"],
)
def test_a_signal_leaves_nothing_half_written(run_copy, monkeypatch, capsys, command, number, code):
    call, calls = ReverseProcess.__call__, []

    def signalled(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return call(*given, **named)

    monkeypatch.setattr(ReverseProcess, "__call__", signalled)
    before = sorted(run_copy.rglob("*"))
    name, *words = command.split()
    assert main([name, str(run_copy), *words]) == code
    assert capsys.readouterr().err.endswith("interrupted.\n")
    assert sorted(run_copy.rglob("*")) == before


def test_what_is_whole_stays_after_a_signal(run_copy, monkeypatch, tmp_path):
    from sinfusion.media import writing

    close = writing.Mp4Encoder.close

    def second(self):
        close(self)
        if "marked" not in self.container.name:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(writing.Mp4Encoder, "close", second)
    words = ["extrapolate", str(run_copy), "--after", "1", "--mark", "--out", str(tmp_path / "x.mp4")]
    assert main(words) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x-marked.mp4"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_patch_engine_and_leaves_nothing(image_file, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("sinfusion.patches.generate", lambda *_: os.kill(os.getpid(), number))
    assert main(["patches", "generate", str(image_file), "--out", str(tmp_path / "new/x.png")]) == code
    assert [path.name for path in tmp_path.iterdir()] == ["fish.png"]
