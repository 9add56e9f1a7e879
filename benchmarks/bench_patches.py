"""The patch engine: patch_match beside the released implementation (interleaved), and a whole VGPNN video.

pytest benchmarks/bench_patches.py --released-vgpnn PATH --clip ../shared/data/airballoons --benchmark-json=OUT.json

PATH is a checkout of the authors' single_video_generation. Without --clip a rendered scene is used.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sinfusion import ops, patches
from sinfusion.media import read_media
from sinfusion.scene import render

PATCH = (3, 3, 3)
PASSES = 4  # rounds of four propagation steps: 16
LIMIT_SECONDS, LIMIT_GIB = 18, 1.0  # the paper's figure on a GPU


@pytest.fixture
def released_vgpnn(request):
    """The authors' PatchMatch of 3-D patches, from --released-vgpnn PATH."""
    path = request.config.getoption("--released-vgpnn")
    if path is None:
        pytest.skip("compares with the released code: pass --released-vgpnn PATH to a checkout of it")
    sys.path.insert(0, str(path))
    try:
        return importlib.import_module("pnn.models").PMPNN3D
    finally:
        sys.path.remove(str(path))


@pytest.fixture
def frames(request):
    """(T, H, W, 3) uint8 at a size: of --clip, or rendered."""
    path = request.config.getoption("--clip")

    def at(count, size, first=0):
        if path is None:
            return render(first + count, size)[first:]
        return read_media(path, start=first, stop=first + count, size=size, say=lambda _: None).frames

    return at


def test_patch_match_against_the_released_implementation(benchmark, released_vgpnn, frames):
    key = torch.tensor(frames(12, (72, 128))).float() / 127.5 - 1
    query = key.flip(2)  # a mirrored clip has no patch of its own in the original
    theirs = (query.permute(3, 0, 1, 2)[None], key.permute(3, 0, 1, 2)[None])
    seconds, distances = {"ours": [], "released": []}, {"ours": [], "released": []}

    def ours(seed):
        return ops.patch_match(query, key, PATCH, PASSES, seed)[1]

    def released(seed):
        torch.manual_seed(seed)
        search = released_vgpnn(kernel_size=PATCH, steps=(8, 4, 2, 1) * PASSES, radii=(2, 2, 1, 1) * PASSES,
                                device="cpu", chunk_size=40)  # fmt: skip
        return search.qk_lookup(*map(search.vid2patches, theirs), compute_dist=True)[1]

    ours(0)

    def round_of_both():
        for name, search in (("released", released), ("ours", ours)):
            before = time.perf_counter()
            distance = search(len(seconds[name]))
            seconds[name].append(time.perf_counter() - before)
            distances[name].append(distance.mean().item())

    benchmark.pedantic(round_of_both, rounds=3)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    means = {name: float(np.mean(values)) for name, values in distances.items()}
    ratio = medians["released"] / medians["ours"]
    benchmark.extra_info.update(ratio=ratio, **{f"{name}_seconds": medians[name] for name in medians},
                                **{f"{name}_mean_distance": means[name] for name in means})  # fmt: skip
    print(f"\npatch_match, 12 frames of 128x72, 3x3x3, 16 propagation passes: ours {medians['ours']:.3f} s at mean "
          f"distance {means['ours']:.4f}, released {medians['released']:.2f} s at {means['released']:.4f}: "
          f"{ratio:.0f} times as fast")  # fmt: skip
    assert means["ours"] <= means["released"]


def test_a_video_in_seconds(benchmark, frames, tmp_path):
    video = frames(13, (144, 256))
    seconds = []

    def generate():
        before = time.perf_counter()
        patches.generate(video, frames=8, seed=len(seconds))
        seconds.append(time.perf_counter() - before)

    benchmark.pedantic(generate, rounds=3)
    np.save(tmp_path / "video.npy", video)
    program = ("import resource, numpy as np, sys; from sinfusion import patches; "
               "patches.generate(np.load(sys.argv[1]), frames=8); "
               "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")  # fmt: skip
    alone = [sys.executable, "-c", program, str(tmp_path / "video.npy")]
    said = subprocess.run(alone, capture_output=True, text=True, check=True).stdout
    peak = int(said) * 1024 / 2**30
    median = float(np.median(seconds))
    benchmark.extra_info.update(median_seconds=median, peak_gib=peak)
    print(f"\nVGPNN, 8 frames from 13 of 256x144: {median:.1f} s, {peak:.2f} GiB at the peak of the process")
    assert median < LIMIT_SECONDS and peak < LIMIT_GIB
