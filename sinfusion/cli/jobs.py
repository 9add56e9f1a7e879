"""Several command lines, each in a process of its own: a plain pool, whose processes another engine may start.

jobs = [Job("fish", ("train", "fish.mp4", "--out", "runs/fish")), Job("ants", ("train", "ants.mp4"))]
outcomes, signal = run_jobs(jobs, 2, Here(gpus=["0", "1"]))   # a job that fails ends no other
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..console import log
from ..signals import SIGNALS, deferred

ROOT = Path(__file__).parents[2]  # of this package, so that a child has the same one
CHILD = "import sys; sys.path[0] = sys.argv.pop(1); from sinfusion.cli.job import main; sys.exit(main())"
POLL_SECONDS = 0.2  # between two looks at whether a signal has come
LAST_SECONDS = 10.0  # that a job which was told to end at once is given


@dataclass(frozen=True)
class Job:
    """A command line, without `sinfusion`; and the word before each line that it prints."""

    label: str
    words: tuple[str, ...]


@dataclass
class Outcome:
    """What became of a job."""

    code: int | None = None  # exit status, below 0 after a signal that it did not handle; None: never begun
    seconds: float = 0.0
    results: list[str] = field(default_factory=list)  # lines of its standard output
    said: str = ""  # last line of its standard error

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it that asks to stop."""
        return self.code is not None and (self.code - 128 in SIGNALS or -self.code in SIGNALS)

    @property
    def reason(self) -> str:
        """Why it failed, in a sentence."""
        if self.code is not None and self.code < 0:
            with suppress(ValueError):
                name = signal.Signals(-self.code).name
                return f"ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
        return self.said.removeprefix("error: ") or f"exit status {self.code}"


class Running(Protocol):
    """A job that was started."""

    def events(self) -> Iterator[str | Outcome]:
        """Its lines on standard error, as they come; and its outcome, which is the last. For one thread alone."""

    def stop(self, number: int) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """End it without a word."""


class Child:
    """A job as a process of this machine. It stops, resumable, when the process that started it is gone."""

    def __init__(self, words: Sequence[str], variables: Mapping[str, str], folder: str | None = None):
        """variables: of its environment, beside those of this process. folder: it works there; None: here."""
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(ROOT), *words],
            stdin=subprocess.PIPE,  # nothing is written: its end is that of this process
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            env={**os.environ, **variables, "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which tells its jobs once
        )

    def events(self) -> Iterator[str | Outcome]:
        process, outcome = self._process, Outcome()
        assert process.stdin and process.stdout and process.stderr
        reader = threading.Thread(
            target=lambda out: outcome.results.extend(map(str.rstrip, out)), args=[process.stdout]
        )
        reader.start()
        for line in map(str.rstrip, process.stderr):
            if line:
                outcome.said = line
                yield line
        reader.join()
        outcome.code = process.wait()
        outcome.seconds = time.monotonic() - self._started
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        yield outcome

    def stop(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()


class Here:
    """Starts jobs on this machine: each on one of its GPUs in turn, or on its share of the cores."""

    def __init__(self, gpus: Sequence[str] = (), most: int = 1):
        """gpus: as CUDA_VISIBLE_DEVICES names them; none: jobs find their device. most: jobs at a time."""
        self.gpus, self.most = gpus, most

    def __call__(self, job: Job, place: int) -> Running:
        variables = {}
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        elif self.most > 1 and "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(max(1, cores() // self.most))
        return Child(job.words, variables)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], most: int, start: Callable[[Job, int], Running]) -> tuple[list[Outcome], int | None]:
    """Run all jobs, at most so many at a time, and log their lines; returns their outcomes, and the signal that came.

    start: starts a job at a place, a number below `most` that no other job has at the time. After a first signal no job
    begins, those that run are sent it, and waited for; a second raises Interrupted, and ends them at once.
    """
    outcomes = [Outcome() for _ in jobs]
    waiting, places = deque(enumerate(jobs)), list(range(most))
    running: dict[int, tuple[int, Running]] = {}  # number of the job -> its place, and itself
    events: queue.SimpleQueue[tuple[int, str | Outcome]] = queue.SimpleQueue()
    readers: list[threading.Thread] = []
    told = False
    with deferred() as flag:
        try:
            while running or (waiting and not flag()):
                while waiting and places and not flag():
                    number, job = waiting.popleft()
                    try:
                        running[number] = places[0], start(job, places[0])
                    except OSError as error:  # no memory for a process
                        outcomes[number] = Outcome(1, said=f"cannot be started: {error.strerror}")
                        continue
                    del places[0]
                    reader = threading.Thread(target=_forward, args=(number, running[number][1], events), daemon=True)
                    reader.start()
                    readers.append(reader)
                if flag.number is not None and not told:
                    told = True
                    log(f"stopping {len(running)} job(s), which save what they have")
                    for _, job_running in running.values():
                        job_running.stop(flag.number)
                with suppress(queue.Empty):
                    number, event = events.get(timeout=POLL_SECONDS)
                    if isinstance(event, Outcome):
                        outcomes[number] = event
                        places.append(running.pop(number)[0])
                        places.sort()
                    else:
                        log(f"{jobs[number].label}: {event}")
        finally:
            _end([job_running for _, job_running in running.values()], events)
            for reader in readers:
                reader.join(LAST_SECONDS)
    return outcomes, flag.number


def _forward(number: int, job: Running, events: queue.SimpleQueue[tuple[int, str | Outcome]]) -> None:
    for event in job.events():
        events.put((number, event))


def _end(running: Sequence[Running], events: queue.SimpleQueue[tuple[int, str | Outcome]]) -> None:
    """End jobs at once: by a signal, which is their second one, and without a word where that takes long."""
    for job in running:
        job.stop(signal.SIGTERM)
    left, until = len(running), time.monotonic() + LAST_SECONDS
    while left and time.monotonic() < until:
        with suppress(queue.Empty):
            left -= isinstance(events.get(timeout=POLL_SECONDS)[1], Outcome)
    if left:
        for job in running:
            job.kill()
