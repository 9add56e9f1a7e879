"""The process that computes for the page: it makes results, or plays a run, as messages on standard input ask.

python -m sinfusion.studio.worker       # see `messages`; it ends when standard input does
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

from . import messages
from .messages import Head

PROGRESS_SECONDS = 0.2  # between two messages on progress


class Worker:
    """Answers requests, one after another."""

    def __init__(self, out: BinaryIO):
        self.out = out
        self.player: Any = None  # of `playing`
        self.loaded: tuple[str, Any] | None = None  # path and run that was played last

    def send(self, head: Head, body: bytes = b"") -> None:
        self.out.write(messages.packed(head, body))
        self.out.flush()

    def answer(self, head: Head, body: bytes) -> None:
        """Do what a message asks; send what came of it."""
        from ..errors import SinfusionError

        try:
            answer, payload = self._do(head, body)
        except SinfusionError as error:
            answer, payload = {"error": str(error)}, b""
        except MemoryError:
            answer, payload = {"error": "this needs more memory than there is; take a smaller size."}, b""
        except Exception as error:
            traceback.print_exc()
            memory = "memory" in str(error) and "alloc" in str(error)
            words = "this needs more memory than there is; take a smaller size."
            answer = {"error": words if memory else f"this failed inside: {type(error).__name__}: {error!s:.200}"}
            payload = b""
        self.send(answer, payload)

    def _do(self, head: Head, body: bytes) -> tuple[Head, bytes]:
        if head["verb"] == "play":
            return self._play(head), b""
        if head["verb"] == "next":
            return self._next(head)
        if head["verb"] == "keep":
            return self._keep(head), b""
        from .making import MAKE

        head["started"] = time.monotonic()
        for name in ("size", "painted"):
            head[name] = tuple(head[name]) if head.get(name) else None
        return MAKE[head["verb"]](head, body, self._on_progress()), b""

    def _on_progress(self) -> Any:
        sent = 0.0

        def report(progress: Any) -> None:
            nonlocal sent
            now = time.monotonic()
            if now - sent >= PROGRESS_SECONDS:
                sent = now
                self.send({"progress": progress.done / progress.total if progress.total else 0.0})

        return report

    def _play(self, head: Head) -> Head:
        """Load a run and be ready for its first frame."""
        from ..precision import choose_device
        from ..run import load
        from .playing import Player

        run = load(head["source"], choose_device(), log=lambda _: None)
        self.player = Player(run, head["start"])
        return {}

    def _next(self, head: Head) -> tuple[Head, bytes]:
        from .pictures import as_png
        from .playing import Settings

        started = time.monotonic()
        settings = head["settings"]
        settings["size"] = tuple(settings["size"]) if settings.get("size") else None
        shown = self.player.next(head["after"], Settings(**settings))
        facts = {"frame": shown.number, "index": shown.index, "seconds": round(time.monotonic() - started, 4)}
        return facts, as_png(shown.image)

    def _keep(self, head: Head) -> Head:
        import numpy as np

        from .making import save

        head["started"] = time.monotonic()
        images = self.player.branch(head["frame"])
        pixels = np.stack(images) if self.player.run.kind == "video" else images[-1]
        return save(head, pixels, self.player.run.fps)


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed must not come between messages
    asked: queue.Queue[tuple[Head, bytes]] = queue.Queue()

    def read() -> None:
        while message := messages.read(sys.stdin.buffer):
            asked.put(message)
        os._exit(0)  # the server is gone, or has no more use for this process

    threading.Thread(target=read, daemon=True).start()
    from .. import ops
    from . import making, playing  # noqa: F401  # now, so that the first request does not wait for it

    ops.keep_memory()
    worker = Worker(out)
    worker.send({"ready": True})
    while True:
        worker.answer(*asked.get())


if __name__ == "__main__":
    main()
