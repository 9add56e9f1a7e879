"""What leaves the view of a rollout, where nothing enters in its clip."""

import pytest
import torch

from sinfusion import extend, generate, retarget
from sinfusion.generation.framing import MOST, Framing, drift

HEIGHT, WIDTH, WIDE = 48, 64, 4


def blob(x, y=24.0, height=HEIGHT, width=WIDTH):
    """(1, 3, H, W): a soft bright disc."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return (1.6 * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 32) - 0.8).expand(1, 3, -1, -1).contiguous()


def clip_of(places):
    return torch.cat([blob(x) for x in places]).movedim(1, -1)


def framing_of(clip, sigma_data=0.02):
    return Framing(clip, torch.ones(len(clip) - 1, dtype=torch.bool), WIDE, sigma_data)


SWAYING = clip_of([28, 29, 30, 31, 32, 31, 30, 29, 28, 29, 30, 31])


def rollout(framing, velocity, steps, extra=lambda frame: frame):
    """The x of a disc that is predicted to go on by so many pixels a frame, framed or not."""
    frame, places = extra(blob(20.0)), [20.0]
    if framing is not None:
        framing.begin(frame)
    for _ in range(steps):
        predicted = extra(blob(places[-1] + velocity))
        image = predicted
        if framing is not None:
            image = framing(predicted, frame)
            framing.follow(image, frame)
        places.append(places[-1] + float(drift(frame, image)[0, 0]))
        frame = image if framing is None else extra(blob(places[-1]))
    return places, frame


@pytest.mark.parametrize("x, y", [(0.0, 0.0), (0.4, 0.0), (0.0, -0.3), (-0.5, 0.25)])
def test_drift_is_what_the_frame_moved_by(x, y):
    assert drift(blob(30.0), blob(30.0 + x, 24.0 + y))[0] == pytest.approx([x, y], abs=0.02)


def test_frames_without_contrast_do_not_drift():
    flat, stripes = torch.zeros(1, 3, 16, 16), torch.arange(16.0).sin().expand(1, 3, 16, 16)
    assert drift(flat, flat + 0.5).tolist() == [[0, 0]]
    assert drift(stripes, 0.9 * stripes).abs().max() < 0.2


def test_a_subject_stays_within_the_reach_of_the_clips():
    framing = framing_of(SWAYING)
    assert framing.active and framing.reach[0] == pytest.approx(2, abs=0.3)
    free, held = rollout(None, 0.12, 120)[0], rollout(framing, 0.12, 120)[0]
    assert free[-1] > 33
    assert max(held) < 20 + float(framing.reach[0]) + 1
    assert held[4] == pytest.approx(free[4], abs=0.05)  # within reach it moves


def test_both_directions_and_each_sample_by_itself():
    framing = framing_of(SWAYING)
    framing.begin(blob(20.0).expand(2, -1, -1, -1))
    before, after = blob(20.0).expand(2, -1, -1, -1), torch.cat((blob(20.2), blob(19.8)))
    for _ in range(40):
        framing.follow(after, before)
    moved = drift(after, framing(after, before))[:, 0]
    assert moved[0] < -0.1 and moved[1] > 0.1 and moved.abs().max() < MOST * HEIGHT + 0.05


def test_what_stands_still_is_left_alone():
    def with_rock(frame):
        frame = frame.clone()
        frame[..., 4:12, 50:60] = 0.5
        return frame

    frame = rollout(framing_of(SWAYING), 0.12, 60, with_rock)[1]
    framing = framing_of(SWAYING)
    framing.begin(frame)
    framing.drifted += 100
    predicted = with_rock(blob(25.0))
    image = framing(predicted, with_rock(blob(24.8)))
    assert torch.equal(image[..., 2:14, 48:62], predicted[..., 2:14, 48:62])
    assert (image - predicted).abs().max() > 0.02


def test_where_things_enter_they_may_leave():
    entering = clip_of(range(-8, 28, 2))
    framing = framing_of(entering)
    assert not framing.active
    frame = blob(20.0)
    framing.begin(frame)
    framing.drifted += 100
    assert torch.equal(framing(blob(20.3), frame), blob(20.3))


def test_frames_that_do_not_follow_each_other_tell_nothing():
    framing = Framing(SWAYING, torch.zeros(len(SWAYING) - 1, dtype=torch.bool), WIDE, 0.02)
    assert not framing.active


def test_a_clip_without_change_holds_nothing():
    assert not framing_of(SWAYING[:1].expand(6, -1, -1, -1)).active


def test_a_sample_is_the_same_alone_and_in_a_batch():
    framing = framing_of(SWAYING)
    before, after = (torch.cat([blob(x + shift) for x in (20.0, 33.3, 41.7)]) for shift in (0.0, 0.4))
    framing.begin(before)
    framing.drifted += 1.7
    together = framing(after, before)
    framing.follow(together, before)
    for i in range(len(before)):
        alone = framing_of(SWAYING)
        alone.begin(before[i : i + 1])
        alone.drifted += 1.7
        image = alone(after[i : i + 1], before[i : i + 1])
        assert torch.equal(image[0], together[i])
        alone.follow(image, before[i : i + 1])
        assert torch.equal(alone.drifted[0], framing.drifted[i])


def test_where_something_is_kept_or_drawn_to_nothing_is_moved_back(video_run, monkeypatch):
    frames = []
    monkeypatch.setattr(Framing, "__call__", lambda self, image, previous: frames.append(image) or image)
    height, width = video_run.size
    extend(video_run, (height + 8, width + 8))
    retarget(video_run, (height, width + 8))
    assert not frames
    generate(video_run, frames=4, start=0)
    assert len(frames) == 3
