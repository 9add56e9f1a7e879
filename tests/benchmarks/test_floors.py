"""The floors of benchmarks/floors.py: counted by hand, and against the network itself."""

import pytest
from floors import (
    NORMAL,
    Limits,
    Network,
    Work,
    adam_ema,
    ddpm_step,
    dense_forward,
    dense_input_gradient,
    dense_weight_gradient,
    depthwise_norm_backward,
    depthwise_norm_forward,
    evaluations,
    gelu_backward,
    network_backward,
    network_forward,
    parameters,
    sample_crops,
    seconds,
    total,
    total_seconds,
    training_step,
)

from sinfusion.network import NextNet

PIXELS = 136 * 243


def test_the_default_network_makes_9_mflop_a_pixel_and_a_third_of_a_tflop_an_image():
    work = total(network_forward(PIXELS, Network()))
    operations = work.dense + work.depthwise
    assert operations / PIXELS == pytest.approx(9e6, rel=0.01)
    assert operations == pytest.approx(0.3e12, rel=0.02)


def test_a_3x3_convolution_by_hand():
    # 10 pixels, 4 -> 6 channels: 9 x 24 weights of 2 bytes, 10 x 4 numbers in, 10 x 6 out.
    assert dense_forward(10, 4, 6) == Work(2 * 216 + 2 * 40 + 2 * 60, dense=2 * 10 * 216)
    assert dense_forward(10, 4, 6, residual=True, save=True).bytes == 2 * 216 + 2 * 40 + 3 * 2 * 60
    assert dense_input_gradient(10, 4, 6) == Work(2 * 216 + 2 * 40 + 2 * 60, dense=4320)
    assert dense_weight_gradient(10, 4, 6) == Work(4 * 216 + 2 * 40 + 2 * 60, dense=4320)


def test_the_other_operators_by_hand():
    taps = 4 * 49 * 8
    assert depthwise_norm_forward(10, 8) == Work(2 * 2 * 80 + taps, depthwise=98 * 80)
    assert depthwise_norm_forward(10, 8, save=True).bytes == 3 * 2 * 80 + taps + 10 * 8
    assert depthwise_norm_backward(10, 8) == Work(4 * 2 * 80 + 2 * taps + 10 * 8, depthwise=2 * 98 * 80)
    assert gelu_backward(10, 8).bytes == 3 * 2 * 80
    assert sample_crops(10, conditions=1).bytes == 10 * (3 + 3 + 6 * 2 + 3 * 4)
    assert ddpm_step(10).bytes == 10 * 3 * (4 + 4 + 2 + 2)
    assert ddpm_step(10, prior_mean=True).bytes == 10 * 3 * (4 + 4 + 2 + 2 + 4)
    assert adam_ema(100).bytes == 100 * (5 * 4 + 4 * 4 + 2)


def test_where_there_are_no_products_everything_else_is_counted():
    # A decay of two moments and an average: 3, 4 and 3; the root 1; the update 5.
    assert adam_ema(100).operations == 100 * 16
    # The clean estimate 3 and its bounds 2, the state 5, the next input 1; a prior mean 2 in the first and last.
    assert ddpm_step(10).operations == 10 * 3 * (11 + NORMAL)
    assert ddpm_step(10, prior_mean=True).operations - ddpm_step(10).operations == 10 * 3 * 4
    # Two images to [-1, 1] 2 each, white noise 2 + 1 for their mean, image and target 5 each.
    assert sample_crops(10, conditions=1).operations == 10 * 3 * (4 + 3 + 10 + 2 * NORMAL)
    assert gelu_backward(10, 8).operations == 13 * 80
    assert dense_forward(10, 4, 6).operations == 2 * 10 * 216


@pytest.mark.parametrize("network", [Network(), Network(3), Network(9, 32, 12, 1), Network(6, 8, 5)])
def test_parameters_are_those_of_the_network(network):
    real = NextNet(network.in_channels, 3, *network[1:], frame_offset=network.in_channels == 6)
    assert parameters(network) == sum(p.numel() for p in real.parameters())
    assert network.widths == [block.depthwise.in_channels for block in real.blocks]


def test_a_training_step_multiplies_three_times_as_much_as_a_forward_but_for_the_gradient_of_its_input():
    forward, backward = (total(f(PIXELS, Network())) for f in (network_forward, network_backward))
    assert backward.dense == 2 * forward.dense - 2 * PIXELS * 6 * 64
    assert backward.depthwise == 2 * forward.depthwise - 98 * PIXELS * 6
    assert total(training_step(PIXELS, Network())).dense == forward.dense + backward.dense


def test_a_floor_is_the_slowest_of_memory_tensor_cores_and_arithmetic_one_operator_after_the_other():
    limits = Limits(copy=10.0, cached_copy=20.0, cache=100, matrix=50.0, arithmetic=5.0)
    assert seconds(Work(100), limits) == 5.0
    assert seconds(Work(110), limits) == 11.0
    assert seconds(Work(100, dense=500), limits) == 10.0
    assert seconds(Work(100, dense=500, depthwise=100), limits) == 20.0
    assert total_seconds([Work(100), Work(110)], limits) == 16.0


def test_a_frame_is_as_many_evaluations_each_with_a_step():
    frame = evaluations(PIXELS, Network(), 50)
    assert total(frame).bytes == 50 * (total(network_forward(PIXELS, Network())).bytes + ddpm_step(PIXELS).bytes)
