"""Seconds that functions take on a device, measured in turns, and what the device can do at most."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from floors import Limits

from sinfusion.precision import choose_dtype

Function = Callable[[], object]

SAMPLE_SECONDS = 0.01  # on a GPU, about: short functions are called many times between two events


def medians(
    functions: dict[str, Function], device: torch.device, rounds: int = 9, capture: bool = True
) -> dict[str, float]:
    """Seconds of one call of each function, the median of `rounds` that take turns.

    On a GPU between two events; with `capture`, of a CUDA graph of each function that can be captured.
    """
    if device.type == "cuda" and capture:
        functions = {name: _captured(function) for name, function in functions.items()}
    calls = {name: _calls_of_a_sample(function, device) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(_sample(function, calls[name], device) / calls[name])
    return {name: float(torch.tensor(values, dtype=torch.float64).median()) for name, values in samples.items()}


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
    function()
    if device.type == "cpu":
        return 1
    function()  # Graphs are recorded in the second call.
    return max(1, round(SAMPLE_SECONDS / _sample(function, 3, device) * 3))


def _sample(function: Function, calls: int, device: torch.device) -> float:
    if device.type == "cpu":
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


@functools.cache
def measured_limits(device: torch.device, quick: bool = False) -> Limits:
    """What the device does at most: copies beyond its cache and within, matrix products in bf16 and in fp32."""
    on_gpu = device.type == "cuda"
    cache = torch.cuda.get_device_properties(device).L2_cache_size if on_gpu else 2**20
    side = (1024 if quick else 8192) if on_gpu else 256 if quick else 1024
    fp32 = side // 2 if on_gpu else side
    fastest = choose_dtype("auto", device)
    return Limits(
        copy=_copies(device, (2**28 if quick else 2**31) if on_gpu else 2**25),
        cached_copy=_copies(device, cache // 4),
        cache=cache // 2,  # of a copy both sides have to fit; other kernels share it
        matrix=_products(device, side, fastest),
        arithmetic=_products(device, fp32, torch.float32),
    )


def _copies(device: torch.device, size: int) -> float:
    """Bytes a second, read and written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / medians({"copy": lambda: target.copy_(source)}, device)["copy"]


def _products(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second; of random numbers, since zeros take less power."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / medians({"product": lambda: torch.mm(a, b, out=out)}, device)["product"]
