"""The Triton kernels of the embedding of time and frame offset: results in Triton's interpreter, and on a real GPU.

Run as a program, this file prints the errors of the interpreted kernels.
"""

import importlib.util
import json

import ahead_of_time
import kernel_variants
import pytest
import torch
import torch.nn.functional as F

from sinfusion import kernels
from sinfusion.network import NextNet
from sinfusion.ops import embedding

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# Samples, filters, depth, whether there is a frame offset.
CASES = [(1, 64, 16, True), (4, 32, 5, True), (3, 20, 4, False)]


def draw(case):
    batch, filters, depth, frame_offset = case
    torch.manual_seed(1)
    network = NextNet(6, filters=filters, depth=depth, frame_offset=frame_offset)
    time = torch.tensor([-11.3, 0.7, 15.9, 31.0])[:batch]
    return network, time, torch.tensor([-2, 1, 3, 7])[:batch] if frame_offset else None


def results(case, dtype=torch.float32, device="cpu", in_place=False):
    """The shifts and the gradients of what makes them, by name."""
    network, time, offset = draw(case)
    network.to(device, dtype)
    if in_place:
        gradients = {name: torch.full_like(p, float("nan")) for name, p in network.named_parameters()}
        network.adopt(gradients)
    shifts = network.shifts(time.to(device, dtype), None if offset is None else offset.to(device))
    grad = torch.randn(shifts.shape, generator=torch.Generator().manual_seed(2))
    names, weights = zip(*[(n, p) for n, p in network.named_parameters() if "shift" in n or n[:4] in ("time", "fram")],
                         strict=True)  # fmt: skip
    found = torch.autograd.grad(shifts, weights, grad.to(device, dtype))
    if in_place:
        assert all(of.data_ptr() == gradients[name].data_ptr() for name, of in zip(names, found, strict=True))
    return {name: value.detach().double().cpu() for name, value in zip(("out", *names), (shifts, *found), strict=True)}


def in_float64(case):
    """With the sinusoids of fp32."""
    exact = embedding._embed

    def embed(value, frequencies, mlp):
        angle = value.float()[:, None] * frequencies.float()
        inside = F.gelu(F.linear(torch.cat((angle.sin(), angle.cos()), 1).double(), mlp.inner, mlp.inner_bias))
        return F.linear(inside, mlp.outer, mlp.outer_bias)

    embedding._embed = embed
    try:
        return results(case, torch.float64)
    finally:
        embedding._embed = exact


def errors(case, device="cpu", **options):
    truth, ours = in_float64(case), results(case, device=device, **options)
    assert ours.keys() == truth.keys()
    return max(float((ours[name] - truth[name]).norm() / (truth[name].norm() + 1e-6)) for name in truth)


@needs_triton
def test_interpreted_kernels_make_what_the_layers_make(interpreted):
    assert max(interpreted(__file__)) < 2e-6


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
def test_compiled_kernels_spill_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, variant in kernel_variants.embedding(64, 16).items():
        usage = ahead_of_time.compile_variant(*variant, 90)
        # The sine of large numbers has an array.
        assert 0 < usage.registers <= 255 and usage.spill_bytes <= 32, f"{name}: {usage[:3]}"


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu_the_kernels_make_what_the_layers_make(case):
    assert errors(case, "cuda") < 2e-6 and errors(case, "cuda", in_place=True) < 2e-6


if __name__ == "__main__":
    from interpreter import prepare

    prepare()
    kernels.why_not = lambda: ""
    embedding.runs_on_gpu = lambda value: value.dtype == torch.float32
    print(json.dumps([errors(case, in_place=in_place) for case in CASES for in_place in (False, True)]))
