"""What comes into view at the border of a rollout."""

import dataclasses

import numpy as np
import pytest
import torch

from sinfusion import generate, retarget
from sinfusion.generation.border import Border

HEIGHT, WIDTH, WIDE = 32, 48, 4


def scene(starts, length=16, side=6):
    """Frames (T, H, W, 3): squares on grey that come in from the left at some frames, two pixels a frame."""
    frames = torch.zeros(length, HEIGHT, WIDTH, 3)
    for start in starts:
        for t in range(length):
            right = 2 * (t - start + 1)
            if right > 0:
                frames[t, 12 : 12 + side, max(0, right - side) : right] = 1.0
    return frames


CLIP = scene([4])
FOLLOWS = torch.ones(len(CLIP) - 1, dtype=torch.bool)
EMPTY = torch.zeros(1, 3, HEIGHT, WIDTH)


def at(clip, t):
    return clip[t : t + 1].movedim(-1, 1)


def beside(frame, steps, clip=CLIP, follows=FOLLOWS, predict=lambda previous: previous):
    """The border's rollout: frames (steps + 1, 3, H, W), the first of them given."""
    border = Border(clip, follows, WIDE, sigma_data=0.05)
    border.begin(frame)
    frames = [frame]
    for _ in range(steps):
        frames.append(border(predict(frames[-1]), frames[-1]))
    return torch.cat(frames)


def test_what_enters_in_the_clip_enters_an_empty_rollout():
    rollout = beside(EMPTY, 8)
    assert rollout[-1, :, 12:18, 0].mean() > 0.5
    assert rollout[-1, :, :8].abs().max() < 0.02 and rollout[-1, :, 22:].abs().max() < 0.02


def test_the_middle_is_the_predictors():
    rollout = beside(EMPTY, 12)
    assert (rollout[..., WIDE : HEIGHT - WIDE, WIDE : WIDTH - WIDE] == 0).all()


def test_what_is_in_the_rollout_alone_stays():
    """A square at the right border, where the clip never has one."""
    frame = EMPTY.clone()
    frame[..., 10:20, 38:] = -1.0
    assert torch.allclose(beside(frame, 10)[-1, :, 13:17, 44:], frame[0, :, 13:17, 44:], atol=0.02)


def test_after_the_end_of_the_clip_it_goes_on_from_its_first_half():
    clip = scene([4, 9], length=24)
    ever = beside(EMPTY, 60, clip, torch.ones(23, dtype=torch.bool), predict=lambda _: EMPTY)[:, :, 12:18, 0].amax(
        (1, 2)
    )
    assert (ever[-24:] > 0.3).any() and (ever[-24:] < 0.1).any()


def test_a_rollout_begins_at_the_moment_that_looks_most_like_it():
    border = Border(CLIP, FOLLOWS, WIDE, sigma_data=0.05)
    border.begin(torch.cat((at(CLIP, 4), at(CLIP, 5))))
    assert border.at.tolist() == [4, 5]  # frames 5 and 6, which follow those


def test_frames_that_do_not_follow_each_other_enter_nothing():
    follows = torch.zeros(len(CLIP) - 1, dtype=torch.bool)
    assert torch.equal(beside(EMPTY, 5, follows=follows)[-1], EMPTY[0])


def test_nothing_enters_a_frame_of_another_size():
    wide = torch.zeros(1, 3, HEIGHT, 2 * WIDTH)
    assert torch.equal(beside(wide, 8)[-1], wide[0])


def test_a_sample_is_the_same_alone_and_in_a_batch():
    batch = torch.cat((EMPTY, at(CLIP, 3), at(CLIP, 8)))
    border = Border(CLIP, FOLLOWS, WIDE, sigma_data=0.05)
    border.begin(batch)
    together = border(batch, batch)
    for i in range(len(batch)):
        border.begin(batch[i : i + 1])
        assert torch.equal(border(batch[i : i + 1], batch[i : i + 1])[0], together[i])


@pytest.mark.parametrize("height, width, columns", [(32, 48, 4), (7, 9, 0), (64, 64, 7)])
def test_the_border_is_a_small_part_of_a_small_frame(height, width, columns):
    border = Border(torch.zeros(4, height, width, 3), torch.ones(3, dtype=torch.bool), 7, 0.1)
    assert int((border.share[height // 2] > 0).sum()) == 2 * columns


def test_a_run_has_a_border_as_its_recipe_says(video_run):
    with_border = dataclasses.replace(video_run, recipe=video_run.recipe.replace(border=7))
    without = dataclasses.replace(video_run, recipe=video_run.recipe.replace(border=0))
    how = {"frames": 6, "start": 0, "seed": 1}
    assert not np.array_equal(generate(with_border, **how), generate(without, **how))
    assert np.array_equal(generate(with_border, projection=0.0, **how), generate(without, projection=0.0, **how))
    # A target tells what enters.
    assert np.array_equal(*(retarget(run, (24, 16)) for run in (with_border, without)))
