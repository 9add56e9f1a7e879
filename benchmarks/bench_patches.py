"""The patch engine: patch_match beside the released implementation (interleaved), a whole VGPNN video; and the metrics
beside their released code.

pytest benchmarks/bench_patches.py --released-vgpnn PATH --released-nnfdiv PATH --clip ../shared/data/airballoons \\
    --benchmark-json=OUT.json

The paths are checkouts of the authors' single_video_generation and nnf_diversity. Without --clip a rendered scene is
used.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sinfusion import metrics, ops, patches
from sinfusion.media import read_media
from sinfusion.scene import render

PATCH = (3, 3, 3)
PASSES = 4  # rounds of four propagation steps: 16
LIMIT_SECONDS, LIMIT_GIB = 18, 1.0  # the paper's figure on a GPU


def released(request, option, module):
    """A module of a checkout given by an option. Two of them have packages of the same names: each is imported anew."""
    path = request.config.getoption(option)
    if path is None:
        pytest.skip(f"compares with the released code: pass {option} PATH to a checkout of it")
    for name in [name for name in sys.modules if name.split(".")[0] in ("pnn", "utils", "common_utils")]:
        del sys.modules[name]
    sys.path.insert(0, str(path))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(path))


@pytest.fixture
def frames(request):
    """(T, H, W, 3) uint8 at a size: of --clip, or rendered."""
    path = request.config.getoption("--clip")

    def at(count, size, first=0):
        if path is None:
            return render(first + count, size)[first:]
        return read_media(path, start=first, stop=first + count, size=size, log=lambda _: None).frames

    return at


def test_patch_match_against_the_released_implementation(benchmark, request, frames):
    theirs = released(request, "--released-vgpnn", "pnn.models").PMPNN3D
    key = torch.tensor(frames(12, (72, 128))).float() / 127.5 - 1
    query = key.flip(2)  # a mirrored clip has no patch of its own in the original
    videos = (query.permute(3, 0, 1, 2)[None], key.permute(3, 0, 1, 2)[None])
    seconds, distances = {"ours": [], "released": []}, {"ours": [], "released": []}

    def ours(seed):
        return ops.patch_match(query, key, PATCH, PASSES, seed)[1]

    def search_of_theirs(seed):
        torch.manual_seed(seed)
        search = theirs(kernel_size=PATCH, steps=(8, 4, 2, 1) * PASSES, radii=(2, 2, 1, 1) * PASSES,
                                device="cpu", chunk_size=40)  # fmt: skip
        return search.qk_lookup(*map(search.vid2patches, videos), compute_dist=True)[1]

    ours(0)

    def round_of_both():
        for name, search in (("released", search_of_theirs), ("ours", ours)):
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


def test_the_metrics_agree_with_their_released_code(benchmark, request, frames):
    evaluation = released(request, "--released-nnfdiv", "nnf_evaluation")
    solvers = sys.modules["nnf_solvers"]
    solvers.PMPNN3D = functools.partial(solvers.PMPNN3D, device="cpu", device_fold="cpu")
    original = frames(16, (36, 64))
    pairs = {"patches": patches.generate(original, frames=16)[0], "mirrored": original[:, :, ::-1].copy()}
    found = {}

    def all_of_them():
        for name, generated in pairs.items():
            videos = [
                torch.tensor(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1 for video in (generated, original)
            ]
            ours, theirs = [], []
            for seed in range(5):
                field, distance = metrics.nnf(generated, original, seed=seed)
                ours.append((metrics.nnfdiv(field), metrics.nnfdist(distance)))
                torch.manual_seed(seed)
                steps = [16, 8, 4, 2, 1, 1, 1, 1, 1, 1, 4, 2, 1, 1, 1] * 10 + [1] * 10  # as get_nnfdiv has them
                field, *_, distance = evaluation.get_nnf(*videos, nnf_solver="patchmatch", verbose=False,
                                                         patchmatch_steps=steps)  # fmt: skip
                theirs.append((evaluation.zlib_score(field), distance.mean().item()))
            found[name] = [(np.mean(runs, 0), np.std(runs, 0, ddof=1)) for runs in (ours, theirs)]

    benchmark.pedantic(all_of_them)
    for name, ((mean, spread), (their_mean, their_spread)) in found.items():
        for i, figure in enumerate(("NNFDIV", "NNFDIST")):
            benchmark.extra_info[f"{name} {figure}"] = {
                "ours": mean[i], "spread": spread[i], "released": their_mean[i], "released_spread": their_spread[i]
            }  # fmt: skip
            print(f"\n{name}: {figure} ours {mean[i]:.4f} +- {spread[i]:.4f}, released {their_mean[i]:.4f} +- "
                  f"{their_spread[i]:.4f}")  # fmt: skip
            assert abs(mean[i] - their_mean[i]) < 2 * (spread[i] + their_spread[i])
