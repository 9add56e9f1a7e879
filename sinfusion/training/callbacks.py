"""What the caller of a training passes: who is told of progress, and who may stop it."""

from __future__ import annotations

from collections.abc import Callable

from ..progress import OnProgress, Progress
from ..signals import Interrupted

ShouldStop = Callable[[], bool]  # called by the thread that trains, between steps; any thread may change what it says


class Callbacks:
    """A caller's `on_progress` and `should_stop`.

    An exception of `on_progress` asks to stop, too: it is kept until the training has been saved.
    """

    def __init__(self, on_progress: OnProgress | None = None, should_stop: ShouldStop | None = None):
        self._on_progress, self._should_stop = on_progress, should_stop
        self.stopped = False  # the caller's `should_stop` has said so
        self.error: BaseException | None = None  # of `on_progress`

    def report(self, progress: Progress) -> None:
        """Tell the caller; after an exception no more."""
        if self._on_progress is None or self.error is not None:
            return
        try:
            self._on_progress(progress)
        except Interrupted:  # a second signal: at once, without a save
            raise
        except BaseException as error:
            self.error = error

    def should_stop(self) -> bool:
        """Whether the caller wants the training to stop; once it does, it always does."""
        self.stopped = self.stopped or (self._should_stop is not None and self._should_stop())
        return self.stopped or self.error is not None

    def raise_error(self) -> None:
        """Raise what `on_progress` has raised, if it has."""
        if self.error is not None:
            raise self.error
