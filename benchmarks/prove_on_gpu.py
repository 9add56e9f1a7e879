"""Everything that only a GPU can show, in one command: it builds, passes its tests, and is as fast as it must be.

python benchmarks/prove_on_gpu.py --out OUT --clip ../shared/data/airballoons --released PATH
python benchmarks/prove_on_gpu.py --out OUT --steps build,tests,ops               # a part, where time is short
python benchmarks/prove_on_gpu.py --out OUT --device cpu --quick                  # a rehearsal without a GPU

A step that fails or takes too long does not stop the next. OUT gets summary.md, summary.json, a video and its contact
sheet of each recipe, and everything else (logs, figures of every benchmark) in details.tar.gz; all are written after
each step, so that nothing is lost where this is stopped. No network is needed. The released code needs einops and
matplotlib, and for its loop in Lightning pytorch_lightning, torchvision and cv2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from floors import Limits, Work

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable

Command = list[str]
Row = dict[str, Any]


class Skipped(Exception):
    """Why a step is not run."""


class Place(NamedTuple):
    """What was asked for, and where files go."""

    asked: argparse.Namespace
    details: Path  # packed in the end
    scratch: Path  # thrown away

    @property
    def size(self) -> str:
        return "32x20" if self.asked.quick else "256x144"


def build(place: Place) -> Iterator[Command]:
    folder = str(place.scratch / "build")
    cmake = subprocess.run([PYTHON, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True)
    yield ["cmake", "-S", str(ROOT), "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={PYTHON}",
           f"-DCMAKE_PREFIX_PATH={cmake.stdout.strip()}"]  # fmt: skip
    yield ["cmake", "--build", folder]


def tests(place: Place) -> Iterator[Command]:
    _needs_gpu(place)
    yield [PYTHON, "-m", "pytest", "-m", "gpu", "-rs", "tests"]


def sanitizer(place: Place) -> Iterator[Command]:
    _needs_gpu(place)
    if shutil.which("compute-sanitizer") is None:
        raise Skipped("there is no compute-sanitizer")
    files = [f"tests/ops/test_{name}.py" for name in ("vote", "sample_crops", "ddpm_step", "adam_ema")]
    for tool in ("memcheck", "racecheck"):
        yield ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", PYTHON, "-m", "pytest", "-m", "gpu",
               "--timeout", "0", *files]  # fmt: skip


def kernels(place: Place) -> Iterator[Command]:
    yield [PYTHON, "benchmarks/compiled_kernels.py", "--out", str(place.details / "compiled-kernels.json")]


def ops(place: Place) -> Iterator[Command]:
    yield _benchmark(place, "ops", "test_operator and not dense", "ops")


def dense(place: Place) -> Iterator[Command]:
    yield _benchmark(place, "ops", "dense", "dense")


def training(place: Place) -> Iterator[Command]:
    yield _benchmark(place, "training_step", "whole_step or lightning", "training")


def rollout(place: Place) -> Iterator[Command]:
    yield _benchmark(place, "rollout", "test_rollout", "rollout")


def _benchmark(place: Place, name: str, which: str, result: str) -> Command:
    options = ["--device", place.asked.device] + ["--quick"] * place.asked.quick
    for option in ("released", "clip"):
        if value := getattr(place.asked, option):
            options += [f"--{option}", str(value)]
    return [PYTHON, "-m", "pytest", f"benchmarks/bench_{name}.py", "-k", which, "--full", "--timeout", "0", *options,
            f"--benchmark-json={place.details / result}.json"]  # fmt: skip


def fast(place: Place) -> Iterator[Command]:
    yield from _recipe(place, "fast")


def paper(place: Place) -> Iterator[Command]:
    yield from _recipe(place, "paper")


def _recipe(place: Place, recipe: str) -> Iterator[Command]:
    """Train, make a video, measure both."""
    clip, out, outputs = place.asked.clip, place.details / f"{recipe}.mp4", str(place.scratch / recipe)
    sinfusion, device = [PYTHON, "-m", "sinfusion"], ["--device", place.asked.device]
    sampling = device + ["--steps", "4"] * place.asked.quick
    if clip is None:
        clip = place.scratch / "scene.mp4"
        size = place.size.split("x")
        yield [PYTHON, "-c", "import sys; from sinfusion.media import write_video; from sinfusion.scene import render; "
               "write_video(sys.argv[1], render(24, (int(sys.argv[3]), int(sys.argv[2]))), fps=20, overwrite=True)",
               str(clip), *size]  # fmt: skip
    yield [*sinfusion, "train", str(clip), "--recipe", recipe, "--minutes", str(place.asked.minutes), "--size",
           place.size, "--out", outputs, *device]  # fmt: skip
    yield [*sinfusion, "generate", outputs, "--frames", "4" if place.asked.quick else "60", "--out", str(out),
           *sampling]  # fmt: skip
    yield [*sinfusion, "evaluate", outputs, "--count", "1", "--json", str(place.details / f"{recipe}-evaluate.json"),
           *sampling]  # fmt: skip
    if not place.asked.quick:
        yield [PYTHON, "benchmarks/compare_recipes.py", "--clips", str(clip), "--run", outputs, "--out",
               str(place.details / f"{recipe}-quality.json")]  # fmt: skip


def _needs_gpu(place: Place) -> None:
    if place.asked.device != "cuda":
        raise Skipped("needs a GPU")


class Step(NamedTuple):
    commands: Callable[[Place], Iterator[Command]]
    minutes: float  # limit of all its commands; of a recipe besides its training


STEPS = {
    "build": Step(build, 5),
    "tests": Step(tests, 5),
    "ops": Step(ops, 5),
    "dense": Step(dense, 9),  # Triton compiles every configuration
    "training": Step(training, 5),
    "rollout": Step(rollout, 8),
    "fast": Step(fast, 4),
    "paper": Step(paper, 8),
    "kernels": Step(kernels, 10),
    "sanitizer": Step(sanitizer, 8),
}


def look(device: str, env: dict[str, str]) -> Row:
    """The facts of the machine; in a process of its own, since this one stays away from the GPU."""
    code = "import json, machine; print(json.dumps(machine.machine()))"
    facts: Row = json.loads(subprocess.check_output([PYTHON, "-c", code], cwd=ROOT, env=env))
    if device == "cuda" and facts["device"] == "cpu":
        raise SystemExit("PyTorch sees no GPU; rehearse with --device cpu --quick")
    return facts


def run(name: str, place: Place, env: dict[str, str]) -> Row:
    """One step, its output in a log of its own."""
    step, started = STEPS[name], time.monotonic()
    minutes = step.minutes + (place.asked.minutes if step.commands in (fast, paper) else 0)
    outcome: Row = {"step": name, "result": "ok", "why": ""}
    with open(place.details / f"{name}.log", "w") as log:
        try:
            for command in step.commands(place):
                log.write(f"$ {' '.join(command)}\n")
                log.flush()
                why = _finish(command, log, 60 * minutes - (time.monotonic() - started), env)
                if why:
                    outcome |= {"result": "failed", "why": why}
                    break
        except Skipped as why_not:
            outcome |= {"result": "skipped", "why": str(why_not)}
        except (OSError, subprocess.CalledProcessError) as error:
            outcome |= {"result": "failed", "why": str(error)}
    return outcome | {"seconds": round(time.monotonic() - started, 1)}


def _finish(command: Command, log: Any, seconds: float, env: dict[str, str]) -> str:
    """Run a command, and all that it starts, for so long at most; why it failed, or nothing."""
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=env, start_new_session=True)
    try:
        code = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "took too long"
    return f"exit code {code}, see its log" if code else ""


def figures(details: Path) -> list[Row]:
    """What the benchmarks that have run show of what must be shown."""
    shown = {"training": _of_training, "rollout": _of_rollout, "ops": _of_operators, "dense": _of_operators}
    rows = []
    for name, rows_of in shown.items():
        path = details / f"{name}.json"
        if path.exists() and (text := path.read_text()):  # empty where the benchmark was stopped
            rows += rows_of([benchmark["extra_info"] for benchmark in json.loads(text)["benchmarks"]])
    return rows


def _row(what: str, measured: float, unit: str, floor: float | None = None, least: float | None = None,
         most: float | None = None) -> Row:  # fmt: skip
    met = None if least is None and most is None else (least or 0) <= measured <= (most or float("inf"))
    limit = f"at least {least:g}" if least else f"at most {most:g}" if most else ""
    return {"what": what, "limit": limit, "measured": measured, "unit": unit, "floor": floor, "met": met}


def _ours(seconds: dict[str, float]) -> float:
    return seconds.get("graph", seconds["eager"])  # a CPU has no graphs


def _of_training(infos: list[Row]) -> list[Row]:
    rows, steps = [], {info["recipe"]: info for info in infos if "recipe" in info}
    for recipe, info in steps.items():
        what = f"training step of {recipe}, batch {info['batch']}"
        milliseconds, floor = 1e3 * _ours(info["seconds"]), 1e3 * info["floor_seconds"]
        rows.append(_row(what, milliseconds, "ms", floor, most=2.5 if recipe == "paper" else None))
    if "fast" in steps:
        info = steps["fast"]
        count = info["steps"] / 60
        rows.append(_row("all steps of fast", count * _ours(info["seconds"]), "minutes",
                         count * info["floor_seconds"], most=3))  # fmt: skip
    if "paper" in steps:
        ours = _ours(steps["paper"]["seconds"])
        by_turns = reversed(infos)  # the last counts: what was interleaved with `paper`
        theirs = {name: value for info in by_turns for name, value in info["seconds"].items() if "released" in name}
        rows += [_row(f"training step: {name} / ours", theirs[name] / ours, "times", least=10) for name in theirs]
    return rows


def _of_rollout(infos: list[Row]) -> list[Row]:
    rows = []
    for info in infos:
        least = {"paper": 24, "fast": 100}[info["recipe"]] if info["batch"] == 1 else None
        what = f"rollout of {info['recipe']}, {info['batch']} at once"
        rows.append(
            _row(what, _ours(info["frames_a_second"]), "frames/s", info["batch"] / info["floor_seconds"], least)
        )
    return rows


LEAST_BYTES = 16e6  # with less to move, a kernel is over before it has begun


def _of_operators(infos: list[Row]) -> list[Row]:
    """Shares of what a copy, or a matrix product, reaches here; what neither limits has no share to reach."""
    rows = []
    for info in infos:
        limits, work = Limits(**info["limits"]), Work(*(info[field] for field in Work._fields))
        times = {"bandwidth": work.bytes / limits.copy, "matrix": work.dense / limits.matrix,
                 "arithmetic": work.depthwise / limits.arithmetic}  # fmt: skip
        by = max(times, key=lambda name: times[name])
        small = work.bytes < LEAST_BYTES or info["operator"] == "network forward"
        least = None if small else {"bandwidth": 70, "matrix": 50, "arithmetic": None}[by]
        share, unit = {"bandwidth": (info["shares"]["bandwidth"], "% of copy bandwidth"),
                       "matrix": (info["shares"]["matrix"], "% of matrix rate"),
                       "arithmetic": (info["shares"]["floor"], "% of fp32 rate")}[by]  # fmt: skip
        microseconds = 1e6 * info["seconds"][info["ours"]]
        what = f"{info['operator']}, batch {info['batch']} ({info['ours']}, {microseconds:.0f} us)"
        rows.append(_row(what, 100 * share, unit, 100 * share / info["shares"]["floor"], least))
    return rows


def table(steps: list[Row], rows: list[Row], facts: Row, judged: bool) -> str:
    lines = ["# What a GPU shows", "", ", ".join(f"{name}: {value}" for name, value in facts.items()), ""]
    if not judged:
        lines += ["A rehearsal: these figures prove nothing.", ""]
    lines += ["| step | result | seconds | |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['step']} | {row['result']} | {row['seconds']:.0f} | {row['why']} |" for row in steps]
    lines += ["", "| what | must be | measured | floor or ceiling | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        floor = "" if row["floor"] is None else f"{row['floor']:.3g}"
        verdict = "" if row["met"] is None or not judged else "met" if row["met"] else "**missed**"
        lines.append(f"| {row['what']} | {row['limit']} | {row['measured']:.3g} {row['unit']} | {floor} | {verdict} |")
    return "\n".join(lines) + "\n"


def write(place: Place, steps: list[Row], facts: Row) -> None:
    """Everything there is so far, in few files."""
    out, rows = place.asked.out, figures(place.details)
    judged = place.asked.device == "cuda" and not place.asked.quick
    summary = {"facts": facts, "rehearsal": not judged, "steps": steps, "figures": rows}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "summary.md").write_text(table(steps, rows, facts, judged))
    for file in (*place.details.glob("*.mp4"), *place.details.glob("*-sheet.png")):
        shutil.copy(file, out)
    with tarfile.open(out / "details.tar.gz", "w:gz") as archive:
        archive.add(place.details, "details")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--clip", type=Path, help="video or folder of frames; left out: a rendered scene")
    parser.add_argument("--released", type=Path, help="checkout of the authors' sinfusion-code, to compare with")
    parser.add_argument("--minutes", type=float, help="training of each recipe; left out: 3 (--quick: a few seconds)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small images and networks: a rehearsal")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"any of {', '.join(STEPS)}; left out: all")
    asked = parser.parse_args(arguments)
    asked.steps = asked.steps.split(",")
    if unknown := [name for name in asked.steps if name not in STEPS]:
        parser.error(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if asked.minutes is None:
        asked.minutes = 0.05 if asked.quick else 3.0
    for name in ("out", "clip", "released"):
        if path := getattr(asked, name):
            setattr(asked, name, path.resolve())
    return asked


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    facts = look(asked.device, env)
    if asked.device == "cuda":
        env |= {"SINFUSION_FAIL_WITHOUT_CUDA": "1", "SINFUSION_CUDA_ARCHS": facts["architecture"]}
    steps: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(asked, Path(folder) / "details", Path(folder) / "scratch")
        place.details.mkdir()
        place.scratch.mkdir()
        for name in asked.steps:
            steps.append(run(name, place, env))
            if name == "build":
                facts = look(asked.device, env)
            print("{step}: {result} in {seconds} s {why}".format(**steps[-1]), flush=True)
            write(place, steps, facts)
    print((asked.out / "summary.md").read_text())
    return int(any(step["result"] == "failed" for step in steps))


if __name__ == "__main__":
    sys.exit(main())
