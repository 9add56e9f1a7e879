"""One training at a time: `sinfusion train` in a process of its own, which the server's end stops but never breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import sys
from pathlib import Path

from ..errors import SinfusionError
from ..files import writer_of

STOP_SECONDS = 30.0  # that it may take to save


class Training:
    """The training of the moment, if there is one."""

    def __init__(self, log: Path):
        self.log = log  # what it prints
        self.folder: Path | None = None  # of the run
        self.error = ""  # the sentence of the last one, if it failed
        self.note = ""  # what it said of its end
        self._process: asyncio.subprocess.Process | None = None
        self._starting = False
        self._watch: asyncio.Task[None] | None = None  # kept, or the loop would drop it

    @property
    def active(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def begin(self, folder: Path, *words: str) -> None:
        """Start `sinfusion train` with these words; SinfusionError while another training goes on."""
        if self.active or self._starting:
            raise SinfusionError("a training goes on already; stop it first, it can be resumed later.")
        self.folder, self.error, self.note, self._starting = folder, "", "", True
        try:
            with self.log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "sinfusion", "train", *words,
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        finally:
            self._starting = False
        self._watch = asyncio.create_task(self._wait(self._process))

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        lines = self.log.read_text(errors="replace").strip().splitlines()
        self.note = next((line.partition(";")[0] for line in lines[-3:] if line.startswith("too few steps")), "")
        if code not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            last = lines[-1] if lines else f"it ended with code {code}."
            self.error = last.removeprefix("error: ")[:400]

    def stop(self, folder: Path) -> None:
        """Ask the training of a run to save and end; also one that an earlier server has begun."""
        if self.active and folder == self.folder:
            assert self._process is not None
            self._process.terminate()
            return
        owner = writer_of(folder)
        if owner is None or owner.machine != platform.node():
            raise SinfusionError("this run is not being trained here.")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(owner.process, signal.SIGTERM)

    async def close(self) -> None:
        """Stop it, saved."""
        if self.active:
            assert self._process is not None
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except asyncio.TimeoutError:
                self._process.terminate()  # a second time, which is obeyed at once
