"""benchmarks/emulate_fp8.py: what is rounded, how, and what is not."""

import emulate_fp8
import pytest
import torch

from sinfusion import ops
from sinfusion.network import ConvNeXtBlock


def test_numbers_keep_four_bits_and_large_ones_are_clamped():
    x = torch.tensor([[[[1.0625, 1.07, -17.0, 3e-4, 1000.0]]]]).bfloat16()
    found = emulate_fp8.rounded(x, torch.tensor(2.0**-1))
    assert found.flatten().tolist() == [1.0, 1.125, -16.0, 0.0, 224.0]


@pytest.mark.parametrize("largest", [1e-3, 3.4, 448.0, 449.0])
def test_the_scale_is_the_least_power_of_two_that_holds_the_largest_number(largest):
    scale = float(emulate_fp8.scale_for(torch.tensor(largest)))
    assert largest / scale <= emulate_fp8.LARGEST < 2 * largest / scale


@torch.no_grad()
def test_a_block_is_rounded_after_calibration_but_for_its_residual_and_a_first_one():
    torch.manual_seed(0)
    fp8 = emulate_fp8.Fp8(ops.dense)
    inner, first = ConvNeXtBlock(32, 16, 4), ConvNeXtBlock(6, 16, 4, norm=False)
    for block, channels in ((inner, 32), (first, 6)):
        x, shift = torch.randn(1, channels, 6, 5).bfloat16(), torch.randn(1, channels)
        exact = block(x, shift)[0]
        fp8.calibrating = True
        with emulate_fp8.emulated(fp8):
            assert torch.equal(block(x, shift)[0], exact)
            fp8.calibrating = False
            off = ((block(x, shift)[0] - exact).norm() / exact.norm()).item()
        assert 1e-3 < off < 0.1
    assert fp8.weights.keys() == {layer.weight.data_ptr() for layer in (inner.expand, inner.project, first.project)}
