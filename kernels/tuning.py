"""The choice among implementations of an operator: measured once for each size and GPU, then remembered.

choose(operator, key, candidates, device) -> name of a candidate

Choices lie in ~/.cache/sinfusion/tuning.json (XDG_CACHE_HOME), for every GPU and set of versions by itself, so that a
run that is resumed runs the same kernels. SINFUSION_TUNING=0 switches measuring off. Of several processes each measures
for itself: their kernels may differ, as their GPUs may, and the file keeps what was written last.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__

Run = Callable[[], Any]  # runs a candidate once: a tensor, or a tuple of tensors and None
Timer = Callable[[Run, torch.device], Callable[[], float]]  # prepares a candidate; each call then measures seconds

ROUNDS = 7
RUNS = 10  # of a candidate in a round
FASTER = 0.95  # of the default's time: what another candidate may take at most, so that noise changes no choice
CLOSE = 0.01  # of the norm of the first candidate's results: how far those of another may be from them

_choices: dict[str, dict[str, str]] = {}  # by GPU and versions, by operator and key; what this process has read or made


def choose(
    operator: str,
    key: tuple[object, ...],  # what the choice depends on: shapes, dtypes, flags
    candidates: dict[str, Run],  # the first is trusted: its results are what the others' have to be
    device: torch.device,
    timer: Timer | None = None,  # a GPU's clock
    default: str | None = None,  # the candidate that stays unless another is clearly faster; None: the first
) -> str:
    """The stored choice; else, where measuring is possible, the fastest; else the default.

    Nothing is measured while a CUDA graph is captured. A candidate that raises is out, and so is one whose results are
    not those of the first that runs. Where none runs, the first one's error is raised.
    """
    default = default or next(iter(candidates))
    machine, entry = _machine(device), f"{operator} {key}"
    if machine not in _choices:
        _choices[machine] = _read().get(machine, {})
    stored = _choices[machine].get(entry)
    if stored in candidates:
        return stored
    if len(candidates) == 1 or not _can_measure(device):
        return default
    _choices[machine][entry] = _fastest(candidates, device, timer or _gpu_timer, default)
    _write(machine)
    return _choices[machine][entry]


def _can_measure(device: torch.device) -> bool:
    if device.type != "cuda" or os.environ.get("SINFUSION_TUNING") == "0":
        return False
    return torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()


def _fastest(candidates: dict[str, Run], device: torch.device, timer: Timer, default: str) -> str:
    measure: dict[str, Callable[[], float]] = {}
    errors: list[Exception] = []
    expected: Any = None
    for name, run in candidates.items():
        try:
            results = run()  # compiles
            if measure and not _close(results, expected):
                continue
            measure[name] = timer(run, device)
            measure[name]()
        except Exception as error:
            measure.pop(name, None)
            errors.append(error)
            continue
        expected = results if len(measure) == 1 else expected
    if not measure:
        raise errors[0]
    default = default if default in measure else next(iter(measure))
    times: dict[str, list[float]] = {name: [] for name in measure}
    for _ in range(ROUNDS):  # interleaved: what slows the GPU down for a while slows all down
        for name in measure:
            times[name].append(measure[name]())
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians, key=medians.__getitem__)
    return best if medians[best] <= FASTER * medians[default] else default


def _close(results: Any, expected: Any) -> bool:
    """Whether tensors are the same but for rounding; what one of both leaves out is not compared."""
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (results, expected)), strict=True)
    return all(
        bool((a.float() - b.float()).norm() <= CLOSE * b.float().norm())
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def _gpu_timer(run: Run, device: torch.device) -> Callable[[], float]:
    """The candidate is replayed from a graph: what Python needs to launch it is not counted."""
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for _ in range(RUNS):
                    run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds() -> float:
        with torch.cuda.device(device):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000 / RUNS

    return seconds


@functools.cache
def _machine(device: torch.device) -> str:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else "no GPU"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    versions = f"torch {torch.__version__}, triton {triton}, cudnn {torch.backends.cudnn.version()}"
    return f"{gpu}, sinfusion {__version__}, {versions}"


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "sinfusion" / "tuning.json"


def _read() -> dict[str, dict[str, str]]:
    """What the file says; nothing where it is missing or damaged."""
    try:
        stored = json.loads(_file().read_text(encoding="utf-8"))
        return {machine: {entry: str(name) for entry, name in known.items()} for machine, known in stored.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(machine: str) -> None:
    """Add this process's choices for a machine; where that is impossible, the next process measures again."""
    stored = _read()
    stored[machine] = stored.get(machine, {}) | _choices[machine]
    file = _file()
    temporary = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(stored, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(file)
