"""The Triton kernels of depthwise_norm: results in Triton's interpreter, compiled code, and the same on a real GPU.

Run as a program, this file prints the errors of the interpreted kernels for some of the cases: the interpreter is
chosen when triton is imported, so it needs a process of its own.
"""

import importlib
import importlib.util
import json
import subprocess
import sys

import ahead_of_time
import kernel_variants
import pytest
import torch

from sinfusion import kernels, ops
from sinfusion.errors import SinfusionError
from sinfusion.ops import dispatch

operator = importlib.import_module("sinfusion.ops.depthwise_norm")  # sinfusion.ops names the function so
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
FP32, BF16 = torch.float32, torch.bfloat16

# x (B, C, H, W), dtype, norm, shift, and channels of skip if there is one. They span several strips, bands and blocks
# of channels.
CASES = {
    "few channels": [
        ((2, 3, 3, 5), FP32, True, True),
        ((1, 3, 4, 1), BF16, False, True),
        ((1, 5, 7, 1), FP32, True, False),
        ((1, 5, 3, 2), BF16, True, True),
        ((1, 6, 7, 7), FP32, False, True),
        ((1, 6, 21, 53), FP32, False, True),
        ((3, 9, 7, 7), BF16, False, True),
        ((2, 3, 5, 7), BF16, True, True, 6),
    ],
    "many channels": [
        ((1, 32, 4, 9), BF16, True, False),
        ((1, 32, 3, 33), FP32, False, True),
        ((1, 32, 7, 7), BF16, True, True),
        ((1, 64, 2, 17), BF16, True, True),
        ((1, 64, 1, 1), FP32, False, False),
        ((1, 128, 3, 17), FP32, True, True),
        ((1, 128, 3, 2), BF16, True, False),
        ((3, 128, 7, 7), FP32, True, True),
        ((2, 32, 5, 9), BF16, True, True, 32),
    ],
    "a whole image": [((1, 6, 136, 243), BF16, True, True)],  # in wider strips, as interpreting many takes long
}


def draw(shape, norm, shift, skip=0):
    """Operands and the output's gradient, exactly representable in bf16 but for the weight."""
    generator = torch.Generator().manual_seed(1)

    def values(*size):
        return torch.randn(*size, generator=generator).bfloat16().float()

    batch, channels, *size = shape
    x, channels = values(*shape), channels + skip
    operands = {"x": x, "weight": 0.15 * values(channels, 1, 7, 7), "bias": values(channels)}
    operands["shift"] = values(batch, channels) if shift else None
    operands["gain"], operands["offset"] = (values(channels), values(channels)) if norm else (None, None)
    operands["skip"] = values(batch, skip, *size) if skip else None
    return operands, values(batch, channels, *size)


def by_operator(operands, grad, dtype, backend, device="cpu"):
    """Output and every gradient by name, through the public operator."""
    leaves = {}
    for name, value in operands.items():
        kept = dtype if name in ("x", "skip") or dtype == torch.float64 else FP32
        leaves[name] = None if value is None else value.to(device, kept).detach().requires_grad_()
    with ops.backend(backend):
        out = ops.depthwise_norm(**leaves)
        out.backward(grad.to(device, dtype))
    results = {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}
    return {name: value.double().cpu() for name, value in results.items()}


def by_interpreter(operands, grad, dtype):
    """The same through what the operator runs for CUDA tensors; the interpreter takes tensors on the CPU."""
    torch.cuda.get_device_capability = lambda device: (9, 0)
    kernels.why_not = lambda: ""
    x, weight, bias, shift, gain, offset, skip = operands.values()
    x, grad, skip = x.to(dtype), grad.to(dtype), None if skip is None else skip.to(dtype)
    with ops.backend("native"):
        given = operator.DepthwiseNorm(x, weight, bias, shift, gain, offset, skip)
        out, *kept = operator.on_gpu(given, True)
        wants = {"wants_input": True, "wants_shift": shift is not None, "wants_parameters": True}
        backward = operator.DepthwiseNormBackward(grad, *kept, x, weight, gain, skip, **wants)
        gradients = operator.on_gpu_backward(backward)._asdict()
        if len(x) == 2:
            inference, *nothing = operator.on_gpu(given, False)
            assert torch.equal(inference, out) and not any(value.numel() for value in nothing)
            alone = operator.on_gpu_backward(backward._replace(wants_shift=False, wants_parameters=False))
            assert torch.equal(alone.x, gradients["x"]) and not any(value.numel() for value in alone[2:])
    results = {"out": out} | gradients
    return {name: value.double() for name, value in results.items() if name == "out" or operands[name] is not None}


def distances(values, truth):
    assert values.keys() == truth.keys()
    return {name: float((values[name] - truth[name]).norm() / (truth[name].norm() + 1e-3)) for name in truth}


def errors(case, run):
    """Relative errors against float64, of `run` and of the reference in the same dtype."""
    shape, dtype, *others = case
    operands, grad = draw(shape, *others)
    truth = by_operator(operands, grad, torch.float64, "reference")
    reference = by_operator(operands, grad, dtype, "reference")
    return distances(run(operands, grad, dtype), truth), distances(reference, truth)


