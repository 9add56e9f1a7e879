"""Processes that compute, from the server's side: workers, the check of an upload, a queue of jobs.

worker = Worker(log)
head, body = await worker.ask({"verb": "next", ...})      # SinfusionError with what was wrong
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SinfusionError
from .messages import LENGTHS, Head, packed

CHECK_SECONDS = 120.0  # that the check of an upload may last
MOST_ANSWER = 256 << 20  # bytes


class Worker:
    """A `worker` process, begun when it is first needed and again after it has ended. It does one thing at a time."""

    def __init__(self, log: Path):
        self.log = log  # what it prints
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def begin(self) -> None:
        """Start the process, so that the first request does not wait for it."""
        async with self._turn:
            await self._started()

    async def ask(
        self, head: Head, body: bytes = b"", on_progress: Callable[[float], object] = lambda _: None
    ) -> tuple[Head, bytes]:
        """The answer to a request. on_progress: called with the share that is done."""
        async with self._turn:
            process = await self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(packed(head, body))
                await process.stdin.drain()
                while True:
                    answer, payload = await self._read(process)
                    if "progress" not in answer:
                        break
                    on_progress(answer["progress"])
            except (OSError, asyncio.IncompleteReadError):
                self.kill()
                raise SinfusionError("the process that computes has ended; what it did is lost, try again.") from None
            except BaseException:  # nobody waits for the answer any more
                self.kill()
                raise
        if "error" in answer:
            raise SinfusionError(answer["error"])
        return answer, payload

    def kill(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "sinfusion.studio.worker",
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
                )  # fmt: skip
            try:
                await self._read(self._process)  # that it is ready
            except BaseException:
                self.kill()
                raise
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> tuple[Head, bytes]:
        assert process.stdout is not None
        head, body = LENGTHS.unpack(await process.stdout.readexactly(LENGTHS.size))
        if head + body > MOST_ANSWER:
            raise OSError("an answer that is too long")
        return json.loads(await process.stdout.readexactly(head)), await process.stdout.readexactly(body)


async def check_upload(source: Path, folder: Path, label: str, log: Path) -> Head:
    """What is in an upload, as `checking` finds; SinfusionError where it cannot be used."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sinfusion.studio.checking", str(source), str(folder), label,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), CHECK_SECONDS)
        found = json.loads(printed)
    except (asyncio.TimeoutError, ValueError):  # killed at a limit, or in the decoder
        raise SinfusionError(f"{label} takes too long or too much to decode; make it smaller or shorter.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if "error" in found:
        raise SinfusionError(found["error"])
    return dict(found)


class Jobs:
    """A queue of what a worker makes, one after another; the page is told how far each is."""

    MOST_WAITING, REMEMBERED = 8, 20

    def __init__(self, worker: Worker):
        self.worker = worker
        self.jobs: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()

    def add(self, facts: Head, request: Head, body: bytes = b"", finished: Callable[[], object] = lambda: None) -> str:
        """Put a request into the queue; returns its id. facts: what the page shows of it."""
        if len(self._tasks) >= self.MOST_WAITING:
            raise SinfusionError(f"{self.MOST_WAITING} things wait to be made already; wait for them, or cancel some.")
        id = os.urandom(6).hex()
        self.jobs[id] = {"id": id, "state": "waiting", "share": 0.0, **facts}
        for old in [*self.jobs][: -self.REMEMBERED]:
            if old not in self._tasks:
                del self.jobs[old]
        self._tasks[id] = asyncio.create_task(self._work(self.jobs[id], request, body, finished))
        return id

    def cancel(self, id: str) -> None:
        """End a job that waits or is being made."""
        if id in self._tasks:
            self._tasks[id].cancel()

    async def wait(self, id: str) -> dict[str, Any]:
        """A job, once it has ended."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._tasks[id])
        return self.jobs[id]

    async def close(self) -> None:
        for task in [*self._tasks.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _work(self, job: dict[str, Any], request: Head, body: bytes, finished: Callable[[], object]) -> None:
        try:
            async with self._turn:
                job["state"] = "working"
                await self.worker.ask(request, body, lambda share: job.update(share=share))
            job.update(state="done", share=1.0)
            finished()
        except SinfusionError as error:
            job.update(state="failed", error=str(error))
        except asyncio.CancelledError:
            job.update(state="cancelled")
        finally:
            del self._tasks[job["id"]]
