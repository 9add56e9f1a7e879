"""dense: gradients in float64, what a GPU runs in Triton's interpreter, and on a GPU.

Run as a program, this file prints the errors of what a GPU runs, for every implementation: the interpreter is chosen
when triton is imported, so it needs a process of its own.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sinfusion import kernels, ops
from sinfusion.errors import SinfusionError
from sinfusion.network import Dense
from sinfusion.ops import native

operator = importlib.import_module("sinfusion.ops.dense")  # sinfusion.ops names the function so
FP32, BF16 = torch.float32, torch.bfloat16
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# x (B, C, H, W), channels of skip, outputs, kernel, bias, then: gelu, residual or neither
CASES = [
    ((2, 3, 5, 7), 0, 6, 3, True, "gelu"),
    ((1, 6, 4, 1), 0, 3, 3, True, "residual"),
    ((1, 5, 1, 9), 0, 4, 1, False, "gelu"),
    ((3, 8, 3, 3), 5, 8, 1, True, "neither"),
    ((1, 4, 6, 5), 0, 4, 3, False, "residual"),
    ((2, 32, 5, 3), 0, 48, 3, True, "gelu"),
    ((1, 40, 3, 4), 8, 32, 3, True, "residual"),
]
# Blocks of tiles, of which the last is not full; more than one vector of channels.
LARGE = [
    ((2, 21, 37, 53), 7, 35, 3, True, "gelu"),
    ((1, 64, 41, 30), 0, 24, 3, False, "neither"),
    ((3, 32, 29, 31), 32, 64, 1, True, "residual"),
    ((1, 17, 24, 45), 0, 96, 1, True, "gelu"),
]


def operands(case, seed=0):
    shape, more, outputs, kernel, bias, then = case
    generator = torch.Generator().manual_seed(seed)

    def values(*size):
        return torch.randn(*size, generator=generator).bfloat16().float()

    out = (shape[0], outputs, *shape[2:])
    given = {
        "x": values(*shape),
        "weight": values(outputs, shape[1] + more, kernel, kernel) / ((shape[1] + more) * kernel**2) ** 0.5,
        "bias": values(outputs) if bias else None,
        "residual": values(*out) if then == "residual" else None,
        "skip": values(shape[0], more, *shape[2:]) if more else None,
    }
    return given, values(*out)


def evaluate(case, dtype, device="cpu", **options):
    """Output and gradients by name."""
    given, grad = operands(case)
    leaves = {}
    for name, value in given.items():
        kept = dtype if name in ("x", "residual", "skip") or dtype == torch.float64 else FP32
        leaves[name] = None if value is None else value.to(device, kept).requires_grad_()
    out = ops.dense(**leaves, gelu=case[5] == "gelu", **options)
    out.backward(grad.to(device, dtype))
    made = {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}
    assert made["weight"].dtype == (torch.float64 if dtype == torch.float64 else FP32)
    return {name: value.double().cpu() for name, value in made.items()}


def distances(values, truth):
    assert values.keys() == truth.keys()
    return {name: float((values[name] - truth[name]).norm() / (truth[name].norm() + 1e-3)) for name in truth}


def assert_close(ours, theirs, tolerance=operator.TOLERANCE):
    for name in theirs:
        assert ours[name] <= tolerance * theirs[name] + 2e-6, f"{name}: {ours[name]} against {theirs[name]}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_operator_is_the_convolution_with_what_follows_it(case):
    given, grad = operands(case)
    leaves = {name: None if v is None else v.double().requires_grad_() for name, v in given.items()}
    x = leaves["x"] if leaves["skip"] is None else torch.cat((leaves["x"], leaves["skip"]), 1)
    z = F.conv2d(x, leaves["weight"], leaves["bias"], padding=case[3] // 2)
    expected = F.gelu(z) if case[5] == "gelu" else z if leaves["residual"] is None else z + leaves["residual"]
    expected.backward(grad.double())
    found = evaluate(case, torch.float64)
    torch.testing.assert_close(found["out"], expected.detach())
    for name, leaf in leaves.items():
        if leaf is not None:
            torch.testing.assert_close(found[name], leaf.grad)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_gradients_are_those_of_the_function(case):
    given, _ = operands(case)
    leaves = [None if v is None else v.double().requires_grad_() for v in given.values()]

    def function(x, weight, bias, residual, skip):
        return ops.dense(x, weight, bias, residual, case[5] == "gelu", skip)

    assert torch.autograd.gradcheck(function, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_opcheck(case, dtype):
    x, weight, bias, *others = operands(case)[0].values()
    others = [None if value is None else value.to(dtype).requires_grad_() for value in others]
    residual, skip = others
    arguments = operator.Dense(
        x.to(dtype).requires_grad_(), weight.requires_grad_(), bias, residual, case[5] == "gelu", skip
    )
    torch.library.opcheck(torch.ops.sinfusion.dense.default, (*arguments, True))


def gradients_of(names, case, dtype):
    """Gradients of the operands of these names, where no other wants one."""
    given, grad = operands(case)
    for name in ("x", "residual", "skip"):
        given[name] = None if given[name] is None else given[name].to(dtype)
    leaves = {name: given[name].requires_grad_() for name in names if given[name] is not None}
    if not leaves:  # the case has no such operand
        return {}
    ops.dense(**given, gelu=case[5] == "gelu").backward(grad.to(dtype))
    assert [name for name, value in given.items() if value is not None and value.grad is not None] == list(leaves)
    return {name: leaf.grad for name, leaf in leaves.items()}


ALL = ("x", "weight", "bias", "residual", "skip")
WANTED = [("x",), ("weight",), ("bias",), ("residual",), ("skip",), ("x", "weight"), ("weight", "bias")]


@pytest.mark.parametrize("names", WANTED, ids=" ".join)
def test_gradients_that_are_not_wanted_are_not_computed(names, monkeypatch):
    computed = []

    def run(function, on, **fields):
        if function == "dense_backward":
            computed.append({name[5:] for name in fields if name.startswith("grad_") and fields[name] is not None})
        native.run(function, on, **fields)

    monkeypatch.setattr(operator, "run", run)
    for case in CASES + LARGE:
        for dtype in (FP32, BF16):
            with ops.backend("native"):
                everything = gradients_of(ALL, case, dtype)
                computed.clear()
                found = gradients_of(names, case, dtype)
            assert all(torch.equal(value, everything[name]) for name, value in found.items())
            wanted = set(found) - {"residual"}
            if wanted & {"x", "skip"}:  # come together
                wanted |= everything.keys() & {"x", "skip"}
            assert [names - {"out", "z"} for names in computed] == ([wanted] if wanted else [])


def test_the_reference_computes_no_gradients_that_are_not_wanted(monkeypatch):
    masks, convolution_backward = [], torch.ops.aten.convolution_backward
    monkeypatch.setattr(
        torch.ops.aten,
        "convolution_backward",
        lambda *arguments: (masks.append(arguments[-1]), convolution_backward(*arguments))[1],
    )
    with ops.backend("reference"):
        for names in (ALL, ("x",), ("weight",), ("bias",), ("residual",)):
            gradients_of(names, CASES[1], FP32)
    assert masks == [[True] * 3, [True, False, False], [False, True, False], [False, False, True]]


def errors_on_the_cpu():
    """(case, dtype, error by result of the native kernel, of the reference)"""
    for case in CASES + LARGE:
        truth = evaluate(case, torch.float64)
        for dtype in (FP32, BF16):
            errors = []
            for backend in ("native", "reference"):
                with ops.backend(backend):
                    errors.append(distances(evaluate(case, dtype), truth))
            yield case, dtype, *errors


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "avx512_bf16"])
def test_on_the_cpu_every_instruction_set_is_close_to_float64(isa):
    """As close as PyTorch's bf16; in fp32, Winograd's algorithm within its own limit."""
    code = (
        "import importlib.util as u, json\n"
        f"s = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(s); s.loader.exec_module(t)\n"
        "from sinfusion.ops.native import cpu\n"
        "print(json.dumps([cpu.isa(), [(c, str(d), *e) for c, d, *e in t.errors_on_the_cpu()]]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SINFUSION_ISA": isa}, stdout=subprocess.PIPE, check=True
    )
    used, rows = json.loads(result.stdout)
    order = ["plain", "avx2", "avx512", "avx512_bf16"]
    assert order.index(used) <= order.index(isa) and len(rows) == 2 * len(CASES + LARGE)
    for case, dtype, ours, reference in rows:
        dtype = {"torch.float32": FP32, "torch.bfloat16": BF16}[dtype]
        winograd = case[3] == 3 and dtype == FP32
        assert_close(ours, reference, operator.WINOGRAD_TOLERANCE if winograd else operator.TOLERANCE)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_results_do_not_depend_on_threads_and_repeat(case, dtype, set_threads):
    with ops.backend("native"):
        first = evaluate(case, dtype)
        for count in (1, 2, 3):
            set_threads(count)
            assert all(torch.equal(first[name], value) for name, value in evaluate(case, dtype).items())


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_gelu_and_its_derivative_hold_far_from_zero(dtype):
    """A convolution that passes its input on, so that GELU alone is seen."""
    x = torch.linspace(-20, 20, 4001).to(dtype)
    x = torch.cat((x, torch.tensor([1e30, -1e30, 1e-30, -1e-30, 0.0]).to(dtype)))[None, None, None]
    truth = x.double().requires_grad_()
    F.gelu(truth).sum().backward()
    with ops.backend("native"):
        found = x.clone().requires_grad_()
        out = ops.dense(found, torch.ones(1, 1, 1, 1), gelu=True)
        out.sum().backward()
    near = {FP32: 5e-7, BF16: 2**-8}[dtype]
    torch.testing.assert_close(out.double(), F.gelu(truth), rtol=near, atol=near)
    torch.testing.assert_close(found.grad.double(), truth.grad, rtol=near, atol=4 * near)


def test_what_is_no_number_stays_so():
    for kernel in (1, 3):
        for value in (float("nan"), float("inf")):
            x = torch.ones(1, 4, 9, 9)
            x[0, 0, 4, 4] = value
            with ops.backend("native"):
                out = ops.dense(x, torch.ones(4, 4, kernel, kernel), gelu=True)
            assert not out[0, :, 4, 4].isfinite().any()


def test_forcing_native_where_it_cannot_run_says_why():
    x, weight = torch.ones(1, 2, 5, 5), torch.ones(2, 2, 5, 5)
    with ops.backend("native"), pytest.raises(SinfusionError, match="5 wide, not 1 or 3"):
        ops.dense(x, weight)
    with ops.backend("native"), pytest.raises(SinfusionError, match="float64"):
        ops.dense(x.double(), weight[:, :, :3, :3].double())
    with ops.backend("native"), pytest.raises(SinfusionError, match="empty"):
        ops.dense(x[:0], weight[:, :, :3, :3])


def test_strides_do_not_matter():
    x, weight = torch.randn(2, 8, 9, 10), torch.randn(6, 8, 3, 3)
    with ops.backend("native"):
        expected = ops.dense(x.contiguous(memory_format=torch.channels_last), weight)
        assert torch.equal(ops.dense(x, weight), expected)
        strided = torch.empty(2, 9, 10, 16)[..., ::2].permute(0, 3, 1, 2).copy_(x)
        assert torch.equal(ops.dense(strided, weight), expected)


def test_wrong_shapes_are_named():
    x, weight = torch.zeros(1, 3, 4, 4), torch.zeros(5, 3, 3, 3)
    with pytest.raises(RuntimeError, match=r"weight is \(5, 2, 3, 3\), for x \(1, 3, 4, 4\)"):
        ops.dense(x, weight[:, :2])
    with pytest.raises(RuntimeError, match=r"weight is \(5, 3, 3, 3\), for x \(1, 3, 4, 4\) and skip \(1, 2, 4, 4\)"):
        ops.dense(x, weight, skip=torch.zeros(1, 2, 4, 4))
    with pytest.raises(RuntimeError, match=r"skip is \(1, 2, 4, 5\)"):
        ops.dense(x, weight, skip=torch.zeros(1, 2, 4, 5))
    with pytest.raises(RuntimeError, match=r"bias is \(5,\) on cpu, not \(4,\)"):
        ops.dense(x, weight, torch.zeros(4))
    with pytest.raises(RuntimeError, match=r"residual is \(1, 5, 4, 4\) on cpu, not \(1, 3, 4, 4\)"):
        ops.dense(x, weight, residual=torch.zeros(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="a residual is added where there is no GELU"):
        ops.dense(x, weight, residual=torch.zeros(1, 5, 4, 4), gelu=True)


class TestCopies:
    """A layer keeps its weight in the dtype of the activations, and never an old one.

    Seen with the reference: csrc/cpu takes the weight itself.
    """

    @pytest.fixture(autouse=True)
    def reference(self):
        with ops.backend("reference"):
            yield

    @pytest.fixture
    def layer(self):
        torch.manual_seed(0)
        return Dense(4, 6, 3)

    def expected(self, layer, x):
        return ops.dense(x, layer.weight.detach(), layer.bias.detach())

    def test_it_is_made_once(self, layer):
        x = torch.randn(1, 4, 5, 5).bfloat16()
        assert torch.equal(layer(x), self.expected(layer, x))
        first = layer._copy
        assert first.dtype == BF16 and first.is_contiguous(memory_format=torch.channels_last)
        layer(x)
        assert layer._copy is first

    def test_a_weight_that_is_written_is_copied_again(self, layer):
        x = torch.randn(1, 4, 5, 5).bfloat16()
        layer(x)
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
        assert torch.equal(layer(x), self.expected(layer, x))
        with torch.no_grad():
            layer.weight.mul_(2)
        assert torch.equal(layer(x), self.expected(layer, x))

    def test_another_dtype_gets_its_own(self, layer):
        layer(torch.randn(1, 4, 5, 5).bfloat16())
        x = torch.randn(1, 4, 5, 5)
        assert torch.equal(layer(x), self.expected(layer, x))
        half = x.half()
        assert torch.equal(layer(half), self.expected(layer, half))

    def test_one_that_is_kept_from_outside_is_used_until_the_weight_is_written_otherwise(self, layer):
        x = torch.randn(1, 4, 5, 5).bfloat16()
        outside = torch.zeros_like(layer.weight, dtype=BF16).contiguous(memory_format=torch.channels_last)
        layer.adopt(outside)
        assert torch.equal(layer(x), layer.bias.detach().bfloat16()[:, None, None].expand(1, 6, 5, 5))
        with torch.no_grad():
            layer.weight.add_(1)
        assert torch.equal(layer(x), self.expected(layer, x))
        assert torch.equal(outside, layer.weight.detach().bfloat16())


IMPLEMENTATIONS = ["cudnn", "triton 0", "triton 3"]


def chosen(implementation, candidates):
    """The smallest convolutions have one implementation only."""
    return implementation if implementation in candidates else next(iter(candidates))


def by_interpreter(case, dtype, implementation):
    """What a GPU runs, with CPU tensors."""
    from sinfusion.kernels import tuning

    torch.cuda.get_device_capability = lambda device: (9, 0)
    kernels.why_not = lambda: ""
    tuning.choose = lambda operator, key, candidates, device, default: chosen(implementation, candidates)
    given, grad = operands(case)
    x, weight, bias, residual, skip = given.values()
    x, grad, skip = x.to(dtype), grad.to(dtype), None if skip is None else skip.to(dtype)
    gelu = case[5] == "gelu"
    with ops.backend("native"):
        out, z = operator.on_gpu(operator.Dense(x, weight, bias, residual, gelu, skip), True)
        assert z.numel() == (out.numel() if gelu else 0)
        wants = {"wants_input": True, "wants_weight": True, "wants_bias": bias is not None}
        backward = operator.DenseBackward(grad, z, x, weight, bias, gelu, skip, None, **wants)
        gradients = operator.on_gpu_backward(backward)
        for name, left_out in (("wants_input", ["x", "skip"]), ("wants_weight", ["weight"]), ("wants_bias", ["bias"])):
            others = operator.on_gpu_backward(backward._replace(**{name: False}))._asdict()
            assert all(others.pop(gone).numel() == 0 for gone in left_out)
            assert all(torch.equal(value, getattr(gradients, kept)) for kept, value in others.items())
    assert gradients.weight.dtype == FP32
    made = {"out": out, "x": gradients.x, "weight": gradients.weight}
    made |= {"bias": gradients.bias} if bias is not None else {}
    made |= {"residual": grad} if residual is not None else {}
    made |= {"skip": gradients.skip} if skip is not None else {}
    return {name: value.double() for name, value in made.items()}


@needs_triton
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_a_gpu_runs_is_as_close_to_float64_as_the_reference(implementation):
    result = subprocess.run(
        [sys.executable, __file__, implementation],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for case, dtype, errors in json.loads(result.stdout):
        case = (tuple(case[0]), *case[1:])
        truth = evaluate(case, torch.float64)
        dtype = {"fp32": FP32, "bf16": BF16}[dtype]
        with ops.backend("reference"):
            assert_close(errors, distances(evaluate(case, dtype), truth))


def test_wherever_cudnn_is_slow_triton_is_a_candidate():
    assert operator.triton_configs(torch.Size((192, 6, 3, 3)), BF16) and operator.triton_configs(
        torch.Size((192, 64, 3, 3)), BF16
    )
    assert operator.triton_configs(torch.Size((192, 64, 3, 3)), FP32)
    assert not operator.triton_configs(torch.Size((64, 128, 1, 1)), BF16)


def test_where_there_is_a_kernel_for_the_gpu_at_hand_tritons_are_not_compiled(monkeypatch):
    tuning = pytest.importorskip("sinfusion.kernels.tuning")
    tried = []

    def choose(operator, key, candidates, device, default):
        tried.append((list(candidates), default))
        return default

    monkeypatch.setattr(tuning, "choose", choose)
    x, weight = torch.zeros(1, 64, 2, 2, dtype=BF16), torch.zeros(192, 64, 3, 3, dtype=BF16)
    given = "dense", x, weight, (), lambda: "cudnn", lambda config: "triton"
    assert operator._fastest(*given, {"hopper": lambda: "hopper"})() == "hopper"
    assert operator._fastest(*given, {})() == "cudnn"
    with_one, without = tried
    assert with_one == (["cudnn", "hopper"], "hopper")
    assert without[1] == "cudnn" and without[0][1].startswith("triton")


@needs_triton
def test_what_the_gpu_cannot_take_is_named(monkeypatch):
    monkeypatch.setattr(kernels, "why_not", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def reasons(x, weight, dtype=FP32):
        tensors = (torch.empty(shape, dtype=dtype, device="meta") for shape in (x, weight))
        return operator.unsupported_on_gpu(operator.Dense(*tensors))

    assert reasons((1, 64, 9, 9), (64, 64, 3, 3)) == []
    assert "5 wide" in reasons((1, 64, 9, 9), (64, 64, 5, 5))[0]
    assert "2^31" in reasons((1, 64, 2**12, 2**13), (64, 64, 3, 3))[0]
    assert "empty" in reasons((0, 64, 9, 9), (64, 64, 3, 3))[0]
    assert "float64" in reasons((1, 64, 9, 9), (64, 64, 3, 3), torch.float64)[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "capability" in reasons((1, 64, 9, 9), (64, 64, 3, 3))[0]
    with ops.backend("native"), pytest.raises(SinfusionError, match="compute capability is below"):
        operator.on_gpu(operator.Dense(torch.zeros(1, 3, 4, 4), torch.zeros(5, 3, 3, 3)), False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "case",
    [*CASES, ((1, 64, 136, 243), 64, 192, 3, True, "gelu"), ((2, 192, 37, 53), 0, 64, 3, True, "residual")],
    ids=str,
)
def test_on_a_gpu_every_implementation_is_as_close_to_float64_as_the_reference(case, dtype, monkeypatch):
    from sinfusion.kernels import tuning

    truth = evaluate(case, torch.float64, "cuda")
    with ops.backend("reference"):
        reference = distances(evaluate(case, dtype, "cuda"), truth)
    for name in ("cudnn", "triton 0", "triton 1", "triton 4"):
        monkeypatch.setattr(
            tuning, "choose", lambda _, key, candidates, device, default, name=name: chosen(name, candidates)
        )
        with ops.backend("native"):
            first, second = evaluate(case, dtype, "cuda"), evaluate(case, dtype, "cuda")
        assert_close(distances(first, truth), reference)
        assert all(torch.equal(first[key], second[key]) for key in first), name


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
    from interpreter import prepare

    prepare()
    rows = []
    for case in CASES:
        truth = evaluate(case, torch.float64)
        for name, dtype in (("fp32", FP32), ("bf16", BF16)):
            rows.append((case, name, distances(by_interpreter(case, dtype, sys.argv[1]), truth)))
    print(json.dumps(rows))
