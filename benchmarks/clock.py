"""Seconds that functions take on a device, measured in turns, and what the device can do at most."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from floors import Limits

from sinfusion import ops
from sinfusion.precision import choose_dtype

Function = Callable[[], object]

SAMPLE_SECONDS = 0.01  # about: short functions are called many times in a sample
SETTLING_SECONDS = 0.03  # on a CPU, before each sample
LEAST_ROUNDS, MOST_SECONDS = 3, 5.0  # fewer rounds than asked for, but not than this, where they take longer
LIMIT_ROUNDS = 25  # what a device can do at most is the best of these


def medians(
    functions: dict[str, Function], device: torch.device, rounds: int = 9, capture: bool = True
) -> dict[str, float]:
    """Seconds of one call of each function, the median of `rounds` that take turns (at least 3 where these take
    longer than 5 seconds).

    On a GPU between two events; with `capture`, of a CUDA graph of each function that can be captured.
    """
    samples = _samples(functions, device, rounds, capture)
    return {name: float(torch.tensor(values, dtype=torch.float64).median()) for name, values in samples.items()}


def _samples(
    functions: dict[str, Function], device: torch.device, rounds: int, capture: bool = True
) -> dict[str, list[float]]:
    if device.type == "cuda" and capture:
        functions = {name: _captured(function) for name, function in functions.items()}
    if device.type == "cpu" and "native" in functions:  # as trainings and rollouts call the library
        functions = {**functions, "native": ops.torch_alone()(functions["native"])}
    calls = {name: _calls_of_a_sample(function, device) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    end = time.monotonic() + MOST_SECONDS
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.monotonic() >= end:
            break
        for name, function in functions.items():
            samples[name].append(_sample(function, calls[name], device) / calls[name])
    return samples


def _captured(function: Function) -> Function:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and chooses among implementations
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            function()
    except RuntimeError as error:
        print(f"timed without a graph: {error}")
        return function
    return graph.replay


def _calls_of_a_sample(function: Function, device: torch.device) -> int:
    """Two calls before it is timed: graphs are captured in the second."""
    function()
    seconds = _sample(function, 1, device)
    if device.type == "cuda":
        seconds = _sample(function, 3, device) / 3
    return max(1, round(SAMPLE_SECONDS / seconds))


def _sample(function: Function, calls: int, device: torch.device) -> float:
    if device.type == "cpu":
        # The threads of whoever had the turn before spin for a while, on the cores that this one needs.
        time.sleep(SETTLING_SECONDS)
        before = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - before
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(calls):
        function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def by_reference(function: Function) -> Function:
    """The same with the reference of every operator."""

    def run() -> None:
        with ops.backend("reference"):
            function()

    return run


def shipped(function: Function) -> Function:
    """The same with the implementations that a user gets, PyTorch's where it was measured to be faster.

    `function` is called once as things are: where native code is forced and cannot run, that is an error.
    """
    function()

    def run() -> None:
        with ops.backend("auto"):
            function()

    return run


def share(operator: str, function: Function, rounds: int) -> float:
    """What part of a function's time on a CPU passes in its calls of `ops.<operator>`, the median."""
    real, seconds = getattr(ops, operator), [0.0]

    def timed(*arguments: Any, **named: Any) -> Any:
        before = time.perf_counter()
        result = real(*arguments, **named)
        seconds[0] += time.perf_counter() - before
        return result

    shares = []
    with mock.patch.object(ops, operator, timed):
        for _ in range(rounds):
            seconds[0], before = 0.0, time.perf_counter()
            function()
            shares.append(seconds[0] / (time.perf_counter() - before))
    return float(torch.tensor(shares, dtype=torch.float64).median())


@functools.cache
def measured_limits(device: torch.device, quick: bool = False) -> Limits:
    """What the device does at most: copies beyond its cache and within, matrix products in bf16 and in fp32."""
    on_gpu = device.type == "cuda"
    cache = torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else _last_cache()
    side = (1024 if quick else 8192) if on_gpu else 256 if quick else 1024
    fp32 = side // 2 if on_gpu else side
    fastest = choose_dtype("auto", device)
    return Limits(
        copy=_copies(device, (2**28 if quick else 2**31) if on_gpu else 2**25 if quick else 4 * cache),
        cached_copy=_copies(device, cache // 4),
        cache=cache // 2,  # of a copy both sides have to fit; other kernels share it
        matrix=_products(device, side, fastest),
        arithmetic=_products(device, fp32, torch.float32),
    )


def _last_cache() -> int:
    """Bytes of the CPU's last cache; a guess where the system does not say."""
    sizes = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((1024 * int(size.strip().removesuffix("K")) for size in sizes), default=2**23)


def _copies(device: torch.device, size: int) -> float:
    """Bytes a second, read and written."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    functions: dict[str, Function] = {"copy": lambda: target.copy_(source)}
    if device.type == "cpu":  # which reads what a copy overwrites, too
        functions["in place"] = source.neg_
    return 2 * size / min(map(min, _samples(functions, device, LIMIT_ROUNDS).values()))


def _products(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second; of random numbers, since zeros take less power."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    operations = {"product": 2 * side**3}
    functions: dict[str, Function] = {"product": lambda: torch.mm(a, b, out=out)}
    if device.type == "cpu":  # PyTorch asks one library for products and another for convolutions: which one is faster?
        image = torch.randn(1, side // 4, 64, 64).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(side // 4, side // 4, 3, 3).to(dtype, memory_format=torch.channels_last)
        functions["convolution"] = lambda: F.conv2d(image, weight, padding=1)
        operations["convolution"] = 2 * 64**2 * weight.numel()
    samples = _samples(functions, device, LIMIT_ROUNDS)
    return max(operations[name] / min(samples[name]) for name in functions)
