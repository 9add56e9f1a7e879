"""The fine texture of a rollout stays within the clip's range."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sinfusion.generation.texture import FILTERS, GROUPS, QUANTILES, STRIDE, Texture, at_ranks
from sinfusion.generation.video import next_frame
from sinfusion.pixels import to_unit
from sinfusion.scene import render

FRAMES = to_unit(torch.from_numpy(np.asarray(render(12, (40, 64))))).contiguous()  # (12, 3, 40, 64)
CLIP = FRAMES.movedim(1, -1).contiguous()


def blurred(images):
    return F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


def detail(images):
    return (images - blurred(images)).square().mean().sqrt()


def test_the_clips_frames_stay_as_they_are():
    texture = Texture(CLIP)
    for index in (0, 11):
        for frame_index in range(GROUPS):
            moved = texture(FRAMES[index : index + 1], frame_index)
            torch.testing.assert_close(moved, FRAMES[index : index + 1], atol=2e-3, rtol=0)


def test_detail_that_faded_comes_back_where_it_was():
    frame = FRAMES[5:6]
    texture, faded = Texture(CLIP), (frame + blurred(frame)) / 2
    image = faded
    for frame_index in range(40):
        image = texture(image, frame_index)
    assert detail(image) > 1.1 * detail(faded)
    assert (image - frame).square().mean() < 0.85 * (faded - frame).square().mean()


def test_nothing_is_weakened():
    """Four times the contrast, as of a rollout with more things than any frame has, stays as it is."""
    rich = (0.5 * (FRAMES - FRAMES.mean((2, 3), keepdim=True))).clamp(-1, 1)
    texture = Texture((0.25 * rich).movedim(1, -1).contiguous())
    torch.testing.assert_close(texture(rich[:1], 0), rich[:1], atol=1e-3, rtol=0)


def test_a_sample_is_the_same_alone_and_among_others():
    texture, images = Texture(CLIP), blurred(FRAMES[:3])
    index = torch.tensor(6)
    together = texture(images, index)
    assert torch.equal(together[1:2], texture(images[1:2], index)) and torch.equal(together, texture(images, 6))
    assert not torch.equal(together, texture(images, 7))  # other filters
    assert torch.equal(together, texture(images, 6 + GROUPS))


@pytest.mark.parametrize("size", [(40, 64), (41, 65), (8, 9), (90, 33)])
def test_any_size_is_reached_whole(size):
    images = torch.zeros(1, 3, *size) + torch.linspace(-0.1, 0.1, size[1])
    moved = Texture(CLIP, 1.0)(images, 0)
    assert moved.shape == images.shape and moved.abs().max() <= 1
    covered = [side - (side - 7) % STRIDE for side in size]
    assert (moved - images)[..., : covered[0], : covered[1]].abs().amin((0, 1)).gt(0).float().mean() > 0.9


def test_a_range_holds_the_quantiles_of_each_frame():
    texture = Texture(CLIP)
    assert texture.least.shape == texture.most.shape == (GROUPS, FILTERS, QUANTILES)
    for frame in FRAMES:
        responses = F.conv2d(frame[None], texture.filters[2], stride=STRIDE)[0].flatten(1).sort(1).values
        quantiles = at_ranks(responses, QUANTILES)
        assert (quantiles >= texture.least[2]).all() and (quantiles <= texture.most[2]).all()


def test_rollouts_keep_it_where_they_are_projected_and_free(video_run):
    assert next_frame(video_run).texture is not None
    assert next_frame(video_run, projection=0.5).texture.share == pytest.approx(
        0.5 * next_frame(video_run).texture.share
    )
    assert next_frame(video_run, projection=0.0).texture is None
    assert next_frame(video_run, sigma_start=0.1).texture is None  # a target has the texture that is wanted
