"""Jobs on a cluster: Ray finds the machine for each, and carries its lines here.

with cluster("auto", jobs, gpus=True) as start:
    outcomes, signal = run_jobs(jobs, len(jobs), start)

Every machine has this package, and the files under the same names, as on a shared file system.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import SinfusionError
from ..extras import need
from .jobs import Child, Job, Outcome, Running

CONNECT_SECONDS = 5.0  # until a cluster has to have answered
MOST_PORT = 65535
# Nothing is reported to anybody; jobs are not nice to other work, as with the pool.
OF_A_LOCAL_ONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@contextmanager
def cluster(address: str, most: int, gpus: bool) -> Iterator[Callable[[Job, int], Running]]:
    """What starts jobs on a Ray cluster.

    address: of a cluster; auto: that of this machine; local: one that begins and ends here. most: jobs at a time. gpus:
    each job has a GPU where the cluster has some; otherwise a share of the cores. Raises SinfusionError where there is
    no such cluster.
    """
    need("cluster")
    import ray

    for name, value in OF_A_LOCAL_ONE.items():
        os.environ.setdefault(name, value)
    try:
        _connect(address)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        kind: Any = ray.remote(Remote)
        if gpus and any(machine.get("GPU") for machine in machines):
            wanted = kind.options(num_gpus=1, num_cpus=1, max_concurrency=2)
            variables = {}
        else:
            share = cores_of_a_job([int(machine.get("CPU", 0)) for machine in machines], most)
            wanted = kind.options(num_cpus=share, max_concurrency=2)
            variables = {"OMP_NUM_THREADS": str(share)}
        variables |= {name: value for name, value in os.environ.items() if name.startswith("SINFUSION_")}
        yield lambda job, place: OnCluster(wanted.remote(job.words, variables, os.getcwd()))
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Begin with a cluster. SinfusionError where none answers."""
    import ray

    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        if address not in ("local", "auto"):
            _check_answers(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, ValueError, RuntimeError) as error:
        what = str(error).strip().split("\n")[0][:120].rstrip(". ")
        raise SinfusionError(f"--cluster {address}: no Ray cluster answers there ({what}); try local.") from error


def _check_answers(address: str) -> None:
    """OSError or ValueError unless something listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MOST_PORT or "/" in host:
        raise ValueError("an address is HOST:PORT, auto or local")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
        pass


def cores_of_a_job(machines: list[int], most: int) -> int:
    """Cores for each of so many jobs at a time, which no machine has to share: `machines` has the cores of each."""
    machines = [count for count in machines if count > 0] or [1]
    return max(1, min(min(machines), sum(machines) // most))


class Remote:
    """A job where Ray has put it: an actor, so that it can be told to stop while it runs."""

    def __init__(self, words: tuple[str, ...], variables: dict[str, str], folder: str):
        self.child = Child(words, variables, folder)

    def begun(self) -> None:
        """Returns once it runs."""

    def events(self) -> Iterator[str | Outcome]:
        yield from self.child.events()

    def stop(self) -> None:
        # Whatever the signal here was: there, SIGHUP may be ignored.
        self.child.stop(signal.SIGTERM)


class OnCluster:
    """A job on a cluster, as seen from here."""

    def __init__(self, actor: Any):
        self.actor = actor
        self._begun, self._lines = actor.begun.remote(), actor.events.remote()

    def events(self) -> Iterator[str | Outcome]:
        import ray

        outcome = Outcome(1, said="Ray ended it without an outcome")
        try:
            for line in self._lines:
                event = ray.get(line)
                if isinstance(event, Outcome):
                    outcome = event
                else:
                    yield event
        except ray.exceptions.RayError as error:
            said = f"Ray lost its machine, or could not begin it: {str(error).strip()[:200]}".split("\n")[0]
            outcome = Outcome(1, said=said) if self._has_begun() else Outcome(said=said)
        self.kill()  # its cores are free for the next
        yield outcome

    def stop(self, number: int) -> None:
        if self._has_begun():
            self.actor.stop.remote()
        else:
            self.kill()

    def kill(self) -> None:
        import ray

        ray.kill(self.actor)

    def _has_begun(self) -> bool:
        import ray

        return bool(ray.wait([self._begun], timeout=0)[0])
