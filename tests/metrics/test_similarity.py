"""Nearest-neighbour fields, their diversity, error and image; PSNR; sliced Wasserstein distances of patches."""

import math
import zlib

import numpy as np
import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.metrics.similarity import (
    STREAM_PROJECTION,
    field_image,
    nnf,
    nnfdist,
    nnfdiv,
    psnr,
    sliced_wasserstein,
)


def clouds(frames=8, size=(26, 30), seed=0, blur=60):
    """(frames, H, W, 3) uint8: noise smooth in space and time, in which no two patches are alike."""
    shape = (3, frames, *size)
    spectrum = np.fft.fftn(np.random.default_rng(seed).normal(size=shape), axes=(1, 2, 3))
    squares = sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in shape[1:]), indexing="ij"))
    smooth = np.fft.ifftn(spectrum * np.exp(-blur * squares), axes=(1, 2, 3)).real
    return (128 + 45 * smooth / smooth.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 3, 0)


def noisy(frames, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def unit(frames):
    return torch.from_numpy(frames).double() / 127.5 - 1


def patches(frames, patch):
    """(t, y, x, values) of a video (T, H, W, 3) in [-1, 1]."""
    for axis, side in enumerate(patch):
        frames = frames.unfold(axis, side, 1)
    return frames.flatten(3)


def shuffled(frames):
    return frames[np.random.default_rng(0).permutation(len(frames))]


def test_every_patch_of_a_video_finds_itself_in_it():
    video = clouds()
    field, distance = nnf(video, video)
    assert field.shape == (6, 24, 28, 3) and field.dtype == np.int16
    assert distance.shape == (6, 24, 28) and distance.dtype == np.float32
    assert not field.any() and nnfdist(distance) == 0


def test_every_patch_of_a_cutout_finds_the_place_that_it_was_cut_from_so_that_it_counts_as_no_diversity():
    video = clouds()
    field, distance = nnf(video[2:7, 5:23, 3:25], video)
    assert (field == (2, 5, 3)).all() and nnfdist(distance) == 0
    assert nnfdiv(field) < 0.02


def test_a_distance_is_the_sum_of_squared_differences_at_the_place_that_the_field_names():
    generated, original = clouds(6, seed=1), clouds(7, (28, 24))
    field, distance = nnf(generated, original, (3, 5, 3))
    own, key = patches(unit(generated), (3, 5, 3)), patches(unit(original), (3, 5, 3))
    places = np.stack(np.indices(field.shape[:3]), -1) + field
    expected = (own - key[tuple(np.moveaxis(places, -1, 0))]).square().sum(-1)
    np.testing.assert_allclose(distance, expected, rtol=2e-3, atol=1e-3)  # the operator rounds to whole numbers


def test_hardly_any_patch_has_a_nearer_neighbour_than_the_field_says():
    generated, original = clouds(6, seed=1), clouds(6)
    own, key = (patches(unit(video), (3, 3, 3)).flatten(0, 2) for video in (generated, original))
    nearest = torch.cdist(own, key).square().min(1).values.mean().item()
    _, distance = nnf(generated, original)
    assert nearest <= nnfdist(distance) < 1.1 * nearest


def test_the_field_is_a_function_of_the_seed():
    generated, original = clouds(4, (24, 32), seed=1), clouds(4, (24, 32))
    one, again, other = (nnf(generated, original, seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_frames_in_another_order_are_more_diverse_and_less_close_than_the_video():
    video = clouds()
    field, distance = nnf(video, video)
    other_field, other_distance = nnf(shuffled(video), video)
    assert nnfdiv(other_field) > 10 * nnfdiv(field)
    assert nnfdist(other_distance) > nnfdist(distance)


def test_the_error_grows_with_noise():
    video = clouds(6, (18, 20))
    errors = [nnfdist(nnf(noisy(video, deviation), video)[1]) for deviation in (0, 4, 16)]
    assert errors[0] < errors[1] < errors[2]


def test_the_error_of_a_constant_difference_is_its_square_for_each_of_the_81_values_of_a_patch():
    dark, bright = np.full((4, 8, 9, 3), 100, np.uint8), np.full((5, 10, 8, 3), 110, np.uint8)
    assert nnfdist(nnf(dark, bright)[1]) == pytest.approx(81 * (10 / 127.5) ** 2, rel=1e-5)


def test_an_image_is_a_video_of_one_frame_with_patches_one_frame_deep():
    image, original = clouds(1, seed=1)[0], clouds(1)[0]
    field, distance = nnf(image, original)
    assert field.shape == (1, 24, 28, 3) and not field[..., 0].any()
    from_videos = nnf(image[None], original[None], (1, 3, 3))
    assert np.array_equal(field, from_videos[0]) and np.array_equal(distance, from_videos[1])
    in_a_video, _ = nnf(image, np.stack((original, image)))
    assert (in_a_video == (1, 0, 0)).all()


def released_formula(field):
    """NNFDIV as the released code has it: a float tensor (1, 3, T, H, W) cast to bytes and compressed."""
    tensor = torch.from_numpy(field).permute(3, 0, 1, 2)[None].float()
    raw = tensor.long().to(torch.uint8).contiguous().numpy()  # by way of integers: negative ones wrap everywhere
    return len(zlib.compress(raw)) / raw.size


def test_diversity_is_that_of_the_released_formula():
    rng = np.random.default_rng(0)
    rough = rng.integers(-300, 300, (5, 12, 17, 3)).astype(np.int16)
    smooth = rng.integers(-5, 5, (5, 3, 1, 3)).astype(np.int16).repeat(4, 1).repeat(17, 2)
    for field in (rough, smooth, rough[:1]):
        assert nnfdiv(field) == released_formula(field)
    assert nnfdiv(smooth) < 0.2 < 0.9 < nnfdiv(rough)


def test_the_diversity_of_an_image_is_that_of_its_offsets_in_space():
    field = np.random.default_rng(0).integers(-40, 40, (1, 20, 20, 3)).astype(np.int16)
    field[..., 0] = 0
    raw = (field[..., 1:] % 256).astype(np.uint8).transpose(3, 0, 1, 2).tobytes()
    assert nnfdiv(field) == len(zlib.compress(raw)) / 800


def test_the_image_of_a_field_shows_direction_as_hue_and_time_as_grey_below():
    field = np.zeros((2, 2, 3, 3), np.int16)
    field[0, 0] = [(0, 0, 8), (0, 0, -8), (0, 0, 4)]
    field[1, 1] = [(-6, 0, 0), (6, 0, 0), (3, 0, 0)]
    image = field_image(field)
    assert image.shape == (2, 4, 3, 3) and image.dtype == np.uint8
    right, left, half = image[0, 0].astype(int)
    assert right[0] > 250 > 80 > max(right[1:])  # red
    assert left[0] < 5 < 180 < min(left[1:])  # cyan
    assert (np.abs(half - (right + 255) / 2) < 1).all()
    assert (image[0, 1] == 255).all()  # nothing moved: white above, mid grey below
    assert (image[0, 2:] == image[0, 2, 0]).all() and image[0, 2, 0, 0] in (127, 128)
    earlier, later, sooner = image[1, 3, :, 0]
    assert earlier == 0 and later == 255 and 128 < sooner < 255


def test_the_image_of_an_image_s_field_has_its_own_size():
    image = clouds(1)[0]
    field, _ = nnf(image[3:20], image)
    assert field_image(field).shape == (1, 15, 28, 3)


def test_psnr_of_a_constant_difference_d_is_20_log_255_over_d_and_infinite_for_none():
    image = np.full((8, 9, 3), 100, np.uint8)
    for difference in (1, 5, 100):
        assert psnr(image, image + np.uint8(difference)) == pytest.approx(20 * math.log10(255 / difference))
    assert psnr(image, image) == math.inf
    with pytest.raises(SinfusionError, match="same shape"):
        psnr(image, image[1:])


def test_the_sliced_wasserstein_distance_is_that_of_sorted_projections_of_all_patches():
    generated, original, patch = clouds(4, (9, 11), seed=1), clouds(4, (9, 11)), (2, 5, 3)
    directions = ops.normal([7], STREAM_PROJECTION, 0, (10, 3, *patch))[0].double()
    directions = (directions / directions.flatten(1).norm(dim=1)[:, None, None, None, None]).flatten(1)
    a, b = (patches(unit(video), patch).flatten(0, 2) @ directions.T for video in (generated, original))
    expected = (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()
    assert sliced_wasserstein(generated, original, patch, 10, 1, seed=7) == [pytest.approx(expected, rel=1e-4)]


def test_the_sliced_wasserstein_distance_is_zero_between_equals_and_the_same_both_ways():
    a, b = clouds(5, (28, 32), seed=1), clouds(7, (36, 30))
    assert sliced_wasserstein(a, a) == [0, 0, 0]
    assert sliced_wasserstein(a, b) == sliced_wasserstein(b, a)
    assert min(sliced_wasserstein(a, b)) > 0.01


def test_the_sliced_wasserstein_distance_grows_with_noise_and_fine_noise_fades_with_the_scale():
    video = 64 + clouds(5, (48, 48)) // 2
    little, much = (sliced_wasserstein(noisy(video, deviation), video) for deviation in (4, 16))
    assert all(0 < 2 * a < b for a, b in zip(little, much, strict=True))
    assert much[0] > 2 * much[1]


def test_the_sliced_wasserstein_distance_hardly_sees_a_translation():
    wide = clouds(5, (50, 58), blur=20)
    here, there, elsewhere = wide[:, :48, :56], wide[:, 2:, 2:], clouds(5, (48, 56), seed=1, blur=200)
    moved, other = sliced_wasserstein(here, there), sliced_wasserstein(here, elsewhere)
    assert all(2 * a < b for a, b in zip(moved, other, strict=True))


def test_only_patches_in_time_see_the_order_of_frames():
    video = clouds(8, (28, 28))
    assert sliced_wasserstein(shuffled(video), video, (1, 7, 7)) == [0, 0, 0]
    assert min(sliced_wasserstein(shuffled(video), video, (3, 7, 7))) > 0.01


def test_the_sliced_wasserstein_distance_of_adding_c_to_every_value_is_about_c():
    dark, bright = np.full((3, 8, 8, 3), 100, np.uint8), np.full((3, 8, 8, 3), 120, np.uint8)
    assert sliced_wasserstein(dark, bright, (2, 3, 3), 1000, 1) == [pytest.approx(20 / 127.5, rel=0.1)]


def test_a_video_and_the_same_twice_over_have_the_same_patches():
    video = clouds(4, (28, 30))
    assert sliced_wasserstein(np.concatenate((video, video)), video, (1, 7, 7)) == [0, 0, 0]


def test_images_have_sliced_wasserstein_distances_too():
    a, b = clouds(1, (30, 30), seed=1)[0], clouds(1, (30, 30))[0]
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a[None], b[None], (1, 7, 7))


@pytest.mark.parametrize("measure", [nnf, sliced_wasserstein, psnr])
def test_what_is_not_an_image_or_a_video_is_refused(measure):
    for other, words in ((np.full((30, 30, 3), 2.0), "floats from 0 to 1.*float64"), ("a.png", "uint8.*not str")):
        with pytest.raises(SinfusionError, match=words):
            measure(other, np.zeros((30, 30, 3), np.uint8))


def test_patches_and_scales_that_do_not_fit_are_refused_before_any_work():
    video = clouds(4, (20, 30))
    with pytest.raises(SinfusionError, match=r"original has 2 frames of 30x20: .* patches of 3 frames of 3x3\."):
        nnf(video, video[:2])
    with pytest.raises(SinfusionError, match="three sizes from 1 on"):
        nnf(video, video, (3, 3))
    with pytest.raises(SinfusionError, match=r"generated, at its smallest scale, has 4 frames of 7x5: .* 7x7"):
        sliced_wasserstein(video, video)
    with pytest.raises(SinfusionError, match="1 or more, not 0 and 3"):
        sliced_wasserstein(video, video, projections=0)


def test_psnr_takes_the_memory_of_some_frames(large_clip, peak):
    outputs, bytes_ = peak(lambda: psnr(large_clip[1:], large_clip[:-1]))
    part, other = large_clip[1:, :64, :64], large_clip[:-1, :64, :64]
    error = np.mean((part.astype(np.float64) - other) ** 2)
    assert psnr(part, other) == pytest.approx(10 * math.log10(255**2 / error), rel=1e-12)
    assert bytes_ < large_clip.nbytes / 4 and outputs == pytest.approx(psnr(part, other), abs=0.5)
