"""Whether other work takes the cores while something is measured."""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import time
from collections.abc import Sequence

PROBE_SECONDS = 0.1
QUIET = 0.9  # share of the cores from which on times count


def cores_share(threads: int, seconds: float = PROBE_SECONDS) -> float:
    """The share of that many cores that this process gets: CPU time / (wall time x threads) of threads that compute."""
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
    return min(1.0, (time.process_time() - cpu) / ((time.perf_counter() - wall) * threads))


def load_average() -> float | None:
    """Of the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def sentence(shares: Sequence[float], threads: int, average: float | None) -> str:
    """What the probes, before and after each benchmark, say of the machine."""
    share, at_start = statistics.median(shares), "" if average is None else f", load average {average:.1f} at the start"
    got = f"this process got {share:.0%} of {threads} core(s){at_start}"
    if share < QUIET:
        return f"UNDER LOAD: {got}. Times are too long and ratios uncertain; measure again on a quiet machine."
    return f"The machine was quiet: {got}."
