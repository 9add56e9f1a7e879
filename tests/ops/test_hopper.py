"""The kernels for Hopper GPUs against float64, at sizes that tiles divide and that they do not."""

import pytest
import torch
import torch.nn.functional as F

from sinfusion.ops import hopper, hopper_dense, reduce
from sinfusion.ops.layout import channels_last

gpu = pytest.mark.gpu
SIZES = [(1, 7, 5), (3, 37, 41), (1, 136, 243), (2, 72, 128)]
ROUNDED = 3e-3  # of results in bf16, relative: half a unit in the last place is 2e-3 at most
APPROXIMATE = 4e-3  # with GELU or its slope


@pytest.fixture(autouse=True)
def _on_a_hopper_gpu(request):
    if request.node.get_closest_marker("gpu") and not hopper.available(torch.device("cuda", 0)):
        pytest.skip("the GPU is no Hopper GPU, or the library has no kernels for one")


def activation(batch, channels, height, width, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return channels_last(torch.randn(batch, channels, height, width, device="cuda", generator=generator).bfloat16())


def weight(outputs, inputs):
    generator = torch.Generator("cuda").manual_seed(1)
    values = torch.randn(outputs, inputs, 3, 3, device="cuda", generator=generator) / (9 * inputs) ** 0.5
    return channels_last(values.bfloat16())


def vector(*shape, seed=2):
    return torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))


def error(found, truth):
    return ((found.double() - truth).norm() / truth.norm()).item()


def normal_cdf(z):
    return 0.5 * (1 + torch.erf(z / 2**0.5))


@gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inputs", [64, 128])
def test_the_first_convolution_makes_gelu_and_keeps_what_it_was_taken_of(size, inputs):
    batch, height, width = size
    x, w, bias = activation(batch, inputs, height, width), weight(192, inputs), vector(192)
    truth = F.conv2d(x.double(), w.double(), padding=1)
    out, z = hopper_dense.forward(x, w, bias, None, gelu=True, save=True)
    assert error(z, truth) < ROUNDED
    assert error(out, F.gelu(truth + bias.double()[:, None, None])) < APPROXIMATE
    without, nothing = hopper_dense.forward(x, w, bias, None, gelu=True, save=False)
    assert nothing is None and torch.equal(without, out)


@gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_second_convolution_adds_the_residual(size, with_residual):
    batch, height, width = size
    x, w, bias = activation(batch, 192, height, width), weight(64, 192), vector(64)
    residual = activation(batch, 64, height, width, seed=3) if with_residual else None
    truth = F.conv2d(x.double(), w.double(), bias.double(), padding=1)
    truth = truth if residual is None else truth + residual.double()
    assert error(hopper_dense.forward(x, w, bias, residual, gelu=False, save=False)[0], truth) < ROUNDED


@gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("skipped", [0, 64])
def test_the_second_convolution_makes_the_residual_of_other_channels(size, skipped):
    from sinfusion.kernels.depthwise_norm import Input

    batch, height, width = size
    x, w, bias = activation(batch, 192, height, width), weight(64, 192), vector(64)
    both, other_bias = activation(batch, 128, height, width, seed=3), vector(64, seed=15)
    other = channels_last((vector(64, 128, 1, 1, seed=16) / 128**0.5).bfloat16())
    given = Input(channels_last(both[:, :64]), channels_last(both[:, 64:])) if skipped else Input(both)
    out, _ = hopper_dense.forward(x, w, bias, None, False, False, (given, other, other_bias))
    truth = F.conv2d(x.double(), w.double(), bias.double(), padding=1)
    truth += F.conv2d(both.double(), other.double(), other_bias.double())
    assert error(out, truth) < ROUNDED


@gpu
def test_sums_of_rows_are_those_of_pytorch():
    sums = []
    for i, (groups, rows, numbers) in enumerate([(1, 198, 49 * 128), (3, 7, 64), (1, 10, 64 * 9 * 192), (2, 1, 4)]):
        sums.append((vector(groups, rows, numbers, seed=i), torch.full((groups, numbers), torch.nan, device="cuda")))
    reduce.reduce_partials(sums)
    for partial, out in sums:
        assert error(out, partial.double().sum(1)) < 1e-6


@gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("outputs", "inputs"), [(192, 64), (192, 128), (64, 192)])
def test_the_gradients_of_a_convolution(size, outputs, inputs):
    batch, height, width = size
    grad, x = activation(batch, outputs, height, width), activation(batch, inputs, height, width, 4)
    w = weight(outputs, inputs)
    of_x = F.conv_transpose2d(grad.double(), w.double(), padding=1)
    found, nothing = hopper_dense.input_gradient(grad, w)
    assert nothing is None and error(found, of_x) < ROUNDED
    truth = torch.nn.grad.conv2d_weight(x.double(), w.shape, grad.double(), padding=1)
    partial = hopper_dense.weight_gradient(grad, x)
    assert error(partial.sum((0, 1)).permute(0, 3, 1, 2), truth) < 2e-5
    assert torch.equal(partial, hopper_dense.weight_gradient(grad, x))


