"""The Triton kernel that adds up partial sums: results in Triton's interpreter, compiled code, and on a real GPU.

Run as a program, this file prints the errors of the interpreted kernel.
"""

import importlib.metadata
import importlib.util
import json

import ahead_of_time
import pytest
import torch

from sinfusion import kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# (groups, rows, numbers) of each sum of a launch.
CASES = [
    [(1, 1, 1)],
    [(1, 259, 192), (1, 28, 1000), (3, 5, 64)],
    [(1, 65, 33), (2, 64, 32), (1, 3, 7), (1, 130, 128), (5, 1, 3)],
]


def draw(case, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(device) for shape in case]


def by_kernel(partials):
    from sinfusion.kernels.reduce import Partial, reduce_partials

    outs = [torch.full((len(p), p.shape[2]), float("nan"), device=p.device) for p in partials]
    reduce_partials([Partial(p, out) for p, out in zip(partials, outs, strict=True)])
    return outs


def errors(case, device="cpu"):
    """The largest of each sum, against float64."""
    partials = draw(case, device)
    pairs = zip(by_kernel(partials), partials, strict=True)
    return [float((out.double() - p.double().sum(1)).abs().max()) for out, p in pairs]


@needs_triton
def test_a_triton_whose_kernels_take_no_tuples_is_named_as_too_old(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.2.0")
    assert "Triton 3.2.0 is older than 3.3" in kernels.why_not.__wrapped__()
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "3.10.1")
    assert "older" not in kernels.why_not.__wrapped__()


@needs_triton
def test_interpreted_sums_are_those_of_the_rows(interpreted):
    for found in interpreted(__file__):
        assert max(found) < 2e-5


@needs_triton
def test_memory_is_written_in_its_order_whatever_its_dimensions_are_called(interpreted):
    """A convolution's weight gradient lies channels-last; see the program below."""
    assert interpreted(__file__, "channels-last")


@pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())
@pytest.mark.parametrize("capability", [80, 90])
def test_the_compiled_kernel_spills_nothing_and_loads_16_bytes(capability, tmp_path, monkeypatch):
    import kernel_variants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (variant,) = kernel_variants.reduce(3).values()
    usage = ahead_of_time.compile_variant(*variant, capability)
    assert 0 < usage.registers <= 64 and usage.spill_bytes == 0
    loads = [line for line in usage.ptx.splitlines() if "ld.global" in line]
    assert loads and all(".v4" in line for line in loads)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu_sums_are_those_of_the_rows_and_repeat_to_the_bit(case):
    assert max(errors(case, "cuda")) < 2e-5
    first, second = by_kernel(draw(case, "cuda")), by_kernel(draw(case, "cuda"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if __name__ == "__main__":
    import sys

    from interpreter import prepare

    prepare()
    if len(sys.argv) > 1:
        from sinfusion.kernels.reduce import Partial, reduce_partials

        partial, out = torch.randn(1, 4, 3, 2, 2, 5), torch.empty(3, 5, 2, 2).to(memory_format=torch.channels_last)
        reduce_partials([Partial(partial, out[None])])
        print(json.dumps(torch.allclose(out.permute(0, 2, 3, 1), partial.sum((0, 1)), atol=1e-6)))
    else:
        print(json.dumps([errors(case) for case in CASES]))
