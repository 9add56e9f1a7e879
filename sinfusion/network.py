"""The network: a chain of ConvNeXt blocks at full resolution, with skips from its first half to its second.

It knows nothing of diffusion: images and a time value go in, an image comes out (SinFusion, section 4 and figure 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import ops
from .ops.layout import weight_order


class Dense(nn.Conv2d):
    """A k x k convolution in the dtype of its input, fp32 weights, with its epilogue."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self._copy: Tensor | None = None  # of the weight, in the dtype of the activations
        self._version = -1  # of the weight that was copied

    def adopt(self, copy: Tensor) -> None:
        """Use a copy of the weight that the optimizer keeps up to date, until anything else writes the weight."""
        self._copy, self._version = copy, self.weight._version

    def forward(  # type: ignore[override]
        self, x: Tensor, gelu: bool = False, residual: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        """x (B, C, H, W) -> (B, O, H, W): GELU of the convolution, or the residual (B, O, H, W) added to it.

        skip: the last of the C channels, if x has only the first.
        """
        return ops.dense(x, self.weight, self.bias, residual, gelu, skip, self.copy_for(x))

    def copy_for(self, x: Tensor) -> Tensor | None:
        """The weight in the dtype of an input, channels-last; None if that is the weight's own."""
        if x.dtype == self.weight.dtype:
            return None
        if self._copy is None or self._copy.dtype != x.dtype or self._copy.device != x.device:
            self._copy, self._version = torch.empty_like(self.weight, dtype=x.dtype), -1
            self._copy = self._copy.contiguous(memory_format=torch.channels_last)
        if self._version != self.weight._version:
            self._copy.copy_(self.weight.detach())
            self._version = self.weight._version
        return self._copy


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, shift by the embedding, norm, two dense convolutions with a GELU between them, residual."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dense_kernel: int = 3, norm: bool = True):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.shift = nn.Linear(embedding, in_channels)
        self.gain = nn.Parameter(torch.ones(in_channels)) if norm else None
        self.offset = nn.Parameter(torch.zeros(in_channels)) if norm else None
        self.expand = Dense(in_channels, 3 * out_channels, dense_kernel)
        self.project = Dense(3 * out_channels, out_channels, dense_kernel)
        self.residual = Dense(in_channels, out_channels, 1) if in_channels != out_channels else None
        self._gradients: ops.Gradients | None = None

    def adopt(self, gradients: dict[str, Tensor]) -> None:
        """On a GPU, write the gradients of parameters to these, by name, whenever they are computed."""
        layers = ("depthwise", "expand", "project", "residual")
        first, *others = ([gradients.get(f"{layer}.{of}") for of in ("weight", "bias")] for layer in layers)
        own = [gradients.get("gain"), gradients.get("offset")]
        self._gradients = ops.Gradients._make(sum(others, [*first, *own]))

    def forward(self, x: Tensor, shift: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, in_channels, H, W), shift (B, in_channels) fp32, what `self.shift` makes -> (B, out_channels, H, W), x.

        skip: the last of the in_channels, if x has only the first. What reads x later takes the second result.
        """
        convolutions = (self.depthwise, self.expand, self.project, self.residual)
        first, expand, project, residual = (
            (None, None) if layer is None else (layer.weight, layer.bias) for layer in convolutions
        )
        copies = (None if layer is None else cast(Dense, layer).copy_for(x) for layer in convolutions[1:])
        parameters = (*first, self.gain, self.offset, *expand, *project, *residual)
        arguments: Any = (x, skip, shift, *parameters, *copies, self._gradients)  # in the order of the operator
        out: tuple[Tensor, Tensor] = ops.convnext_block(*arguments)
        return out


class _Sinusoid(nn.Module):
    """Sinusoidal embedding of a number, then a two-layer MLP: parameters of `ops.block_shifts`."""

    frequencies: Tensor

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.inner = nn.Linear(channels, 4 * channels)
        self.outer = nn.Linear(4 * channels, channels)

    @property
    def mlp(self) -> ops.Mlp:
        return ops.Mlp(self.inner.weight, self.inner.bias, self.outer.weight, self.outer.bias)


class NextNet(nn.Module):
    """The denoising network of SinFusion.

    in_channels: 3 (noisy image) plus 3 for each conditioning frame, conditions first.
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
        self.reach = depth * (3 + dense_kernel - 1)  # pixels that an output sees on each side of its own
        embedding = filters * (2 if frame_offset else 1)
        widths = [in_channels] + [filters] * (self.first_half - 1) + [2 * filters] * (depth - self.first_half)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, filters, embedding, dense_kernel, norm=i > 0) for i, width in enumerate(widths)
        )
        self.final = Dense(filters, out_channels, 1)
        self.time = _Sinusoid(filters)
        self.frame_offset = _Sinusoid(filters) if frame_offset else None
        self._gradients_of_shifts: list[Tensor] | None = None
        # `evaluate` with a graph, where the trainer captures one.
        self.graphed_evaluate: Callable[[Tensor, Tensor], Tensor] | None = None

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
        time: Tensor,  # (B or 1,)
        frame_offset: Tensor | None = None,  # (B or 1,) integer
    ) -> Tensor:  # (B, out_channels, H, W) fp32
        evaluate = self.graphed_evaluate or self.evaluate
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return evaluate(x, self.shifts(time, frame_offset)).float()

    def lay_out(self) -> None:
        """Put the weights into the order in memory that kernels read, where nothing else does."""
        for weight in self.parameters():
            order = weight_order(weight.shape, weight.is_cuda)
            back = [order.index(i) for i in range(weight.ndim)]
            weight.data = weight.data.permute(order).contiguous().permute(back)

    def shifts(self, time: Tensor, frame_offset: Tensor | None = None) -> Tensor:
        """(B, sum of all blocks' in_channels) fp32: what every block adds for time and frame offset."""
        values, embeddings = [time], [self.time]
        if self.frame_offset is not None:
            if frame_offset is None:
                raise ValueError("this network is conditioned on the frame offset: pass frame_offset (B,).")
            values, embeddings = [time, frame_offset], [self.time, self.frame_offset]
        layers = [cast(ConvNeXtBlock, block).shift for block in self.blocks]
        return ops.block_shifts(
            values,
            self.time.frequencies,
            [embedding.mlp for embedding in embeddings],
            [ops.Layer(layer.weight, layer.bias) for layer in layers],
            self._gradients_of_shifts,
        )

    def adopt(self, gradients: dict[str, Tensor]) -> None:
        """On a GPU, write the gradients of parameters to these, by name, whenever they are computed."""
        for i, block in enumerate(self.blocks):
            names = [name for name, _ in block.named_parameters()]
            cast(ConvNeXtBlock, block).adopt({name: gradients[f"blocks.{i}.{name}"] for name in names})
        layers = [f"{name}.{layer}" for name in ("time", "frame_offset") for layer in ("inner", "outer")]
        layers = layers[: 4 if self.frame_offset is not None else 2]
        layers += [f"blocks.{i}.shift" for i in range(len(self.blocks))]
        self._gradients_of_shifts = [gradients[f"{layer}.{of}"] for layer in layers for of in ("weight", "bias")]

    def evaluate(
        self,
        x: Tensor,  # (B, in_channels, H, W) in the dtype of the activations, channels-last
        shifts: Tensor,  # (B or 1, ...) from `shifts`
    ) -> Tensor:  # (B, out_channels, H, W), like x
        widths = [cast(ConvNeXtBlock, block).shift.out_features for block in self.blocks]
        for_block = shifts.expand(len(x), -1).split(widths, 1)
        inputs: list[Tensor] = []  # of the blocks of the first half: what the others read from the last on
        for i, block in enumerate(self.blocks):
            skip = None if i < self.first_half else x if i == self.first_half else inputs.pop()
            x, before = block(x, for_block[i], skip)
            if i < self.first_half:
                inputs.append(before)
        out: Tensor = self.final(x)
        return out
