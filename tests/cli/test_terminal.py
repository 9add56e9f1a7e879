"""The command line in any terminal: narrow, without colours, without streams."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from sinfusion.cli import main
from sinfusion.cli.terminal import LEAST_COLUMNS
from sinfusion.console import Bar, log, print_result

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", ["1", "2", "3", "4", "5", "0", "-3", "abc", "39", ""])
@pytest.mark.parametrize(("words", "code"), [(["train", "--help"], 0), (["train", "--bad"], 2), ([], 0)])
def test_help_and_errors_end_and_can_be_read_in_any_width(columns, words, code):
    environment = {**os.environ, "COLUMNS": columns, "PYTHONPATH": str(ROOT)}
    if words[-1:] == ["--help"] or columns == "1":
        text = "import sys; from sinfusion.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", text, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code
        assert "train" in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_narrow_help_has_whole_words_and_leaves_the_environment_alone(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3")
    before = dict(tyro._experimental_options)
    assert main(["info", "--help"]) == 0
    text = capsys.readouterr().out
    assert "The folder of a run" in text and "╭" not in text
    assert max(map(len, text[text.index("positional") :].split("\n"))) <= LEAST_COLUMNS
    assert os.environ["COLUMNS"] == "3" and tyro._experimental_options == before


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True), ({"TERM": "xterm", "NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)  # fmt: skip
def test_colours_are_for_terminals_that_want_them(monkeypatch, variables, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["info", "--help"]) == 0 and main(["info", "--bad"]) == 2
    assert bool(re.search("\x1b", out.getvalue())) == bool(re.search("\x1b", err.getvalue())) == coloured


def test_an_error_in_a_file_has_no_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out, err = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["info", "--bad"]) == 2
    assert err.getvalue() and "\x1b" not in err.getvalue()


@pytest.mark.parametrize(("words", "code"), [(["info", "--help"], 0), (["info", "--bad"], 2), (["--version"], 0)])
def test_a_closed_standard_output_is_no_error_of_ours(monkeypatch, capsys, words, code):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(words) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_dumb_terminal_has_lines_and_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with Bar(2, lasting=True) as bar:
        bar.update(2)
    assert sys.stderr.getvalue() == "2/2 frames, 0:00\n"


def test_what_a_stream_cannot_write_is_escaped(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    print_result("é/\udcff.mp4")
    log("魚")
    assert out.buffer.getvalue() == b"\\xe9/\\udcff.mp4\n" and err.buffer.getvalue() == b"\\u9b5a\n"
