"""What is said where, on streams of every kind: terminals, files, closed ones, and ones that nobody reads."""

import errno
import io
import os
import sys

import pytest

from sinfusion import console
from sinfusion.console import Bar, log, print_result
from sinfusion.progress import Progress


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def __init__(self, code):
        super().__init__()
        self.code = code

    def write(self, text):
        raise OSError(self.code, os.strerror(self.code))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


SILENT = {"missing": lambda: None, "closed": closed, "pipe": lambda: Broken(errno.EPIPE),
          "terminal": lambda: Broken(errno.EIO)}  # fmt: skip


@pytest.mark.parametrize("kind", SILENT)
def test_where_nobody_reads_sentences_and_bars_are_silent(monkeypatch, capsys, kind):
    monkeypatch.setattr(sys, "stderr", SILENT[kind]())
    log("hello")
    with Bar(2, lasting=True) as bar:
        bar.update()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", SILENT)
def test_results_are_named_on_the_other_stream_where_nobody_reads_the_first(monkeypatch, capsys, kind):
    monkeypatch.setattr(sys, "stdout", SILENT[kind]())
    print_result("a.mp4", "b.json")
    assert capsys.readouterr().err == "a.mp4\nb.json\n"


def test_results_that_a_full_disk_does_not_take_are_named_and_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        print_result("a.mp4")
    assert capsys.readouterr().err == "a.mp4\n"


def test_elsewhere_than_on_a_terminal_progress_is_a_plain_line_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    said = []
    with Bar() as bar:
        bar(Progress(0, 7200, "step", "predictor"))
        for second in range(7200):
            clock[0] = second
            bar(Progress(second + 1, 7200, "step", "predictor", 1.0))
            if text := capsys.readouterr().err:
                said.append((second, text))
    assert said[0] == (10, "predictor: 11/7200 steps, loss 1.0000, 0:10, 1:48:55 to go\n")
    assert all("\r" not in text and text.count("\n") == 1 for _, text in said)
    times = [second for second, _ in said]
    assert times[1] - times[0] == 10 and times[-1] - times[-2] == 300 and len(times) < 40


def test_short_work_is_worth_no_line_but_that_of_a_training(capsys):
    for lasting, shown in ((False, ""), (True, "3/3 frames, 0:00\n")):
        with Bar(3, lasting=lasting) as bar:
            bar.update(3)
        assert capsys.readouterr().err == shown


def test_a_terminal_gets_a_bar_whose_total_may_change(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Bar(lasting=True) as bar:
        for done, total in ((0, 4), (2, 4), (4, 8)):
            bar(Progress(done, total, "step", "predictor"))
    assert "predictor" in terminal.getvalue() and "4/8 [00:0" in terminal.getvalue()


def test_shares_of_a_whole_are_per_cent(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(console, "LINE_SHARE", 0.0)
    with Bar() as bar:
        for done in (0.1, 0.25, 1.0):
            bar(Progress(done, 1.0, "share"))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["10%", "25%", "100%", "100%"]


def test_each_task_has_a_bar_of_its_own(monkeypatch, capsys):
    with Bar(lasting=True) as bar:
        for task in ("predictor", "projector"):
            for done in range(4):
                bar(Progress(done, 3, "step", task, 0.5))
    assert (
        capsys.readouterr().err == "predictor: 3/3 steps, loss 0.5000, 0:00\nprojector: 3/3 steps, loss 0.5000, 0:00\n"
    )


def test_a_total_that_is_not_known_is_not_shown(capsys):
    with Bar(lasting=True) as bar:
        bar(Progress(0, None, "step", "predictor"))
        bar(Progress(7, None, "step", "predictor"))
    assert capsys.readouterr().err == "predictor: 7 steps, 0:00\n"
