"""What a person reads while a command works: messages, progress, names of results; whatever became of the streams.

Results go to standard output, all else to standard error. A stream that is closed, or that nobody reads any more, ends
nothing: messages and progress are silent then, and results are named on the other stream.

with Bar() as bar:
    frames = sinfusion.upsample(run, on_progress=bar)
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from .progress import Progress

LINE_SECONDS, MOST_SECONDS = 10.0, 300.0  # between two lines of progress where there is no terminal: from, to
LINE_SHARE = 0.25  # of the time so far: between two lines, in between


def log(text: str) -> None:
    """Print a line to standard error, above the bars that a terminal shows there."""
    if sys.stderr is None:  # which would mean standard output to `print`
        return
    try:
        text = _encodable(text, sys.stderr)
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
        print(_encodable(text, sys.stdout), flush=True)
    except (OSError, ValueError) as error:
        log(text)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # they were to be kept in a file
        settle_streams()  # or what is left in a buffer would fail again


def _encodable(text: str, stream: TextIO) -> str:
    """The text with escapes for what a stream cannot write, such as é in ASCII, or names that are not UTF-8."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding, stream.errors or "strict")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def open_streams() -> None:
    """Open /dev/null in place of closed streams, or the next file that is opened would get one of their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def settle_streams() -> None:
    """Redirect streams that nobody reads to nothing, so that Python can flush them at its end."""
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

    A bar is an `on_progress`: it is called with a `Progress`. `update` is for loops that only count.
    total, unit: as in `Progress`, where they are known before the work begins. lasting: the bar has a last line however
    short the work was.
    """

    def __init__(self, total: float | None = None, unit: str = "frame", quiet: bool = False, lasting: bool = False):
        self.quiet, self.lasting = quiet or sys.stderr is None, lasting
        self._progress: Progress | None = None
        self._started = time.monotonic()
        self._first = 0.0  # units that were done before the work began
        self._line_at = self._started + LINE_SECONDS
        self._lines = 0
        self._tqdm: Any = None
        if total is not None:
            self._begin(Progress(0, total, unit))

    def __call__(self, progress: Progress) -> None:
        """Show some progress; a task of another name gets a bar of its own."""
        before = self._progress
        if before is None:
            self._begin(progress)
        elif (before.task, before.unit) != (progress.task, progress.unit):
            self._end()
            self._started = time.monotonic()
            self._begin(progress)
        else:
            self._progress = progress
            self._show(progress, progress.done - before.done)

    def update(self, count: float = 1) -> None:
        """Some more units are done."""
        before = self._progress or Progress(0, None)
        self._progress = before
        self(dataclasses.replace(before, done=before.done + count))

    def _begin(self, progress: Progress) -> None:
        self._progress = progress
        self._first = progress.done if progress.unit == "step" else 0  # a training may go on from a checkpoint
        self._line_at, self._lines = self._started + LINE_SECONDS, 0
        if not self.quiet and _is_terminal():
            from tqdm import tqdm

            share = progress.unit == "share"
            self._tqdm = tqdm(
                total=progress.total, initial=self._first, desc=f"{progress.task:12}" if progress.task else None,
                unit=progress.unit, mininterval=0.5, miniters=0, delay=0 if self.lasting else 0.5,
                bar_format="{l_bar}{bar}| {elapsed}<{remaining}" if share else None,
            )  # fmt: skip
            self._tqdm.start_t -= time.monotonic() - self._started  # it counts on another clock
        self._show(progress, progress.done - self._first)

    def _show(self, progress: Progress, count: float) -> None:
        if self._tqdm is not None:
            try:
                self._tqdm.total = progress.total
                self._tqdm.set_postfix_str(_loss_words(progress), refresh=False)
                self._tqdm.update(count)
            except (OSError, ValueError):  # the terminal is gone
                self._tqdm, self.quiet = None, True
        elif not self.quiet and (now := time.monotonic()) >= self._line_at:
            self._line(progress, now)

    def _line(self, progress: Progress, now: float) -> None:
        spent = now - self._started
        self._line_at = now + min(max(LINE_SECONDS, LINE_SHARE * spent), MOST_SECONDS)
        parts = [_done_words(progress), _loss_words(progress), _clock(spent)]
        made = progress.done - self._first
        if progress.total is not None and 0 < made and progress.done < progress.total:
            parts.append(f"{_clock(spent / made * (progress.total - progress.done))} to go")
        log((f"{progress.task}: " if progress.task else "") + ", ".join(filter(None, parts)))
        self._lines += 1

    def _end(self) -> None:
        if self._tqdm is not None:
            try:
                self._tqdm.close()
            except (OSError, ValueError):
                pass
            self._tqdm = None
        elif self._progress is not None and not self.quiet and (self.lasting or self._lines):
            self._line(self._progress, time.monotonic())

    def close(self) -> None:
        """The last line; from now on the bar is silent."""
        self._end()
        self.quiet = True

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _done_words(progress: Progress) -> str:
    """20/100 steps; of shares: 20%."""
    if progress.unit == "share":
        return f"{progress.done / (progress.total or 1):.0%}"
    total = "" if progress.total is None else f"/{round(progress.total)}"
    return f"{round(progress.done)}{total} {progress.unit}s"


def _loss_words(progress: Progress) -> str:
    return "" if progress.loss is None else f"loss {progress.loss:.4f}"


def _is_terminal() -> bool:
    """Whether standard error is a terminal that a bar can be drawn on again and again."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _clock(seconds: float) -> str:
    """1:02:03 of 3723."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
