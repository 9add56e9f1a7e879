"""The Triton kernels that a training step and a reverse step launch, as they launch them: a function a kernel file.

LAUNCHED at the end says for which arguments, with the 64 filters of `paper` and `fast`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from ahead_of_time import Type, Variant

Arguments = list[tuple[Any, ...]]


def depthwise_norm(channels: int, activation: str) -> dict[str, Variant]:
    """activation: "*bf16" or "*fp32". Blocks of 3, 6 or 9 channels have no norm, half of more than 64 are a skip."""
    from sinfusion.kernels import depthwise_norm as module

    norm = channels > 9
    skip = channels // 2 if channels > 64 else 0
    numbers = {"height": "i32", "width": "i32", "pixels": "i32", "shift_stride": "i32", "eps": "fp32"}
    given = numbers | dict.fromkeys(("x", "skip", "out", "out_skip", "u", "du", "grad", "residual"), activation)
    given |= {"passed": None if skip else activation, "residual_skip": activation}
    given |= {} if skip else dict.fromkeys(("skip", "out_skip", "residual_skip"))
    without_norm = dict.fromkeys(("gain", "offset", "u", "mean", "rstd"))
    constants = {"C": channels, "S": skip, "STEPS": module.STEPS, "BAND": module.BAND}

    def variant(kernel, types, options=None):
        options = options or module.launch_options(channels)
        of_kernel = {n: v for n, v in (constants | options).items() if n in kernel.arg_names}
        types = {n: types.get(n, "*fp32") for n in kernel.arg_names if n not in of_kernel}
        return Variant(kernel, types, of_kernel, {n: v for n, v in options.items() if n not in of_kernel})

    forward = given if norm else given | without_norm
    backward = (given if norm else given | without_norm | {"du": None}) | {"other": None}
    convolution = module.convolution_options(channels)
    variants = {
        "convolve, forward": variant(module.convolve, forward, convolution),
        "convolve_gradient": variant(module.convolve_gradient, given, convolution),
        "norm_backward": variant(module.norm_backward, backward),
        "weight_gradient": variant(
            module.weight_gradient, given, module.launch_options(min(channels, module.GRADIENT_CHANNELS))
        ),
    }
    if channels <= 64:  # where x itself is the residual
        variants["norm_backward, with another sum"] = variant(module.norm_backward, backward | {"other": activation})
    if norm:  # a reverse step keeps nothing
        without = dict.fromkeys(("u", "mean", "rstd"))
        variants["convolve, inference"] = variant(module.convolve, given | without, convolution)
    return variants


def dense(
    inputs: int,
    outputs: int,
    kernel: int,
    activation: str,  # "*bf16" or "*fp32"
    epilogue: str,  # "gelu", "residual", "shortcut": a residual of 128 channels, half of them a skip; or "" for none
    config: int = 0,
) -> dict[str, Variant]:
    """A convolution of the network with its gradients. The network's first convolution has no input gradient."""
    import torch
    from sinfusion.kernels import dense as module

    dtype = torch.bfloat16 if activation == "*bf16" else torch.float32
    types = dict.fromkeys(("pixels", "height", "width", "rows", "share"), "i32") | {"bias": "*fp32", "partial": "*fp32"}
    types |= dict.fromkeys(("x", "weight", "residual", "out", "z", "grad"), activation) | {"short_bias": "*fp32"}
    types |= dict.fromkeys(("short", "skip", "short_weight"), activation)
    further, half = (128, 64) if epilogue == "shortcut" else (0, 0)
    layer = {"INPUTS": inputs, "OUTPUTS": outputs, "KERNEL": kernel, "BACKWARD": False, "GELU": epilogue == "gelu"}
    layer |= {"C2": further, "S2": half}
    swapped = layer | {"INPUTS": outputs, "OUTPUTS": inputs, "BACKWARD": True, "GELU": False, "C2": 0, "S2": 0}

    def variant(kernel, options, constants, *absent):
        of_kernel = {n: v for n, v in (constants | options).items() if n in kernel.arg_names}
        given = {n: None if n in absent else types[n] for n in kernel.arg_names if n not in of_kernel}
        return Variant(kernel, given, of_kernel, {n: v for n, v in options.items() if n not in of_kernel})

    forward = module.convolution_options(config, dtype, inputs, outputs)
    backward = module.convolution_options(config, dtype, outputs, inputs)
    gradient = module.gradient_options(config, dtype, inputs, outputs, kernel)
    short = ("short", "skip", "short_weight", "short_bias")
    absent = {"gelu": ("residual", *short), "residual": ("z", *short), "shortcut": ("residual", "z")}
    absent = absent.get(epilogue, ("residual", "z", *short))
    without = ("bias", "residual", "z", "partial", *short)
    variants = {
        "forward": variant(module.convolve, forward, layer, *absent, "partial"),
        "input gradient": variant(module.convolve, backward, swapped, *without),
        "weight gradient": variant(module.multiply_gradients, gradient, layer),
    }
    if epilogue == "gelu":  # a reverse step keeps nothing
        variants["inference"] = variant(module.convolve, forward, layer, "residual", "z", "partial", *short)
    if epilogue == "residual":  # its input is what came out of GELU
        variants["gradient through GELU"] = variant(
            module.convolve, backward, swapped | {"GELU": True}, "residual", *short
        )
    return variants


