"""depthwise_norm: every backend against the reference in float64, forward and backward."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.ops import native
from sinfusion.ops.depthwise_norm import TOLERANCE

operator = importlib.import_module("sinfusion.ops.depthwise_norm")  # sinfusion.ops names the function so

# (B, C, H, W), and how many of the channels are those of skip
SHAPES = [
    ((1, 3, 1, 1), 0),
    ((3, 6, 7, 1), 0),
    ((1, 9, 13, 9), 4),
    ((2, 32, 37, 53), 0),
    ((2, 64, 37, 53), 32),
    ((1, 64, 20, 31), 0),
    ((3, 128, 5, 6), 64),
    ((1, 17, 9, 33), 0),
    ((2, 48, 9, 11), 21),
    ((1, 32, 8, 14), 24),
]


def evaluate(dtype, backend, shape, skip, norm, strided=False):
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
    leaves = {"weight": weight, "bias": bias, "shift": shift} | ({"gain": gain, "offset": offset} if norm else {})
    leaves = {name: value.to(wide_dtype) for name, value in leaves.items()} | {"x": x.to(dtype)}
    if skip:
        leaves["x"], leaves["skip"] = leaves["x"].split([channels - skip, skip], 1)
    leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    with ops.backend(backend):
        out = ops.depthwise_norm(**leaves)
        out.backward(grad.to(dtype))
    return {"out": out.detach().double()} | {name: value.grad.double() for name, value in leaves.items()}


def distance(values, truth):
    assert values.keys() == truth.keys()
    return {name: float((values[name] - truth[name]).norm() / (truth[name].norm() + 1e-3)) for name in truth}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize(("shape", "skip"), SHAPES, ids=str)
def test_native_is_as_close_to_float64_as_the_reference(shape, skip, norm, dtype):
    truth = evaluate(torch.float64, "reference", shape, skip, norm)
    kernel = distance(evaluate(dtype, "native", shape, skip, norm), truth)
    reference = distance(evaluate(dtype, "reference", shape, skip, norm), truth)
    slack = 1e-6 if dtype == torch.float32 else 2**-8  # one rounding, where a gradient is a sum of few
    for name, ours in kernel.items():
        assert ours <= TOLERANCE * reference[name] + slack, f"{name}: {ours} against {reference[name]}"


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("shape", "skip"), [case for case in SHAPES if case[1]], ids=str)
def test_skip_is_more_channels_of_the_input(shape, skip, backend):
    apart = evaluate(torch.float32, backend, shape, skip, True)
    together = evaluate(torch.float32, backend, shape, 0, True)
    apart["x"] = torch.cat((apart["x"], apart.pop("skip")), 1)
    assert max(distance(apart, together).values()) < 1e-6


def test_no_gradient_is_made_for_an_input_that_needs_none():
    x, skip = torch.randn(1, 5, 6, 7), torch.randn(1, 3, 6, 7, requires_grad=True)
    weight = torch.randn(8, 1, 7, 7, requires_grad=True)
    ops.depthwise_norm(x, weight, torch.zeros(8), skip=skip).square().sum().backward()
    of_both, skip.grad, weight.grad = (skip.grad, weight.grad), None, None
    ops.depthwise_norm(x, weight, torch.zeros(8), skip=skip.detach()).square().sum().backward()
    assert x.grad is None and skip.grad is None
    assert of_both[0].abs().sum() > 0 and torch.equal(weight.grad, of_both[1])


def test_native_takes_strided_input():
    shape = (2, 16, 9, 11)
    truth = evaluate(torch.float64, "reference", shape, 8, True)
    assert max(distance(evaluate(torch.float32, "native", shape, 8, True, strided=True), truth).values()) < 1e-5


@pytest.mark.parametrize("skip", [0, 32, 5])
def test_results_do_not_depend_on_threads_and_repeat(skip, set_threads):
    def run():
        return evaluate(torch.bfloat16, "native", (2, 64, 37, 53), skip, True)

    first = run()
    for count in (1, 2, 3, 40):
        set_threads(count)
        again = run()
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_each_instruction_set_is_correct_when_forced(isa):
    code = (
        "import importlib.util as u, torch\n"
        f"s = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(s); s.loader.exec_module(t)\n"
        "from sinfusion.ops.native import cpu\n"
        "worst = {torch.float32: 0.0, torch.bfloat16: 0.0}\n"
        "for case in [((2, 21, 9, 19), 0), ((2, 21, 9, 19), 8), ((1, 64, 13, 21), 0), ((1, 96, 9, 30), 32)]:\n"
        "    truth = t.evaluate(torch.float64, 'reference', *case, True)\n"
        "    for dtype, error in worst.items():\n"
        "        errors = t.distance(t.evaluate(dtype, 'native', *case, True), truth)\n"
        "        worst[dtype] = max(error, *errors.values())\n"
        "print(cpu.isa(), *worst.values())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SINFUSION_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    used, of_fp32, of_bf16 = result.stdout.split()
    order = ["plain", "avx2", "avx512"]
    assert order.index(used) <= order.index(isa)
    assert float(of_fp32) < 1e-5
    assert float(of_bf16) < 2**-7


def test_reference_gradients_are_right():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    shapes = ((5, 1, 7, 7), (5,), (2, 5), (5,), (5,), (2, 2, 4, 5))
    others = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(ops.depthwise_norm, (x, *others))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck(backend, norm, skip):
    channels = 8 + 4 * skip
    args = [torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(channels, 1, 7, 7, requires_grad=True)]
    args += [torch.randn(channels), torch.randn(2, channels), *(torch.randn(2, channels) if norm else (None, None))]
    args += [torch.randn(2, 4, 5, 6, requires_grad=True) if skip else None, 1e-5, True]
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
    "skip": (2, 2, 5, 6),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused_by_name(name):
    shapes = {"x": (2, 2, 5, 5), "weight": (4, 1, 7, 7), "bias": (4,), "shift": (2, 4), "gain": (4,), "offset": (4,),
              "skip": (2, 2, 5, 5)}  # fmt: skip
    with pytest.raises(RuntimeError, match=f"{name} is"):
        ops.depthwise_norm(*(torch.ones(shape) for shape in {**shapes, name: WRONG[name]}.values()))


def test_gain_alone_can_be_learned():
    gain = torch.ones(4, requires_grad=True)
    x = torch.randn(1, 4, 5, 5)
    ops.depthwise_norm(x, torch.ones(4, 1, 7, 7), torch.zeros(4), None, gain, torch.zeros(4)).square().sum().backward()
    assert gain.grad.abs().sum() > 0


NAMES = ("x", "weight", "bias", "shift", "gain", "offset", "skip")
PARAMETERS = {"weight", "bias", "gain", "offset"}


def gradients_of(names, dtype=torch.bfloat16):
    """Gradients of the operands of these names, where no other wants one."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 16, 19, 23), (20, 1, 7, 7), (20,), (2, 20), (20,), (20,), (2, 4, 19, 23))
    given = {name: torch.randn(shape, generator=generator) for name, shape in zip(NAMES, shapes, strict=True)}
    given["x"], given["skip"] = given["x"].to(dtype), given["skip"].to(dtype)
    for name in names:
        given[name].requires_grad_()
    out = ops.depthwise_norm(**given)
    out.backward(torch.randn(out.shape, generator=generator).to(dtype))
    assert {name for name, value in given.items() if value.grad is not None} == set(names)
    return {name: given[name].grad for name in names}


@pytest.mark.parametrize("names", [("x",), ("skip",), ("shift",), ("weight",), ("gain", "x")], ids=" ".join)
def test_gradients_that_are_not_wanted_are_not_computed(names, monkeypatch):
    computed = []

    def run(function, on, **fields):
        if function == "depthwise_norm_backward":
            grads = {name[5:] for name in fields if name.startswith("grad_") and fields[name] is not None}
            computed.append(grads - {"out", "shift_stride"})
        native.run(function, on, **fields)

    monkeypatch.setattr(operator, "run", run)
    for dtype in (torch.float32, torch.bfloat16):
        with ops.backend("native"):
            everything = gradients_of(NAMES, dtype)
            computed.clear()
            found = gradients_of(names, dtype)
        assert all(torch.equal(value, everything[name]) for name, value in found.items())
        together = (PARAMETERS, {"x", "skip"}, {"shift"})
        assert computed == [set().union(*(group for group in together if group & set(names)))]


def test_the_reference_gives_the_same_whatever_else_is_wanted():
    with ops.backend("reference"):
        everything = gradients_of(NAMES)
        for name in NAMES:
            assert torch.equal(gradients_of([name])[name], everything[name])
