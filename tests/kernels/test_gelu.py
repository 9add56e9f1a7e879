"""The Triton kernels of bias, GELU and residual: results in Triton's interpreter, compiled code, and results on a GPU.

Run as a program, this file prints the errors of the interpreted kernels: the interpreter is chosen when triton is
imported, so it needs a process of its own.
"""

import importlib.util
import json
import re
import sys
from typing import NamedTuple

import ahead_of_time
import kernel_variants
import pytest
import torch
import torch.nn.functional as F

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
FP32, BF16 = torch.float32, torch.bfloat16

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
    from sinfusion.kernels.gelu import activate, slope

    @triton.jit
    def both(z, out, of_slope, SIZE: tl.constexpr, dtype: tl.constexpr):
        at = tl.arange(0, SIZE)
        value = tl.load(z + at)
        tl.store(out + at, activate(value, dtype))
        tl.store(of_slope + at, slope(value, dtype))


class Case(NamedTuple):
    shape: tuple  # (B, C, H, W)
    dtype: torch.dtype
    bias: bool
    epilogue: str  # "gelu", "residual" or "" for neither


CASES = [
    Case((1, 3, 5, 1), BF16, True, "gelu"),
    Case((3, 6, 7, 7), FP32, True, "residual"),
    Case((3, 9, 7, 7), FP32, True, "gelu"),
    Case((1, 32, 1, 1), FP32, False, "gelu"),
    Case((3, 64, 37, 53), BF16, True, "residual"),
    Case((3, 64, 7, 7), BF16, True, ""),
    Case((1, 100, 7, 7), BF16, True, "gelu"),
    Case((1, 128, 37, 53), BF16, False, "gelu"),
    Case((1, 64, 136, 243), BF16, True, "gelu"),
]


def draw(case):
    """z, bias, residual and the output's gradient, exactly representable in bf16."""
    generator = torch.Generator().manual_seed(1)

    def values(*size):
        return 2 * torch.randn(*size, generator=generator).bfloat16().float()

    bias = values(case.shape[1]) if case.bias else None
    residual = values(*case.shape) if case.epilogue == "residual" else None
    return values(*case.shape), bias, residual, values(*case.shape)


def by_pytorch(case, dtype):
    """Every result by name."""
    z, bias, residual, grad = (None if value is None else value.to(dtype) for value in draw(case))
    bias = torch.zeros(case.shape[1], dtype=dtype) if bias is None else bias
    z.requires_grad_(), bias.requires_grad_()
    sums = z + bias[:, None, None]
    out = F.gelu(sums) if case.epilogue == "gelu" else sums if residual is None else sums + residual
    dz, dbias = torch.autograd.grad(out, (z, bias), grad)
    return {"out": out.detach(), "dz": dz, "dbias": dbias}


def by_kernels(case, device="cpu"):
    """The same; Triton's interpreter takes tensors on the CPU."""
    from sinfusion.kernels import gelu

    z, bias, residual, grad = (None if value is None else value.to(device) for value in draw(case))
    z, residual, grad = (
        None if value is None else value.to(case.dtype, memory_format=torch.channels_last)
        for value in (z, residual, grad)
    )
    out = gelu.forward(z, bias, residual, case.epilogue == "gelu")
    dz, partial = gelu.backward(grad, z, bias, case.epilogue == "gelu")
    dbias = partial.sum((0, 1))
    assert out.dtype == dz.dtype == case.dtype and dbias.dtype == FP32
    assert (dz is grad) == (case.epilogue != "gelu")
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in (out, dz))
    return {"out": out, "dz": dz, "dbias": dbias}


def errors(case, device="cpu"):
    """Relative errors against float64, of the kernels and of PyTorch in the same dtype."""
    truth = by_pytorch(case, torch.float64)

    def distances(values):
        return {n: float((values[n].cpu() - truth[n]).norm() / (truth[n].norm() + 1e-3)) for n in truth}

    return distances(by_kernels(case, device)), distances(by_pytorch(case, case.dtype))


def assert_close(ours, theirs, dtype):
    slack = 1e-6 if dtype == FP32 else 1e-4
    for name in theirs:
        assert ours[name] <= 1.5 * theirs[name] + slack, f"{name}: {ours[name]} against {theirs[name]}"


@needs_triton
def test_interpreted_kernels_are_as_close_to_float64_as_pytorch(interpreted):
    for case, (ours, theirs) in zip(CASES, interpreted(__file__), strict=True):
        assert_close(ours, theirs, case.dtype)


@needs_triton
def test_gelu_and_its_slope_are_exact_in_fp32_and_within_2_to_the_minus_12_for_bf16(interpreted):
    for_bf16, exact = interpreted(__file__, "gelu")
    assert max(for_bf16) < 2**-12 and max(exact) < 2e-6
    assert max(for_bf16) < 2e-5  # far below what bf16 rounds away


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("channels", "epilogue"), [(192, "gelu"), (64, "residual"), (3, "")])
def test_compiled_kernels_spill_nothing_and_move_16_bytes(channels, epilogue, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, variant in kernel_variants.gelu(channels, "*bf16", epilogue).items():
        usage = ahead_of_time.compile_variant(*variant, capability)
        assert 0 < usage.registers <= 128 and usage.spill_bytes == 0, f"{name}: {usage[:3]}"
        if channels > 3:
            accesses = [line for line in usage.ptx.splitlines() if re.search(r"(ld|st)\.global", line)]
            narrow = [line for line in accesses if ".v4" not in line]
            assert len(narrow) == (name == "backward"), narrow  # its sums, once a program


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", [*CASES, Case((4, 192, 144, 256), BF16, True, "gelu")], ids=str)
def test_on_a_gpu_the_kernels_are_as_close_to_float64_as_pytorch(case):
    assert_close(*errors(case, "cuda"), case.dtype)


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu_results_repeat_to_the_bit():
    case = Case((2, 192, 136, 243), BF16, True, "gelu")
    first, second = by_kernels(case, "cuda"), by_kernels(case, "cuda")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu_forward_and_backward_replay_in_a_graph(assert_replays):
    from sinfusion.kernels import gelu

    z, bias, _, grad = (None if value is None else value.cuda() for value in draw(CASES[6]))
    z, grad = (value.to(BF16, memory_format=torch.channels_last) for value in (z, grad))

    def step():
        return gelu.forward(z, bias, None, True), *gelu.backward(grad, z, bias, True)

    assert_replays(step, z)


def errors_of_gelu():
    """The largest absolute errors of GELU and of its slope in [-20, 20], against float64: for bf16, and for fp32."""
    z = torch.linspace(-20, 20, 2**16)
    exact = z.double().requires_grad_()
    F.gelu(exact).sum().backward()
    found = []
    for dtype in (tl.bfloat16, tl.float32):
        out, of_slope = torch.empty_like(z), torch.empty_like(z)
        both[(1,)](z, out, of_slope, SIZE=2**16, dtype=dtype)
        pairs = ((out, F.gelu(z.double())), (of_slope, exact.grad))
        found.append([float((a.double() - b).abs().max()) for a, b in pairs])
    return found


if __name__ == "__main__":
    from interpreter import prepare

    prepare()
    print(json.dumps(errors_of_gelu() if sys.argv[1:] else [errors(case) for case in CASES]))
