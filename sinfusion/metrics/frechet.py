"""Frechet distances between the deep features of two images (SIFID) or two videos (SVFID).

sifid(generated, original, "inception_v3.pth")      # lower is closer; so is svfid(..., "c3d.pth")
The pretrained weights are a file that the user brings. Every position of a feature map is one sample of a
distribution, so that one image is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SinfusionError
from ..pixels import to_unit
from .stacks import as_stack

Weights = dict[str, Tensor]

# Name, channels in and out, stride and padding of the convolutions of Inception v3 before its first pooling.
INCEPTION_LAYERS = (("Conv2d_1a_3x3", 3, 32, 2, 0), ("Conv2d_2a_3x3", 32, 32, 1, 0), ("Conv2d_2b_3x3", 32, 64, 1, 1))
INCEPTION_EPS = 1e-3  # of its batch norms
INCEPTION_MIN_SIDE = 9  # height and width of the smallest image with more than one feature

# Name, channels in and out of the convolutions of C3D before its second pooling.
C3D_LAYERS = (("conv1", 3, 64), ("conv2", 64, 128))
C3D_REACH = 2  # frames each way that a feature of C3D sees
C3D_MIN_SIDE = 4  # height and width
FRAMES_AT_ONCE = 8  # bounds the memory


def sifid(generated: np.ndarray, original: np.ndarray, weights: str | Path) -> float:
    """Single-image Frechet inception distance, as in the released code of SinGAN (Shaham et al. 2019).

    generated, original: (H, W, 3) or (N, H, W, 3) uint8, of any sizes from 9x9 on. Several generated images are
    compared each with the one original, or pairwise with as many originals; the distances are averaged. weights: see
    `load_inception`.

    The features are those of `inception_features`, 64 numbers at every second pixel, of the image in its own size.
    SinGAN's paper says 'before the second pooling', which would be 192 numbers; its code stops before the first.
    """
    several = as_stack("generated", generated, INCEPTION_MIN_SIDE)
    ones = as_stack("original", original, INCEPTION_MIN_SIDE)
    if len(ones) not in (1, len(several)):
        raise SinfusionError(f"give one original or one for each of the {len(several)} images, not {len(ones)}.")
    loaded = load_inception(weights)
    left, right = (
        [_statistics([inception_features(to_unit(image), loaded)]) for image in stack.split(1)]
        for stack in (several, ones)
    )
    return float(np.mean([frechet_distance(*left[i], *right[i % len(right)]) for i in range(len(left))]))


def svfid(generated: np.ndarray, original: np.ndarray, weights: str | Path) -> float:
    """Single-video Frechet distance of C3D features, after HP-VAE-GAN (Gur et al. 2020).

    generated, original: (T, H, W, 3) uint8, of any lengths and of any sizes from 4x4 on. weights: see `load_c3d`.

    The authors' code was never released, and the layer of C3D that they read is not known here. The choice is what
    SinGAN's paper says of SIFID, carried over: the convolution before the second pooling (`c3d_features`), 128 numbers
    that see 5 frames of 8x8 pixels. Values compare with each other, not with published ones.
    """
    clips = [as_stack("generated", generated, C3D_MIN_SIDE), as_stack("original", original, C3D_MIN_SIDE)]
    loaded = load_c3d(weights)
    left, right = (_statistics(_c3d_features_in_parts(clip, loaded)) for clip in clips)
    return frechet_distance(*left, *right)


def load_inception(path: str | Path) -> Weights:
    """The 15 tensors of Inception v3 that `inception_features` needs; whatever else the file holds is ignored.

    path: a state dict, .safetensors or what torch.save writes, with the names of torchvision's `inception_v3`, which
    pytorch-fid's `pt_inception` has as well: Conv2d_1a_3x3.conv.weight, Conv2d_1a_3x3.bn.running_mean and so on.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, channels, out, *_ in INCEPTION_LAYERS:
        shapes[f"{name}.conv.weight"] = (out, channels, 3, 3)
        shapes |= {f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    return _load(path, shapes, "Inception v3")


def inception_features(images: Tensor, weights: Weights) -> Tensor:
    """(N, 3, H, W) fp32 in [-1, 1] -> (N, 64, h, w): Inception v3 (Szegedy et al. 2016) before its first pooling."""
    x = images
    for name, _, _, stride, padding in INCEPTION_LAYERS:
        x = F.conv2d(x, weights[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance, gain, offset = (
            weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, variance, gain, offset, eps=INCEPTION_EPS).relu_()
    return x


def load_c3d(path: str | Path) -> Weights:
    """The 4 tensors of C3D that `c3d_features` needs; whatever else the file holds is ignored.

    path: a state dict, .safetensors or what torch.save writes, with the usual names conv1.weight, conv1.bias,
    conv2.weight and conv2.bias, for colours in the order red, green, blue.
    """
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (out, channels, 3, 3, 3) for name, channels, out in C3D_LAYERS
    }
    shapes |= {f"{name}.bias": (out,) for name, _, out in C3D_LAYERS}
    return _load(path, shapes, "C3D")


def c3d_features(clips: Tensor, weights: Weights) -> Tensor:
    """(N, 3, T, H, W) fp32 in [-1, 1] -> (N, 128, T, H // 2, W // 2): C3D (Tran et al. 2015) before its second pooling.

    C3D was trained on values from 0 to 255 less the mean clip of Sports-1M. Weight files do not hold that mean; mid
    grey stands in for it.
    """
    x = F.conv3d(clips * 127.5, weights["conv1.weight"], weights["conv1.bias"], padding=1).relu_()
    x = F.max_pool3d(x, (1, 2, 2))
    return F.conv3d(x, weights["conv2.weight"], weights["conv2.bias"], padding=1).relu_()


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) of two Gaussians, in float64 (Dowson and Landau 1982).

    means: (D,); covariances: (D, D), symmetric, singular or not.

    With A = P P^T and B = Q Q^T from their eigenvectors, the eigenvalues of A B are the squared singular values of
    P^T Q: no inverse and no root of a small difference is taken.
    """
    roots = []
    for covariance in (cov_a, cov_b):
        values, vectors = torch.linalg.eigh(covariance.double())
        roots.append(vectors * values.clamp(min=0).sqrt())
    traces = cov_a.double().trace() + cov_b.double().trace() - 2 * torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    apart = (mean_a.double() - mean_b.double()).square().sum()
    return max(0.0, (apart + traces).item())


def _load(path: str | Path, shapes: dict[str, tuple[int, ...]], network: str) -> Weights:
    """The named tensors of a file, fp32 on the device."""
    file = Path(path)
    if not file.is_file():
        raise SinfusionError(f"{file} does not exist; give a file with pretrained weights of {network}.")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise SinfusionError(f"{file} holds no weights that can be read: {type(error).__name__}.") from error
    for name, shape in shapes.items():
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, Tensor):
            raise SinfusionError(f"{file} has no tensor {name}; give a state dict of {network}.")
        if tuple(value.shape) != shape:
            raise SinfusionError(f"{name} in {file} is {tuple(value.shape)}; that of {network} is {shape}.")
    return {name: content[name].float() for name in shapes}


def _c3d_features_in_parts(clip: Tensor, weights: Weights) -> Iterator[Tensor]:
    """The C3D features of a clip, a few frames at a time: (1, 128, t, h, w) each."""
    for start in range(0, len(clip), FRAMES_AT_ONCE):
        first = max(0, start - C3D_REACH)
        frames = to_unit(clip[first : start + FRAMES_AT_ONCE + C3D_REACH])  # (t, 3, H, W)
        yield c3d_features(frames.transpose(0, 1)[None], weights)[:, :, start - first :][:, :, :FRAMES_AT_ONCE]


def _statistics(features: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), float64, over all positions of feature maps (N, D, ...)."""
    count, total, products = 0, torch.tensor(0.0), torch.tensor(0.0)
    for part in features:
        samples = part.movedim(1, 0).flatten(1).double()  # (D, positions)
        count, total, products = count + samples.shape[1], total + samples.sum(1), products + samples @ samples.T
    mean = total / count
    return mean, (products - count * torch.outer(mean, mean)) / (count - 1)
