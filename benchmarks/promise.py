"""Whether `--minutes` is kept, and what it is worth, on machines as they are: quiet, busy, busy at first, stopped.

python benchmarks/promise.py ../shared/data/tornado --out benchmarks/results/promise.json --sheets SHEETS

Trains the clip for a minute, and makes the demo, (a) alone, (b) beside two busy processes, (c) beside two busy
processes in its first ten seconds, (d) stopped for 30 seconds in its middle. Each time: the seconds that the command
took, steps, PSNR of one step of the Predictor above repeating the last frame (on the transitions it was trained on, and
on those after them), and of a rollout of 60 frames from the first one the change between frames and the high-frequency
RMS relative to the clip's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from machine import machine

from sinfusion.generation.video import generate
from sinfusion.media import contact_sheet, read_video, write_image
from sinfusion.metrics.evaluation import change, conditional_mean, high_frequency, mean_psnr
from sinfusion.run import load

BUSY = "while True: pass"
Scenario = Literal["alone", "busy", "busy at first", "stopped"]
SCENARIOS: tuple[Scenario, ...] = ("alone", "busy", "busy at first", "stopped")


@dataclass
class Settings:
    clip: tyro.conf.Positional[Path]
    stop: int = 24  # frames 0 .. stop - 1 are trained on, the others held out
    minutes: float = 1.0
    scenarios: tuple[Scenario, ...] = SCENARIOS
    demo: bool = True  # make the demo in each scenario, too
    out: Path | None = None
    sheets: Path | None = None  # folder for contact sheets


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that do nothing but work."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def timed(words: list[str], scenario: Scenario, middle: float) -> tuple[float, str]:
    """Seconds that a command takes in a scenario, and what it says; `middle`: when it is stopped."""
    with busy(2 if scenario.startswith("busy") else 0) as load_generators, tempfile.TemporaryFile("w+") as said:
        started = time.monotonic()
        command = subprocess.Popen([sys.executable, "-m", "sinfusion", *words], stdout=said, stderr=said)
        if scenario == "busy at first":
            time.sleep(10)
            for process in load_generators:
                process.kill()
        if scenario == "stopped":
            time.sleep(middle)
            os.kill(command.pid, signal.SIGSTOP)
            time.sleep(30)
            os.kill(command.pid, signal.SIGCONT)
        code = command.wait()
        seconds = time.monotonic() - started
        said.seek(0)
        text = said.read()
    if code:
        raise SystemExit(f"{' '.join(words)} ended with {code}:\n{text}")
    return seconds, text


def measure(path: Path, frames: np.ndarray, stop: int, sheet: Path | None) -> dict[str, Any]:
    """The figures of a run."""
    run = load(path)
    known, held = frames[:stop], frames[stop - 1 :]
    outputs = generate(run, 60, count=2, start=0)
    if sheet is not None:
        own = generate(run, 10, seed=1)[0]
        write_image(sheet, contact_sheet(np.concatenate((outputs[0], own)), columns=10), overwrite=True)
    figures: dict[str, Any] = {
        "size": f"{run.size[1]}x{run.size[0]}",
        "steps": {name: model["steps"] for name, model in run.models.items()},
        "trained_db": mean_psnr(conditional_mean(run, known), known[1:]) - mean_psnr(known[:-1], known[1:]),
        "change": float(np.mean([change(video) for video in outputs])) / change(known),
        "high_frequency": high_frequency(outputs) / high_frequency(known),
    }
    if len(held) > 1:
        figures["unseen_db"] = mean_psnr(conditional_mean(run, held), held[1:]) - mean_psnr(held[:-1], held[1:])
    shares = []
    for name in run.models:
        rows = [json.loads(line) for line in (path / name / "log.jsonl").read_text().splitlines()]
        shares += [row["cpu_share"] for row in rows]
    return figures | {"cpu_share": float(np.median(shares))}


def main(settings: Settings) -> None:
    report: dict[str, Any] = {"clip": settings.clip.name, "minutes": settings.minutes, **machine(), "rows": []}
    for scenario in settings.scenarios:
        for what in ("train", "demo") if settings.demo else ("train",):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "out"
                if what == "train":
                    words = ["train", str(settings.clip), "--stop", str(settings.stop), "--out", str(path)]
                    words += ["--minutes", str(settings.minutes)]
                    seconds, text = timed(words, scenario, 30 * settings.minutes - 15)
                    run = path
                else:
                    seconds, text = timed(["demo", "--out", str(path)], scenario, 90)
                    run = path / "run"
                sheet = settings.sheets / f"{what}-{scenario.replace(' ', '-')}.png" if settings.sheets else None
                if what == "train":
                    side = load(run).size
                    frames = read_video(settings.clip, size=side, log=lambda _: None).frames
                else:
                    frames = load(run).frames
                stop = settings.stop if what == "train" else len(frames)
                row = {"command": what, "scenario": scenario, "seconds": seconds} | measure(run, frames, stop, sheet)
                row["said"] = [line for line in re.split("[\n\r]", text) if " steps in " in line or "watching" in line]
            report["rows"].append(row)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            if settings.out:
                settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
