"""What a user sees of a training: progress, log.jsonl, the loss curve, previews, TensorBoard if installed.

The only module that waits for the device in order to print. None of this is worth a training: what cannot be written
(a full disk, too little memory) is reported once, and the training goes on.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..console import Bar, log
from ..errors import SinfusionError
from ..files import append_row, atomic_write, rows
from .plan import MOST_STEPS, Plan, write_journal

READ_SECONDS = 1.0  # between two looks at the loss
PREVIEW_SHARE = 0.05  # of the time at most goes into images
PREVIEW_STEPS = 30  # that take as long as one, by estimate, until one is made
LAST_SECONDS = 2.0  # that the last one may take whatever its share


class Progress:
    """Collects losses on the device; reads, prints and logs them about once a second."""

    def __init__(
        self,
        folder: Path,
        name: str,
        done: int,
        total: int,
        preview: Callable[[], None] | None = None,  # writes a preview; called every `preview_seconds`
        preview_seconds: float = 30.0,  # longer where the images take long to make
        quiet: bool = False,
    ):
        self.folder, self.name, self.total, self.quiet = folder, name, total, quiet
        self.preview, self.preview_seconds = preview, preview_seconds
        self.failed: set[str] = set()  # what could not be written, and has been reported
        self.history: list[dict[str, Any]] = []
        self.log = folder / "log.jsonl"
        with self.attempt("log.jsonl"):
            folder.mkdir(parents=True, exist_ok=True)
            # The rows of an earlier session up to the checkpoint that is resumed.
            self.history = [row for row in rows(self.log) if row.get("step", done + 1) <= done]
            with atomic_write(self.log) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        self.bar = Bar(0 if total == MOST_STEPS else total, "step", f"{name:12}", done, quiet, lasting=True)
        self.losses: list[Tensor] = []
        self.started = self.read_at = time.monotonic()
        self.worked = time.process_time()  # seconds of all threads until then
        self.preview_cost = 0.0  # seconds that one took
        self.preview_at = self.started + min(10.0, preview_seconds)
        self.board: Any = None
        with self.attempt("TensorBoard's log"):
            if importlib.util.find_spec("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder), purge_step=done)  # type: ignore[no-untyped-call]

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Something that may go wrong, which is reported the first time; a SinfusionError is not let by."""
        try:
            yield
        except SinfusionError:
            raise
        except Exception as error:
            if what not in self.failed and not self.quiet:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                log(f"{self.name}: {what} cannot be written ({reason:.200}); the training goes on.")
            self.failed.add(what)

    def follow(self, plan: Plan, ended: bool = False) -> None:
        """Keep a plan that has changed, or that the training has come to the end of."""
        self.total = plan.total
        with self.attempt("plan.jsonl"):
            write_journal(self.folder, plan, ended)

    def step(self, step: int, loss: Tensor, rate: float) -> float | None:
        """Record one step's loss (a scalar on the device); returns the mean loss when it was read, else None."""
        self.losses.append(loss.detach())
        now = time.monotonic()
        self.bar.total = 0 if self.total == MOST_STEPS else self.total
        if now - self.read_at < READ_SECONDS and step + 1 < self.total:
            self.bar.update()
            return None
        mean = float(torch.stack(self.losses).mean())
        self.bar.note = f"loss {mean:.4f}"
        self.bar.update()
        speed = len(self.losses) / max(now - self.read_at, 1e-9)
        seconds, since, worked = now - self.started, max(now - self.read_at, 1e-9), time.process_time()
        row = {
            "step": step + 1,
            "loss": mean,
            "learning_rate": rate,
            "steps_per_second": speed,
            "seconds": seconds,
            "total": self.total,
            "expected_seconds": seconds + (self.total - step - 1) / speed,
            "cpu_share": (worked - self.worked) / since / torch.get_num_threads(),
        }
        self.worked = worked
        self.history.append(row)
        with self.attempt("log.jsonl"):
            append_row(self.log, row, durable=False)
        if self.board:
            with self.attempt("TensorBoard's log"):
                self.board.add_scalar("loss", mean, step + 1)
        self.losses.clear()
        if self.preview_cost == 0:
            self.preview_at = max(self.preview_at, self.started + PREVIEW_STEPS / speed / PREVIEW_SHARE)
        if now >= self.preview_at and step + 1 < self.total:  # the last image is made by `close`
            self.image()
        self.read_at = time.monotonic()
        return mean

    def image(self, preview: bool = True) -> None:
        """Write loss.png and the preview."""
        started = time.monotonic()
        with self.attempt("loss.png"):
            figure = Figure(figsize=(6, 3.5), layout="constrained")
            axes = figure.subplots()
            axes.plot([row["step"] for row in self.history], [row["loss"] for row in self.history], linewidth=0.8)
            axes.set(xlabel="step", ylabel="loss", yscale="log")
            with atomic_write(self.folder / "loss.png") as temporary:
                figure.savefig(temporary, dpi=110)
        if self.preview and preview:
            with self.attempt("preview.png"):
                self.preview()
        now = time.monotonic()
        self.preview_cost = now - started
        self.preview_at = now + max(self.preview_seconds, self.preview_cost / PREVIEW_SHARE)

    def close(self, finished: bool) -> None:
        """Last images, and everything closed."""
        if finished and self.history:
            spent = time.monotonic() - self.started
            self.image(self.preview_cost <= max(LAST_SECONDS, 2 * PREVIEW_SHARE * spent))
        self.bar.close()
        if self.board:
            with self.attempt("TensorBoard's log"):
                self.board.close()
