"""Whether `--minutes` is kept, and what it is worth, on machines as they are: quiet, busy, busy at first, stopped.

python benchmarks/promise.py ../shared/data/tornado --out benchmarks/results/promise.json --sheets SHEETS

Trains the clip for a minute (a) alone, (b) beside two busy processes, (c) beside two busy processes in its first ten
seconds, (d) stopped for 30 seconds in its middle; and makes the demo, alone or as --demo says. Each time: the seconds
that the command took, steps, PSNR of one step of the Predictor above repeating the last frame (on the transitions it
was trained on, and on those after them), and of a rollout of 60 frames from the first one the change between frames and
the high-frequency RMS relative to the clip's.
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
from quality import predictions, rollouts

from sinfusion.generation.video import generate
from sinfusion.media import contact_sheet, read_video, write_image
from sinfusion.run import Run, load

BUSY = "while True: pass"
Scenario = Literal["alone", "busy", "busy at first", "stopped"]
SCENARIOS: tuple[Scenario, ...] = ("alone", "busy", "busy at first", "stopped")


@dataclass
class Settings:
    clip: tyro.conf.Positional[Path]
    stop: int = 24  # frames 0 .. stop - 1 are trained on, the others held out
    minutes: float = 1.0
    scenarios: tuple[Scenario, ...] = SCENARIOS
    demo: tuple[Scenario, ...] = ("alone",)  # the demo is made in these, too: four minutes each
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


def measure(run: Run, frames: np.ndarray, stop: int, sheet: Path | None) -> dict[str, Any]:
    """The figures of a run."""
    known, held = frames[:stop], frames[stop - 1 :]
    outputs = generate(run, 60, count=2, start=0)
    if sheet is not None:
        own = generate(run, 10, seed=1)[0]
        write_image(sheet, contact_sheet(np.concatenate((outputs[0], own)), columns=10), overwrite=True)
    logs = [(run.path / name / "log.jsonl").read_text().splitlines() for name in run.models]
    return {
        "size": f"{run.size[1]}x{run.size[0]}",
        "steps": {name: model["steps"] for name, model in run.models.items()},
        "cpu_share": float(np.median([json.loads(line)["cpu_share"] for log in logs for line in log])),
        **predictions(run, known, held),
        **rollouts(outputs, known),
    }


def of_training(settings: Settings, scenario: Scenario, folder: Path) -> dict[str, Any]:
    words = ["train", str(settings.clip), "--stop", str(settings.stop), "--out", str(folder / "out")]
    words += ["--minutes", str(settings.minutes)]
    seconds, text = timed(words, scenario, max(1, 30 * settings.minutes - 15))
    run = load(folder / "out")
    frames = read_video(settings.clip, size=run.size, log=lambda _: None).frames
    figures = measure(run, frames, settings.stop, sheet_of(settings, "train", scenario))
    return row("train", scenario, seconds, figures, text)


def of_demo(settings: Settings, scenario: Scenario, folder: Path) -> dict[str, Any]:
    seconds, text = timed(["demo", "--out", str(folder / "out")], scenario, 90)
    run = load(folder / "out" / "run")
    figures = measure(run, run.frames, len(run.frames), sheet_of(settings, "demo", scenario))
    return row("demo", scenario, seconds, figures, text)


def sheet_of(settings: Settings, command: str, scenario: Scenario) -> Path | None:
    return settings.sheets / f"{command}-{scenario.replace(' ', '-')}.png" if settings.sheets else None


def row(command: str, scenario: Scenario, seconds: float, figures: dict[str, Any], text: str) -> dict[str, Any]:
    said = [line for line in re.split("[\n\r]", text) if " steps in " in line or "watching" in line]
    return {"command": command, "scenario": scenario, "seconds": seconds, **figures, "said": said}


def main(settings: Settings) -> None:
    rows: list[dict[str, Any]] = []
    asked = [(of_training, scenario) for scenario in settings.scenarios]
    asked += [(of_demo, scenario) for scenario in settings.demo]
    for of_command, scenario in asked:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(of_command(settings, scenario, Path(folder)))
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
        if settings.out:
            report = {"clip": settings.clip.name, "minutes": settings.minutes, **machine(), "rows": rows}
            settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
