"""Nearest-neighbour fields, their diversity, error and image."""

import zlib

import numpy as np
import pytest
import torch

from sinfusion.metrics.nearest_neighbors import field_image, nnf, nnfdist, nnfdiv


def test_every_patch_of_a_video_finds_itself_in_it(clouds):
    video = clouds()
    field, distance = nnf(video, video)
    assert field.shape == (6, 24, 28, 3) and field.dtype == np.int16
    assert distance.shape == (6, 24, 28) and distance.dtype == np.float32
    assert not field.any() and nnfdist(distance) == 0


def test_every_patch_of_a_cutout_finds_the_place_that_it_was_cut_from_so_that_it_counts_as_no_diversity(clouds):
    video = clouds()
    field, distance = nnf(video[2:7, 5:23, 3:25], video)
    assert (field == (2, 5, 3)).all() and nnfdist(distance) == 0
    assert nnfdiv(field) < 0.02


def test_a_distance_is_the_sum_of_squared_differences_at_the_place_that_the_field_names(clouds, patches):
    generated, original = clouds(6, seed=1), clouds(7, (28, 24))
    field, distance = nnf(generated, original, (3, 5, 3))
    own, key = patches(generated, (3, 5, 3)), patches(original, (3, 5, 3))
    places = np.stack(np.indices(field.shape[:3]), -1) + field
    expected = (own - key[tuple(np.moveaxis(places, -1, 0))]).square().sum(-1)
    np.testing.assert_allclose(distance, expected, rtol=2e-3, atol=1e-3)  # the operator rounds to whole numbers


def test_hardly_any_patch_has_a_nearer_neighbour_than_the_field_says(clouds, patches):
    generated, original = clouds(6, seed=1), clouds(6)
    own, key = (patches(video, (3, 3, 3)).flatten(0, 2) for video in (generated, original))
    nearest = torch.cdist(own, key).square().min(1).values.mean().item()
    _, distance = nnf(generated, original)
    assert nearest <= nnfdist(distance) < 1.1 * nearest


def test_the_field_is_a_function_of_the_seed(clouds):
    generated, original = clouds(4, (24, 32), seed=1), clouds(4, (24, 32))
    one, again, other = (nnf(generated, original, seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_frames_in_another_order_are_more_diverse_and_less_close_than_the_video(clouds, shuffled):
    video = clouds()
    field, distance = nnf(video, video)
    other_field, other_distance = nnf(shuffled(video), video)
    assert nnfdiv(other_field) > 10 * nnfdiv(field)
    assert nnfdist(other_distance) > nnfdist(distance)


def test_the_error_grows_with_noise(clouds, noisy):
    video = clouds(6, (18, 20))
    errors = [nnfdist(nnf(noisy(video, deviation), video)[1]) for deviation in (0, 4, 16)]
    assert errors[0] < errors[1] < errors[2]


def test_the_error_of_a_constant_difference_is_its_square_for_each_of_the_81_values_of_a_patch():
    dark, bright = np.full((4, 8, 9, 3), 100, np.uint8), np.full((5, 10, 8, 3), 110, np.uint8)
    assert nnfdist(nnf(dark, bright)[1]) == pytest.approx(81 * (10 / 127.5) ** 2, rel=1e-5)


def test_an_image_is_a_video_of_one_frame_with_patches_one_frame_deep(clouds):
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


def test_the_image_of_an_image_s_field_has_its_own_size(clouds):
    image = clouds(1)[0]
    field, _ = nnf(image[3:20], image)
    assert field_image(field).shape == (1, 15, 28, 3)
