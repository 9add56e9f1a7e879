"""The patch engine: its operators, a whole VGPNN video; and the metrics beside their released code.

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

import clock
import numpy as np
import pytest
import torch

from sinfusion import metrics, ops, patches
from sinfusion.media import read_media
from sinfusion.scene import render

PATCH = (3, 3, 3)
PASSES = 4  # rounds of four propagation steps: 16


def imported(request, option, module):
    """A module of a checkout given by an option. Two of them have packages of the same names: each is imported anew."""
    path = request.config.getoption(option)
    if path is None:
        return None
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

    def at(count, size):
        if path is None:
            return render(count, size)
        return read_media(path, stop=count, size=size, log=lambda _: None).frames

    return at


def clip_and_mirrored(frames):
    """(T, H, W, 3) in [-1, 1]; a mirrored clip has no patch of its own in the original."""
    video = torch.tensor(frames).float() / 127.5 - 1
    return video, video.flip(2)


def facts_of(operator, video):
    return {"operator": operator, "video": tuple(video.shape[:3]), "patch": "x".join(map(str, PATCH))}


def video_of(frames):
    """(1, 3, T, H, W) in [-1, 1], as the released code has it."""
    return torch.tensor(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


SMALL, LARGE = (4, (20, 32)), (12, (72, 128))  # frames, and their height and width


@pytest.mark.usefixtures("cpu_only")
def test_patch_match(measure, frames):
    """The reference looks at one offset of all patches after the other: small, or it takes minutes."""
    key, query = clip_and_mirrored(frames(*SMALL))
    search = functools.partial(ops.patch_match, query, key, PATCH, PASSES)
    measure({"ours": search, "reference": clock.by_reference(search)}, rounds=3, **facts_of("patch_match", key))


@pytest.mark.usefixtures("cpu_only")
def test_patch_match_against_released(measure, benchmark, request, frames, scale):
    released = imported(request, "--released-vgpnn", "pnn.models")
    if released is None:
        pytest.skip("compares with the released code: pass --released-vgpnn PATH to a checkout of it")
    key, query = clip_and_mirrored(frames(*SMALL if scale.quick else LARGE))
    search = released.PMPNN3D(
        kernel_size=PATCH, steps=(8, 4, 2, 1) * PASSES, radii=(2, 2, 1, 1) * PASSES, device="cpu", chunk_size=40
    )
    as_patches = [search.vid2patches(video.permute(3, 0, 1, 2)[None]) for video in (query, key)]
    distances = {"ours": [], "released": []}  # of a seed each

    def ours():
        found = ops.patch_match(query, key, PATCH, PASSES, len(distances["ours"]))[1]
        distances["ours"].append(found.mean().item())

    def theirs():
        torch.manual_seed(len(distances["released"]))
        found = search.qk_lookup(*as_patches, compute_dist=True)[1]
        distances["released"].append(found.mean().item())

    measure({"ours": ours, "released": theirs}, rounds=3, **facts_of("patch_match", key))
    means = {name: float(np.mean(values)) for name, values in distances.items()}
    benchmark.extra_info["mean_distance"] = means
    assert means["ours"] <= means["released"]


@pytest.mark.usefixtures("cpu_only")
def test_vote(measure, frames, scale):
    video, mirrored = clip_and_mirrored(frames(*SMALL if scale.quick else LARGE))
    offsets, _ = ops.patch_match(mirrored, video, PATCH)
    vote = functools.partial(ops.vote, video, offsets, PATCH)
    measure({"ours": vote, "reference": clock.by_reference(vote)}, **facts_of("vote", video))


@pytest.mark.usefixtures("cpu_only")
def test_patches_generate(measure, benchmark, frames, scale, tmp_path):
    count, video = (4, frames(4, (40, 64))) if scale.quick else (8, frames(13, scale.frame))
    facts = {"frames": count, "size": video.shape[1:3]}
    measure({"ours": functools.partial(patches.generate, video, frames=count)}, rounds=3, **facts)
    np.save(tmp_path / "video.npy", video)
    program = ("import numpy as np, sys; from pathlib import Path; from sinfusion import patches; "
               "patches.generate(np.load(sys.argv[1]), frames=int(sys.argv[2])); "
               "print(*Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[:1])")  # fmt: skip
    alone = [sys.executable, "-c", program, str(tmp_path / "video.npy"), str(count)]
    said = subprocess.run(alone, capture_output=True, text=True, check=True).stdout
    benchmark.extra_info["peak_gib"] = int(said) * 1024 / 2**30


def test_metrics_agree(benchmark, request, frames):
    """NNFDIV and NNFDIST of ours and of the released code, means and standard deviations over seeds."""
    evaluation = imported(request, "--released-nnfdiv", "nnf_evaluation")
    if evaluation is None:
        pytest.skip("compares with the released code: pass --released-nnfdiv PATH to a checkout of it")
    solvers = sys.modules["nnf_solvers"]
    solvers.PMPNN3D = functools.partial(solvers.PMPNN3D, device="cpu", device_fold="cpu")
    steps = [16, 8, 4, 2, 1, 1, 1, 1, 1, 1, 4, 2, 1, 1, 1] * 10 + [1] * 10  # as get_nnfdiv has them
    original = frames(16, (36, 64))

    def ours(generated, seed):
        field, distance = metrics.nnf(generated, original, seed=seed)
        return metrics.nnfdiv(field), metrics.nnfdist(distance)

    def theirs(generated, seed):
        torch.manual_seed(seed)
        videos = [video_of(video) for video in (generated, original)]
        field, *_, distance = evaluation.get_nnf(
            *videos, nnf_solver="patchmatch", verbose=False, patchmatch_steps=steps
        )
        return evaluation.zlib_score(field), distance.mean().item()

    def of_seeds(figures, generated):
        values = [figures(generated, seed) for seed in range(5)]
        return np.mean(values, 0), np.std(values, 0, ddof=1)

    pairs = {"patches": patches.generate(original, frames=16)[0], "mirrored": original[:, :, ::-1].copy()}
    found = benchmark.pedantic(
        lambda: {name: (of_seeds(ours, video), of_seeds(theirs, video)) for name, video in pairs.items()}
    )
    for name, ((mean, std), (their_mean, their_std)) in found.items():
        for i, figure in enumerate(("NNFDIV", "NNFDIST")):
            benchmark.extra_info[f"{name} {figure}"] = {
                "ours": mean[i], "ours_std": std[i], "released": their_mean[i], "released_std": their_std[i]
            }  # fmt: skip
            assert abs(mean[i] - their_mean[i]) < 0.03 * their_mean[i]  # a bias that seeds do not show
