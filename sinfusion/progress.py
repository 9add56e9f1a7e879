"""What a user sees of a training: the bar, log.jsonl, the loss curve, previews, TensorBoard if installed.

The only module that waits for the device in order to print.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

READ_SECONDS = 1.0  # between two looks at the loss
PREVIEW_SHARE = 0.05  # of the time at most goes into pictures


class Progress:
    """Collects losses on the device; reads, prints and logs them about once a second."""

    def __init__(
        self,
        folder: Path,
        name: str,
        done: int,
        total: int,
        preview: Callable[[], None] | None = None,  # writes a preview; called every `preview_seconds`
        preview_seconds: float = 30.0,  # longer where the pictures take long to make
        quiet: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.total, self.preview, self.preview_seconds = folder, total, preview, preview_seconds
        self.history = self._kept(folder / "log.jsonl", done)
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.history))
        self.log = (folder / "log.jsonl").open("a")
        self.bar = tqdm(total=total, initial=done, desc=f"{name:12}", unit="step", disable=quiet, mininterval=0.5)
        self.losses: list[Tensor] = []
        self.started = self.read_at = time.monotonic()
        self.worked = time.process_time()  # seconds of all threads until then
        self.preview_at = self.started + min(10.0, preview_seconds)
        self.board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder), purge_step=done)  # type: ignore[no-untyped-call]

    @staticmethod
    def _kept(path: Path, done: int) -> list[dict[str, float]]:
        """The rows of an earlier session up to the checkpoint that is resumed."""
        rows = []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a line cut short by a kill
                continue
            if isinstance(row, dict) and row.get("step", done + 1) <= done:
                rows.append(row)
        return rows

    def step(self, step: int, loss: Tensor, rate: float) -> float | None:
        """Record one step's loss (a scalar on the device); returns the mean loss when it was read, else None."""
        self.losses.append(loss.detach())
        self.bar.update()
        now = time.monotonic()
        if now - self.read_at < READ_SECONDS and step + 1 < self.total:
            return None
        mean = float(torch.stack(self.losses).mean())
        speed = len(self.losses) / max(now - self.read_at, 1e-9)
        worked, seconds = time.process_time(), now - self.started
        row = {"step": step + 1, "loss": mean, "learning_rate": rate, "steps_per_second": speed,
               "seconds": seconds, "total": self.total, "expected_seconds": seconds + (self.total - step - 1) / speed,
               "cpu_share": (worked - self.worked) / (max(now - self.read_at, 1e-9) * torch.get_num_threads())}  # fmt: skip
        self.worked = worked
        self.history.append(row)
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()
        self.bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
        if self.board:
            self.board.add_scalar("loss", mean, step + 1)
        self.losses.clear()
        if now >= self.preview_at and step + 1 < self.total:  # the last picture is made by `close`
            self.picture()
        self.read_at = time.monotonic()
        return mean

    def retotal(self, total: int) -> None:
        """The training is now planned to end after `total` steps."""
        self.total = self.bar.total = total

    def picture(self) -> None:
        """Write loss.png and the preview."""
        started = time.monotonic()
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([row["step"] for row in self.history], [row["loss"] for row in self.history], linewidth=0.8)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        figure.savefig(self.folder / "loss.png", dpi=110)
        if self.preview:
            self.preview()
        now = time.monotonic()
        self.preview_at = now + max(self.preview_seconds, (now - started) / PREVIEW_SHARE)

    def close(self, finished: bool) -> None:
        """Last pictures, and everything closed."""
        if finished and self.history:
            self.picture()
        self.log.close()
        self.bar.close()
        if self.board:
            self.board.close()
