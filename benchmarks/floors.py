"""The least that each thing moves and computes, as functions of shapes, and how long that takes a device.

A number is counted once for each operator that reads or writes it, in cache or not; a multiply-add is 2 operations.
Activations are bf16. Tensors without pixels are left out, but for weights. Arithmetic other than products takes no time
here; it is counted (a function is 1 operation) where there are no products, to say what an operator computes at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Work(NamedTuple):
    bytes: int
    dense: int = 0  # floating-point operations of matrix products
    depthwise: int = 0  # of depthwise convolutions, held against fp32: tensor cores make more, and many times as fast
    elementwise: int = (
        0  # of everything else, where there are no products; whole numbers of a generator are not counted
    )

    @property
    def operations(self) -> int:
        return self.dense + self.depthwise + self.elementwise


NORMAL = 6  # operations of a normally distributed number; Box and Muller need 11 for two


class Limits(NamedTuple):
    """What a device can do."""

    copy: float  # bytes a second, read and written, that a copy in memory moves; on a CPU in place, if that moves more
    cached_copy: float  # the same for one that stays in the cache
    cache: int  # bytes for which that holds
    matrix: float  # floating-point operations a second of a matrix product in the dtype of the activations
    arithmetic: float  # the same in fp32, without tensor cores


class Network(NamedTuple):
    """What decides the shapes of a NextNet."""

    in_channels: int = 6
    filters: int = 64
    depth: int = 16
    kernel: int = 3

    @property
    def widths(self) -> list[int]:
        """Channels that each block takes."""
        first_half = (self.depth + 1) // 2
        narrow, wide = first_half - 1, self.depth - first_half
        return [self.in_channels] + [self.filters] * narrow + [2 * self.filters] * wide


def seconds(work: Work, limits: Limits) -> float:
    """The floor of one operator."""
    bandwidth = limits.cached_copy if work.bytes <= limits.cache else limits.copy
    return max(work.bytes / bandwidth, work.dense / limits.matrix, work.depthwise / limits.arithmetic)


def total_seconds(works: Sequence[Work], limits: Limits) -> float:
    """The floor of operators one after the other."""
    return sum(seconds(work, limits) for work in works)


def total(works: Sequence[Work]) -> Work:
    return Work(*map(sum, zip(*works, strict=True)))


def depthwise_norm_forward(pixels: int, channels: int, norm: bool = True, save: bool = False) -> Work:
    """pixels: of the whole batch. x in, out; what the backward needs, u and two statistics, if there is a norm."""
    kept = 2 * pixels * channels + 8 * pixels if norm and save else 0
    return Work(4 * pixels * channels + 4 * 49 * channels + kept, depthwise=98 * pixels * channels)


def depthwise_norm_backward(pixels: int, channels: int, norm: bool = True, input: bool = True) -> Work:
    """grad_out, x in, grad_x if it is wanted; u and two statistics in if there is a norm."""
    kept = 2 * pixels * channels + 8 * pixels if norm else 0
    moved = (4 + 2 * input) * pixels * channels + 8 * 49 * channels + kept
    return Work(moved, depthwise=(1 + input) * 98 * pixels * channels)


def dense_forward(
    pixels: int, channels: int, outputs: int, kernel: int = 3, residual: bool = False, save: bool = False
) -> Work:
    """x and weights in, out; a residual in; z out for the backward."""
    weights = kernel**2 * channels * outputs
    return Work(2 * pixels * (channels + outputs * (1 + residual + save)) + 2 * weights, dense=2 * pixels * weights)


def dense_input_gradient(pixels: int, channels: int, outputs: int, kernel: int = 3) -> Work:
    """grad and weights in, grad_x."""
    return dense_forward(pixels, outputs, channels, kernel)


def dense_weight_gradient(pixels: int, channels: int, outputs: int, kernel: int = 3) -> Work:
    """grad and x in, grad_weight in fp32."""
    weights = kernel**2 * channels * outputs
    return Work(2 * pixels * (channels + outputs) + 4 * weights, dense=2 * pixels * weights)


def gelu_forward(pixels: int, channels: int) -> Work:
    """z in, out; z / 2 (1 + erf(z / sqrt 2)) of z + bias."""
    return Work(4 * pixels * channels, elementwise=6 * pixels * channels)


def gelu_backward(pixels: int, channels: int) -> Work:
    """grad, z in, dz; grad (Phi(z) + z phi(z)) of z + bias, and its sum."""
    return Work(6 * pixels * channels, elementwise=13 * pixels * channels)


def sample_crops(pixels: int, conditions: int) -> Work:
    """Frames in as uint8, input, target in fp32; noise, and white noise on the conditions, without coarse_noise."""
    operations = (conditions + 1) * 2 + conditions * (NORMAL + 3) + NORMAL + 10
    return Work(pixels * 3 * ((conditions + 1) * (1 + 2) + 4), elementwise=pixels * 3 * operations)


def ddpm_step(pixels: int, prior_mean: bool = False) -> Work:
    """x in fp32 in and out, the network's output in, its next input; a prior mean in fp32 in."""
    return Work(pixels * 3 * (8 + 2 + 2 + 4 * prior_mean), elementwise=pixels * 3 * (NORMAL + 11 + 4 * prior_mean))


