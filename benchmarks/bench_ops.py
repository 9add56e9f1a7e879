"""Every operator on a device: how long it takes beside PyTorch, and beside the least that is possible there.

pytest benchmarks/bench_ops.py --benchmark-json=OUT.json                          # on a GPU if there is one
pytest benchmarks/bench_ops.py --device cpu -k against_pytorch --benchmark-json=OUT.json

The last figures, of depthwise_norm on a CPU, are interleaved with PyTorch's own convolution and layer norm in bf16.
"""

from __future__ import annotations

import functools
import time

import clock
import floors
import pytest
import torch
import torch.nn.functional as F
from report import THEIRS

from sinfusion import ops
from sinfusion.network import NextNet
from sinfusion.ops.dense import _cudnn
from sinfusion.precision import choose_dtype


def pytorch(x, weight, bias, shift, gain, offset):
    """What a user would write without the operator."""
    u = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=3, groups=x.shape[1]) + shift[:, :, None, None].to(x)
    normed = F.layer_norm(u.permute(0, 2, 3, 1), (x.shape[1],), gain.to(x), offset.to(x), 1e-5)
    return normed.permute(0, 3, 1, 2)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("channels", [64, 128])
def test_depthwise_norm_against_pytorch(benchmark, quick, crop_size, channels, what):
    x = torch.randn(1, channels, *crop_size).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    leaves = [
        torch.randn(s, requires_grad=True) for s in ((channels, 1, 7, 7), (channels,), (1, channels), (channels,))
    ]
    leaves.append(torch.zeros(channels, requires_grad=True))
    grad = torch.randn_like(x)
    times = {"ours": [], "pytorch": []}

    def round_of_both():
        for name, function in (("ours", ops.depthwise_norm), ("pytorch", pytorch)):
            before = time.perf_counter()
            out = function(x, *leaves)
            middle = time.perf_counter()
            out.backward(grad)
            after = time.perf_counter()
            times[name].append(middle - before if what == "forward" else after - middle)

    benchmark.pedantic(round_of_both, rounds=2 if quick else 9, warmup_rounds=2)
    medians = {name: float(torch.tensor(values).median()) for name, values in times.items()}
    benchmark.extra_info.update(
        what=what, channels=channels, size=crop_size, ours_seconds=medians["ours"], pytorch_seconds=medians["pytorch"],
        ratio=medians["pytorch"] / medians["ours"],
    )  # fmt: skip
    print(f"\n{what} {channels} channels: ours {medians['ours'] * 1e3:.2f} ms, PyTorch "
          f"{medians['pytorch'] * 1e3:.2f} ms, {benchmark.extra_info['ratio']:.1f} times as fast")  # fmt: skip


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


# Each of the following: shapes -> implementations by name, and the work to be done.


def depthwise_norm(shapes, channels, backward):
    x = shapes.image(channels)
    leaves = (shapes.vector(channels, 1, 7, 7), shapes.vector(channels), shapes.vector(shapes.batch, channels),
              shapes.vector(channels), shapes.vector(channels))  # fmt: skip
    forward = functools.partial(torch.ops.sinfusion.depthwise_norm, x, *leaves, None, 1e-5, True)
    if not backward:
        functions = native_and_reference("depthwise_norm", forward, shapes.device)
        functions["pytorch"] = lambda: pytorch(x, *leaves)
        return functions, floors.depthwise_norm_forward(shapes.pixels, channels, save=True)
    _, *kept = forward()
    gradients = functools.partial(
        torch.ops.sinfusion.depthwise_norm_backward, shapes.image(channels), x, None, *kept, leaves[0], leaves[3],
        True, True,
    )  # fmt: skip
    functions = native_and_reference("depthwise_norm_backward", gradients, shapes.device)
    return functions, floors.depthwise_norm_backward(shapes.pixels, channels)


