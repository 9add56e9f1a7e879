"""What a Predictor would lose if the dense convolutions of its blocks read FP8 (e4m3); nothing computes in it here.

python benchmarks/emulate_fp8.py runs/ants runs/lava --seeds 0 1 2 --out OUT.json

The inputs of these convolutions and their weights are rounded to e4m3, scaled by powers of two: one for each output's
weights, one for each layer's input, from the largest number in a few evaluations (larger ones are clamped). Sums stay
fp32, all else bf16, as are the first block's expansion, residual convolutions and the last one. For each run: PSNR of
one step on its clip (in expectation), and figures of videos as of compare_published.py, beside bf16 and other seeds.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from compare_published import measure
from machine import machine
from torch import Tensor

from sinfusion import ops
from sinfusion.generation.video import generate
from sinfusion.metrics.coverage import Coverage
from sinfusion.metrics.fidelity import mean_psnr
from sinfusion.metrics.run_evaluation import conditional_mean, targets
from sinfusion.roles import PREDICTOR
from sinfusion.run import load

LARGEST = 448.0  # in e4m3
FIGURES = ("nnfdiv_3x3x3", "nnfdist_3x3x3", "nnfdiv_3x7x7", "nnfdist_3x7x7", "change", "coverage", "swd")
SEED = 100  # of the frames that scales are taken from


@dataclass
class Settings:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    seeds: tuple[int, ...] = (0, 1)
    frames: int = 60
    projections: tuple[float, ...] = (1.0, 0.0)  # weights of the projection to the clip's patches
    out: Path | None = None


def scale_for(largest: Tensor) -> Tensor:
    """The least power of two by which e4m3 holds numbers of this size."""
    return torch.exp2(torch.ceil(torch.log2(largest.clamp_min(1e-20) / LARGEST)))


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """To e4m3 times a power of two, in the dtype of x, which holds all such numbers."""
    scaled = (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return (scaled.float() * scale).to(x.dtype, memory_format=torch.channels_last)


class Fp8:
    """Stands in for ops.dense inside a block; layers are known by their weights' addresses."""

    def __init__(self, dense: Callable[..., Tensor]):
        self.dense, self.calibrating = dense, True
        self.largest: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, gelu: bool = False, **other: Any
    ) -> Tensor:
        layer, of_block = weight.data_ptr(), gelu or residual is not None
        if not of_block or weight.shape[1] < 16:  # a residual's, or the first
            return self.dense(x, weight, bias, residual, gelu, **other)
        if self.calibrating:
            largest = x.abs().amax().float()
            self.largest[layer] = torch.maximum(self.largest.get(layer, largest), largest)
            return self.dense(x, weight, bias, residual, gelu, **other)
        if layer not in self.weights:
            self.weights[layer] = rounded(weight.detach(), scale_for(weight.detach().abs().amax((1, 2, 3), True)))
        return self.dense(rounded(x, scale_for(self.largest[layer])), self.weights[layer], bias, residual, gelu)


@contextmanager
def emulated(fp8: Fp8) -> Iterator[None]:
    block = importlib.import_module("sinfusion.ops.convnext_block")  # sinfusion.ops names the function so
    with mock.patch.object(block, "dense", fp8):
        yield


def compare(path: Path, settings: Settings) -> dict[str, Any]:
    run = load(path, "cpu", "bf16", graph=False, log=lambda _: None)
    clip, cover = run.frames, Coverage.of(run.frames)
    fp8 = Fp8(ops.dense)
    with emulated(fp8):
        conditional_mean(run, clip[:9])
        generate(run, 3, seed=SEED)
    fp8.calibrating = False

    @contextmanager
    def precision(name: str) -> Iterator[None]:
        if name == "bf16":
            yield
        else:
            with emulated(fp8):
                yield

    row: dict[str, Any] = {"run": path.name, "size": f"{run.size[1]}x{run.size[0]}", "mean_db": {}, "videos": []}
    row |= {name: getattr(run.recipe, name) for name in ("filters", "depth", "dense_kernel")}
    for name in ("bf16", "fp8"):
        with precision(name):
            row["mean_db"][name] = mean_psnr(conditional_mean(run, clip), targets(clip, PREDICTOR))
    print(path, row["mean_db"], flush=True)
    for projection in settings.projections:
        for name in ("bf16", "fp8"):
            for seed in settings.seeds:
                with precision(name):
                    video = generate(run, settings.frames, seed=seed, projection=projection)[0]
                figures = measure(video, clip, cover, settings.frames)["whole"]
                video_row = {"projection": projection, "precision": name, "seed": seed}
                row["videos"].append(video_row | {key: figures[key] for key in FIGURES})
                print(*row["videos"][-1].values(), flush=True)
    return row


def main(settings: Settings) -> None:
    ops.keep_memory()  # as the command line does
    report: dict[str, Any] = {**machine(torch.device("cpu")), "frames": settings.frames, "rows": []}
    for path in settings.runs:
        report["rows"].append(compare(path, settings))
        if settings.out:
            settings.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
