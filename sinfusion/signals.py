"""Ctrl-C, SIGTERM and SIGHUP: an exception that cleans up on its way, or a flag that a training reads between steps.

A signal that was ignored from the beginning, as under nohup, stays ignored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130, 143 or 129, as a shell has it."""
        return 128 + self.number


@contextmanager
def raised() -> Iterator[None]:
    """A first signal raises Interrupted; a second one ends the process at once."""
    asked: list[int] = []

    def handle(number: int, _: Any) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        raise Interrupted(number)

    with _handled(handle):
        yield


class StopFlag:
    """Whether, and by which signal, this process was asked to stop; a `should_stop`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = True  # else a signal raises at once

    def __call__(self) -> bool:
        return self.number is not None

    def handle(self, number: int, _: Any) -> None:
        """A signal has come."""
        again, self.number = self.number is not None, number
        if again or not self._deferred:
            raise Interrupted(number)

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where a signal ends it, or has come before. The flag stays set."""
        self._deferred = False
        try:
            return work() if self.number is None else None
        except Interrupted:
            return None
        finally:
            self._deferred = True


@contextmanager
def deferred() -> Iterator[StopFlag]:
    """A first signal sets a flag that a loop reads; a second one raises Interrupted at once."""
    flag = StopFlag()
    with _handled(flag.handle):
        yield flag


@contextmanager
def _handled(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Send signals that are not ignored to `handle`; in the main thread only, as Python allows it nowhere else."""
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    except ValueError:  # another thread: the caller handles its signals
        pass
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
