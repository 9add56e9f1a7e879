"""The Predictor's training step and forward pass, beside the released network in fp32, interleaved in one process.

pytest benchmarks/bench_training_step.py --released PATH --benchmark-json=OUT.json
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import sys
import time
from pathlib import Path

import pytest
import torch

from sinfusion import ops
from sinfusion.network import NextNet


def stepper(network, height, width, batch=1):
    """A training step without the optimizer, which is the same for both: forward, loss, backward."""
    x, target = torch.randn(batch, 6, height, width), torch.randn(batch, 3, height, width)
    time_, offset = torch.rand(batch), torch.ones(batch, dtype=torch.int64)

    def step():
        for p in network.parameters():
            p.grad = None
        (network(x, time_, offset) - target).square().mean().backward()

    def forward():
        with torch.no_grad():
            network(x, time_, offset)

    return step, forward


@pytest.mark.parametrize("what", ["step", "forward"])
@pytest.mark.parametrize(
    "height, width, filters, depth, rounds", [(136, 243, 64, 16, 5), (64, 114, 32, 8, 15)], ids=["136x243", "64x114"]
)
def test_network_against_released(benchmark, released, what, height, width, filters, depth, rounds):
    dtype = torch.bfloat16 if ops.cpu_has_bf16() else torch.float32
    ours = NextNet(6, 3, filters, depth, frame_offset=True, dtype=dtype)
    theirs = released(in_channels=6, depth=depth, filters_per_layer=filters, frame_conditioned=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    which = ["step", "forward"].index(what)
    our, their = stepper(ours, height, width)[which], stepper(theirs, height, width)[which]
    our(), their()
    times = {"ours": [], "theirs": []}

    def round_of_both():
        for name, run in (("ours", our), ("theirs", their)):
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)

    benchmark.pedantic(round_of_both, rounds=rounds)
    medians = {name: float(torch.tensor(values).median()) for name, values in times.items()}
    benchmark.extra_info.update(
        ours_seconds=medians["ours"],
        released_seconds=medians["theirs"],
        ratio=medians["theirs"] / medians["ours"],
        dtype=str(dtype),
    )
    print(f"\n{what} {height}x{width}: ours {medians['ours'] * 1e3:.1f} ms, released {medians['theirs'] * 1e3:.1f} ms, "
          f"{benchmark.extra_info['ratio']:.1f} times as fast")  # fmt: skip


def _high_water():
    """GiB of resident memory that this process has had at most (its own: `ru_maxrss` begins with its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def _peak(path, answer):
    """Put GiB of resident memory at the peak of one training step at 136x243, and before it, into `answer`."""
    if path is None:
        network = NextNet(6, frame_offset=True, dtype=torch.bfloat16 if ops.cpu_has_bf16() else torch.float32)
    else:
        sys.path.insert(0, str(path))
        released = importlib.import_module("models.nextnet").NextNet
        network = released(in_channels=6, depth=16, filters_per_layer=64, frame_conditioned=True)
    before = _high_water()
    stepper(network, 136, 243)[0]()
    answer.put((_high_water(), before))


@pytest.mark.usefixtures("released")
def test_peak_memory_of_a_step_against_released(benchmark, request):
    """Each in a fresh process."""
    peaks = {}

    def both():
        for name, path in (("ours", None), ("released", request.config.getoption("--released").resolve())):
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            process = context.Process(target=_peak, args=(path, answer))
            process.start()
            peaks[name] = answer.get(timeout=120)
            process.join()

    benchmark.pedantic(both, rounds=1)
    for name, (peak, before) in peaks.items():
        benchmark.extra_info.update({f"{name}_peak_gib": peak, f"{name}_before_gib": before})
        print(f"\n{name}: {peak:.2f} GiB at the peak, {before:.2f} GiB before the step")
