"""Perceptual distance, for the diversity of images as SinDiffusion has it: LPIPS between samples, mean of all pairs.

to_others(load_lpips(), [image, other, third])       # each one's mean distance to the others

It is ST-LPIPS (Ghildyal and Liu, ECCV 2022): an AlexNet that is blurred before it is thinned out, whose features, of
length 1 at each place, are compared layer by layer. Its weights lie in the package stlpips-pytorch, of which nothing is
run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..extras import need
from ..pixels import to_unit

EXTRA = "lpips"
WEIGHTS = Path("weights", "vST0.0", "alex_shift_tolerant.pth")  # in the package
LEAST_SIDE = 21  # pixels; of a smaller image nothing is left to blur
# The convolution of each layer, and its padding.
CONVOLUTIONS = (("slice1.0", 2), ("slice2.5", 2), ("slice3.9", 1), ("slice4.11", 1), ("slice5.13", 1))


@dataclass(frozen=True)
class Lpips:
    """The network's weights, as they are named in the package."""

    weights: dict[str, Tensor]

    def features(self, images: Tensor) -> list[Tensor]:
        """Of images (N, 3, H, W) in [-1, 1]: five of (N, C, h, w), of length 1 at each place."""
        w = self.weights
        x, found = (images - w["scaling_layer.shift"]) / w["scaling_layer.scale"], []
        for layer, (name, padding) in enumerate(CONVOLUTIONS):
            if layer in (1, 2):
                x = _thinned_out(F.max_pool2d(x, 3, 1))
            x = F.conv2d(x, w[f"net.{name}.weight"], w[f"net.{name}.bias"], padding=padding)
            x = F.relu(_thinned_out(x) if layer == 0 else x)
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """(N,), from `features` of N images each: mean over places of weighted squares, summed over layers."""
        found = torch.zeros(len(a[0]), device=a[0].device)
        for layer, (x, y) in enumerate(zip(a, b, strict=True)):
            found += F.conv2d((x - y).square(), self.weights[f"lin{layer}.model.1.weight"]).mean((1, 2, 3))
        return found


def _thinned_out(x: Tensor) -> Tensor:
    """(N, C, h, w) blurred, with a reflected border, and every second pixel of it."""
    line = x.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def load_lpips(device: torch.device | str = "cpu") -> Lpips:
    """The network. Raises SinfusionError where the package with its weights is not installed."""
    need(EXTRA)
    package = importlib.util.find_spec("stlpips_pytorch")
    assert package is not None and package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / WEIGHTS
    return Lpips(torch.load(file, map_location=device, weights_only=True))  # tensors alone: no code is run


@torch.no_grad()
def to_others(lpips: Lpips, images: Sequence[np.ndarray]) -> list[float]:
    """The mean distance of each image (H, W, 3) uint8 to the others, of which there is one at least.

    Their mean is that of all pairs.
    """
    device = lpips.weights["scaling_layer.shift"].device
    features = [lpips.features(to_unit(torch.from_numpy(np.array(image)).to(device))[None]) for image in images]
    table = torch.zeros(len(images), len(images))
    for i in range(len(images)):
        for j in range(i):
            table[i, j] = table[j, i] = lpips.distance(features[i], features[j])[0]
    means: list[float] = (table.double().sum(1) / (len(images) - 1)).tolist()
    return means
