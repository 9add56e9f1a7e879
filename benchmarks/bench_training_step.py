"""The Predictor's training step, and the network alone, in turns with the reference and with the authors' code.

pytest benchmarks/bench_training_step.py --released PATH --benchmark-json=OUT.json          # on a GPU if there is one
pytest benchmarks/bench_training_step.py --device cpu --released PATH --benchmark-json=OUT.json

On a CPU: the network of the released Predictor (theirs computes in fp32) and the memory of its step; the whole step of
`tiny` and the share of what is not the network. On a GPU (or, small, with --quick): whole steps of `paper` (batch 1)
and `fast` (batch 4), from CUDA graphs and without, beside the released step, whose data lies on the device already, and
beside the released training in Lightning with its data loader.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import statistics
import sys
import tempfile
from pathlib import Path

import authors
import clock
import floors
import pytest
import torch
from runs import new_run

from sinfusion import ops
from sinfusion.generation.reverse_process import GRAPHED_PIXELS
from sinfusion.network import NextNet
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.roles import PREDICTOR
from sinfusion.scene import render
from sinfusion.training.trainer import Trainer

LARGE, SMALL = (136, 243), (64, 114)  # height and width


def one_step(network, size):
    """A training step without the optimizer, which is the same for all: forward, loss, backward."""
    x, target = torch.randn(1, 6, *size), torch.randn(1, 3, *size)
    time, offset = torch.rand(1), torch.ones(1, dtype=torch.int64)

    def step():
        for p in network.parameters():
            p.grad = None
        (network(x, time, offset) - target).square().mean().backward()

    return step


def one_forward(network, size):
    x, time, offset = torch.randn(1, 6, *size), torch.rand(1), torch.ones(1, dtype=torch.int64)
    return torch.no_grad()(lambda: network(x, time, offset))


def our_network(shape, graph=True):
    """In bf16 where the CPU has it; with `graph`, replayed as training does and, of small images, sampling."""
    dtype = torch.bfloat16 if ops.cpu_has_bf16() else torch.float32
    network = NextNet(6, 3, shape.filters, shape.depth, frame_offset=True, dtype=dtype)
    network.to(memory_format=torch.channels_last)
    if graph:
        network.graphed_evaluate = ops.cpu_graphed(network.evaluate, network.parameters())
    return network


def their_network(released, shape):
    return released(in_channels=6, depth=shape.depth, filters_per_layer=shape.filters, frame_conditioned=True)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("what", ["step", "forward"])
@pytest.mark.parametrize(
    "size, shape", [(LARGE, floors.Network()), (SMALL, floors.Network(6, 32, 8))], ids=["136x243", "64x114"]
)
def test_network(measure, released, scale, what, size, shape):
    if scale.quick:
        size, shape = scale.crop, scale.network
    one_call = {"step": one_step, "forward": one_forward}[what]
    ours = our_network(shape, graph=what == "step" or size[0] * size[1] <= GRAPHED_PIXELS)
    call = one_call(ours, size)
    call()
    functions = {"ours": clock.shipped(call), "reference": clock.by_reference(call)}
    if released:
        theirs = their_network(released, shape)
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
        functions["released"] = one_call(theirs, size)
    facts = {"what": what, "size": size, "filters": shape.filters, "depth": shape.depth, "dtype": str(ours.dtype)}
    measure(functions, **facts)


def high_water():
    """GiB of resident memory that this process has had at most (its own: `ru_maxrss` begins with its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def in_a_fresh_process(monkeypatch, function, *arguments):
    """What a function of this file puts into the queue that it gets as its last argument."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # where the process finds this file again
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=function, args=(*arguments, answer))
    process.start()
    value = answer.get(timeout=120)
    process.join()
    return value


def peak_of_steps(path, size, shape, answer):
    """GiB of resident memory at the peak of training steps; path: of the authors' code, or None."""
    if path is None:
        network = our_network(shape)
    else:
        sys.path.insert(0, str(path))
        network = their_network(importlib.import_module("models.nextnet").NextNet, shape)
    for _ in range(3):
        one_step(network, size)()
    answer.put(high_water())


@pytest.mark.usefixtures("cpu_only")
def test_peak_memory_of_a_step(benchmark, checkout, scale, monkeypatch):
    size, shape = (scale.crop, scale.network) if scale.quick else (LARGE, floors.Network())

    def both():
        paths = {"ours_peak_gib": None, "released_peak_gib": checkout.resolve()}
        return {name: in_a_fresh_process(monkeypatch, peak_of_steps, path, size, shape) for name, path in paths.items()}

    benchmark.extra_info.update(size=size, **benchmark.pedantic(both))


def seconds_of_tiny(keep, size, network, answer):
    """Of a training step, the median; with freed memory kept, or given back to the system as by default."""
    if keep:
        ops.keep_memory()
    recipe = TINY.replace(filters=network.filters, depth=network.depth)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(new_run(render(12, size), Path(folder) / "run", recipe, [PREDICTOR]), PREDICTOR, STEPS)
        answer.put(clock.medians({"ours": trainer.step}, torch.device("cpu"), rounds=100)["ours"])


@pytest.mark.usefixtures("cpu_only")
def test_kept_memory(benchmark, scale, monkeypatch):
    def rounds():
        found = {"ours": [], "given back": []}
        for _ in range(1 if scale.quick else 2):
            for name, seconds in found.items():
                seconds.append(in_a_fresh_process(monkeypatch, seconds_of_tiny, name == "ours", *scale.tiny))
        return {name: statistics.median(seconds) for name, seconds in found.items()}

    benchmark.extra_info["seconds"] = benchmark.pedantic(rounds)


STEPS = 100_000  # more than are measured


@pytest.mark.usefixtures("not_for_hours")
@pytest.mark.parametrize("recipe", [PAPER, FAST], ids=lambda recipe: recipe.name)
def test_whole_step(measure, request, device, scale, untrained, recipe):
    functions = {}
    for name, graph in (("graph", True), ("eager", False))[device.type == "cpu" :]:
        trainer = Trainer(untrained(recipe, [PREDICTOR], graph), PREDICTOR, STEPS)
        assert trainer.batch_sampler.crop == scale.crop
        functions[name] = trainer.step
    if request.config.getoption("--released"):
        request.getfixturevalue("checkout")
        functions["released"] = authors.training_step(scale.network, scale.crop, device)
    works = floors.training_step(recipe.batch_size * scale.crop[0] * scale.crop[1], scale.network)
    steps = recipe.predictor_steps + recipe.projector_steps
    measure(functions, works, capture=False, recipe=recipe.name, batch=recipe.batch_size, crop=scale.crop, steps=steps)


@pytest.mark.usefixtures("cpu_only")
def test_step_of_tiny(measure, benchmark, scale, untrained):
    size, network = scale.tiny
    trainer = Trainer(untrained(TINY, [PREDICTOR], size=size, network=network), PREDICTOR, STEPS)
    functions = {"ours": clock.shipped(trainer.step), "reference": clock.by_reference(trainer.step)}
    crop = trainer.batch_sampler.crop
    works = floors.training_step(TINY.batch_size * crop[0] * crop[1], network)
    measure(functions, works, recipe="tiny", batch=TINY.batch_size, crop=crop)
    shares = {name: clock.share(name, functions["ours"], 5 * scale.rounds) for name in ("sample_crops", "adam_ema")}
    benchmark.extra_info.update(shares=shares)


@pytest.mark.slow
@pytest.mark.usefixtures("not_for_hours", "checkout")
def test_released_training_in_lightning(benchmark, device, scale):
    if missing := authors.missing():
        pytest.skip(f"needs {' and '.join(missing)}")
    frames = torch.from_numpy(render(12, scale.frame)).permute(0, 3, 1, 2) / 255
    arguments = (scale.network, frames, scale.crop, device, 4 if scale.quick else 400)
    seconds = benchmark.pedantic(authors.seconds_in_lightning, arguments)
    benchmark.extra_info.update(crop=scale.crop, seconds={"released in Lightning": seconds})
