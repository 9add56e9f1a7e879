"""Every operator as the benchmarks call it: its implementations by name, and the work to be done.

OPERATORS at the end names them all. `native` is ours (on a GPU also `cudnn` and `triton 0` to `triton 5`, from which
one is chosen by measuring); `reference` is the operator's definition in PyTorch, whose convolutions oneDNN makes on a
CPU; `pytorch` is what a user would write instead.
"""

from __future__ import annotations

import functools

import clock
import floors
import pytest
import torch
import torch.nn.functional as F

from sinfusion import ops
from sinfusion.network import NextNet
from sinfusion.ops.dense import Dense, DenseBackward, deterministic_cudnn
from sinfusion.ops.depthwise_norm import DepthwiseNorm, DepthwiseNormBackward
from sinfusion.precision import choose_dtype


class Shapes:
    """Random tensors of one batch of images on a device."""

    def __init__(self, device, batch, size, network):
        self.device, self.batch, self.size, self.network = device, batch, size, network
        self.dtype, self.pixels = choose_dtype("auto", device), batch * size[0] * size[1]

    def image(self, channels, dtype=None):
        value = torch.randn(self.batch, channels, *self.size, device=self.device).to(dtype or self.dtype)
        return value.contiguous(memory_format=torch.channels_last)

    def vector(self, *shape, dtype=torch.float32):
        return torch.randn(shape, device=self.device).to(dtype)

    def seeds(self):
        return torch.arange(self.batch, device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)


def native_and_reference(operator, function, device):
    """A call of an operator with its kernel, where there is one for the device, and without."""
    native = torch._C._dispatch_has_kernel_for_dispatch_key(f"sinfusion::{operator}", device.type.upper())
    return ({"native": function} if native else {}) | {"reference": clock.by_reference(function)}


def pytorch_depthwise_norm(x, weight, bias, shift, gain, offset):
    """What a user would write without the operator."""
    u = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=3, groups=x.shape[1]) + shift[:, :, None, None].to(x)
    normed = F.layer_norm(u.permute(0, 2, 3, 1), (x.shape[1],), gain.to(x), offset.to(x), 1e-5)
    return normed.permute(0, 3, 1, 2)


def gradient_of(function, arguments, grad):
    """The backward alone."""
    with torch.enable_grad():
        arguments = [argument.detach().requires_grad_() for argument in arguments]
        out = function(*arguments)
    return lambda: torch.autograd.grad(out, arguments, grad, retain_graph=True)


# Each of the following: shapes -> implementations by name, and the work to be done.


def depthwise_norm(shapes, channels, backward):
    x = shapes.image(channels)
    leaves = (shapes.vector(channels, 1, 7, 7), shapes.vector(channels), shapes.vector(shapes.batch, channels),
              shapes.vector(channels), shapes.vector(channels))  # fmt: skip
    forward = functools.partial(torch.ops.sinfusion.depthwise_norm, *DepthwiseNorm(x, *leaves), True)
    if not backward:
        functions = native_and_reference("depthwise_norm", forward, shapes.device)
        functions["pytorch"] = lambda: pytorch_depthwise_norm(x, *leaves)
        return functions, floors.depthwise_norm_forward(shapes.pixels, channels, save=True)
    grad, (_, *kept) = shapes.image(channels), forward()
    arguments = DepthwiseNormBackward(
        grad, *kept, x, leaves[0], leaves[3], None, wants_input=True, wants_shift=True, wants_parameters=True
    )
    gradients = functools.partial(torch.ops.sinfusion.depthwise_norm_backward, *arguments)
    functions = native_and_reference("depthwise_norm_backward", gradients, shapes.device)
    if shapes.device.type == "cpu":
        functions["pytorch"] = gradient_of(pytorch_depthwise_norm, (x, *leaves), grad)
    return functions, floors.depthwise_norm_backward(shapes.pixels, channels)


