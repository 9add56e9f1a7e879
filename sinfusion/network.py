"""The network: a chain of ConvNeXt blocks at full resolution, with skips from its first half to its second.

It knows nothing of diffusion: pictures and a time value go in, a picture comes out (SinFusion, section 4 and figure 3).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops


def _convolve(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """`layer` in the dtype of x: the weights stay fp32 masters, the activations decide the arithmetic."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    weight = layer.weight.to(x.dtype, memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, padding=layer.kernel_size[0] // 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, shift by the embedding, norm, two dense convolutions with a GELU between them, residual."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dense_kernel: int = 3, norm: bool = True):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.shift = nn.Linear(embedding, in_channels)
        self.gain = nn.Parameter(torch.ones(in_channels)) if norm else None
        self.offset = nn.Parameter(torch.zeros(in_channels)) if norm else None
        self.expand = nn.Conv2d(in_channels, 3 * out_channels, dense_kernel, padding=dense_kernel // 2)
        self.project = nn.Conv2d(3 * out_channels, out_channels, dense_kernel, padding=dense_kernel // 2)
        self.residual = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, in_channels, H, W), embedding (B or 1, E) fp32 -> (B, out_channels, H, W)."""
        shift = self.shift(F.gelu(embedding)).expand(len(x), -1)  # (B, in_channels)
        bias: Tensor = self.depthwise.bias  # type: ignore[assignment]  # this convolution has one
        h = ops.depthwise_norm(x, self.depthwise.weight, bias, shift, self.gain, self.offset)
        h = _convolve(F.gelu(_convolve(h, self.expand)), self.project)
        return h + (x if self.residual is None else _convolve(x, self.residual))


class _Sinusoid(nn.Module):
    """A number as `channels` sines and cosines, then a two-layer MLP."""

    frequencies: Tensor

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.inner = nn.Linear(channels, 4 * channels)
        self.outer = nn.Linear(4 * channels, channels)

    def forward(self, value: Tensor) -> Tensor:
        angle = value.float()[:, None] * self.frequencies
        return self.outer(F.gelu(self.inner(torch.cat((angle.sin(), angle.cos()), 1))))


class NextNet(nn.Module):
    """The denoising network of SinFusion.

    in_channels: 3 (noisy picture) plus 3 for each conditioning frame, conditions first.
    filters: channels of every block; even, at least 4. depth: number of blocks, at least 2.
    dense_kernel: 3 as released, 1 as in ConvNeXt (9 times fewer operations in the dense convolutions).
    frame_offset: takes a second number, the distance in frames between condition and target.
    dtype: of the activations; the weights are fp32.

    The receptive field grows by 6 + 2 (dense_kernel - 1) pixels a block: 161 pixels for the released network.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        filters: int = 64,
        depth: int = 16,
        dense_kernel: int = 3,
        frame_offset: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.dtype = dtype
        self.first_half = math.ceil(depth / 2)
        embedding = filters * (2 if frame_offset else 1)
        widths = [in_channels] + [filters] * (self.first_half - 1) + [2 * filters] * (depth - self.first_half)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, filters, embedding, dense_kernel, norm=i > 0) for i, width in enumerate(widths)
        )
        self.final = nn.Conv2d(filters, out_channels, 1)
        self.time = _Sinusoid(filters)
        self.frame_offset = _Sinusoid(filters) if frame_offset else None

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
        time: Tensor,  # (B or 1,)
        frame_offset: Tensor | None = None,  # (B or 1,) integer
    ) -> Tensor:  # (B, out_channels, H, W) fp32
        embedding = self.time(time)
        if self.frame_offset is not None:
            if frame_offset is None:
                raise ValueError("this network is conditioned on the frame offset: pass frame_offset (B,).")
            embedding = torch.cat((embedding, self.frame_offset(frame_offset)), 1)
        x = x.to(self.dtype, memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for block in self.blocks[: self.first_half]:
            x = block(x, embedding)
            skips.append(x)
        for block in self.blocks[self.first_half :]:
            x = block(torch.cat((x, skips.pop()), 1), embedding)
        return _convolve(x, self.final).float()
