"""Trainings by the clock that are killed at random moments, and go on: each ends as its journal says, to the bit.

python benchmarks/survive_kills.py --kills 200 --out OUT.json

Three models are trained on a little clip. A training is killed (SIGKILL) again and again, each time after a random
time, and begun again, until it ends by itself; then its checkpoints are removed and it is repeated from its plan.jsonl.
Weights, average and the optimizer's state must be the same. Rounds are made until there were as many kills as asked
for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine

import sinfusion
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.run import load
from sinfusion.training import trainer
from sinfusion.training.plan import read_journal

SETTINGS = {"filters": 4, "depth": 2, "batch_size": 1, "sampling_steps": 1, "unconditional_sampling_steps": 1}
MODELS = ("predictor", "projector", "interpolator")


@dataclass
class Settings:
    kills: int = 200
    minutes: float = 0.1  # of each training, not counting what a kill has taken back
    seed: int = 0
    out: Path | None = None


def in_child(work: Callable[[], Any], after: float | None = None) -> bool:
    """Do some work in a forked process, killed after some seconds; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    if after is None:
        return os.waitpid(child, 0)[1] == 0
    end = time.monotonic() + after
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit("a training that should have gone on ended with an error")
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def state(run: Path) -> dict[str, torch.Tensor]:
    """All that the last checkpoints hold."""
    found = {}
    for name in MODELS:
        checkpoint = last_checkpoint(run / name)
        assert checkpoint is not None, f"{run / name} has no checkpoint"
        found |= {f"{name}.{key}": v for key, v in load_weights(checkpoint / "weights.safetensors")[0].items()}
        for parameter, moments in load_optimizer(checkpoint)["optimizer"].items():
            found |= {f"{name}.{parameter}.{key}": value for key, value in moments.items()}
    return found


def one_round(folder: Path, clip: np.ndarray, minutes: float, rng: random.Random) -> dict[str, Any]:
    """A training that is killed until it ends, and is then repeated."""
    run, kills, began = folder / "run", 0, time.monotonic()

    def train() -> None:
        if (run / "run.json").exists() and (run / "input.safetensors").exists():
            sinfusion.train(run, quiet=True)
        else:
            sinfusion.train(clip, run, "tiny", minutes, ("generate", "upsample"), settings=SETTINGS, overwrite=True,
                            quiet=True)  # fmt: skip

    while not in_child(train, rng.uniform(0.05, 1.5)):
        kills += 1
    seconds, before = time.monotonic() - began, state(run)
    plans = [read_journal(run / name) for name in MODELS]
    assert all(plans), "a finished training has no journal"
    for name in MODELS:
        for checkpoint in (run / name).glob("step-*"):
            shutil.rmtree(checkpoint)
    assert in_child(lambda: sinfusion.train(run, quiet=True))
    after = state(run)
    same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    steps = {name: load(run).models[name]["steps"] for name in MODELS}
    segments = {name: len(plan.segments) for name, plan in zip(MODELS, plans, strict=True) if plan}
    return {"kills": kills, "seconds": seconds, "steps": steps, "segments": segments, "equal": same}


def main(settings: Settings) -> None:
    trainer.CHECKPOINT_SECONDS = 0.3
    rng = random.Random(settings.seed)
    clip = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), np.uint8)
    report: dict[str, Any] = {**machine(), "rounds": []}
    while sum(row["kills"] for row in report["rounds"]) < settings.kills:
        with tempfile.TemporaryDirectory() as folder:
            row = one_round(Path(folder), clip, settings.minutes, rng)
        report["rounds"].append(row)
        print(json.dumps(row), flush=True)
        if settings.out:
            settings.out.write_text(json.dumps(report, indent=1) + "\n")
    kills = sum(row["kills"] for row in report["rounds"])
    equal = all(row["equal"] for row in report["rounds"])
    print(f"{kills} kills in {len(report['rounds'])} trainings; repeated from their journals: {equal=}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Settings))