def adam_ema(parameters: int) -> Work:
    """Gradient in; weights, two moments and the average in and out, in fp32; a copy in bf16."""
    return Work(parameters * (4 + 4 * 8 + 2), elementwise=16 * parameters)


def network_forward(pixels: int, network: Network, save: bool = False) -> list[Work]:
    """Concatenation is not counted: a kernel can read from two tensors."""
    filters, kernel = network.filters, network.kernel
    works = []
    for i, width in enumerate(network.widths):
        works.append(depthwise_norm_forward(pixels, width, i > 0, save))
        works.append(dense_forward(pixels, width, 3 * filters, kernel, save=save))
        if width != filters:
            works.append(dense_forward(pixels, width, filters, 1))
        works.append(dense_forward(pixels, 3 * filters, filters, kernel, residual=True))
    return [*works, dense_forward(pixels, filters, 3, 1)]


def network_backward(pixels: int, network: Network) -> list[Work]:
    """Gradients of all weights and inputs, but not of the network's input."""
    filters, kernel = network.filters, network.kernel

    def both(channels: int, outputs: int, kernel: int) -> list[Work]:
        shape = (pixels, channels, outputs, kernel)
        return [dense_input_gradient(*shape), dense_weight_gradient(*shape)]

    works = both(filters, 3, 1)
    for i, width in enumerate(network.widths):
        works += both(3 * filters, filters, kernel)
        works.append(gelu_backward(pixels, 3 * filters))
        works += both(width, 3 * filters, kernel)
        if width != filters:
            works += both(width, filters, 1)[i == 0 :]
        works.append(depthwise_norm_backward(pixels, width, norm=i > 0, input=i > 0))
    return works


def parameters(network: Network) -> int:
    """Numbers in the weights; a network for one previous frame is conditioned on the frame offset too."""
    filters = network.filters
    numbers = 2 if network.in_channels == 6 else 1
    mlp = 8 * filters**2 + 5 * filters
    count = numbers * mlp + 3 * filters + 3
    for i, width in enumerate(network.widths):
        count += 50 * width + (numbers * filters + 1) * width + (2 * width if i else 0)
        count += network.kernel**2 * 3 * filters * (width + filters) + 4 * filters
        count += (width + 1) * filters if width != filters else 0
    return count


def training_step(pixels: int, network: Network) -> list[Work]:
    return [
        sample_crops(pixels, network.in_channels // 3 - 1),
        *network_forward(pixels, network, save=True),
        *network_backward(pixels, network),
        adam_ema(parameters(network)),
    ]


def evaluations(pixels: int, network: Network, count: int) -> list[Work]:
    """A reverse process of `count` evaluations: a frame, or its correction."""
    return [*network_forward(pixels, network), ddpm_step(pixels)] * count
