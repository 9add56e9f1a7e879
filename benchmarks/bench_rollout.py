"""Frames a second of rollouts: one frame, and a whole video as `sinfusion generate` makes it.

pytest benchmarks/bench_rollout.py --released PATH --benchmark-json=OUT.json          # on a GPU if there is one
pytest benchmarks/bench_rollout.py --device cpu --released PATH --benchmark-json=OUT.json

On a GPU (or, small, with --quick), of 144x256 pixels: by `paper` (50 evaluations of the Predictor and 3 of the
Projector a frame) and by `fast` (10), from CUDA graphs and without, 1 video and 4 at once; beside the released sampling
loop. On a CPU, beside the reference of every operator: by `tiny` at 36x64, and by a small network whose evaluations the
released code can make too, in fp32. The weights are untrained.
"""

from __future__ import annotations

import time

import authors
import clock
import floors
import pytest
import torch

from sinfusion.generation.video import next_frame, stream
from sinfusion.ops.cuda_graph import cuda_graphed
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.roles import PREDICTOR, PROJECTOR

BOTH = [PREDICTOR, PROJECTOR]


def frame_floor(recipe, network, pixels, limits):
    works = floors.evaluations(pixels, network, recipe.sampling_steps)
    if recipe.correction_timesteps:
        works += floors.evaluations(pixels, network._replace(in_channels=3), recipe.correction_steps)
    return floors.total_seconds(works, limits)


def one_frame(run, batch):
    """A function that makes a frame, replayed as `stream` does it."""
    device = run.device
    seeds, frame_index = torch.arange(batch, device=device), torch.ones((), dtype=torch.int64, device=device)
    image = torch.zeros(batch, 3, *run.size, device=device)
    next_of = next_frame(run)
    advance = cuda_graphed(lambda image, frame_index: next_of(image, seeds, frame_index), device, run.graph)
    return lambda: advance(image, frame_index)


def seconds_of_a_video(run, batch, frames):
    """From the call to the last frame on the host, recording of the graph included."""
    before = time.perf_counter()
    for _ in stream(run, frames, batch, start=0):
        pass
    return time.perf_counter() - before


@torch.no_grad()
@pytest.mark.usefixtures("not_for_hours")
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("recipe", [PAPER, FAST], ids=lambda recipe: recipe.name)
def test_rollout(benchmark, request, device, frame_size, network, quick, rounds, limits, untrained, recipe, batch):
    runs = {"graph": untrained(recipe, BOTH), "no graph": untrained(recipe, BOTH, graph=False)}
    if device.type == "cpu":
        del runs["graph"]
    functions = {name: one_frame(run, batch) for name, run in runs.items()}
    if recipe is PAPER and request.config.getoption("--released"):  # theirs has no short sampler
        request.getfixturevalue("checkout")
        functions["released"] = authors.next_frame(network, frame_size, batch, device)
    seconds = benchmark.pedantic(clock.medians, (functions, device, rounds), {"capture": False})
    frames = 2 if quick else 100
    # Twice: the first may compile and choose among implementations.
    rollouts = {name: [seconds_of_a_video(run, batch, frames) for _ in range(2)][1] for name, run in runs.items()}
    floor = frame_floor(recipe, network, batch * frame_size[0] * frame_size[1], limits)
    rates = {name: batch * frames / value for name, value in rollouts.items()}
    benchmark.extra_info.update(recipe=recipe.name, batch=batch, size=frame_size, frames=frames, seconds=seconds,
                                frames_a_second=rates, floor_seconds=floor, limits=limits._asdict())  # fmt: skip
    each = ", ".join(f"{name} {value * 1e3:.2f}" for name, value in seconds.items())
    whole = ", ".join(f"{name} {value:.1f}" for name, value in rates.items())
    print(f"\n{recipe.name}, {batch} at once, {frame_size[0]}x{frame_size[1]}: {each} ms a frame, floor "
          f"{floor * 1e3:.2f} ms; videos of {frames} frames: {whole} frames/s")  # fmt: skip


@torch.no_grad()
@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_frame(benchmark, request, device, quick, rounds, limits, untrained, name):
    recipe, size, network = {
        "tiny": (TINY, (36, 64), floors.Network(6, 32, 12, 1)),
        "small": (FAST, (64, 114), floors.Network(6, 32, 8, 3)),
    }[name]
    if quick:
        size, network = (20, 32), network._replace(filters=8, depth=4)
    frame = one_frame(untrained(recipe, [PREDICTOR], size=size, network=network), 1)
    functions = {
        "ddpm_step": clock.last_recorded("ddpm_step", frame),
        "ours": clock.shipped(frame),
        "reference": clock.by_reference(frame),
    }
    if network.kernel == 3 and request.config.getoption("--released"):
        released = request.getfixturevalue("released")(
            in_channels=6, depth=network.depth, filters_per_layer=network.filters, frame_conditioned=True
        )
        theirs = torch.randn(1, 6, *size), torch.rand(1), torch.ones(1, dtype=torch.int64)
        functions["released evaluation"] = lambda: released(*theirs)
    seconds = benchmark.pedantic(clock.medians, (functions, device, rounds))
    count = recipe.sampling_steps
    share = seconds["ddpm_step"] / (seconds["ours"] / count)
    floor = frame_floor(recipe, network, size[0] * size[1], limits)
    benchmark.extra_info.update(network=name, filters=network.filters, depth=network.depth, kernel=network.kernel,
                                size=size, evaluations=count, seconds=seconds, shares={"ddpm_step": share},
                                floor_seconds=floor, limits=limits._asdict())  # fmt: skip
    each = ", ".join(f"{name} {value * 1e3:.3g}" for name, value in seconds.items())
    print(f"\na frame of {name}, {size[0]}x{size[1]}, {count} evaluations: {each} ms; floor {floor * 1e3:.2f} ms; "
          f"ddpm_step is {share:.2%} of an evaluation")  # fmt: skip


@torch.no_grad()
@pytest.mark.usefixtures("cpu_only")
def test_video_of_tiny(benchmark, device, quick, limits, untrained):
    size, network = ((20, 32), floors.Network(6, 8, 4, 1)) if quick else ((36, 64), floors.Network(6, 32, 12, 1))
    run, frames = untrained(TINY, [PREDICTOR], size=size, network=network), 2 if quick else 20

    def video():
        seconds_of_a_video(run, 1, frames)

    functions = {"ours": clock.shipped(video), "reference": clock.by_reference(video)}
    seconds = benchmark.pedantic(clock.medians, (functions, device, 1 if quick else 3))
    rates = {name: frames / value for name, value in seconds.items()}
    floor = frame_floor(TINY, network, size[0] * size[1], limits)
    benchmark.extra_info.update(recipe="tiny", batch=1, size=size, frames=frames, frames_a_second=rates,
                                floor_seconds=floor, limits=limits._asdict())  # fmt: skip
    each = ", ".join(f"{name} {value:.1f}" for name, value in rates.items())
    print(f"\ntiny, {size[0]}x{size[1]}, videos of {frames} frames: {each} frames/s")
