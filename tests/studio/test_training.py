"""The training of the studio: one at a time, and what it says at its end."""

import asyncio
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest

from sinfusion.errors import SinfusionError
from sinfusion.files import sole_writer
from sinfusion.studio.training import Training

SHORT = (
    "too few steps for results worth watching (predictor 9 of about 1406); go on with: sinfusion train x --minutes 1"
)


def ended(tmp_path, code, *lines):
    """A training that has ended with a code, after printing some lines."""
    training = Training(tmp_path / "log")
    training.log.write_text("".join(f"{line}\n" for line in lines))

    async def wait():
        return code

    asyncio.run(training._wait(SimpleNamespace(wait=wait)))
    return training


def test_too_few_steps_are_told(tmp_path):
    training = ended(tmp_path, 0, "x: predictor on 12 frames", SHORT, "trained x; next: sinfusion generate x")
    assert training.note == SHORT.split(";")[0] and training.error == ""


def test_an_error_is_told_and_a_stop_is_none(tmp_path):
    assert ended(tmp_path, 2, "so far", "error: the size is too small.").error == "the size is too small."
    assert ended(tmp_path, -signal.SIGKILL).error == "it ended with code -9."
    for code in (128 + signal.SIGTERM, -signal.SIGTERM):
        assert ended(tmp_path, code, "stopped; everything is saved.").error == ""


def test_a_second_training_is_refused_even_while_the_first_one_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("sleep"))  # which takes no -m, and ends at once

    async def both():
        training = Training(tmp_path / "log")
        begun = [training.begin(tmp_path / name, str(tmp_path / "nothing.mp4")) for name in "ab"]
        results = await asyncio.gather(*begun, return_exceptions=True)
        await training.close()
        return results

    first, second = asyncio.run(both())
    assert first is None and isinstance(second, SinfusionError) and "stop it first" in str(second)


def test_only_a_training_on_this_machine_is_stopped(tmp_path):
    training = Training(tmp_path / "log")
    with pytest.raises(SinfusionError, match="not being trained"):
        training.stop(tmp_path)
    with sole_writer(tmp_path):
        (tmp_path / ".writer").write_text("1\n\nanother machine\n")
        with pytest.raises(SinfusionError, match="not being trained here"):
            training.stop(tmp_path)
