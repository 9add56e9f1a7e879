"""A denoiser of images, diffusers' UNet2DConditionModel, turned into one of clips (Wu et al. 2023, section 3.2).

network = VideoNetwork(unet)                         # changes the unet; `untuned` weights are added to it
noise = network(latents, timesteps, text)            # (B, 4, F, h, w), (B,), (B, N, D) -> (B, 4, F, h, w)
names = [name for name, _ in tuned(unet)]            # 112 tensors of Stable Diffusion 1.x

Frames go through the image model as a batch. Three things look across them: self-attention sees the first frame and
the one before in place of its own; after each feed-forward every place attends to itself at all times; and the group
norms of residual blocks, and the last one, take their statistics over all frames. The names of the weights are the
published ones. This file needs PyTorch alone: whoever has a unet has diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TUNED = (".attn1.to_q.", ".attn2.to_q.", ".attn_temp.")  # parts of the names of the tensors that are tuned


@dataclass
class Frames:
    """How many frames the clips of a batch have; shared by all layers that look across frames."""

    count: int = 1


class VideoNetwork(nn.Module):
    """The unet, over clips."""

    def __init__(self, unet: Any):
        super().__init__()
        self.frames = Frames()
        look_across_frames(unet, self.frames)
        self.unet = unet
        self.autocast: torch.dtype | None = None  # of matrix products; None: that of the weights

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute matrix products and convolutions in bf16, or all in fp32; what is not tuned is stored so as well."""
        if dtype == torch.float32:
            return
        self.autocast = dtype
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
                module.to(dtype)

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """What the unet predicts of noisy latents (B, C, F, h, w) at timesteps (B,), given embedded text (B, N, D)."""
        batch, _, count = latents.shape[:3]
        self.frames.count = count
        images = latents.transpose(1, 2).flatten(0, 1)  # (B F, C, h, w)
        with torch.autocast(latents.device.type, self.autocast) if self.autocast else nullcontext():
            outputs: Tensor = self.unet(
                images, timesteps.repeat_interleave(count), text.repeat_interleave(count, 0), return_dict=False
            )[0]
        return outputs.to(latents.dtype).unflatten(0, (batch, count)).transpose(1, 2)


def tuned(unet: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and values of the tensors that are tuned: all queries, and everything of the temporal attention."""
    for name, value in unet.named_parameters():
        if any(part in name for part in TUNED):
            yield name, value


def look_across_frames(unet: Any, frames: Frames) -> None:
    """Make the layers of a unet look across frames; new weights come from PyTorch's default generator."""
    modules: list[Any] = list(unet.modules())
    for module in modules:
        kind = type(module).__name__
        if kind == "BasicTransformerBlock":
            _attend_over_time(module, frames)
        elif kind == "ResnetBlock2D":
            module.norm1, module.norm2 = (
                JointGroupNorm.of(module.norm1, frames),
                JointGroupNorm.of(module.norm2, frames),
            )
    unet.conv_norm_out = JointGroupNorm.of(unet.conv_norm_out, frames)


def _attend_over_time(block: Any, frames: Frames) -> None:
    """Give a transformer block sparse causal attention, and temporal attention after its feed-forward."""
    spatial = block.attn1
    block.attn1.set_processor(SparseCausalAttention(frames))
    width = spatial.to_q.in_features
    block.attn_temp = type(spatial)(
        width,
        heads=spatial.heads,
        dim_head=spatial.to_q.out_features // spatial.heads,
        bias=spatial.to_q.bias is not None,
    )
    nn.init.zeros_(block.attn_temp.to_out[0].weight)  # its bias stays random, as published
    block.norm_temp = nn.LayerNorm(width)

    def temporal_attention(_: Any, __: Any, states: Tensor) -> Tensor:  # (B F, places, width)
        over_time = states.unflatten(0, (-1, frames.count)).transpose(1, 2)  # (B, places, F, width)
        sequences = over_time.flatten(0, 1)
        attended = sequences + block.attn_temp(block.norm_temp(sequences))
        return attended.view(over_time.shape).transpose(1, 2).flatten(0, 1)

    block.register_forward_hook(temporal_attention)


class SparseCausalAttention:
    """Attention of frame i to frame 0 and frame i - 1; frame 0 attends to itself alone. A processor of diffusers."""

    def __init__(self, frames: Frames):
        self.frames = frames

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attention.to_q(hidden_states), attention.to_k(source), attention.to_v(source)
        key, value = self._first_and_former(key), self._first_and_former(value)
        query, key, value = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        outputs: Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
        return outputs

    def _first_and_former(self, states: Tensor) -> Tensor:
        """(B F, places, width) -> (B F, 2 places, width): of frame 0 and of the frame before each."""
        clips = states.unflatten(0, (-1, self.frames.count))
        first = clips[:, :1]
        former = torch.cat((first, clips[:, :-1]), 1)
        return torch.cat((first.expand_as(former), former), 2).flatten(0, 1)


class JointGroupNorm(nn.GroupNorm):
    """A group norm with one mean and variance for all frames of a clip."""

    frames: Frames

    @classmethod
    def of(cls, norm: nn.GroupNorm, frames: Frames) -> JointGroupNorm:
        """One with the weights of another."""
        joint = cls(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        joint.weight, joint.bias, joint.frames = norm.weight, norm.bias, frames
        return joint

    def forward(self, input: Tensor) -> Tensor:
        clips = input.unflatten(0, (-1, self.frames.count)).transpose(1, 2)  # (B, C, F, h, w)
        return super().forward(clips).transpose(1, 2).flatten(0, 1)
