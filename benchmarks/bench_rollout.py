"""Rollouts: one frame, and a whole video as `sinfusion generate` makes it. The weights are untrained.

pytest benchmarks/bench_rollout.py --released PATH --benchmark-json=OUT.json          # on a GPU if there is one
pytest benchmarks/bench_rollout.py --device cpu --released PATH --benchmark-json=OUT.json

On a CPU, in turns with the reference: by `tiny` at 36x64, and by a small network whose evaluations the authors' code
can make too, in fp32. On a GPU (or, small, with --quick), of 144x256 pixels: by `paper` (50 evaluations of the
Predictor and 3 of the Projector a frame) and by `fast` (10), from CUDA graphs and without, 1 video and 4 at once; and
by the authors' sampling loop.
"""

from __future__ import annotations

import time

import authors
import clock
import floors
import pytest
import torch
from bench_training_step import SMALL, their_network
from operators import Shapes, one_ddpm_step

from sinfusion import ops
from sinfusion.generation.video import next_frame, stream
from sinfusion.ops.cuda_graph import cuda_graphed
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.roles import PREDICTOR, PROJECTOR

BOTH = [PREDICTOR, PROJECTOR]


def frame_works(recipe, network, pixels):
    works = floors.evaluations(pixels, network, recipe.sampling_steps)
    if recipe.correction_timesteps:
        works += floors.evaluations(pixels, network._replace(in_channels=3), recipe.correction_steps)
    return works


def one_frame(run, batch):
    """A function that makes a frame, replayed as `stream` does it."""
    device = run.device
    seeds, frame_index = torch.arange(batch, device=device), torch.ones((), dtype=torch.int64, device=device)
    next_of = next_frame(run)
    previous = next_of.begin(torch.zeros(batch, 3, *run.size, device=device))
    advance = cuda_graphed(lambda previous, frame_index: next_of(previous, seeds, frame_index), device, run.graph)
    return lambda: advance(previous, frame_index)


def seconds_of_a_video(run, batch, frames):
    """From the call to the last frame on the host, capture of the graph included."""
    before = time.perf_counter()
    for _ in stream(run, frames, batch, start=0):
        pass
    return time.perf_counter() - before


@torch.no_grad()
@pytest.mark.usefixtures("not_for_hours")
@pytest.mark.parametrize("batch", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", [PAPER, FAST], ids=lambda recipe: recipe.name)
def test_rollout(measure, benchmark, request, device, scale, untrained, recipe, batch):
    runs = {"graph": untrained(recipe, BOTH), "eager": untrained(recipe, BOTH, graph=False)}
    if device.type == "cpu":
        del runs["graph"]
    functions = {name: one_frame(run, batch) for name, run in runs.items()}
    if recipe is PAPER and request.config.getoption("--released"):  # theirs has no short sampler
        request.getfixturevalue("checkout")
        functions["released"] = authors.next_frame(scale.network, scale.frame, batch, device)
    works = frame_works(recipe, scale.network, batch * scale.frame[0] * scale.frame[1])
    measure(functions, works, capture=False, recipe=recipe.name, batch=batch, size=scale.frame)
    frames = 2 if scale.quick else 100
    # Twice: the first may compile and choose among implementations.
    videos = {name: [seconds_of_a_video(run, batch, frames) for _ in range(2)][1] for name, run in runs.items()}
    rates = {name: batch * frames / seconds for name, seconds in videos.items()}
    benchmark.extra_info.update(frames=frames, frames_a_second=rates)


@torch.no_grad()
@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_frame(measure, benchmark, device, released, scale, untrained, name):
    if name == "tiny":
        recipe, (size, network) = TINY, scale.tiny
    else:
        recipe, size = FAST, scale.frame if scale.quick else SMALL
        network = scale.network if scale.quick else floors.Network(6, 32, 8)
    recipe = recipe.replace(projection_weight=0.0)  # the evaluations alone
    frame = one_frame(untrained(recipe, [PREDICTOR], size=size, network=network), 1)
    functions = {
        "ddpm_step": ops.cpu_graphed(one_ddpm_step(Shapes(device, 1, size, network), prior_mean=True)),
        "ours": clock.shipped(frame),
        "reference": clock.by_reference(frame),
    }
    for _ in range(2):  # the second call captures
        functions["ddpm_step"]()
    if network.kernel == 3 and released:
        theirs = their_network(released, network)
        inputs = torch.randn(1, 6, *size), torch.rand(1), torch.ones(1, dtype=torch.int64)
        functions["released evaluation"] = lambda: theirs(*inputs)
    count, shape = recipe.sampling_steps, {name: getattr(network, name) for name in ("filters", "depth", "kernel")}
    works = frame_works(recipe, network, size[0] * size[1])
    seconds = measure(functions, works, network=name, size=size, evaluations=count, **shape)
    benchmark.extra_info["shares"] = {"ddpm_step": seconds["ddpm_step"] / (seconds["ours"] / count)}


@torch.no_grad()
@pytest.mark.usefixtures("cpu_only")
def test_video_of_tiny(measure, benchmark, scale, untrained):
    size, network = scale.tiny
    frames = 2 if scale.quick else 20
    projected, plain = (
        untrained(recipe, [PREDICTOR], size=size, network=network)
        for recipe in (TINY, TINY.replace(projection_weight=0.0))
    )

    def video_of(run):
        return lambda: seconds_of_a_video(run, 1, frames)

    functions = {
        "ours": clock.shipped(video_of(projected)),
        "without projection": clock.shipped(video_of(plain)),
        "reference, without": clock.by_reference(video_of(plain)),
    }
    works = frame_works(TINY, network, size[0] * size[1])
    seconds = measure(functions, works, rounds=3, recipe="tiny", batch=1, size=size, frames=frames)
    benchmark.extra_info["frames_a_second"] = {name: frames / value for name, value in seconds.items()}
