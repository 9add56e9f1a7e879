"""Videos on a larger canvas: the clip stays to the bit, what lies around is made of its patches and moves with it."""

import dataclasses

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.errors import SinfusionError
from sinfusion.generation.extension import extend
from sinfusion.generation.video import next_frame
from sinfusion.pixels import middle, to_unit

SIZE = (20, 34)
INSIDE = middle((16, 24), SIZE)
AROUND = np.ones(SIZE, bool)
AROUND[INSIDE] = False


def test_the_clip_stays_to_the_bit_in_the_middle_of_each_frame_and_the_rest_moves(video_run, clip):
    frames = extend(video_run, SIZE)
    assert frames.shape == (12, *SIZE, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[:, INSIDE[0], INSIDE[1]], clip)
    around = frames[:, AROUND].astype(float)
    assert (np.abs(np.diff(around, axis=0)).mean((1, 2)) > 0.5).all()  # from the first frame on
    assert around.std() > 5


def test_more_may_be_made_on_one_side_than_on_the_other(video_run, clip):
    frames = extend(video_run, (16, 35), clip[:5])
    assert np.array_equal(frames[:, :, 5:29], clip[:5])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_clips_are_continued_too(video_run, clip, count):
    frames = extend(video_run, SIZE, clip[:count], length=None if count > 1 else 1)
    assert np.array_equal(frames[:, INSIDE[0], INSIDE[1]], clip[:count])


def test_a_picture_is_kept_in_all_frames(video_run, clip):
    frames = extend(video_run, SIZE, clip[4], length=6)
    assert np.array_equal(frames[:, INSIDE[0], INSIDE[1]], np.stack([clip[4]] * 6))
    assert len(extend(video_run, SIZE, clip[4])) == 12
    assert np.abs(np.diff(frames[:, AROUND].astype(float), axis=0)).mean() > 0.5


@pytest.mark.parametrize("how", [{"projection": 0.0}, {"jumps": 0}, {"steps": 1}])
def test_it_takes_the_settings_of_rollouts(video_run, clip, how):
    plain, frames = (extend(video_run, SIZE, clip[:5], **some) for some in ({}, how))
    assert np.array_equal(frames[:, INSIDE[0], INSIDE[1]], clip[:5])
    assert not np.array_equal(frames, plain)


def test_a_correction_keeps_the_clip_as_well(video_run, clip):
    run = dataclasses.replace(video_run, recipe=video_run.recipe.replace(correction_timesteps=5, projection_weight=0.0))
    assert np.array_equal(extend(run, SIZE, clip[:4])[:, INSIDE[0], INSIDE[1]], clip[:4])


def test_a_seed_is_repeatable(video_run, clip):
    first, again, other = (extend(video_run, SIZE, clip[:4], seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_rest_of_a_frame_sees_what_is_kept(video_run, clip):
    """Each clean estimate has it, not the result alone."""
    frames = to_unit(torch.from_numpy(clip))
    known = torch.zeros(1, 1, 16, 24, dtype=torch.bool)
    known[..., :12] = True
    images = []
    for kept in (frames[1:2], -frames[1:2]):
        advance = next_frame(video_run, projection=0)
        images.append(advance(advance.begin(frames[:1]), torch.tensor([0]), 1, None, (known, kept)))
        assert torch.equal(images[-1][..., :12], kept[..., :12])
    assert not torch.equal(images[0][..., 12:16], images[1][..., 12:16])


def test_the_first_frames_are_made_again_from_one_that_fits_what_is_kept(video_run, monkeypatch):
    monkeypatch.setattr("sinfusion.generation.extension.FITTED", 0)
    plain = extend(video_run, SIZE)
    monkeypatch.setattr("sinfusion.generation.extension.FITTED", 5)
    frames = extend(video_run, SIZE)
    assert np.array_equal(frames[5:], plain[5:])
    assert not any(np.array_equal(*pair) for pair in zip(frames[:5], plain[:5], strict=True))


def test_progress_is_told_for_each_frame(video_run, clip):
    seen = []
    frames = extend(video_run, SIZE, clip[:4], on_progress=seen.append)
    assert [(progress.done, progress.total) for progress in seen] == [(i, 4) for i in range(1, 5)]
    assert np.array_equal(seen[2].image, frames[2])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"size": (15, 40)}, "canvas 40x15 is smaller than the 24x16"),
        ({"size": (16, 24)}, "size is that of the clip"),
        ({"length": 5}, "length is for one picture"),
        (
            {"frames": np.zeros((16, 24, 3), np.uint8), "length": 0},
            "length must be a whole number of at least 1, not 0",
        ),
        ({"jumps": -1}, "jumps must be from 0 to 100"),
        ({"projection": 2}, "projection must be from 0 to 1"),
        ({"frames": np.zeros((4, 7, 24, 3), np.float64) + 7}, "float64"),
    ],
)
def test_impossible_canvases_are_refused(video_run, request_, message):
    with pytest.raises(SinfusionError, match=message):
        sinfusion.extend(video_run, **{"size": SIZE, **request_})


def test_image_runs_are_refused(image_run):
    with pytest.raises(
        SinfusionError, match=r"is an image run; a picture is continued with: sinfusion edit .* IMAGE --canvas 34x20"
    ):
        extend(image_run, SIZE)