def dense_forward(shapes, channels, outputs, kernel, gelu):
    x, weight, bias = shapes.image(channels), _weight(shapes, channels, outputs, kernel), shapes.vector(outputs)
    rounded = weight.to(shapes.dtype)
    residual = None if gelu else shapes.image(outputs)
    operator = functools.partial(torch.ops.sinfusion.dense, x, weight, bias, residual, None, rounded, gelu, gelu)
    functions = native_and_reference("dense", operator, x.device)
    if shapes.device.type == "cuda":
        from sinfusion.kernels import dense as implicit
        from sinfusion.kernels import gelu as epilogue

        def cudnn():
            with _cudnn():
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
    _, z = torch.ops.sinfusion.dense(x, weight, bias, None, None, rounded, gelu, gelu)
    operator = functools.partial(
        torch.ops.sinfusion.dense_backward, grad, x, None, z, weight, bias, rounded, gelu, True
    )
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
        with _cudnn():
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
    places = torch.tensor([[4, 1, 2, 3]] * shapes.batch, device=shapes.device)
    coarse_noise = shapes.vector(shapes.batch, 3, *(side // 8 + 2 for side in shapes.size))
    operator = functools.partial(ops.sample_crops, frames, places, shapes.vector(shapes.batch, 8), coarse_noise, seeds,
                                 step, (0, 1), 1, shapes.size, shapes.dtype)  # fmt: skip
    return native_and_reference("sample_crops", operator, shapes.device), floors.sample_crops(shapes.pixels, 1)


def ddpm_step(shapes):
    seeds, counter = shapes.seeds()
    # An image that stays finite, however often the step is taken.
    row = torch.tensor([0.1, 0.1, 0.0, 0.1, 0.0, 0.5, 0.1, 1.0, 0.0], device=shapes.device)
    operator = functools.partial(ops.ddpm_step, shapes.image(3, torch.float32), shapes.image(3), None, row, seeds,
                                 0, counter, shapes.image(6))  # fmt: skip
    return native_and_reference("ddpm_step", operator, shapes.device), floors.ddpm_step(shapes.pixels)


def adam_ema(shapes):
    count = floors.parameters(shapes.network)
    value, exp_avg, average, gradient = (shapes.vector(count) for _ in range(4))
    row = torch.tensor([1e-6, 1.0, 0.01], device=shapes.device)
    operator = functools.partial(ops.adam_ema, value, exp_avg, exp_avg**2, average, value.bfloat16(), gradient, row)
    return native_and_reference("adam_ema", operator, shapes.device), floors.adam_ema(count)


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


def runs(name, function):
    """Whether an implementation works here: a configuration may ask for more shared memory than there is."""
    try:
        function()
    except Exception as error:
        if not name.startswith("triton "):
            raise
        print(f"\n{name} cannot run here: {error}")
        return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(benchmark, device, crop_size, network, rounds, limits, operator, batch):
    functions, work = OPERATORS[operator](Shapes(device, batch, crop_size, network))
    functions = {name: function for name, function in functions.items() if runs(name, function)}
    seconds = benchmark.pedantic(clock.medians, (functions, device, rounds))
    works = work if isinstance(work, list) else [work]
    whole, floor = floors.total(works), floors.total_seconds(works, limits)
    # Where nothing is ours, the fastest of theirs under its own name.
    ours = min([name for name in seconds if name not in THEIRS] or seconds, key=seconds.get)
    shares = {
        "floor": floor / seconds[ours],
        "bandwidth": whole.bytes / seconds[ours] / limits.copy,
        "matrix": whole.dense / seconds[ours] / limits.matrix,
    }
    benchmark.extra_info.update(operator=operator, batch=batch, size=crop_size, ours=ours, seconds=seconds,
                                floor_seconds=floor, shares=shares, **whole._asdict(),
                                limits=limits._asdict())  # fmt: skip
    each = ", ".join(f"{name} {value * 1e6:.1f}" for name, value in seconds.items())
    print(f"\n{operator}, batch {batch}: {each} us; floor {floor * 1e6:.1f} us; {ours} at {shares['floor']:.0%} of the "
          f"floor, {shares['bandwidth']:.0%} of copy bandwidth, {shares['matrix']:.0%} of matrix rate")  # fmt: skip
