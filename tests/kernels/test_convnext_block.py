"""A whole ConvNeXt block by the GPU's kernels: results in Triton's interpreter, and the same on a real GPU.

Run as a program, this file prints the errors of the interpreted block.
"""

import importlib
import importlib.util
import json

import pytest
import torch

from sinfusion import kernels, ops
from sinfusion.network import ConvNeXtBlock
from sinfusion.ops.layout import weight_order

operator = importlib.import_module("sinfusion.ops.convnext_block")  # sinfusion.ops names the function so
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
FP32, BF16 = torch.float32, torch.bfloat16

# Batch, height, width, channels of x, of skip, of the output; dtype; whether x wants a gradient.
CASES = [
    (1, 5, 7, 6, 0, 16, BF16, False),  # the first of a network: no norm, a residual convolution
    (2, 7, 9, 16, 0, 16, FP32, True),
    (1, 6, 19, 32, 0, 32, BF16, True),
    (2, 5, 9, 16, 16, 16, BF16, True),
    (1, 9, 5, 16, 16, 16, FP32, True),
]


def draw(case):
    """A block, its arguments, and gradients of both results, exactly representable in bf16."""
    batch, height, width, channels, of_skip, outputs, _, _ = case
    torch.manual_seed(1)

    def image(number):
        return torch.randn(batch, number, height, width).bfloat16().float() if number else None

    block = ConvNeXtBlock(channels + of_skip, outputs, 4, norm=channels > 9)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(parameter.bfloat16())
    shift = torch.randn(batch, channels + of_skip).bfloat16().float()
    return block, (image(channels), shift, image(of_skip)), (image(outputs), image(channels))


def results(case, dtype, device="cpu", laid_out=False):
    """Every result and gradient by name, of a block that runs as it runs here."""
    block, arguments, grads = draw(case)
    block.to(device, torch.float64 if dtype == torch.float64 else FP32)
    if laid_out:
        for p in block.parameters():
            order = weight_order(p.shape, True)
            p.data = p.data.permute(order).contiguous().permute([order.index(i) for i in range(p.ndim)])
    x, shift, skip = (
        value if value is None else value.to(device, FP32 if value.ndim == 2 and dtype != torch.float64 else dtype)
        for value in arguments
    )
    leaves = {"x": x, "shift": shift, "skip": skip} | dict(block.named_parameters())
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None and not name.startswith("shift.")}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != "x" or case[7])
    out, again = block(x, shift, skip)
    assert torch.equal(again, x)
    given = [(out, grads[0])] + ([(again, grads[1])] if case[7] else [])
    torch.autograd.backward(*zip(*[(value, grad.to(device, dtype)) for value, grad in given], strict=True))
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
    return {name: value.detach().double().cpu() for name, value in ({"out": out} | gradients).items()}


def errors(case, run):
    """Relative errors against float64, of `run` and of the operators' references in the same dtype."""
    with ops.backend("reference"):
        truth, reference = results(case, torch.float64), results(case, case[6])

    def distances(values):
        assert values.keys() == truth.keys()
        return {n: float((values[n] - truth[n]).norm() / (truth[n].norm() + 1e-3)) for n in truth}

    return distances(run(case, case[6])), distances(reference)


def by_interpreter(case, dtype):
    """Of weights as kernels read them, of one case also as they are; the interpreter takes tensors on the CPU."""
    from sinfusion.kernels import tuning

    torch.cuda.get_device_capability = lambda device: (9, 0)
    kernels.why_not = lambda: ""
    tuning.choose = lambda operator, key, candidates, device, default: list(candidates)[-1]
    torch.Tensor.is_cuda = True
    try:
        operator.use_native = lambda *_: True
        found = results(case, dtype, laid_out=True)
        other = results(case, dtype) if case is CASES[1] else found
    finally:
        torch.Tensor.is_cuda = torch._C.TensorBase.is_cuda
        operator.use_native = lambda *_: False
    assert all(torch.equal(found[name], other[name]) for name in found)
    return found


def assert_close(ours, theirs, dtype):
    slack = 2e-6 if dtype == FP32 else 2e-3
    for name in theirs:
        assert ours[name] <= 2 * theirs[name] + slack, f"{name}: {ours[name]} against {theirs[name]}"


@needs_triton
def test_an_interpreted_block_is_as_close_to_float64_as_the_reference(interpreted):
    for case, (ours, theirs) in zip(CASES, interpreted(__file__), strict=True):
        assert_close(ours, theirs, case[6])


def test_a_block_is_the_operators_one_after_the_other_on_a_cpu():
    block, (x, shift, skip), _ = draw(CASES[3])
    out, again = block(x, shift, skip)
    convolution = block.depthwise
    h = ops.depthwise_norm(x, convolution.weight, convolution.bias, shift, block.gain, block.offset, skip)
    assert torch.equal(out, block.project(block.expand(h, gelu=True), residual=block.residual(x, skip=skip)))
    assert again is x


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", [*CASES, (2, 37, 53, 64, 64, 64, BF16, True)], ids=str)
def test_on_a_gpu_a_block_is_as_close_to_float64_as_the_reference(case):
    def run(case, dtype):
        with ops.backend("native"):
            return results(case, dtype, "cuda")

    assert_close(*errors(case, run), case[6])


if __name__ == "__main__":
    from interpreter import prepare

    prepare()
    print(json.dumps([errors(case, by_interpreter) for case in CASES]))
