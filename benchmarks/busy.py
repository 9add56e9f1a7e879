"""Training steps and rollout frames of `tiny` beside busy processes: how fast, and at what cost of CPU time.

python benchmarks/busy.py --out benchmarks/results/busy.json [--before CHECKOUT] [--rounds 3] [--loads 0 1 2]

Each variant is a process that waits for its turn: `ours` finds out by itself how many threads are worth it, `1 thread`
and `2 threads` are fixed, `PyTorch` is the reference of every operator, `before` another checkout, built. Under each
load, of so many processes that do nothing but compute, all take turns, round after round (PyTorch, which is slow, in
the first alone). Figures are medians over the rounds: milliseconds that pass for one step or frame, and those that the
CPU spends on it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
LOADS = (0, 1, 2)
WARM, SECONDS = 1.0, 1.0  # of each turn: to get used to the load, then to measure
KINDS = {"training": (36, 64), "rollout": (40, 64)}  # height and width of frames
VARIANTS = ("ours", "1 thread", "2 threads", "PyTorch", "before")


Key = tuple[str, int, str]  # kind, busy processes, variant


def burn() -> None:
    while True:
        pass


def functions(folder: Path) -> dict[str, Any]:
    """A training step and a frame of a rollout, of an untrained Predictor."""
    import sinfusion
    from sinfusion.generation.video import stream
    from sinfusion.recipe import TINY
    from sinfusion.roles import PREDICTOR
    from sinfusion.scene import render
    from sinfusion.training.trainer import Trainer

    recipe = TINY.replace(predictor_steps=1, projector_steps=1)
    runs = {
        kind: sinfusion.train(render(12, size), folder / kind, recipe, quiet=True, device="cpu")
        for kind, size in KINDS.items()
    }
    frames = stream(runs["rollout"], 10**9, start=0)
    return {"training": Trainer(runs["training"], PREDICTOR, 10**6).step, "rollout": lambda: next(frames)}


def work(variant: str, out: TextIO) -> None:
    """A worker: a line names a kind, the answer is the calls, the seconds and the CPU's seconds of a turn."""
    import torch

    from sinfusion import ops
    from sinfusion.ops.native import cpu

    if variant == "1 thread":
        torch.set_num_threads(1)
    if variant == "2 threads":
        torch.set_num_threads(2)
        cpu.adapt_threads(False)
    with tempfile.TemporaryDirectory() as folder, ops.backend("reference" if variant == "PyTorch" else "native"):
        calls = functions(Path(folder))
        for call in list(calls.values()) * 3:
            call()
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            call = calls[line.strip()]
            for seconds in (WARM, SECONDS):
                count, wall, before = 0, time.perf_counter(), cpu_seconds()
                while count == 0 or time.perf_counter() - wall < seconds:
                    call()
                    count += 1
                spent = {"calls": count, "wall": time.perf_counter() - wall, "cpu": cpu_seconds() - before}
            print(json.dumps(spent), file=out, flush=True)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Worker:
    """A process that measures one variant when it is its turn."""

    def __init__(self, variant: str, checkout: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", variant],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.kinds, self.answers = self.process.stdin, self.process.stdout
        self.answer()

    def answer(self) -> str:
        line = self.answers.readline()
        if not line:
            raise SystemExit("a worker ended before its time")
        return line

    def turn(self, kind: str) -> dict[str, float]:
        """Milliseconds of a call: that pass, and of the CPU."""
        print(kind, file=self.kinds, flush=True)
        spent = json.loads(self.answer())
        return {what: 1e3 * spent[what] / spent["calls"] for what in ("wall", "cpu")}

    def end(self) -> None:
        self.kinds.close()
        self.process.wait()


def measure(workers: dict[str, Worker], loads: list[int], rounds: int) -> dict[Key, list[dict[str, float]]]:
    found: dict[Key, list[dict[str, float]]] = {}
    for turn in range(rounds):
        names = sorted(
            workers if turn == 0 else [name for name in workers if name != "PyTorch"],
            key=lambda name: (list(workers).index(name) - turn) % len(workers),
        )
        for load in loads:
            busy = [multiprocessing.Process(target=burn, daemon=True) for _ in range(load)]
            for process in busy:
                process.start()
            for kind in KINDS:
                for variant in names:
                    found.setdefault((kind, load, variant), []).append(workers[variant].turn(kind))
            for process in busy:
                process.kill()
                process.join()
    return found


def table(found: dict[Key, list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for (kind, load, variant), turns in sorted(found.items(), key=lambda item: item[0][:2]):
        medians = {f"{what}_ms": statistics.median(turn[what] for turn in turns) for what in ("wall", "cpu")}
        rows.append({"kind": kind, "busy": load, "variant": variant, **medians, "turns": turns})
    return rows


def verdicts(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What is promised, as ratios; larger is better for speeds, smaller for CPU time."""
    wall = {(r["kind"], r["busy"], r["variant"]): r["wall_ms"] for r in rows}
    cpu = {(r["kind"], r["busy"], r["variant"]): r["cpu_ms"] for r in rows}
    found = {}
    for kind, load in sorted({key[:2] for key in wall}):
        name, ours = f"{kind}, {load} busy", wall[kind, load, "ours"]
        fixed = [wall[kind, load, number] for number in ("1 thread", "2 threads") if (kind, load, number) in wall]
        if fixed:
            found[f"{name}: speed, of the best fixed number of threads"] = min(fixed) / ours
        if load and (kind, 0, "ours") in wall:
            found[f"{name}: speed, of the quiet one"] = wall[kind, 0, "ours"] / ours
            found[f"{name}: CPU time, of the quiet one"] = cpu[kind, load, "ours"] / cpu[kind, 0, "ours"]
        if (kind, load, "before") in wall:
            found[f"{name}: speed, of that before"] = wall[kind, load, "before"] / ours
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", type=Path, help="a checkout, built, to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", type=int, nargs="+", default=list(LOADS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        answers = os.fdopen(os.dup(1), "w")
        sys.stdout = sys.stderr
        return work(options.work, answers)
    wanted = [v for v in options.variants if v != "before" or options.before]
    places = {v: options.before.resolve() if v == "before" else ROOT for v in wanted}
    workers = {variant: Worker(variant, place) for variant, place in places.items()}
    rows = table(measure(workers, options.loads, options.rounds))
    for worker in workers.values():
        worker.end()
    print(f"{'':10}{'busy':>5}  {'variant':12}{'ms':>8}{'CPU ms':>8}")
    for row in rows:
        print(f"{row['kind']:10}{row['busy']:5}  {row['variant']:12}{row['wall_ms']:8.1f}{row['cpu_ms']:8.1f}")
    ratios = verdicts(rows)
    for name, value in ratios.items():
        print(f"{value:6.2f}  {name}")
    if options.out:
        sys.path.insert(0, str(ROOT))
        from machine import machine

        facts = {**machine(), "rounds": options.rounds, "seconds_of_a_turn": [WARM, SECONDS], "sizes": KINDS}
        options.out.write_text(json.dumps({**facts, "ratios": ratios, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