@gpu
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_passes_through_gelu(size):
    batch, height, width = size
    grad, w = activation(batch, 64, height, width), weight(64, 192)
    z, bias = activation(batch, 192, height, width, seed=5), vector(192)
    before = z.double() + bias.double()[:, None, None]
    slope = normal_cdf(before) + before * torch.exp(-0.5 * before**2) / (2 * torch.pi) ** 0.5
    truth = F.conv_transpose2d(grad.double(), w.double(), padding=1) * slope
    found, partial = hopper_dense.input_gradient(grad, w, z, bias)
    assert error(found, truth) < APPROXIMATE
    assert error(partial.sum((0, 1)), truth.sum((0, 2, 3))) < 1e-3


@gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("own", "skipped"), [(64, 0), (128, 0), (64, 64)])
def test_the_depthwise_convolution_and_its_gradients(size, own, skipped):
    from sinfusion.kernels.depthwise_norm import Epilogue, Input

    from sinfusion.ops import hopper_depthwise as kernels

    batch, height, width = size
    channels = own + skipped
    both = activation(batch, channels, height, width)
    x, skip = (channels_last(both[:, :own]), channels_last(both[:, own:])) if skipped else (both, None)
    taps, shift = vector(49, channels, seed=6) / 7, vector(batch, channels, seed=7)
    bias, gain, offset = (vector(channels, seed=8 + i) for i in range(3))
    w = taps.t().reshape(channels, 1, 7, 7).double()
    u = F.conv2d(both.double(), w, bias.double(), padding=3, groups=channels) + shift.double()[:, :, None, None]
    mean, variance = u.mean(1), u.var(1, unbiased=False)
    normed = (u - mean[:, None]) * (variance[:, None] + 1e-5).rsqrt()
    out, saved = kernels.forward(Input(x, skip), taps, Epilogue(bias, shift, gain, offset), 1e-5, True)
    found = out, *saved
    truth = (normed * gain.double()[:, None, None] + offset.double()[:, None, None], u, mean, (variance + 1e-5).rsqrt())
    assert all(error(a, b) < ROUNDED for a, b in zip(found, truth, strict=True))
    assert error(kernels.forward(Input(x, skip), taps, Epilogue(bias, shift), 1e-5, True)[0], u) < ROUNDED

    grad, residual = activation(batch, channels, height, width, 9), activation(batch, own, height, width, 10)
    passed = activation(batch, own, height, width, 11)
    of_skip = None if skip is None else activation(batch, skipped, height, width, 12)
    truth = F.conv_transpose2d(grad.double(), w, padding=3, groups=channels)
    found_x, found_skip = kernels.input_gradient(grad, taps, skipped, Input(residual, of_skip), passed)
    assert error(found_x, truth[:, :own] + residual.double() + passed.double()) < ROUNDED
    assert skip is None or error(found_skip, truth[:, own:] + of_skip.double()) < ROUNDED
    assert error(kernels.input_gradient(grad, taps, skipped)[0], truth[:, :own]) < ROUNDED
    of_taps = torch.nn.grad.conv2d_weight(both.double(), w.shape, grad.double(), padding=3, groups=channels)
    partial = kernels.taps_gradient(Input(x, skip), grad)
    assert error(partial.sum((0, 1)), of_taps.view(channels, 49).t()) < 2e-5


def on_the_host(*shape, seed):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return values.to(memory_format=torch.channels_last)


def test_the_polynomials_of_gelu_are_near_enough_for_bf16(device_code):
    z = torch.cat((torch.linspace(-12, 12, 200_001), torch.tensor([-1e20, -50.0, 50.0, 1e20])))
    out, slope = torch.empty_like(z), torch.empty_like(z)
    device_code("gelu_sm90").call("gelu", z=z, out=out, slope=slope, count=len(z))
    wide = z.double().requires_grad_()
    truth = F.gelu(wide)
    (of_z,) = torch.autograd.grad(truth.sum(), wide)
    assert (out[:-4] - truth[:-4]).abs().max() < 1.9e-4 and torch.equal(out[-4:], z[-4:].clamp(min=0))
    assert (slope[:-4] - of_z[:-4]).abs().max() < 2.4e-4


HOST_SIZES = [(1, 9, 19), (2, 8, 16)]


