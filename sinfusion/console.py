"""What a person reads while a command works: sentences, progress, names of results; whatever became of the streams.

Results go to standard output, all else to standard error. A stream that is closed, or that nobody reads any more, ends
nothing: sentences and progress are silent then, and results are named on the other stream.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS, MOST_SECONDS = 10.0, 300.0  # between two lines of progress where there is no terminal: from, to
LINE_SHARE = 0.25  # of the time so far: between two lines, in between


def log(text: str) -> None:
    """Print a line to standard error, above the bars that a terminal shows there."""
    if sys.stderr is None:  # which would mean standard output to `print`
        return
    try:
        if "tqdm" in sys.modules and sys.stderr.isatty():
            sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody reads; closed
        pass


def print_result(*lines: object) -> None:
    """Print results to standard output; to standard error where that is closed, or nobody reads it."""
    text = "\n".join(map(str, lines))
    try:
        if sys.stdout is None:
            raise BrokenPipeError
        print(text, flush=True)
    except (OSError, ValueError) as error:
        log(text)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # they were to be kept in a file


def open_streams() -> None:
    """Have something behind the numbers of closed streams, or the next file that is opened becomes one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def settle_streams() -> None:
    """Let go of what nobody reads, so that the end of Python is not an error for its sake."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            except (OSError, ValueError):
                pass


class Bar:
    """Progress on standard error: a bar on a terminal; elsewhere a plain line now and then, for long work alone.

    total: of how many units; may be changed while the bar runs. unit: of what; "" for shares of a whole, 1.0.
    lasting: it has a last line however short the work was.
    """

    def __init__(
        self,
        total: float,
        unit: str = "frame",
        name: str = "",
        done: float = 0,
        quiet: bool = False,
        lasting: bool = False,
    ):
        self.total, self.unit, self.name, self.done, self.lasting = total, unit, name, done, lasting
        self.note = ""
        self.first, self.started = done, time.monotonic()
        self.line_at = self.started + LINE_SECONDS
        self.lines = 0
        self.quiet = quiet or sys.stderr is None
        self._shown: Any = None
        if not self.quiet and _is_terminal():
            from tqdm import tqdm

            shape = None if unit else "{l_bar}{bar}| {elapsed}<{remaining}"
            self._shown = tqdm(
                total=total, initial=done, desc=name or None, unit=unit, mininterval=0.5, bar_format=shape,
                delay=0 if lasting else 0.5,
            )  # fmt: skip

    def update(self, count: float = 1) -> None:
        """Move on."""
        if not self.unit:
            count = min(count, self.total - self.done)  # rounding must not lead beyond
        self.done += count
        if self._shown is not None:
            try:
                self._shown.total = self.total
                self._shown.set_postfix_str(self.note, refresh=False)
                self._shown.update(count)
            except (OSError, ValueError):  # the terminal is gone
                self._shown, self.quiet = None, True
        elif not self.quiet and (now := time.monotonic()) >= self.line_at:
            self._line(now)

    def _line(self, now: float) -> None:
        spent = now - self.started
        self.line_at = now + min(max(LINE_SECONDS, LINE_SHARE * spent), MOST_SECONDS)
        share = self.done / self.total if self.total else 1.0
        parts = [f"{self.done}/{self.total} {self.unit}s" if self.unit else f"{share:.0%}", self.note, _clock(spent)]
        made = self.done - self.first
        if 0 < made and self.done < self.total:
            parts.append(f"{_clock(spent / made * (self.total - self.done))} to go")
        log((f"{self.name.strip()}: " if self.name else "") + ", ".join(filter(None, parts)))
        self.lines += 1

    def close(self) -> None:
        """The last word."""
        if self._shown is not None:
            try:
                self._shown.close()
            except (OSError, ValueError):
                pass
        elif not self.quiet and (self.lasting or self.lines):
            self._line(time.monotonic())
        self.quiet, self._shown = True, None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except ValueError:  # closed
        return False


def _clock(seconds: float) -> str:
    """1:02:03 of 3723."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
