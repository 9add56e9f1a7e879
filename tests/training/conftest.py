"""Fixtures of the tests of training: trainings that stop before their first step, and what the command line says."""

import pytest

import sinfusion
from sinfusion.cli import main
from sinfusion.media import write_video
from sinfusion.run import load
from sinfusion.training.trainer import Stopped, Trainer


@pytest.fixture
def no_training(monkeypatch):
    """Training stops before its first step: the run is there, with its plan."""

    def stop(self, logger, should_stop, clock):
        raise Stopped

    monkeypatch.setattr(Trainer, "train", stop)


@pytest.fixture
def begun(no_training, tmp_path):
    """Begins a training and returns its run."""

    def begin(*given, **named):
        with pytest.raises(KeyboardInterrupt):
            sinfusion.train(*given, **{"out": tmp_path / "run", "quiet": True, "overwrite": True, **named})
        return load(tmp_path / "run")

    return begin


@pytest.fixture
def command(no_training, tmp_path):
    """Begins a training by the command line and returns its run."""

    def begin(*words):
        assert main(["train", *map(str, words), "--out", str(tmp_path / "run"), "--overwrite"]) == 130
        return load(tmp_path / "run")

    return begin


@pytest.fixture
def refused(capsys):
    """The sentence with which the command line refuses."""

    def run(*words):
        assert main(["train", *map(str, words)]) == 2
        said = capsys.readouterr().err.strip()
        assert "Traceback" not in said and said.split("\n")[-1].startswith("error: ")
        return said.split("\n")[-1]

    return run


@pytest.fixture
def video_file(tmp_path, clip):
    write_video(tmp_path / "fish.mp4", clip, fps=10)
    return tmp_path / "fish.mp4"
