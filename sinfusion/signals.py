"""Ctrl-C, SIGTERM and SIGHUP: an exception that cleans up on its way, or a wish that a training asks for.

A signal that was ignored from the beginning, as under nohup, stays ignored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


class Wish:
    """Whether, and by which signal, a training was asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.waiting = True  # else a signal raises at once

    def __call__(self) -> bool:
        return self.number is not None

    def handle(self, number: int, _: Any) -> None:
        again, self.number = self.number is not None, number
        if again or not self.waiting:
            raise Interrupted(number)

    def cut_short(self, work: Callable[[], None]) -> None:
        """Do some work that a signal ends, and that is not begun after one; the wish to stop stays."""
        self.waiting = False
        try:
            if self.number is None:
                work()
        except Interrupted:
            pass
        finally:
            self.waiting = True


@contextmanager
def awaited() -> Iterator[Wish]:
    """A first signal becomes a wish that the loop asks for; a second one raises Interrupted at once."""
    wish = Wish()
    with _handled(wish.handle):
        yield wish


@contextmanager
def _handled(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Signals go to `handle`, but for those that are ignored; in the main thread, where alone that is possible."""
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