def dense_forward(shapes, channels, outputs, kernel, gelu):
    x, weight, bias = shapes.image(channels), _weight(shapes, channels, outputs, kernel), shapes.vector(outputs)
    rounded = weight.to(shapes.dtype)
    residual = None if gelu else shapes.image(outputs)
    arguments = Dense(x, weight, bias, residual, gelu, copy=rounded)
    operator = functools.partial(torch.ops.sinfusion.dense, *arguments, gelu)
    functions = native_and_reference("dense", operator, shapes.device)
    if shapes.device.type == "cuda":
        from sinfusion.kernels import dense as implicit
        from sinfusion.kernels import gelu as epilogue

        def cudnn():
            with deterministic_cudnn():
                z = F.conv2d(x, rounded, padding=kernel // 2)
            return epilogue.forward(z, bias, residual, gelu)

        functions |= {"cudnn": cudnn} | _each_config(implicit.forward, x, rounded, bias, residual, gelu, gelu)
    work = floors.dense_forward(shapes.pixels, channels, outputs, kernel, residual=not gelu, save=gelu)
    return functions, work


def dense_backward(shapes, channels, outputs, kernel, gelu):
    if shapes.device.type == "cuda":
        pytest.skip("a GPU makes the two gradients apart: dense input gradient, dense weight gradient")
    x, weight, bias = shapes.image(channels), _weight(shapes, channels, outputs, kernel), shapes.vector(outputs)
    rounded, grad = weight.to(shapes.dtype), shapes.image(outputs)
    _, z = torch.ops.sinfusion.dense(*Dense(x, weight, bias, gelu=gelu, copy=rounded), gelu)
    arguments = DenseBackward(
        grad, z, x, weight, bias, gelu, None, rounded, wants_input=True, wants_weight=True, wants_bias=True
    )
    operator = functools.partial(torch.ops.sinfusion.dense_backward, *arguments)
    shape = (shapes.pixels, channels, outputs, kernel)
    works = [floors.dense_input_gradient(*shape), floors.dense_weight_gradient(*shape)]
    works += [floors.gelu_backward(shapes.pixels, outputs)] * gelu
    return native_and_reference("dense_backward", operator, x.device), works


def dense_gradient(shapes, channels, outputs, kernel, of_input):
    if shapes.device.type == "cpu":
        pytest.skip("a CPU makes both gradients at once: dense backward")
    from sinfusion.kernels import dense as implicit

    x, grad, weight = shapes.image(channels), shapes.image(outputs), _weight(shapes, channels, outputs, kernel)
    rounded = weight.to(shapes.dtype)

    def cudnn():
        with deterministic_cudnn():
            torch.ops.aten.convolution_backward(grad, x, rounded, None, [1, 1], [kernel // 2] * 2, [1, 1], False,
                                                [0, 0], 1, [of_input, not of_input, False])  # fmt: skip

    functions = {"cudnn": cudnn} | (
        _each_config(implicit.input_gradient, grad, rounded) if of_input
        else _each_config(implicit.weight_gradient, grad, x, kernel)
    )  # fmt: skip
    floor = floors.dense_input_gradient if of_input else floors.dense_weight_gradient
    return functions, floor(shapes.pixels, channels, outputs, kernel)


def _weight(shapes, channels, outputs, kernel):
    return shapes.vector(outputs, channels, kernel, kernel).contiguous(memory_format=torch.channels_last)


def _each_config(function, *arguments):
    from sinfusion.kernels.dense import CONFIGS

    return {f"triton {i}": functools.partial(function, *arguments, config=i) for i in range(len(CONFIGS))}


def gelu_forward(shapes, channels):
    z, bias = shapes.image(channels), shapes.vector(channels)
    rounded = bias.to(shapes.dtype)[:, None, None]
    functions = {"pytorch": lambda: F.gelu(z + rounded)}
    if shapes.device.type == "cuda":
        from sinfusion.kernels import gelu as epilogue

        functions["triton"] = lambda: epilogue.forward(z, bias, None, True)
    return functions, floors.gelu_forward(shapes.pixels, channels)


def gelu_backward(shapes, channels):
    z, grad, bias = shapes.image(channels), shapes.image(channels), shapes.vector(channels)
    rounded = bias.to(shapes.dtype)[:, None, None]
    functions = {"pytorch": lambda: torch.ops.aten.gelu_backward(grad, z + rounded).sum((0, 2, 3))}
    if shapes.device.type == "cuda":
        from sinfusion.kernels import gelu as epilogue

        functions["triton"] = lambda: epilogue.backward(grad, z, bias, True)
    return functions, floors.gelu_backward(shapes.pixels, channels)


def sample_crops(shapes):
    seeds, step = shapes.seeds()
    frames = torch.randint(256, (12, *(side + 8 for side in shapes.size), 3), dtype=torch.uint8, device=shapes.device)
    places = torch.tensor([[4, 2, 3]] * shapes.batch, device=shapes.device)
    around = torch.tensor([[3]] * shapes.batch, device=shapes.device)
    coarse_noise = shapes.vector(shapes.batch, 3, *(side // 8 + 2 for side in shapes.size))
    coefficients = shapes.vector(shapes.batch, 10)
    operator = functools.partial(ops.sample_crops, frames, places, around, coefficients, coarse_noise, seeds, step,
                                 (0, 1), True, shapes.size, shapes.dtype)  # fmt: skip
    return native_and_reference("sample_crops", operator, shapes.device), floors.sample_crops(shapes.pixels, 1)


def one_ddpm_step(shapes, prior_mean=False):
    """A call of the operator."""
    seeds, counter = shapes.seeds()
    # An image that stays finite, however often the step is taken.
    row = torch.tensor([0.1, 0.1, 0.0, 0.1, 0.0, 0.5, 0.1, 1.0, 0.0], device=shapes.device)
    mean = shapes.image(3, torch.float32) if prior_mean else None
    image, output, inputs = shapes.image(3, torch.float32), shapes.image(3), shapes.image(6)
    return functools.partial(ops.ddpm_step, image, output, mean, row, seeds, 0, counter, inputs)


def ddpm_step(shapes):
    return native_and_reference("ddpm_step", one_ddpm_step(shapes), shapes.device), floors.ddpm_step(shapes.pixels)


def adam_ema(shapes):
    count = floors.parameters(shapes.network)
    value, exp_avg, average, gradient = (shapes.vector(count) for _ in range(4))
    row, rounded = torch.tensor([1e-6, 1.0, 0.01], device=shapes.device), value.bfloat16()
    operator = functools.partial(ops.adam_ema, value, exp_avg, exp_avg**2, average, rounded, gradient, row)
    functions = native_and_reference("adam_ema", operator, shapes.device)
    if shapes.device.type == "cpu":
        functions["pytorch"] = pytorch_adam_ema(count)
    return functions, floors.adam_ema(count)


def pytorch_adam_ema(count):
    """What a user would write without the operator: PyTorch's fused Adam, then the average and the weights in bf16."""
    value, average, rounded = torch.randn(count), torch.randn(count), torch.empty(count, dtype=torch.bfloat16)
    value.grad = torch.randn(count)
    optimizer = torch.optim.Adam([value], 1e-6, fused=True)

    def step():
        optimizer.step()
        average.lerp_(value, 0.01)
        rounded.copy_(value)

    return step


def network_forward(shapes):
    network = NextNet(*shapes.network[:1], 3, *shapes.network[1:], frame_offset=True, dtype=shapes.dtype)
    network = network.to(shapes.device)
    x, shifts = shapes.image(6), shapes.vector(shapes.batch, sum(shapes.network.widths))
    operator = functools.partial(network.evaluate, x, shifts)
    functions = {"native": clock.shipped(operator), "reference": clock.by_reference(operator)}
    return functions, floors.network_forward(shapes.pixels, shapes.network)


OPERATORS = {
    "depthwise_norm forward, 64 channels": functools.partial(depthwise_norm, channels=64, backward=False),
    "depthwise_norm forward, 128 channels": functools.partial(depthwise_norm, channels=128, backward=False),
    "depthwise_norm backward, 64 channels": functools.partial(depthwise_norm, channels=64, backward=True),
    "depthwise_norm backward, 128 channels": functools.partial(depthwise_norm, channels=128, backward=True),
    "gelu forward": functools.partial(gelu_forward, channels=192),
    "gelu backward": functools.partial(gelu_backward, channels=192),
    "sample_crops": sample_crops,
    "ddpm_step": ddpm_step,
    "adam_ema": adam_ema,
    "network forward": network_forward,
}
for channels, outputs, kernel in ((64, 192, 3), (128, 192, 3), (192, 64, 3), (128, 64, 1)):
    shape = {"channels": channels, "outputs": outputs, "kernel": kernel}
    name = f"{kernel}x{kernel}, {channels} to {outputs}"
    OPERATORS[f"dense forward {name}"] = functools.partial(dense_forward, gelu=outputs == 192, **shape)
    OPERATORS[f"dense backward {name}"] = functools.partial(dense_backward, gelu=outputs == 192, **shape)
    OPERATORS[f"dense input gradient {name}"] = functools.partial(dense_gradient, of_input=True, **shape)
    OPERATORS[f"dense weight gradient {name}"] = functools.partial(dense_gradient, of_input=False, **shape)
