"""Frames a second of rollouts: one frame, and a whole video as `sinfusion generate` makes it.

pytest benchmarks/bench_rollout.py --released PATH --benchmark-json=OUT.json          # on a GPU; --quick on a CPU

Of 144x256 pixels, by `paper` (50 evaluations of the Predictor and 3 of the Projector a frame) and by `fast` (10), from
CUDA graphs and without, 1 video and 4 at once; beside the released sampling loop. The weights are untrained.
"""

from __future__ import annotations

import time

import authors
import clock
import floors
import pytest
import torch

from sinfusion.graph import replayed
from sinfusion.recipe import FAST, PAPER
from sinfusion.roles import PREDICTOR, PROJECTOR
from sinfusion.rollout import next_frame, stream

BOTH = [PREDICTOR, PROJECTOR]


def frame_floor(recipe, network, pixels, limits):
    works = floors.evaluations(pixels, network, recipe.sampling_steps)
    if recipe.correction_timesteps:
        works += floors.evaluations(pixels, network._replace(in_channels=3), recipe.correction_steps)
    return floors.total_seconds(works, limits)


def one_frame(run, batch):
    """A function that makes a frame, replayed as `stream` does it."""
    device = run.device
    seeds, moment = torch.arange(batch, device=device), torch.ones((), dtype=torch.int64, device=device)
    picture = torch.zeros(batch, 3, *run.size, device=device)
    advance = replayed(lambda picture, moment: next_frame(run, picture, seeds, moment), device, run.graph)
    return lambda: advance(picture, moment)


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
