"""The Predictor's training step and forward pass, beside the released network in fp32, interleaved in one process.

pytest benchmarks/bench_training_step.py --released PATH --benchmark-json=OUT.json
"""

from __future__ import annotations

import multiprocessing
import resource
import time

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


def _peak(kind, answer):
    """Put GiB of resident memory at the peak of one training step at 136x243, and before it, into `answer`."""
    if isinstance(kind, type):
        network = kind(in_channels=6, depth=16, filters_per_layer=64, frame_conditioned=True)
    else:
        network = NextNet(6, frame_offset=True, dtype=kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stepper(network, 136, 243)[0]()
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, before / 2**20))


def test_peak_memory_of_a_step_against_released(benchmark, released):
    """Each in a process of its own, forked before it has used any threads."""
    peaks = {}

    def both():
        dtype = torch.bfloat16 if ops.cpu_has_bf16() else torch.float32
        for name, kind in (("ours", dtype), ("released", released)):
            context = multiprocessing.get_context("fork")
            answer = context.Queue()
            process = context.Process(target=_peak, args=(kind, answer))
            process.start()
            peaks[name] = answer.get()
            process.join()

    benchmark.pedantic(both, rounds=1)
    for name, (peak, before) in peaks.items():
        benchmark.extra_info.update({f"{name}_peak_gib": peak, f"{name}_before_gib": before})
        print(f"\n{name}: {peak:.2f} GiB at the peak, {before:.2f} GiB before the step")