@pytest.mark.parametrize("size", HOST_SIZES)
def test_on_the_host_the_code_of_the_gpu_convolves_channel_by_channel(device_code, size):
    """What it makes of tensor cores' products, copies of boxes and sums over channels; not its timing."""
    batch, height, width = size
    x = on_the_host(batch, 64, height, width, seed=0)
    taps, shift, bias, gain, offset = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(i))
        for i, shape in enumerate([(49, 64), (batch, 64), (64,), (64,), (64,)])
    )
    out, u = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    mean, rstd = (torch.full((batch, height, width), torch.nan) for _ in range(2))
    vectors = {"weight": taps, "bias": bias, "shift": shift, "gain": gain, "offset": offset}
    sizes = {"batch": batch, "height": height, "width": width}
    given = vectors | sizes | {"x": x, "mean": mean, "rstd": rstd, "eps": 1e-5}
    device_code("depthwise_sm90").call("depthwise", **given, out=out, u=u)
    w = taps.bfloat16().double().t().reshape(64, 1, 7, 7)
    truth = F.conv2d(x.double(), w, bias.double(), padding=3, groups=64) + shift.double()[:, :, None, None]
    of_mean, of_rstd = truth.mean(1), (truth.var(1, unbiased=False) + 1e-5).rsqrt()
    normed = (truth - of_mean[:, None]) * of_rstd[:, None]
    normed = normed * gain.double()[:, None, None] + offset.double()[:, None, None]
    found, expected = (out, u, mean, rstd), (normed, truth, of_mean, of_rstd)
    assert all(error(a, b) < ROUNDED for a, b in zip(found, expected, strict=True))
    given["gain"] = given["offset"] = None
    device_code("depthwise_sm90").call("depthwise", **given, out=out, u=None)
    assert error(out, truth) < ROUNDED


@pytest.mark.parametrize("size", HOST_SIZES)
@pytest.mark.parametrize(("own", "skipped"), [(64, 0), (64, 64), (128, 0)])
def test_on_the_host_the_code_of_the_gpu_makes_depthwise_gradients(device_code, size, own, skipped):
    (batch, height, width), channels = size, own + skipped
    taps = torch.randn(49, channels, generator=torch.Generator().manual_seed(0))
    grad, both = (on_the_host(batch, channels, height, width, seed=i) for i in (1, 2))
    x, passed, add = both[:, :own], *(on_the_host(batch, own, height, width, seed=i) for i in (3, 4))
    x, skip = (part.contiguous(memory_format=torch.channels_last) for part in (x, both[:, own:]))
    of_skip = torch.full_like(skip, torch.nan)
    out = torch.full_like(x, torch.nan)
    sizes = {"batch": batch, "height": height, "width": width, "channels": channels, "skip_channels": skipped}
    code = device_code("depthwise_sm90")
    beside = {"add": add, "add_skip": skip if skipped else None, "passed": passed}
    code.call("gradient", grad=grad, weight=taps, x=out, skip=of_skip if skipped else None, **beside, **sizes)
    w = taps.bfloat16().double().t().reshape(channels, 1, 7, 7)
    truth = F.conv_transpose2d(grad.double(), w, padding=3, groups=channels)
    assert error(out, truth[:, :own] + add.double() + passed.double()) < ROUNDED
    assert not skipped or error(of_skip, truth[:, own:] + skip.double()) < ROUNDED

    partial = torch.full((3, 49, channels), torch.nan)
    given = {"x": x, "skip": skip if skipped else None, "grad": grad, "partial": partial, "parts": 3}
    device_code("depthwise_weight_gradient_sm90").call("weight_gradient", **given, **sizes)
    of_taps = torch.nn.grad.conv2d_weight(both.double(), w.shape, grad.double(), padding=3, groups=channels)
    assert error(partial.sum(0), of_taps.view(channels, 49).t()) < 2e-5


@gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [64, 128])
def test_the_gradient_of_the_norm(size, channels):
    from sinfusion.kernels.depthwise_norm import Saved

    from sinfusion.ops import hopper_depthwise

    batch, height, width = size
    u, grad = activation(batch, channels, height, width), activation(batch, channels, height, width, 13)
    gain = vector(channels)
    wide = u.double().requires_grad_()
    of_gain, offset = gain.double().requires_grad_(), torch.zeros_like(gain).double().requires_grad_()
    normed = F.layer_norm(wide.permute(0, 2, 3, 1), (channels,), of_gain, offset)
    normed.permute(0, 3, 1, 2).backward(grad.double())
    mean, rstd = u.float().mean(1), (u.float().var(1, unbiased=False) + 1e-5).rsqrt()
    other = activation(batch, channels, height, width, 14)
    du, partial = hopper_depthwise.norm_gradient(grad, Saved(u, mean, rstd), gain, other)
    without = hopper_depthwise.norm_gradient(grad, Saved(u, mean, rstd), gain)
    assert torch.equal(without[0], du) and torch.equal(without[1], partial[:3])
    assert error(du, wide.grad) < ROUNDED
    shift, found_gain, found_offset, of_other = partial.sum(2)
    assert error(of_other, other.double().sum((2, 3))) < 1e-3
    assert (shift.double() - wide.grad.sum((2, 3))).abs().max() < 1e-2 * wide.grad.abs().sum((2, 3)).max()
    assert error(found_gain.sum(0), of_gain.grad) < 1e-4
    assert error(found_offset.sum(0), offset.grad) < 1e-4
