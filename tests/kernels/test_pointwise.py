"""The Triton kernels of 1x1 convolutions: results in Triton's interpreter, compiled code, and results on a GPU.

Run as a program, this file prints the errors of the interpreted kernels.
"""

import importlib.util
import json

import ahead_of_time
import kernel_variants
import pytest
import torch
import torch.nn.functional as F

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
FP32, BF16 = torch.float32, torch.bfloat16

# Shape of x; channels of skip; outputs; dtype.
CASES = [
    ((1, 6, 5, 7), 0, 64, BF16),
    ((3, 16, 3, 9), 16, 8, FP32),
    ((2, 64, 9, 5), 64, 64, BF16),
    ((1, 64, 37, 13), 0, 3, BF16),
]


def errors(case, device="cpu"):
    """Relative errors of output and gradients against float64, of the kernels and of PyTorch in the same dtype."""
    from sinfusion.kernels import pointwise

    from sinfusion.ops.layout import channels_last

    (batch, channels, height, width), of_skip, outputs, dtype = case
    generator = torch.Generator().manual_seed(1)

    def values(*size):
        return torch.randn(*size, generator=generator).bfloat16().float()

    both, weight = values(batch, channels + of_skip, height, width), values(outputs, channels + of_skip, 1, 1) / 8
    bias, grad = values(outputs), values(batch, outputs, height, width)

    def by_pytorch(dtype):
        x, w, b = (value.to(dtype).requires_grad_() for value in (both, weight, bias))
        out = F.conv2d(x, w, b)
        return [out, *torch.autograd.grad(out, (x, w, b), grad.to(dtype))]

    x, skip = (channels_last(part.to(device, dtype)) for part in both.split((channels, of_skip), 1))
    given = pointwise.Input(x, skip if of_skip else None)
    rounded, of_out = weight.to(device, dtype), channels_last(grad.to(device, dtype))
    out = pointwise.forward(given, rounded, bias.to(device))
    grads, of_weight, of_bias = pointwise.backward(of_out, given, rounded, True)
    of_input = torch.cat([part for part in grads if part is not None], 1)
    ours = [out, of_input, of_weight.sum((0, 1)).permute(0, 3, 1, 2), of_bias.sum((0, 1))]
    truth = by_pytorch(torch.float64)
    return [
        [float((a.double().cpu() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]
        for found in (ours, by_pytorch(dtype))
    ]


def assert_close(ours, theirs, dtype):
    slack = 1e-6 if dtype == FP32 else 1e-4
    assert all(a <= 1.5 * b + slack for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@needs_triton
def test_interpreted_kernels_are_as_close_to_float64_as_pytorch(interpreted):
    for case, (ours, theirs) in zip(CASES, interpreted(__file__), strict=True):
        assert_close(ours, theirs, case[3])


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("channels", "outputs"), [(6, 64), (128, 64), (64, 3)])
def test_compiled_kernels_spill_nothing(channels, outputs, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, variant in kernel_variants.pointwise(channels, outputs, "*bf16", channels > 6).items():
        usage = ahead_of_time.compile_variant(*variant, capability)
        assert usage.spill_bytes == 0 and usage.tensor_cores, f"{name}: {usage[:3]}"


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu_the_kernels_are_as_close_to_float64_as_pytorch(case):
    assert_close(*errors(case, "cuda"), case[3])


if __name__ == "__main__":
    from interpreter import prepare

    prepare()
    print(json.dumps([errors(case) for case in CASES]))
