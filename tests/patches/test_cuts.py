"""The length of a loop, and where each place is cut."""

import pytest
import torch

from sinfusion.patches.cuts import choose_length, cut_loop


def signal(values):
    """(T, 8, 8, 1): all places have these values."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 8, 8, 1).contiguous()


@pytest.mark.parametrize("period", [4, 5, 7])
def test_the_length_of_a_clip_that_repeats_itself_is_its_period(period):
    values = torch.rand(period, generator=torch.Generator().manual_seed(period)).repeat(5)
    assert choose_length(signal(values.tolist())[: 4 * period + 2]) == period


def test_the_length_of_another_clip_is_where_it_comes_back_to_itself():
    values = [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 20, 40, 60, 80]
    assert choose_length(signal(values)) == 9


@pytest.mark.parametrize("count", [4, 5])
def test_the_shortest_clips_have_a_length(count):
    assert 4 <= choose_length(torch.rand(count, 8, 8, 3)) <= count


def test_a_loop_as_long_as_the_clip_is_the_clip():
    clip = torch.rand(6, 8, 8, 3)
    assert torch.equal(cut_loop(clip, 6), clip)


def test_each_frame_of_a_loop_of_a_repeating_clip_is_that_of_the_clip():
    clip = torch.rand(7, 8, 9, 3).repeat(3, 1, 1, 1)
    assert torch.allclose(cut_loop(clip, 7), clip[:7], atol=1e-6)


def test_places_are_cut_at_moments_of_their_own():
    """Each half comes back to itself at another moment; together they loop as they do alone."""
    random = torch.Generator().manual_seed(0)
    halves = []
    for cut in (2, 9):
        values = torch.rand(20, generator=random)
        values[cut + 7 : cut + 10] = values[cut - 1 : cut + 2]
        halves.append(values[:, None, None, None].expand(-1, 8, 12, 1))
    together = cut_loop(torch.cat(halves, 2), 8)
    for looped, half in zip((together[:, :, :8], together[:, :, -8:]), halves, strict=True):
        assert torch.allclose(looped, cut_loop(half, 8)[:, :, :8])


def test_a_jump_is_blended_over_the_frames_around_it():
    """A slope can only fall back: not by 12 at once, but by as much in several frames."""
    looped = cut_loop(signal([float(t) for t in range(36)]), 12)
    change = (looped.roll(-1, 0) - looped).abs().amax((1, 2, 3))
    assert change.max() < 6
