"""depthwise_norm: every backend against the reference in float64, forward and backward."""

import os
import subprocess
import sys

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.ops.depthwise_norm import TOLERANCE

SHAPES = [(1, 3, 1, 1), (3, 6, 7, 1), (1, 9, 13, 9), (2, 32, 37, 53), (1, 64, 20, 31), (3, 128, 5, 6), (1, 17, 9, 33)]


def evaluate(dtype, backend, shape, norm, strided=False):
    """Output and every gradient, in float64; the same numbers, exactly representable in bf16, for every dtype."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(*size, generator=generator).bfloat16()

    x = draw(batch, channels, height, width)
    if strided:  # every second column of a wider tensor
        wide = torch.zeros(batch, channels, height, 2 * width).bfloat16()
        wide[..., ::2] = x
        x = wide[..., ::2]
    weight, bias, shift = 0.15 * draw(channels, 1, 7, 7), draw(channels), draw(batch, channels)
    gain, offset, grad = draw(channels), draw(channels), draw(batch, channels, height, width)
    wide_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.to(dtype)] + [t.to(wide_dtype) for t in (weight, bias, shift, gain, offset)]
    leaves = [t.detach().requires_grad_() for t in leaves]
    with ops.backend(backend):
        out = ops.depthwise_norm(*leaves[:4], *(leaves[4:] if norm else ()))
        out.backward(grad.to(dtype))
    return [out.detach().double()] + [t.grad.double() for t in (leaves if norm else leaves[:4])]


def distance(values, truth):
    return [float((a - b).norm() / (b.norm() + 1e-3)) for a, b in zip(values, truth, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_as_close_to_float64_as_the_reference(shape, norm, dtype):
    truth = evaluate(torch.float64, "reference", shape, norm)
    kernel = distance(evaluate(dtype, "native", shape, norm), truth)
    reference = distance(evaluate(dtype, "reference", shape, norm), truth)
    slack = 1e-6 if dtype == torch.float32 else 2**-8  # one rounding, where a gradient is a sum of few
    for name, ours, theirs in zip(
        ("out", "x", "weight", "bias", "shift", "gain", "offset"), kernel, reference, strict=False
    ):
        assert ours <= TOLERANCE * theirs + slack, f"{name}: {ours} against {theirs}"


def test_native_takes_strided_input():
    shape = (2, 16, 9, 11)
    truth = evaluate(torch.float64, "reference", shape, True)
    assert max(distance(evaluate(torch.float32, "native", shape, True, strided=True), truth)) < 1e-5


def test_results_do_not_depend_on_threads_and_repeat():
    def run():
        return evaluate(torch.bfloat16, "native", (2, 32, 37, 53), True)

    first, threads = run(), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_each_instruction_set_is_correct_when_forced(isa):
    code = (
        "import importlib.util as u, torch\n"
        f"s = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(s); s.loader.exec_module(t)\n"
        "from sinfusion.ops._native import cpu\n"
        "truth = t.evaluate(torch.float64, 'reference', (2, 21, 9, 19), True)\n"
        "print(cpu.isa(), max(t.distance(t.evaluate(torch.float32, 'native', (2, 21, 9, 19), True), truth)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SINFUSION_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    used, error = result.stdout.split()
    order = ["plain", "avx2", "avx512"]
    assert order.index(used) <= order.index(isa)
    assert float(error) < 1e-5


def test_reference_gradients_are_right():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    others = [
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 1, 7, 7), (3,), (2, 3), (3,), (3,))
    ]
    assert torch.autograd.gradcheck(ops.depthwise_norm, (x, *others))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck(backend, norm):
    args = [torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(8, 1, 7, 7, requires_grad=True), torch.randn(8)]
    args += [torch.randn(2, 8), torch.randn(8) if norm else None, torch.randn(8) if norm else None, 1e-5, True]
    with ops.backend(backend):
        torch.library.opcheck(torch.ops.sinfusion.depthwise_norm.default, tuple(args))


def test_nan_in_gives_nan_out_in_bf16():
    x = torch.ones(1, 16, 8, 8, dtype=torch.bfloat16)
    x[0, 0, 4, 4] = float("nan")
    with ops.backend("native"):
        out = ops.depthwise_norm(x, torch.ones(16, 1, 7, 7), torch.zeros(16), None, torch.ones(16), torch.zeros(16))
    assert out[0, :, 4, 4].isnan().all()


def test_forcing_native_where_it_cannot_run_says_why():
    x = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    with ops.backend("native"), pytest.raises(SinfusionError, match="float64"):
        ops.depthwise_norm(x, torch.ones(2, 1, 7, 7, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    with pytest.raises(SinfusionError, match="backend must be"), ops.backend("fast"):
        pass


WRONG = {
    "x": (4, 5, 5),
    "weight": (4, 1, 5, 5),
    "bias": (1,),
    "shift": (1, 4),
    "gain": (5,),
    "offset": (2, 4),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused_by_name(name):
    shapes = {"x": (2, 4, 5, 5), "weight": (4, 1, 7, 7), "bias": (4,), "shift": (2, 4), "gain": (4,), "offset": (4,)}
    with pytest.raises(RuntimeError, match=f"{name} is"):
        ops.depthwise_norm(*(torch.ones(shape) for shape in {**shapes, name: WRONG[name]}.values()))


def test_gain_alone_can_be_learned():
    gain = torch.ones(4, requires_grad=True)
    x = torch.randn(1, 4, 5, 5)
    ops.depthwise_norm(x, torch.ones(4, 1, 7, 7), torch.zeros(4), None, gain, torch.zeros(4)).square().sum().backward()
    assert gain.grad.abs().sum() > 0
