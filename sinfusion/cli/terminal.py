"""Help and messages of tyro in any terminal: narrow ones, plain ones, none.

with fitting_terminal():
    tyro.cli(...)
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

import tyro

LEAST_COLUMNS = 40  # with fewer tyro's text is unreadable, and with one to five it is never done


@contextmanager
def fitting_terminal() -> Iterator[None]:
    """While it lasts, tyro writes text that can be read whatever standard output and standard error are.

    It is at least LEAST_COLUMNS wide, with plain borders where the terminal is narrower. Colours are for terminals
    alone, and for none where NO_COLOR is set or TERM is dumb (https://no-color.org).
    """
    with ExitStack() as stack:
        if sys.stdout is None:  # closed
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
        options = tyro._experimental_options
        before, columns = options.copy(), os.environ.get("COLUMNS")
        stack.callback(options.update, before)
        options["ansi_codes"] = options["ansi_codes"] and _has_colours()
        if shutil.get_terminal_size().columns < LEAST_COLUMNS:
            stack.callback(_set_columns, columns)
            _set_columns(str(LEAST_COLUMNS))
            options["utf8_boxes"] = False
        yield


def _has_colours() -> bool:
    """Whether both streams are terminals that show colours, and nobody asked for none."""
    streams = (sys.stdout, sys.stderr)
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return all(stream is not None and stream.isatty() for stream in streams)
    except ValueError:  # closed
        return False


def _set_columns(value: str | None) -> None:
    if value is None:
        os.environ.pop("COLUMNS", None)
    else:
        os.environ["COLUMNS"] = value
