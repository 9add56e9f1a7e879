"""Whether other work takes the cores while something is measured."""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import time
from collections.abc import Sequence

PROBE_SECONDS = 0.05
QUIET = 0.9  # share of the cores from which on times count


def cores_share(threads: int, seconds: float = PROBE_SECONDS) -> float:
    """The share of that many cores that this process gets, by threads that do nothing but compute."""
    end, data = time.perf_counter() + seconds, bytes(2**20)

    def compute() -> None:
        while time.perf_counter() < end:
            hashlib.sha256(data)  # releases the interpreter's lock

    workers = [threading.Thread(target=compute) for _ in range(threads)]
    cpu, wall = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return share(time.process_time() - cpu, time.perf_counter() - wall, threads)


def share(cpu: float, wall: float, threads: int) -> float:
    """What part of so many cores CPU time is; more than all of them are all."""
    return min(1.0, cpu / (wall * threads))


def load_average() -> float | None:
    """Of the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def sentence(shares: Sequence[float], threads: int, average: float | None) -> str:
    """What the probes, before and after each benchmark, say of the machine."""
    median, at_start = (
        statistics.median(shares),
        "" if average is None else f", load average {average:.1f} at the start",
    )
    got = f"this process got {median:.0%} of {threads} core(s){at_start}"
    if median < QUIET:
        return f"UNDER LOAD: {got}. Times are too long and ratios uncertain; measure again on a quiet machine."
    return f"The machine was quiet: {got}."
