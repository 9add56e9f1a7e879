"""Frames between frames: from a run and from a clip alone; lengths, what stays untouched, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinfusion.errors import SinfusionError
from sinfusion.generation.upsampling import FrameBetween, moved_half_way, upsample
from sinfusion.metrics.fidelity import mean_psnr
from sinfusion.pixels import to_unit


@pytest.fixture(params=["run", "clip"])
def source(request, video_run, clip):
    return video_run if request.param == "run" else clip


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upsampling_keeps_the_originals_untouched(source, clip, factor):
    outputs = upsample(source, factor, clip[:4]) if source is not clip else upsample(clip[:4], factor)
    assert outputs.shape == (3 * factor + 1, 16, 24, 3)
    assert np.array_equal(outputs[::factor], clip[:4])


def test_by_4_goes_by_way_of_2(source, clip):
    assert upsample(source).shape[0] == 2 * len(clip) - 1
    assert np.array_equal(upsample(source, 4)[::2], upsample(source, 2))


def test_a_run_takes_other_videos(video_run):
    other = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3)).astype(np.uint8)
    assert np.array_equal(upsample(video_run, 4, other)[::2], upsample(video_run, 2, other))


def test_frames_put_in_between_are_near_those_around_them(video_run, clip):
    """Hardly trained, the Interpolator answers with about their mean: noise would be far off."""
    outputs = upsample(video_run, 2).astype(float)
    mean = (outputs[:-2:2] + outputs[2::2]) / 2
    assert np.sqrt(np.mean((outputs[1::2] - mean) ** 2)) < 20


def test_of_a_clip_that_slides_the_frames_between_are_those_that_were_left_out(texture):
    frames = texture(9, (36, 64), step=2)
    new = upsample(frames[::2])[1::2]
    inside = np.s_[:, 6:-6, 6:-6]  # what enters is not in the frame before
    blend = (frames[:-2:2].astype(float) + frames[2::2]) / 2
    known = frames[1::2]
    assert mean_psnr(new[inside], known[inside]) > max(35, mean_psnr(blend[inside], known[inside]) + 10)


@pytest.mark.parametrize("moved", [False, True])
def test_the_weight_is_that_of_the_interpolator_and_the_rest_of_the_mean_of_what_it_sees(clip, moved):
    """With weight 0 the result is that of motion alone."""
    pair = torch.cat([to_unit(torch.from_numpy(frame))[None] for frame in clip[:2]], 1)
    seen = []

    def ones(seeds, frame_index, condition):
        seen.append(condition)
        return torch.ones_like(condition[:, :3])

    alone = moved_half_way(pair) if moved else (pair[:, :3] + pair[:, 3:]) / 2
    for weight in (0.0, 0.25, 1.0):
        image = FrameBetween(ones, moved, weight)(pair, torch.tensor([0]), 1)
        torch.testing.assert_close(image, alone + weight * (1 - alone))
        torch.testing.assert_close((seen[-1][:, :3] + seen[-1][:, 3:]) / 2, alone)


def test_one_frame_after_another_is_reported(clip):
    seen = []
    outputs = upsample(clip[:4], 4, on_progress=seen.append)
    assert [(step.done, step.total) for step in seen] == [(i, 9) for i in range(1, 10)]
    assert all(any(np.array_equal(step.image, frame) for frame in outputs) for step in seen)


@pytest.mark.parametrize("factor", [1, 3, 16])
def test_other_factors_are_refused(video_run, factor):
    with pytest.raises(SinfusionError, match="2, 4 or 8"):
        upsample(video_run, factor)


def test_what_a_clip_cannot_have_is_refused(clip):
    for arguments in ({"frames": clip}, {"steps": 3}):
        with pytest.raises(SinfusionError, match="frames and steps are for runs"):
            upsample(clip, 2, **arguments)
    with pytest.raises(SinfusionError, match="at least 2 frames"):
        upsample(clip[:1])