def assert_close(ours, theirs, dtype):
    slack = 1e-6 if dtype == FP32 else 2e-3
    for name in theirs:
        assert ours[name] <= operator.TOLERANCE * theirs[name] + slack, f"{name}: {ours[name]} against {theirs[name]}"


def test_importing_the_package_of_kernels_imports_no_triton():
    code = "import sys, sinfusion.kernels; print('triton' in sys.modules, sinfusion.kernels.why_not.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "why_not"]


@needs_triton
@pytest.mark.parametrize(
    "cases", [pytest.param(name, marks=[pytest.mark.slow] * (name == "a whole image")) for name in CASES]
)
def test_interpreted_kernels_are_as_close_to_float64_as_the_reference(cases, interpreted):
    for case, (ours, theirs) in zip(CASES[cases], interpreted(__file__, cases), strict=True):
        assert_close(ours, theirs, case[1])


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [3, 64, pytest.param(128, marks=pytest.mark.slow)])
def test_compiled_kernels_spill_no_registers(channels, dtype, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, variant in kernel_variants.depthwise_norm(channels, f"*{dtype}").items():
        usage = ahead_of_time.compile_variant(*variant, capability)
        assert 0 < usage.registers <= 255, name
        # ptxas spills up to 8 words, to fit one more program into a multiprocessor: 3.9's two, for sm_100.
        most = 32 if ahead_of_time.triton_version() != (3, 9) else 8 if capability == 100 else 0
        if "maxnreg" in variant.options:  # so that two programs fit: four words more
            most += 16
        assert usage.spill_bytes <= most, f"{name}: {usage[:3]}"


def test_without_triton_the_reference_runs_or_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(kernels, "why_not", kernels.why_not.__wrapped__)
    operands, _ = draw((1, 3, 4, 5), True, True)
    given = operator.DepthwiseNorm(**operands)
    truth = operator.reference(given, False).out
    assert torch.equal(operator.on_gpu(given, False).out, truth)
    with ops.backend("native"), pytest.raises(SinfusionError, match="Triton is not installed"):
        operator.on_gpu(given, False)


def test_the_backward_runs_on_the_backend_of_its_forward(monkeypatch):
    operands, grad = draw((1, 3, 4, 5), True, True)
    with ops.backend("reference"):
        out = ops.depthwise_norm(
            **{name: value if value is None else value.requires_grad_() for name, value in operands.items()}
        )
    monkeypatch.setattr(dispatch, "use_native", lambda *_: choices.append(dispatch.chosen_backend()))
    choices = []
    out.backward(grad)
    assert choices == ["reference"]


def test_what_the_kernels_cannot_take_is_named(monkeypatch):
    monkeypatch.setattr(kernels, "why_not", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def reasons(*shape, dtype=FP32):
        weight, bias = torch.empty(shape[1], 1, 7, 7, device="meta"), torch.empty(shape[1], device="meta")
        return operator.unsupported_on_gpu(
            operator.DepthwiseNorm(torch.empty(shape, dtype=dtype, device="meta"), weight, bias)
        )

    assert reasons(1, 1024, 8, 8) == []
    assert "channels" in reasons(1, 1025, 8, 8)[0]
    assert "2^31" in reasons(1, 1024, 2**11, 2**10)[0]
    assert "empty" in reasons(0, 3, 8, 8)[0]
    assert "float64" in reasons(1, 3, 8, 8, dtype=torch.float64)[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "capability" in reasons(1, 3, 8, 8)[0]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize(
    "case",
    [case for cases in CASES.values() for case in cases]
    + [
        ((1, 64, 37, 53), BF16, True, True),
        ((2, 64, 136, 243), BF16, True, True),
        ((1, 6, 67, 129), FP32, False, True),
        ((1, 512, 9, 17), BF16, True, True),
    ],
    ids=str,
)
def test_on_a_gpu_the_kernels_are_as_close_to_float64_as_the_reference(case):
    def run(operands, grad, dtype):
        return by_operator(operands, grad, dtype, "native", "cuda")

    assert_close(*errors(case, run), case[1])


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu_results_repeat_to_the_bit():
    operands, grad = draw((2, 64, 37, 53), True, True)
    first = by_operator(operands, grad, BF16, "native", "cuda")
    second = by_operator(operands, grad, BF16, "native", "cuda")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu_forward_and_backward_replay_in_a_graph():
    operands, grad = draw((1, 32, 9, 17), True, True)
    leaves = {name: value.cuda().requires_grad_() for name, value in operands.items() if value is not None}
    grad = grad.cuda()

    def step():
        with ops.backend("native"):
            out = ops.depthwise_norm(**leaves)
            return out, *torch.autograd.grad(out, list(leaves.values()), grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        leaves["x"].copy_(torch.randn_like(leaves["x"]))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


if __name__ == "__main__":
    from interpreter import prepare
    from sinfusion.kernels import depthwise_norm as module

    prepare()
    if sys.argv[1] == "a whole image":
        options = module.launch_options
        module.launch_options = lambda channels: options(channels) | {"PIXELS": 256}
    print(json.dumps([errors(case, by_interpreter) for case in CASES[sys.argv[1]]]))
