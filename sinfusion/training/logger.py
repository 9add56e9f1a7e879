"""What a training leaves to look at: log.jsonl, the loss curve, previews, TensorBoard if installed; and its progress.

The only module that waits for the device in order to report. None of this is worth a training: what cannot be written
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

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..console import log
from ..errors import SinfusionError
from ..files import append_row, atomic_write, rows
from ..media import contact_sheet, write_image
from ..progress import OnProgress, Progress
from .plan import MOST_STEPS, Plan, write_journal

READ_SECONDS = 1.0  # between two readings of the loss
PREVIEW_SHARE = 0.05  # of the time that images may take
PREVIEW_STEPS = 30  # that take as long as a preview, by estimate, until one is made
LAST_SECONDS = 2.0  # that the last preview may take whatever its share

MakePreview = Callable[[], np.ndarray | None]  # returns (N, H, W, 3) uint8; None where it was interrupted


class TrainingLogger:
    """Collects losses on the device; about once a second it reads, logs and reports them."""

    def __init__(
        self,
        folder: Path,
        task: str,  # the name of the model
        done: int,
        total: int,
        *,
        on_progress: OnProgress = lambda _: None,  # called when the loss is read, and at the beginning and the end
        preview: MakePreview | None = None,
        preview_seconds: float = 30.0,  # between two previews; longer where they take long to make
        quiet: bool = False,  # do not say what cannot be written
    ):
        self.folder, self.task, self.done, self.total, self.quiet = folder, task, done, total, quiet
        self.on_progress, self.preview, self.preview_seconds = on_progress, preview, preview_seconds
        self.failed: set[str] = set()  # what could not be written, and has been reported
        self.history: list[dict[str, Any]] = []  # rows of log.jsonl
        self.losses: list[Tensor] = []  # since the last reading
        self.loss: float | None = None  # their mean at the last reading
        self.log = folder / "log.jsonl"
        with self.attempt("log.jsonl"):
            folder.mkdir(parents=True, exist_ok=True)
            # The rows of an earlier session up to the checkpoint that is resumed.
            self.history = [row for row in rows(self.log) if row.get("step", done + 1) <= done]
            with atomic_write(self.log) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        self.board: Any = None
        with self.attempt("TensorBoard's log"):
            if importlib.util.find_spec("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder), purge_step=done)  # type: ignore[no-untyped-call]
        self.started = self.read_at = time.monotonic()
        self.cpu_seconds = time.process_time()  # of all threads until the last reading
        self.preview_cost = 0.0  # seconds that the last one took
        self.preview_at = self.started + min(10.0, preview_seconds)
        self._report()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Write something that may fail: that is reported the first time. A SinfusionError is raised as ever."""
        try:
            yield
        except SinfusionError:
            raise
        except Exception as error:
            if what not in self.failed and not self.quiet:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                log(f"{self.task}: {what} cannot be written ({reason:.200}); the training goes on.")
            self.failed.add(what)

    def save_plan(self, plan: Plan, ended: bool = False) -> None:
        """Keep a plan that has changed, or whose end was reached."""
        self.total = plan.total
        with self.attempt("plan.jsonl"):
            write_journal(self.folder, plan, ended)

    def step(self, step: int, loss: Tensor, learning_rate: float) -> float | None:
        """Record the loss of a step, () on the device. Returns the mean since the last reading, or None in between."""
        self.losses.append(loss.detach())
        self.done = step + 1
        now = time.monotonic()
        if now - self.read_at < READ_SECONDS and self.done < self.total:
            return None
        self.loss = float(torch.stack(self.losses).mean())
        speed = len(self.losses) / max(now - self.read_at, 1e-9)
        self._log_row(learning_rate, speed, now)
        self.losses.clear()
        if self.preview_cost == 0:
            self.preview_at = max(self.preview_at, self.started + PREVIEW_STEPS / speed / PREVIEW_SHARE)
        due = now >= self.preview_at and self.done < self.total  # the last image is made by `close`
        self._report(self._draw() if due else None)
        self.read_at = time.monotonic()
        return self.loss

    def _log_row(self, learning_rate: float, speed: float, now: float) -> None:
        """Append to log.jsonl. speed: steps a second since the last reading."""
        seconds, since, cpu_seconds = now - self.started, max(now - self.read_at, 1e-9), time.process_time()
        row = {
            "step": self.done,
            "loss": self.loss,
            "learning_rate": learning_rate,
            "steps_per_second": speed,
            "seconds": seconds,
            "total": self.total,
            "expected_seconds": seconds + (self.total - self.done) / speed,
            "cpu_share": (cpu_seconds - self.cpu_seconds) / since / torch.get_num_threads(),
        }
        self.cpu_seconds = cpu_seconds
        self.history.append(row)
        with self.attempt("log.jsonl"):
            append_row(self.log, row, durable=False)
        if self.board:
            with self.attempt("TensorBoard's log"):
                self.board.add_scalar("loss", self.loss, self.done)

    def _report(self, image: np.ndarray | None = None) -> None:
        total = None if self.total == MOST_STEPS else self.total
        self.on_progress(Progress(self.done, total, "step", self.task, self.loss, image))

    def _draw(self, preview: bool = True) -> np.ndarray | None:
        """Write loss.png and preview.png. Returns the preview's last frame (H, W, 3) uint8, or None without one."""
        started, images = time.monotonic(), None
        with self.attempt("loss.png"):
            figure = Figure(figsize=(6, 3.5), layout="constrained")
            axes = figure.subplots()
            axes.plot([row["step"] for row in self.history], [row["loss"] for row in self.history], linewidth=0.8)
            axes.set(xlabel="step", ylabel="loss", yscale="log")
            with atomic_write(self.folder / "loss.png") as temporary:
                figure.savefig(temporary, dpi=110)
        if self.preview and preview:
            with self.attempt("preview.png"):
                images = self.preview()
                if images is not None:
                    write_image(self.folder / "preview.png", contact_sheet(images), overwrite=True)
        now = time.monotonic()
        self.preview_cost = now - started
        self.preview_at = now + max(self.preview_seconds, self.preview_cost / PREVIEW_SHARE)
        return None if images is None else images[-1]

    def close(self, finished: bool) -> None:
        """Draw the last images of a finished training, and close everything."""
        if finished and self.history:
            spent = time.monotonic() - self.started
            self._report(self._draw(self.preview_cost <= max(LAST_SECONDS, 2 * PREVIEW_SHARE * spent)))
        if self.board:
            with self.attempt("TensorBoard's log"):
                self.board.close()
