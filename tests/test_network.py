"""NextNet: size to the digit, what it can see, what it depends on, dtypes."""

import pytest
import torch

from sinfusion.network import ConvNeXtBlock, NextNet
from sinfusion.recipe import PAPER, TINY
from sinfusion.roles import ROLES


def weights_of_the_published_network(in_channels, filters, depth, encoders):
    """Number of weights, added up from the description of the released network."""
    embedding = filters * encoders
    total = encoders * (filters * 4 * filters + 4 * filters + 4 * filters * filters + filters) + 3 * filters + 3
    for block in range(depth):
        width = in_channels if block == 0 else filters if block < (depth + 1) // 2 else 2 * filters
        total += 49 * width + width  # depthwise
        total += embedding * width + width  # shift
        total += 2 * width if block else 0  # norm
        total += 9 * width * 3 * filters + 3 * filters + 9 * 3 * filters * filters + filters  # dense
        total += width * filters + filters if width != filters else 0  # residual
    return total


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_predictor_has_4727925_weights():
    assert count(NextNet(6, filters=64, depth=16, frame_offset=True)) == 4_727_925


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
@pytest.mark.parametrize(("filters", "depth"), [(64, 16), (8, 3), (12, 2)])
def test_every_network_has_the_number_of_weights_of_its_description(role, filters, depth):
    network = NextNet(role.in_channels, filters=filters, depth=depth, frame_offset=role.frame_offset)
    assert count(network) == weights_of_the_published_network(
        role.in_channels, filters, depth, 2 if role.frame_offset else 1
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return NextNet(6, filters=8, depth=3, frame_offset=True)


def inputs(batch=2, size=(13, 17)):
    torch.manual_seed(1)
    return torch.randn(batch, 6, *size), torch.linspace(0.2, 0.9, batch), torch.arange(1, batch + 1)


@pytest.mark.parametrize("size", [(8, 8), (13, 17), (1, 30)])
def test_any_size_goes_in_and_three_channels_of_that_size_come_out(network, size):
    assert network(*inputs(size=size)).shape == (2, 3, *size)


@pytest.mark.parametrize("recipe", [TINY, PAPER, TINY.replace(depth=5)], ids=["tiny", "paper", "shallow"])
def test_a_recipe_knows_what_its_network_sees(recipe):
    assert recipe.receptive == 1 + 2 * NextNet(3, 3, 4, recipe.depth, recipe.dense_kernel).reach
    assert recipe.with_receptive(recipe.receptive) == recipe


@pytest.mark.parametrize(("dense_kernel", "reach"), [(3, 10), (1, 6)])
def test_two_blocks_see_as_far_as_their_kernels_add_up_to(dense_kernel, reach):
    torch.manual_seed(0)
    network = NextNet(3, filters=8, depth=2, dense_kernel=dense_kernel).double()
    x = torch.randn(1, 3, 31, 31, dtype=torch.float64, requires_grad=True)
    shifts = torch.zeros(1, sum(block.shift.out_features for block in network.blocks), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(network.evaluate(x, shifts)[0, :, 15, 15].sum(), x)
    seen = gradient[0].abs().sum(0) > 0
    assert seen[15].nonzero().flatten().tolist() == list(range(15 - reach, 15 + reach + 1))


def test_time_and_frame_offset_change_the_output(network):
    x, time, offset = inputs()
    before = network(x, time, offset)
    for changed in (network(x, time + 0.1, offset), network(x, time, -offset)):
        assert (before - changed).abs().max() > 1e-4


def test_a_network_conditioned_on_the_frame_offset_must_be_told_it(network):
    x, time, _ = inputs()
    with pytest.raises(ValueError, match="frame_offset"):
        network(x, time)


def test_samples_of_a_batch_do_not_see_each_other(network):
    x, time, offset = inputs()
    together = network(x, time, offset)
    for i in range(2):
        alone = network(x[i : i + 1], time[i : i + 1], offset[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_every_weight_learns(network):
    network(*inputs()).square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_bf16_activations_keep_fp32_weights_gradients_and_output(network):
    exact = network(*inputs())
    network.dtype = torch.bfloat16
    output = network(*inputs())
    output.square().mean().backward()
    assert output.dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {p.grad.dtype for p in network.parameters()} == {torch.float32}
    assert (output - exact).norm() / exact.norm() < 0.02


def test_the_first_block_has_no_norm_and_blocks_of_one_width_no_residual_convolution():
    network = NextNet(3, filters=8, depth=4)
    assert [block.gain is not None for block in network.blocks] == [False, True, True, True]
    assert [block.residual is not None for block in network.blocks] == [True, False, True, True]


def test_a_block_of_zero_dense_weights_passes_its_input_through():
    block = ConvNeXtBlock(8, 8, 8)
    torch.nn.init.zeros_(block.project.weight)
    torch.nn.init.zeros_(block.project.bias)
    x = torch.randn(1, 8, 9, 9)
    assert all(torch.equal(value, x) for value in block(x, torch.randn(1, 8)))
