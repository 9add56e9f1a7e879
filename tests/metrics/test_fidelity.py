"""PSNR, change and high frequency, sliced Wasserstein distances of patches."""

import math

import numpy as np
import pytest

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.metrics.fidelity import (
    STREAM_PROJECTION,
    change,
    high_frequency,
    mean_psnr,
    psnr,
    relative_statistics,
    sliced_wasserstein,
)


def test_change_is_the_rms_between_neighbours_and_high_frequency_what_a_mean_of_9_takes_away():
    frames = np.zeros((4, 9, 9, 3), np.uint8)
    frames[1::2] = 10
    assert change(frames) == 10 and high_frequency(frames) == 0
    assert relative_statistics(frames[:1].repeat(4, 0), frames) == {"change": 0}
    point = np.zeros((1, 9, 9, 3), np.uint8)
    point[0, 4, 4] = 90
    assert high_frequency(point) == pytest.approx(np.sqrt((80**2 + 8 * 10**2) / 81))
    assert relative_statistics(point[0], point[0]) == {"high_frequency": 1}


def test_equal_frames_count_as_equal_up_to_rounding():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert mean_psnr(frames, frames) == pytest.approx(58.92, abs=0.01)
    assert mean_psnr(frames, frames + np.array([0, 255])[:, None, None, None]) == pytest.approx(58.92 / 2, abs=0.01)
    assert mean_psnr(frames + 0.5, frames) == pytest.approx(10 * np.log10(255**2 * 4))


def test_psnr_of_a_constant_difference_d_is_20_log_255_over_d_and_infinite_for_none():
    image = np.full((8, 9, 3), 100, np.uint8)
    for difference in (1, 5, 100):
        assert psnr(image, image + np.uint8(difference)) == pytest.approx(20 * math.log10(255 / difference))
    assert psnr(image, image) == math.inf
    with pytest.raises(SinfusionError, match="same shape"):
        psnr(image, image[1:])


def test_the_sliced_wasserstein_distance_is_that_of_sorted_projections_of_all_patches(clouds, patches):
    generated, original, patch = clouds(4, (9, 11), seed=1), clouds(4, (9, 11)), (2, 5, 3)
    directions = ops.normal([7], STREAM_PROJECTION, 0, (10, 3, *patch))[0].double()
    directions = (directions / directions.flatten(1).norm(dim=1)[:, None, None, None, None]).flatten(1)
    a, b = (patches(video, patch).flatten(0, 2) @ directions.T for video in (generated, original))
    expected = (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()
    assert sliced_wasserstein(generated, original, patch, 10, 1, seed=7) == [pytest.approx(expected, rel=1e-4)]


def test_the_sliced_wasserstein_distance_is_zero_between_equals_and_the_same_both_ways(clouds):
    a, b = clouds(5, (28, 32), seed=1), clouds(7, (36, 30))
    assert sliced_wasserstein(a, a) == [0, 0, 0]
    assert sliced_wasserstein(a, b) == sliced_wasserstein(b, a)
    assert min(sliced_wasserstein(a, b)) > 0.01


def test_the_sliced_wasserstein_distance_grows_with_noise_and_fine_noise_fades_with_the_scale(clouds, noisy):
    video = 64 + clouds(5, (48, 48)) // 2
    little, much = (sliced_wasserstein(noisy(video, deviation), video) for deviation in (4, 16))
    assert all(0 < 2 * a < b for a, b in zip(little, much, strict=True))
    assert much[0] > 2 * much[1]


def test_the_sliced_wasserstein_distance_hardly_sees_a_translation(clouds):
    wide = clouds(5, (50, 58), blur=20)
    here, there, elsewhere = wide[:, :48, :56], wide[:, 2:, 2:], clouds(5, (48, 56), seed=1, blur=200)
    moved, other = sliced_wasserstein(here, there), sliced_wasserstein(here, elsewhere)
    assert all(2 * a < b for a, b in zip(moved, other, strict=True))


def test_only_patches_in_time_see_the_order_of_frames(clouds, shuffled):
    video = clouds(8, (28, 28))
    assert sliced_wasserstein(shuffled(video), video, (1, 7, 7)) == [0, 0, 0]
    assert min(sliced_wasserstein(shuffled(video), video, (3, 7, 7))) > 0.01


def test_the_sliced_wasserstein_distance_of_adding_c_to_every_value_is_about_c():
    dark, bright = np.full((3, 8, 8, 3), 100, np.uint8), np.full((3, 8, 8, 3), 120, np.uint8)
    assert sliced_wasserstein(dark, bright, (2, 3, 3), 1000, 1) == [pytest.approx(20 / 127.5, rel=0.1)]


def test_a_video_and_the_same_twice_over_have_the_same_patches(clouds):
    video = clouds(4, (28, 30))
    assert sliced_wasserstein(np.concatenate((video, video)), video, (1, 7, 7)) == [0, 0, 0]


def test_images_have_sliced_wasserstein_distances_too(clouds):
    a, b = clouds(1, (30, 30), seed=1)[0], clouds(1, (30, 30))[0]
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a[None], b[None], (1, 7, 7))


def test_psnr_takes_the_memory_of_some_frames(large_clip, peak):
    outputs, bytes_ = peak(lambda: psnr(large_clip[1:], large_clip[:-1]))
    part, other = large_clip[1:, :64, :64], large_clip[:-1, :64, :64]
    error = np.mean((part.astype(np.float64) - other) ** 2)
    assert psnr(part, other) == pytest.approx(10 * math.log10(255**2 / error), rel=1e-12)
    assert bytes_ < large_clip.nbytes / 4 and outputs == pytest.approx(psnr(part, other), abs=0.5)
