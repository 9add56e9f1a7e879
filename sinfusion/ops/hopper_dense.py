"""3x3 convolutions on Hopper GPUs (csrc/cuda/convolve_sm90.cu), beside those of kernels/dense.py.

Activations are bf16, channels-last in memory, as weights are; biases and sums are fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import hopper
from .layout import empty_like
from .native import cuda, run

CLUSTER = 4  # blocks that add up their weight gradients


Shortcut = tuple[Any, Tensor, "Tensor | None"]  # an `Input`, weight (O, C, 1, 1) and bias (O,), as for `pointwise`


def takes_forward(x: Tensor, weight: Tensor, residual: Tensor | None, gelu: bool, shortcut: Shortcut | None) -> bool:
    outputs, _, kernel, _ = weight.shape
    of_shortcut = () if shortcut is None else (*shortcut[0], shortcut[1])
    return kernel == 3 and outputs == (192 if gelu else 64) and hopper.takes(x, weight, residual, *of_shortcut)


def takes_input_gradient(grad: Tensor, weight: Tensor, z: Tensor | None) -> bool:
    _, inputs, kernel, _ = weight.shape
    outputs = (64, 128, 192) if z is None else (192,)
    return kernel == 3 and inputs in outputs and hopper.takes(grad, weight, z)


def takes_weight_gradient(grad: Tensor, x: Tensor, kernel: int) -> bool:
    return kernel == 3 and hopper.takes(grad, x)


def forward(
    x: Tensor,  # (B, C, H, W)
    weight: Tensor,  # (O, C, 3, 3)
    bias: Tensor | None,  # (O,)
    residual: Tensor | None,  # (B, O, H, W)
    gelu: bool,
    save: bool,
    shortcut: Shortcut | None = None,  # makes the residual
) -> tuple[Tensor, Tensor | None]:
    """out (B, O, H, W): gelu(z + bias), or z + bias + residual, with z = conv(x); and z if gelu and save."""
    out = empty_like(x, len(weight))
    z = empty_like(x, len(weight)) if gelu and save else None
    added: dict[str, Any] = {}
    if shortcut is not None:
        given, of_shortcut, shortcut_bias = shortcut
        channels, of_skip = given.channels
        added = {"shortcut": given.x, "shortcut_skip": given.skip, "shortcut_channels": channels}
        added |= {"shortcut_weight": of_shortcut, "shortcut_bias": shortcut_bias, "shortcut_skip_channels": of_skip}
    _convolve(x, weight, out, bias=bias, residual=residual, z=z, gelu=gelu, **added)
    return out, z


def input_gradient(
    grad: Tensor,  # (B, O, H, W)
    weight: Tensor,  # (O, C, 3, 3)
    z: Tensor | None = None,  # (B, C, H, W): x was GELU(z + bias), and the gradient is that of z
    bias: Tensor | None = None,  # (C,), with z
) -> tuple[Tensor, Tensor | None]:
    """The gradient (B, C, H, W); with z, partial sums of it (1, n, C)."""
    out, partial = empty_like(grad, weight.shape[1]), None
    if z is not None:
        rows = cuda.partial_rows_sm90(grad.shape[0], grad.shape[2], grad.shape[3])
        partial = grad.new_empty(1, rows, weight.shape[1], dtype=torch.float32)
    _convolve(grad, weight, out, bias=bias, z=z, partial=partial, gelu=z is not None, backward=True)
    return out, partial


def weight_gradient(
    grad: Tensor,  # (B, O, H, W)
    x: Tensor,  # (B, C, H, W)
) -> Tensor:
    """(1, n, O, 3, 3, C): partial sums. Results repeat to the bit."""
    (batch, inputs, height, width), outputs = x.shape, grad.shape[1]
    # Processors of a GPU come in groups that no cluster leaves: not all of them find a place at once.
    clusters = torch.cuda.get_device_properties(x.device).multi_processor_count // CLUSTER - 1
    parts = max(1, clusters // (outputs // 64 * (inputs // 64)))
    partial = x.new_empty(1, parts, outputs, 3, 3, inputs, dtype=torch.float32)
    run(
        "convolve_weight_gradient_sm90", x, grad=grad, x=x, partial=partial, batch=batch, height=height, width=width,
        inputs=inputs, outputs=outputs, parts=parts,
    )  # fmt: skip
    return partial


def _convolve(x: Tensor, weight: Tensor, out: Tensor, **given: Any) -> None:
    batch, inputs, height, width = x.shape
    fields = dict.fromkeys(("bias", "residual", "z", "partial", "shortcut", "shortcut_skip", "shortcut_weight"))
    fields |= {"shortcut_bias": None, "shortcut_channels": 0, "shortcut_skip_channels": 0}
    fields |= {"gelu": False, "backward": False, **given}
    run(
        "convolve_sm90", x, x=x, weight=weight, out=out, batch=batch, height=height, width=width, inputs=inputs,
        outputs=out.shape[1], **fields,
    )  # fmt: skip
