"""Loops from a run: their length and size, what draws them, that the last frame leads to the first."""

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.errors import SinfusionError
from sinfusion.generation import loops
from sinfusion.generation.loops import loop


def test_a_loop_has_the_length_and_the_size_that_are_asked_for(video_run):
    assert loop(video_run, 5).shape == (5, 16, 24, 3)
    assert loop(video_run, 4, size=(20, 30), start=0).shape == (4, 20, 30, 3)


def test_a_loop_is_not_longer_than_the_clip_unless_told(video_run):
    assert 4 <= len(sinfusion.loop(video_run)) <= len(video_run.frames)


def test_a_seed_repeats_a_loop_to_the_bit_and_another_gives_another(video_run):
    assert np.array_equal(loop(video_run, 5, seed=2), loop(video_run, 5, seed=2))
    assert not np.array_equal(loop(video_run, 5, seed=2), loop(video_run, 5, seed=3))


class Follows:
    """Stands for NextFrame: the image it is drawn to, and remembers what was before."""

    needed = 2

    def __init__(self):
        self.seen = []

    def begin(self, known):
        return known

    def __call__(self, previous, seeds, frame_index, target):
        self.seen.append((previous[0, ::3, 0, 0].tolist(), frame_index, target[0, 0, 0, 0].item()))
        return target


def test_the_frames_before_the_first_are_those_of_the_end_with_their_noise():
    targets = (torch.arange(6.0) / 10)[:, None, None, None].expand(-1, 3, 8, 8)
    advance = Follows()
    drawn = list(loops._drawn(advance, targets, torch.tensor([0]), 100))
    assert [round(float(image[0, 0, 0]) / 127.5 - 1, 1) for image in drawn] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [index for _, index, _ in advance.seen] == [102, 103, 104, 105, 100, 101, 102, 103, 104, 105]
    previous, _, target = advance.seen[loops.LEAD]
    assert target == 0 and previous == pytest.approx([0.5, 0.4])


def test_a_rollout_that_repeats_itself_stays_and_loops(video_run, texture, monkeypatch):
    """The texture comes back after 24 frames; nothing is drawn anew where nothing moves it."""
    frames = texture(38, (16, 24))
    monkeypatch.setattr(loops, "stream", lambda *_: (frame[None] for frame in frames))
    monkeypatch.setattr(loops, "next_frame", lambda *_: Follows())
    looped = loop(video_run, 24)
    assert np.abs(looped.astype(int) - frames[:24]).max() <= 1


def test_progress_ends_with_all_of_it(video_run):
    seen = []
    loop(video_run, 5, on_progress=lambda progress: seen.append(progress.done / progress.total))
    assert seen == sorted(seen) and seen[-1] == 1


def test_what_cannot_loop_is_refused(video_run, image_run):
    with pytest.raises(SinfusionError, match="this needs a run trained on a video"):
        loop(image_run)
    with pytest.raises(SinfusionError, match="a loop has at least 4 frames, not 3"):
        loop(video_run, 3)
    with pytest.raises(SinfusionError, match="projection must be from 0 to 1"):
        loop(video_run, 4, projection=2.0)
