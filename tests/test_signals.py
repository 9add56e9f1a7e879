"""Signals: the first is an exception or a flag, the second ends; ignored ones stay ignored."""

import os
import signal
import subprocess
import sys

import pytest

from sinfusion.signals import SIGNALS, Interrupted, deferred, raised

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_is_an_exception_with_its_exit_code(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped, raised():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == CODES[number] and signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number):
    child = os.fork()
    if child == 0:
        try:
            with raised():
                try:
                    os.kill(os.getpid(), number)
                finally:
                    os.kill(os.getpid(), number)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CODES[number]


@pytest.mark.parametrize("context", [raised, deferred])
def test_what_was_ignored_stays_ignored(context):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with context():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deferred_signal_is_a_flag_and_the_second_an_exception():
    with deferred() as flag:
        assert not flag()
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag() and flag.number == signal.SIGTERM
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_preview_is_interrupted_and_the_flag_stays():
    with deferred() as flag:
        flag.interruptible(lambda: os.kill(os.getpid(), signal.SIGTERM) or pytest.fail("went on"))
        assert flag()
        flag.interruptible(lambda: pytest.fail("begun after a signal"))


def test_nohup_lets_a_command_go_on(tmp_path):
    code = (
        "import os, signal\nfrom sinfusion.signals import raised\n"
        "with raised():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('went on')"
    )
    from pathlib import Path

    done = subprocess.run(
        ["nohup", sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout == "went on\n" and done.returncode == 0
