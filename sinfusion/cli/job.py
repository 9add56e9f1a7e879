"""The process of a job: the command line, which stops when the process that started it is gone."""

from __future__ import annotations

import os
import signal
import threading

from . import main as command_line


def main() -> int:
    """Run the command of this process's arguments; returns its exit code. Standard input ends with the parent."""
    # A Ray worker blocks SIGINT, and its children would.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return command_line()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
