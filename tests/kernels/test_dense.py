"""The Triton kernels of the dense convolutions: results in Triton's interpreter, compiled code, and results on a GPU.

Run as a program, this file prints the errors of the interpreted kernels for some of the cases: the interpreter is
chosen when triton is imported, so it needs a process of its own.
"""

import importlib.util
import json
import sys
from typing import NamedTuple

import ahead_of_time
import kernel_variants
import pytest
import torch
import torch.nn.functional as F

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
FP32, BF16 = torch.float32, torch.bfloat16


class Case(NamedTuple):
    shape: tuple  # (B, C, H, W) of x
    outputs: int
    kernel: int
    dtype: torch.dtype
    epilogue: str  # "gelu", "residual" or "" for neither
    config: int = 0  # -1: with tiles larger than a GPU has registers for, as interpreting many takes long


CASES = {
    "few channels": [
        Case((1, 3, 5, 1), 32, 3, BF16, "gelu"),
        Case((3, 6, 7, 7), 64, 3, FP32, "gelu"),
        Case((3, 9, 7, 7), 192, 3, BF16, "gelu"),
        Case((1, 6, 7, 7), 64, 1, BF16, ""),
        Case((1, 64, 37, 53), 3, 1, BF16, ""),
    ],
    "many channels": [
        Case((1, 32, 1, 1), 96, 3, FP32, "gelu"),
        Case((3, 32, 7, 1), 96, 3, BF16, "gelu"),
        Case((3, 32, 23, 5), 96, 3, BF16, "gelu"),  # weight gradient: two rows a program, one for the last
        Case((3, 96, 7, 7), 32, 3, BF16, "residual"),
        Case((3, 128, 7, 7), 64, 1, FP32, "residual"),
        Case((1, 20, 7, 7), 100, 3, BF16, "residual"),
        Case((1, 128, 7, 7), 192, 3, BF16, "gelu"),
        Case((1, 32, 37, 53), 96, 3, BF16, "gelu"),
    ],
    "every configuration": [Case((1, 64, 5, 29), 192, 3, BF16, "gelu", config) for config in range(1, 6)],
    "a whole image": [Case((1, 32, 136, 243), 96, 3, BF16, "gelu", -1)],
}


def draw(case):
    """Operands and the output's gradient, exactly representable in bf16."""
    generator = torch.Generator().manual_seed(1)

    def values(*size):
        return torch.randn(*size, generator=generator).bfloat16().float()

    batch, channels, height, width = case.shape
    image = (batch, case.outputs, height, width)
    weight = values(case.outputs, channels, case.kernel, case.kernel) / 16
    residual = values(*image) if case.epilogue == "residual" else None
    return values(*case.shape), weight, values(case.outputs), residual, values(*image)


