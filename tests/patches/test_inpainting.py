"""Inpainting by patches: what fills a hole, what stays, and what is refused."""

import numpy as np
import pytest
import torch

from sinfusion import patches
from sinfusion.metrics import psnr
from sinfusion.patches.inpainting import fill_smoothly
from sinfusion.patches.videos import to_frames, to_tensor


def difference(a, b):
    return np.abs(a.astype(int) - b).mean()


def redness(part):
    """Share of pixels that are more red than blue."""
    return (part[..., 0] > part[..., 2]).mean()


@pytest.fixture(scope="module")
def waves():
    """(13, 24, 40, 3): waves of 8 pixels along rows, moving one pixel a frame, and along columns."""
    t, y, x = np.meshgrid(np.arange(13), np.arange(24), np.arange(40), indexing="ij")
    along, across = np.sin((x + t) * np.pi / 4), np.sin(y * np.pi / 4)
    return (127 + 100 * np.stack((along, across, -along), -1)).astype(np.uint8)


def smoothly_filled(video, mask):
    hole = torch.from_numpy(np.broadcast_to(mask, video.shape[:3]).copy())
    return to_frames(fill_smoothly(to_tensor(video, "cpu"), hole))


def test_what_is_not_masked_stays_to_the_bit(video, hole):
    before = video.copy()
    outputs = patches.inpaint(video, hole)
    assert outputs.shape == video.shape and outputs.dtype == np.uint8
    assert np.array_equal(outputs[:, ~hole], video[:, ~hole]) and np.array_equal(video, before)


def test_what_is_under_the_mask_does_not_matter(video, hole):
    other = video.copy()
    other[:, hole] = (255, 0, 255)
    assert np.array_equal(patches.inpaint(video, hole), patches.inpaint(other, hole))


@pytest.mark.parametrize("length", [1, 13])
def test_a_hole_in_a_regular_texture_is_filled_as_it_was(waves, hole, length):
    part, bounds = waves[:length], (slice(None), slice(8, 16), slice(14, 26))
    outputs = patches.inpaint(part, hole)
    assert psnr(outputs[bounds], part[bounds]) > psnr(smoothly_filled(part, hole)[bounds], part[bounds]) + 10


def test_an_image_is_filled_as_a_video_of_one_frame(waves, hole):
    outputs = patches.inpaint(waves[0], hole)
    assert outputs.shape == (24, 40, 3) and np.array_equal(outputs, patches.inpaint(waves[:1], hole[None])[0])


def test_a_mask_for_all_frames_is_that_mask_for_each(video, hole):
    assert np.array_equal(patches.inpaint(video, hole), patches.inpaint(video, np.repeat(hole[None], 13, 0)))


def test_a_still_background_is_found_in_the_frames_that_show_it(fine):
    background = np.repeat(fine(1), 13, 0)
    video, mask = background.copy(), np.zeros((13, 24, 40), bool)
    for t in range(13):
        mask[t, 8:16, 2 * t : 2 * t + 8] = True
    video[mask] = (255, 0, 0)
    outputs = patches.inpaint(video, mask)
    assert difference(outputs[mask], background[mask]) < 0.6 * difference(
        smoothly_filled(video, mask)[mask], background[mask]
    )


def test_the_border_of_what_is_filled_is_no_step_in_brightness():
    grain = np.random.default_rng(0).integers(-8, 8, (32, 64, 1))
    image = (np.linspace(40, 200, 64)[:, None] + grain).repeat(3, 2).astype(np.uint8)
    mask = np.zeros((32, 64), bool)
    mask[:, 24:40] = True  # as bright as nothing else, so that patches alone would leave steps of 7
    outputs = patches.inpaint(image, mask).astype(int)
    for inside, outside in ((24, 23), (39, 40)):
        assert abs((outputs[:, inside] - outputs[:, outside]).mean()) < 3


def test_hints_decide_which_of_two_textures_fills_the_hole():
    rng = np.random.default_rng(0)
    red, blue = (np.array(c) + rng.integers(-40, 40, (20, 24, 1)) for c in ((200, 60, 60), (60, 60, 200)))
    image, mask = np.concatenate((red, blue), 1).astype(np.uint8), np.zeros((20, 48), bool)
    mask[:, 16:32] = True
    for colour, least, most in (((200, 60, 60), 0.9, 1), ((60, 60, 200), 0, 0.1)):
        image[mask] = colour
        outputs = patches.inpaint(image, mask, hints=True)
        assert least <= redness(outputs[mask]) <= most
        assert outputs[mask][:, 1].std() > 15  # a texture, not the even colour of the hint
    assert 0.3 < redness(patches.inpaint(image, mask)[mask]) < 0.7


def test_a_hole_may_reach_the_border_and_span_whole_frames(video):
    for where in ((slice(None), slice(0, 9), slice(0, 12)), (slice(4, 8),), (5, 23, 39)):
        mask = np.zeros((13, 24, 40), bool)
        mask[where] = True
        outputs = patches.inpaint(video, mask)
        assert np.array_equal(outputs[~mask], video[~mask]) and (outputs[mask] != 0).any()


def test_masks_that_are_none_are_refused(video, hole, refusal):
    wanted = r"(13, 24, 40) or (24, 40) bool"
    for mask in (hole[1:], np.repeat(hole[None], 12, 0)):
        assert wanted in refusal(patches.inpaint, video, mask)
    assert "the mask must be" in refusal(patches.inpaint, video, None)
    assert "empty" in refusal(patches.inpaint, video, ~np.ones((24, 40), bool))
    sparse = np.zeros((24, 40), bool)
    sparse[::5, ::5] = True
    for mask in (np.ones((24, 40), bool), np.ones((13, 24, 40), bool), sparse):
        assert "too little" in refusal(patches.inpaint, video, mask)
