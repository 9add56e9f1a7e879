"""The Triton kernel of the mean squared error: results in Triton's interpreter, compiled code, results on a real GPU.

Run as a program, this file prints the errors of the interpreted kernel.
"""

import importlib
import importlib.util
import json

import ahead_of_time
import kernel_variants
import pytest
import torch

from sinfusion import kernels, ops

operator = importlib.import_module("sinfusion.ops.mean_square")  # sinfusion.ops names the function so
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SHAPES = [(1, 3, 5, 7), (2, 3, 37, 53)]


def errors(shape, device="cpu"):
    """Relative, of the mean and of its gradient times 3, against float64."""
    torch.manual_seed(0)
    output, target = torch.randn(shape), torch.randn(shape)
    exact, ours = (
        output.double().requires_grad_(),
        output.to(device, memory_format=torch.channels_last).requires_grad_(),
    )
    truth = (exact - target.double()).square().mean()
    (3 * truth).backward()
    mean = ops.mean_square(ours, target.to(device))
    (3 * mean).backward()
    pairs = ((mean.detach().cpu(), truth.detach()), (ours.grad.cpu(), exact.grad))
    return [float((a.double() - b).norm() / b.norm()) for a, b in pairs]


@needs_triton
def test_the_interpreted_kernel_makes_the_mean_and_its_gradient(interpreted):
    assert max(interpreted(__file__)) < 1e-6


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_compiled_kernel_spills_nothing(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert ahead_of_time.compile_variant(*kernel_variants.loss()["square"], capability).spill_bytes == 0


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_gpu_the_kernel_makes_the_mean_and_its_gradient(shape):
    assert max(errors(shape, "cuda")) < 1e-6


if __name__ == "__main__":
    from interpreter import prepare

    prepare()
    kernels.why_not = lambda: ""
    operator.runs_on_gpu = lambda output: True
    print(json.dumps([error for shape in SHAPES for error in errors(shape)]))
