"""The Predictor's training step beside the released code, interleaved in one process.

pytest benchmarks/bench_training_step.py --released PATH --benchmark-json=OUT.json          # on a GPU if there is one
pytest benchmarks/bench_training_step.py --device cpu --released PATH --benchmark-json=OUT.json

On a GPU (or, small, with --quick): whole steps of `paper` (batch 1) and `fast` (batch 4), from CUDA graphs and without,
beside the released training step, whose data lies on the device already, and beside the released training in Lightning
with its data loader. On a CPU: the networks alone, the released one in fp32, and the memory of a step; whole steps of
`tiny`, beside the reference of every operator, and the share of what is not the network.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import sys
import time
from pathlib import Path

import authors
import clock
import floors
import pytest
import torch

from sinfusion import ops
from sinfusion.generation.reverse_process import GRAPHED_PIXELS
from sinfusion.network import NextNet
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.roles import PREDICTOR
from sinfusion.scene import render
from sinfusion.training.trainer import Trainer


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


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("what", ["step", "forward"])
@pytest.mark.parametrize(
    "height, width, filters, depth, rounds", [(136, 243, 64, 16, 5), (64, 114, 32, 8, 15)], ids=["136x243", "64x114"]
)
def test_network_against_released(benchmark, released, what, height, width, filters, depth, rounds):
    dtype = torch.bfloat16 if ops.cpu_has_bf16() else torch.float32
    ours = NextNet(6, 3, filters, depth, frame_offset=True, dtype=dtype).to(memory_format=torch.channels_last)
    theirs = released(in_channels=6, depth=depth, filters_per_layer=filters, frame_conditioned=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    which = ["step", "forward"].index(what)
    if what == "step" or height * width <= GRAPHED_PIXELS:  # as training and sampling do
        ours.graphed_evaluate = ops.cpu_graphed(ours.evaluate, ours.parameters())
    our, their = clock.shipped(stepper(ours, height, width)[which]), stepper(theirs, height, width)[which]
    for run in (our, our, their):  # ours: the second call records
        run()
    times = {"ours": [], "theirs": []}

    def round_of_both():
        for name, run in (("ours", our), ("theirs", their)):
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)

    benchmark.pedantic(round_of_both, rounds=rounds)
    medians = {name: float(torch.tensor(values).median()) for name, values in times.items()}
    benchmark.extra_info.update(
        what=what, size=(height, width), filters=filters, depth=depth, dtype=str(dtype), ours_seconds=medians["ours"],
        released_seconds=medians["theirs"], ratio=medians["theirs"] / medians["ours"],
    )  # fmt: skip
    print(f"\n{what} {height}x{width}: ours {medians['ours'] * 1e3:.1f} ms, released {medians['theirs'] * 1e3:.1f} ms, "
          f"{benchmark.extra_info['ratio']:.1f} times as fast")  # fmt: skip


def _high_water():
    """GiB of resident memory that this process has had at most (its own: `ru_maxrss` begins with its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def _peak(path, answer):
    """Put GiB of resident memory at the peak of training steps at 136x243, and before it, into `answer`."""
    if path is None:
        network = NextNet(6, frame_offset=True, dtype=torch.bfloat16 if ops.cpu_has_bf16() else torch.float32)
        network.to(memory_format=torch.channels_last)  # as training has the weights
        network.graphed_evaluate = ops.cpu_graphed(network.evaluate, network.parameters())
    else:
        sys.path.insert(0, str(path))
        released = importlib.import_module("models.nextnet").NextNet
        network = released(in_channels=6, depth=16, filters_per_layer=64, frame_conditioned=True)
    before = _high_water()
    for _ in range(3):
        stepper(network, 136, 243)[0]()
    answer.put((_high_water(), before))


@pytest.mark.usefixtures("cpu_only", "released")
def test_peak_memory_of_a_step_against_released(benchmark, request, monkeypatch):
    """Each in a fresh process."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # where that finds this file again
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
    benchmark.extra_info.update(size=(136, 243))
    for name, (peak, before) in peaks.items():
        benchmark.extra_info.update({f"{name}_peak_gib": peak, f"{name}_before_gib": before})
        print(f"\n{name}: {peak:.2f} GiB at the peak, {before:.2f} GiB before the step")


STEPS = 100_000  # more than are measured


@pytest.mark.usefixtures("not_for_hours")
@pytest.mark.parametrize("recipe", [PAPER, FAST], ids=lambda recipe: recipe.name)
def test_whole_step(benchmark, request, device, crop_size, network, rounds, limits, untrained, recipe):
    functions = {}
    for name, graph in (("graph", True), ("no graph", False))[device.type == "cpu" :]:
        trainer = Trainer(untrained(recipe, [PREDICTOR], graph), PREDICTOR, STEPS)
        assert trainer.batch_sampler.crop == crop_size
        functions[name] = trainer.step
    if request.config.getoption("--released"):
        request.getfixturevalue("checkout")
        functions["released"] = authors.training_step(network, crop_size, device)
    seconds = benchmark.pedantic(clock.medians, (functions, device, rounds), {"capture": False})
    pixels = recipe.batch_size * crop_size[0] * crop_size[1]
    floor = floors.total_seconds(floors.training_step(pixels, network), limits)
    benchmark.extra_info.update(recipe=recipe.name, batch=recipe.batch_size, crop=crop_size, seconds=seconds,
                                floor_seconds=floor, steps=recipe.predictor_steps + recipe.projector_steps,
                                limits=limits._asdict())  # fmt: skip
    each = ", ".join(f"{name} {value * 1e3:.2f}" for name, value in seconds.items())
    print(f"\n{recipe.name}, batch {recipe.batch_size} (released: 1), {crop_size[0]}x{crop_size[1]}: {each} ms a step; "
          f"floor {floor * 1e3:.2f} ms")  # fmt: skip


@pytest.mark.usefixtures("cpu_only")
def test_step_of_tiny(benchmark, device, quick, rounds, limits, untrained):
    size, network = ((20, 32), floors.Network(6, 8, 4, 1)) if quick else ((36, 64), floors.Network(6, 32, 12, 1))
    trainer = Trainer(untrained(TINY, [PREDICTOR], size=size, network=network), PREDICTOR, STEPS)
    functions = {"ours": clock.shipped(trainer.step), "reference": clock.by_reference(trainer.step)}
    seconds = benchmark.pedantic(clock.medians, (functions, device, rounds))
    crop = trainer.batch_sampler.crop
    pixels = TINY.batch_size * crop[0] * crop[1]
    floor = floors.total_seconds(floors.training_step(pixels, network), limits)
    shares = {name: clock.share(name, functions["ours"], 5 * rounds) for name in ("sample_crops", "adam_ema")}
    benchmark.extra_info.update(recipe="tiny", batch=TINY.batch_size, crop=crop, seconds=seconds, shares=shares,
                                floor_seconds=floor, limits=limits._asdict())  # fmt: skip
    each = ", ".join(f"{name} {value * 1e3:.3g}" for name, value in seconds.items())
    of_step = ", ".join(f"{name} is {share:.2%} of a step" for name, share in shares.items())
    print(f"\ntiny, batch {TINY.batch_size}, {crop[0]}x{crop[1]}: {each} ms; "
          f"floor {floor * 1e3:.2f} ms; {of_step}")  # fmt: skip


@pytest.mark.usefixtures("not_for_hours", "checkout")
def test_released_training_in_lightning(benchmark, device, frame_size, crop_size, network, quick):
    if missing := authors.missing():
        pytest.skip(f"needs {' and '.join(missing)}")
    frames = torch.from_numpy(render(12, frame_size)).permute(0, 3, 1, 2) / 255
    steps = 4 if quick else 400
    seconds = benchmark.pedantic(authors.seconds_in_lightning, (network, frames, crop_size, device, steps))
    benchmark.extra_info.update(crop=crop_size, seconds={"released in Lightning": seconds})
    print(f"\nreleased training in Lightning, batch 1, {crop_size[0]}x{crop_size[1]}: {seconds * 1e3:.2f} ms a step")