def gelu(channels: int, activation: str, epilogue: str) -> dict[str, Variant]:
    """What follows a convolution that cuDNN makes, and its backward. Arguments as of dense."""
    from sinfusion.kernels import gelu as module

    types = dict.fromkeys(("z", "out", "residual", "grad", "dz"), activation)
    types |= {"bias": "*fp32", "partial": "*fp32", "pixels": "i32"}
    constants = {"C": channels, "GELU": epilogue == "gelu", "NUMBERS": module.NUMBERS}
    constants |= {"CHANNELS": module.channel_block(channels), "PIXELS": module.PIXELS, "STEPS": module.STEPS}

    def variant(kernel, *absent):
        of_kernel = {n: v for n, v in constants.items() if n in kernel.arg_names}
        given = {n: None if n in absent else types[n] for n in kernel.arg_names if n not in of_kernel}
        return Variant(kernel, given, of_kernel, module.OPTIONS)

    return {
        "forward": variant(module.finish, *() if epilogue == "residual" else ("residual",)),
        "backward": variant(module.finish_backward, *() if epilogue == "gelu" else ("z", "bias", "dz")),
    }


def pointwise(channels: int, outputs: int, activation: str, wants_input: bool = True) -> dict[str, Variant]:
    """A 1x1 convolution; half of more than 64 channels are a skip."""
    import torch
    from sinfusion.kernels import pointwise as module

    skip = channels // 2 if channels > 64 else 0
    types = dict.fromkeys(("x", "weight", "out", "grad"), activation) | {"skip": activation if skip else None}
    types |= {"bias": "*fp32", "of_weight": "*fp32", "of_bias": "*fp32", "pixels": "i32"}
    types |= {"grad_x": activation if wants_input else None, "grad_skip": activation if wants_input and skip else None}
    options = module.options(channels - skip, outputs, torch.bfloat16 if activation == BF16 else torch.float32)
    constants = {"C": channels, "S": skip, "O": outputs, "STEPS": module.STEPS} | options

    def variant(kernel):
        of_kernel = {n: v for n, v in constants.items() if n in kernel.arg_names}
        given = {n: types[n] for n in kernel.arg_names if n not in of_kernel}
        return Variant(kernel, given, of_kernel, module.OPTIONS)

    return {"forward": variant(module.pointwise), "backward": variant(module.pointwise_backward)}


def embedding(filters: int, blocks: int) -> dict[str, Variant]:
    """Of a time and a frame offset."""
    from sinfusion.kernels import embedding as module

    one, many = ("*fp32",) * 2, ("*fp32",) * blocks
    types = dict.fromkeys(("inner", "inner_bias", "outer", "outer_bias"), one)
    types |= {f"of_{name}": one for name in types} | dict.fromkeys(
        ("weights", "biases", "of_weights", "of_biases"), many
    )
    types |= dict.fromkeys(("frequencies", "hidden", "embedding", "partial", "grad", "out"), "*fp32")
    types |= {"values": ("*fp32", "*i64"), "starts": ("i32",) * (blocks + 1), "samples": "i32", "programs": "i32"}
    constants = {"HIDDEN": module.HIDDEN, "OUTPUTS": module.OUTPUTS, "PROGRAMS": 64}
    of_mlp = {"F": filters, "H": 4 * filters, "WIDTH": filters}

    def variant(kernel, **sizes):
        of_kernel = {n: v for n, v in (constants | sizes).items() if n in kernel.arg_names}
        given = {n: types[n] for n in kernel.arg_names if n not in of_kernel}
        return Variant(kernel, given, of_kernel, module.OPTIONS)

    of_layers = {"E": 2 * filters, "WIDTH": 2 * filters}
    return {
        "embed": variant(module.embed, **of_mlp),
        "shift": variant(module.shift, **of_layers),
        "shift_backward": variant(module.shift_backward, **of_layers),
        "embed_backward": variant(module.embed_backward, **of_mlp),
    }


def loss() -> dict[str, Variant]:
    """The mean squared error, with its gradient."""
    from sinfusion.kernels import loss as module

    types: dict[str, Type] = dict.fromkeys(("output", "target", "gradient", "partial"), "*fp32")
    types |= {"count": "i32", "share": "fp32"}
    return {"square": Variant(module.square, types, {"NUMBERS": module.NUMBERS}, module.OPTIONS)}


def reduce(sums: int) -> dict[str, Variant]:
    """So many sums in one launch, of multiples of 16 numbers."""
    from sinfusion.kernels import reduce as module

    types = {name: ("*fp32",) * sums for name in ("partials", "outs")}
    types |= {"groups": ("i32",) * sums, "rows": ("i32",) * sums, "numbers": ("i32:16",) * sums}
    constants = {"ROWS": module.ROWS, "NUMBERS": module.NUMBERS}
    return {"add_rows": Variant(module.add_rows, dict(types), constants, module.OPTIONS)}


BF16, FP32 = "*bf16", "*fp32"
LAUNCHED: dict[Callable[..., dict[str, Variant]], Arguments] = {
    depthwise_norm: list(product((3, 6, 9, 64, 128), (BF16, FP32))),
    dense: [
        *((channels, 192, 3, BF16, "gelu", config) for channels in (64, 128) for config in range(6)),
        *((192, 64, 3, BF16, epilogue, config) for epilogue in ("residual", "shortcut") for config in range(6)),
        *((channels, 192, 3, BF16, "gelu") for channels in (3, 6, 9)),
        (64, 192, 3, FP32, "gelu"),
        (192, 64, 3, FP32, "residual"),
    ],
    reduce: [(3,)],
    loss: [()],
    embedding: [(64, 16)],
    pointwise: [
        *((channels, 64, BF16, False) for channels in (3, 6, 9)),
        (128, 64, BF16),
        (64, 3, BF16),
        (128, 64, FP32),
    ],
    gelu: [(192, BF16, "gelu"), (64, BF16, "residual"), (64, BF16, ""), (192, FP32, "gelu"), (64, FP32, "residual")],
}