def by_pytorch(case, dtype):
    """Every result by name."""
    x, weight, bias, residual, grad = (None if value is None else value.to(dtype) for value in draw(case))
    x.requires_grad_(), weight.requires_grad_()
    z = F.conv2d(x, weight, padding=case.kernel // 2)
    gradients = torch.autograd.grad(z, (x, weight), grad)
    before, z = z, z + bias[:, None, None]
    out = F.gelu(z) if case.epilogue == "gelu" else z if residual is None else z + residual
    results = {"out": out, "input gradient": gradients[0], "weight gradient": gradients[1]}
    return results | ({"z": before} if case.epilogue == "gelu" else {})


def placed(value, device, dtype):
    """On a device, channels-last if it has 4 dimensions, with NaN before and after it in memory."""
    around = torch.full((value.numel() + 256,), float("nan"), dtype=dtype, device=device)
    shape = torch.empty(value.shape, device="meta")
    strides = shape.to(memory_format=torch.channels_last).stride() if value.ndim == 4 else shape.stride()
    return around.as_strided(value.shape, strides, 128).copy_(value)


def added_up(partial):
    """(O, C, k, k) of partial sums (1, n, O, k, k, C)."""
    from sinfusion.kernels.reduce import Partial, reduce_partials

    out = partial.new_empty(1, *partial.shape[2:])
    reduce_partials([Partial(partial, out)])
    return out[0].permute(0, 3, 1, 2)


def by_kernels(case, device="cpu"):
    """The same; Triton's interpreter takes tensors on the CPU."""
    from sinfusion.kernels import dense

    x, weight, bias, residual, grad = (
        None if value is None else placed(value, device, FP32 if value.ndim == 1 else case.dtype)
        for value in draw(case)
    )
    gelu = case.epilogue == "gelu"
    out, z = dense.forward(x, weight, bias, residual, gelu, True, case.config)
    results = {
        "out": out,
        "input gradient": dense.input_gradient(grad, weight, config=case.config)[0],
        "weight gradient": added_up(dense.weight_gradient(grad, x, case.kernel, case.config)),
    }
    assert (z is not None) == gelu and results["weight gradient"].dtype == FP32
    for value in results.values():
        assert value.is_contiguous(memory_format=torch.channels_last)
    if gelu and case.shape[0] == 3:
        inference, nothing = dense.forward(x, weight, bias, None, True, False, case.config)
        assert nothing is None and torch.equal(inference, out)
    return results | ({"z": z} if gelu else {})


def errors(case, device="cpu"):
    """Relative errors against float64, of the kernels and of PyTorch in the same dtype."""
    truth = by_pytorch(case, torch.float64)

    def distances(values):
        assert values.keys() == truth.keys()
        return {n: float((values[n].cpu() - truth[n]).norm() / (truth[n].norm() + 1e-3)) for n in truth}

    return distances(by_kernels(case, device)), distances(by_pytorch(case, case.dtype))


def assert_close(ours, theirs, dtype):
    slack = 1e-6 if dtype == FP32 else 1e-4
    for name in theirs:
        assert ours[name] <= 1.5 * theirs[name] + slack, f"{name}: {ours[name]} against {theirs[name]}"


@needs_triton
@pytest.mark.parametrize(
    "cases", [pytest.param(name, marks=[pytest.mark.slow] * (name == "a whole image")) for name in CASES]
)
def test_interpreted_kernels_are_as_close_to_float64_as_pytorch(cases, interpreted):
    for case, (ours, theirs) in zip(CASES[cases], interpreted(__file__, cases), strict=True):
        assert_close(ours, theirs, case.dtype)


LAYERS = [(6, 192, 3, "gelu"), (64, 192, 3, "gelu"), (128, 192, 3, "gelu"), (192, 64, 3, "residual")]
LAYERS += [(6, 64, 1, ""), (128, 64, 1, ""), (64, 3, 1, "")]  # of the default network: residuals, final convolution


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
@pytest.mark.parametrize(
    ("layer", "config", "capability"),
    [(layer, 0, 90) for layer in LAYERS]
    + [pytest.param(LAYERS[1], config, 90, marks=pytest.mark.slow) for config in range(1, 6)]
    + [(LAYERS[0], 0, capability) for capability in (80, 100)]
    + [pytest.param(LAYERS[1], 0, capability, marks=pytest.mark.slow) for capability in (80, 100)],
    ids=str,
)
def test_compiled_kernels_use_tensor_cores_and_spill_nothing(layer, config, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    inputs, outputs, kernel, epilogue = layer
    for name, variant in kernel_variants.dense(inputs, outputs, kernel, "*bf16", epilogue, config).items():
        usage = ahead_of_time.compile_variant(*variant, capability)
        assert 0 < usage.registers <= 255, f"{name}: {usage[:3]}"
        # For sm_80 ptxas spills two words of one kernel, to fit a third program into a multiprocessor.
        assert usage.spill_bytes <= (8 if capability == 80 else 0), f"{name}: {usage[:3]}"
        assert usage.shared_bytes <= (99 << 10 if config == 0 else 227 << 10), f"{name}: {usage[:3]}"
        assert usage.tensor_cores in {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}[capability], name
        if inputs > 6 and outputs > 3:
            assert "cp.async" in usage.ptx, name


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
def test_compiled_kernels_in_fp32_spill_nothing_and_do_not_round_to_tf32(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, variant in kernel_variants.dense(64, 192, 3, "*fp32", "gelu").items():
        usage = ahead_of_time.compile_variant(*variant, 90)
        assert usage.spill_bytes == 0 and not usage.tensor_cores, f"{name}: {usage[:3]}"


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize(
    "case",
    [case._replace(config=max(0, case.config)) for cases in CASES.values() for case in cases]
    + [Case((4, 64, 144, 256), 192, 3, BF16, "gelu", config) for config in range(6)]
    + [Case((1, 192, 136, 243), 64, 3, BF16, "residual", config) for config in range(6)]
    + [Case((2, 64, 136, 243), 192, 3, FP32, "gelu")],
    ids=str,
)
def test_on_a_gpu_the_kernels_are_as_close_to_float64_as_pytorch(case):
    from sinfusion.kernels import dense

    if case.config and torch.cuda.get_device_properties(0).shared_memory_per_block_optin < 160 << 10:
        pytest.skip(f"this GPU's shared memory is too small for {dense.CONFIGS[case.config]}")
    assert_close(*errors(case, "cuda"), case.dtype)


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu_results_repeat_to_the_bit():
    case = Case((2, 64, 136, 243), 192, 3, BF16, "gelu")
    first, second = by_kernels(case, "cuda"), by_kernels(case, "cuda")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu_forward_and_gradients_replay_in_a_graph(assert_replays):
    from sinfusion.kernels import dense

    x, weight, bias, _, grad = (None if value is None else value.cuda() for value in draw(CASES["many channels"][-1]))
    x, weight, grad = (value.to(BF16, memory_format=torch.channels_last) for value in (x, weight, grad))

    def step():
        results = dense.forward(x, weight, bias, None, True, True)
        return *results, dense.input_gradient(grad, weight)[0], added_up(dense.weight_gradient(grad, x, 3))

    assert_replays(step, x)


if __name__ == "__main__":
    from interpreter import prepare
    from sinfusion.kernels import dense

    prepare()
    dense.CONFIGS.append(dense.Config(8192, 256, 256, 1, 1, False))
    print(json.dumps([errors(case) for case in CASES[sys.argv[1]]]))
