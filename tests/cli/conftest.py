"""What tests of the command line share: inputs, a copy of a run, a check of refusals."""

import shutil

import pytest

from sinfusion.cli import main
from sinfusion.media import write_image, write_video


@pytest.fixture
def video_file(tmp_path, clip):
    write_video(tmp_path / "fish.mp4", clip, fps=10)
    return tmp_path / "fish.mp4"


@pytest.fixture
def image_file(tmp_path, clip):
    write_image(tmp_path / "fish.png", clip[0])
    return tmp_path / "fish.png"


@pytest.fixture
def run_copy(video_run, tmp_path):
    """A video run without outputs, in a folder that a test may change."""
    shutil.copytree(video_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("outputs"))
    return tmp_path / "run"


@pytest.fixture
def error_sentence():
    """error_sentence(text): the one line of standard error that is an error message; it must be the last one."""

    def find(text):
        *others, last = text.strip().split("\n")
        assert last.startswith("error: ") and 15 < len(last) < 300, text
        assert not any(line.startswith("error: ") for line in others), text
        return last.removeprefix("error: ")

    return find


@pytest.fixture
def refused(tmp_path, capsys, error_sentence):
    """refused(*words): the sentence of a command that must be refused; all files in tmp_path must stay as they are."""

    def run(*words):
        before = _contents(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        assert _contents(tmp_path) == before
        return error_sentence(printed.err)

    return run


def _contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
