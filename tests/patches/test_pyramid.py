"""Which levels a pyramid has, and videos at other sizes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinfusion.patches.pyramid import level_scales, resample, scaled_shape

SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 2000), st.integers(1, 2000))
FACTORS = st.tuples(st.floats(0.5, 0.95), st.floats(0.5, 0.95))
COARSEST = st.tuples(st.integers(1, 10), st.integers(1, 50))


@given(SHAPES, FACTORS, COARSEST)
def test_levels_begin_at_the_coarsest_size_and_end_at_the_original(shape, factors, coarsest):
    scales = level_scales(shape, factors, coarsest)
    least = min(coarsest[0], shape[0]), min(coarsest[1], *shape[1:])
    sizes = [(time * shape[0], space * min(shape[1:])) for time, space in scales]
    assert sizes[0] == pytest.approx(least) and scales[-1] == (1.0, 1.0)
    assert all(time > least[0] - 1e-6 and space > least[1] - 1e-6 for time, space in sizes)


@given(SHAPES, FACTORS, COARSEST)
def test_each_level_is_the_next_finer_one_times_the_factors_until_a_side_is_the_coarsest(shape, factors, coarsest):
    scales = level_scales(shape, factors, coarsest)
    assert len(set(scales)) == len(scales)
    for axis in (0, 1):
        for below, above in pairwise(scales):
            assert below[axis] == pytest.approx(above[axis] * factors[axis]) or below[axis] == scales[0][axis]


@pytest.mark.parametrize("shape", [(3, 15, 40), (1, 9, 200), (2, 15, 15)])
def test_what_is_no_larger_than_the_coarsest_size_has_one_level(shape):
    assert level_scales(shape, (0.85, 0.85), (3, 15)) == [(1.0, 1.0)]


def test_time_and_space_reach_their_coarsest_size_at_levels_of_their_own():
    short, small = level_scales((3, 60, 80), (0.5, 0.5), (3, 15)), level_scales((12, 15, 80), (0.5, 0.5), (3, 15))
    assert short == [(1, 0.25), (1, 0.5), (1, 1)] and small == [(0.25, 1), (0.5, 1), (1, 1)]


@given(SHAPES, st.floats(0.01, 3), st.floats(0.01, 3))
def test_a_shape_is_scaled_in_time_and_in_space_and_rounded_up(shape, time, space):
    frames, height, width = scaled_shape(shape, (time, space), (3, 7, 7))
    for outputs, side, scale, least in zip(
        (frames, height, width), shape, (time, space, space), (3, 7, 7), strict=True
    ):
        assert outputs == least or 0 <= outputs - side * scale + 1e-6 <= 1 + 1e-5
        assert outputs >= least


def test_a_scale_that_gives_a_whole_number_gives_that_number_whatever_the_rounding_of_floats():
    for side in range(15, 400):
        assert scaled_shape((side, side, side), (3 / side, 15 / side), (1, 1, 1)) == (3, 15, 15)


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.floats(-1, 1, width=32))
def test_a_constant_stays_that_constant_at_every_size(shape, other, value):
    video = torch.full((*shape, 2), value)
    outputs = resample(video, other)
    assert outputs.shape == (*other, 2) and outputs.is_contiguous()
    torch.testing.assert_close(outputs, torch.full_like(outputs, value), rtol=1e-5, atol=1e-6)


def test_a_video_at_its_own_size_is_itself():
    video = torch.randn(3, 5, 6, 3)
    assert torch.equal(resample(video, (3, 5, 6)), video)


def test_shrinking_is_antialiased_in_space_and_in_time():
    checks = torch.ones(8, 32, 32, 1)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = -1
    flicker = torch.ones(32, 8, 8, 1)
    flicker[::2] = -1
    for video, picked, shape in ((checks, checks[:, ::3, ::3], (8, 11, 11)), (flicker, flicker[::3], (11, 8, 8))):
        assert picked.std() > 0.9 and resample(video, shape).abs().max() < 0.35


@pytest.mark.parametrize("shape", [(5, 12, 20), (1, 12, 20), (10, 9, 13), (3, 24, 14)])
def test_a_slope_stays_a_slope_along_each_axis(shape):
    t, y, x = torch.meshgrid(*(torch.linspace(0.5 / n, 1 - 0.5 / n, n) for n in (5, 12, 20)), indexing="ij")
    outputs = resample(torch.stack((t, y, x), -1), shape)
    axes = torch.meshgrid(*(torch.linspace(0.5 / n, 1 - 0.5 / n, n) for n in shape), indexing="ij")
    assert (outputs - torch.stack(axes, -1)).abs().max() < 0.06  # of edge pixels; 0.5 would be another order


def test_one_frame_is_repeated_and_each_frame_is_resized_by_itself():
    image, video = torch.randn(1, 8, 8, 3), torch.randn(4, 8, 8, 3)
    assert torch.allclose(resample(image, (5, 8, 8)), image.expand(5, -1, -1, -1), atol=1e-6)
    outputs = resample(video, (4, 11, 6))
    for t in range(4):
        torch.testing.assert_close(outputs[t : t + 1], resample(video[t : t + 1], (1, 11, 6)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [6, 9, 12, 17])
def test_along_an_axis_that_wraps_a_rolled_video_is_resampled_to_the_same_rolled(axis, size):
    video = torch.rand(12, 12, 12, 2)
    shape = tuple(size if i == axis else 12 for i in range(3))
    wraps = tuple(i == axis for i in range(3))
    rolled = resample(video.roll(4, axis), shape, wraps)
    if size % 3 == 0:
        assert torch.allclose(rolled, resample(video, shape, wraps).roll(size // 3, axis), atol=1e-5)
    assert rolled.shape == (*shape, 2)
    other = tuple(size if i == axis else 12 for i in range(3))
    assert torch.allclose(resample(torch.ones(12, 12, 12, 1), other, wraps), torch.ones(*other, 1), atol=1e-5)
