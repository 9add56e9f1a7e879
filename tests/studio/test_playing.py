"""A rollout that is played: the frames of `generate`, after any frame, with settings of its own."""

import numpy as np
import pytest

from sinfusion.errors import SinfusionError
from sinfusion.generation.video import generate
from sinfusion.studio.playing import Player, Settings


def played(player, count, after=None, settings=None):
    """The last of `count` more frames."""
    for _ in range(count):
        shown = player.next(after, settings or Settings())
        after = shown.number
    return shown


@pytest.mark.parametrize("projection", [None, 0.0])
@pytest.mark.parametrize("start", [0, 5])
def test_played_straight_on_it_is_the_video_that_generate_makes(video_run, start, projection):
    player = Player(video_run, start)
    last = played(player, 6, settings=Settings(seed=3, projection=projection))
    expected = generate(video_run, 6, start=start, seed=3, projection=projection)[0]
    assert (np.stack(player.branch(last.number)) == expected).all()


@pytest.mark.parametrize("projection", [None, 0.0])
def test_a_frame_of_its_own_is_the_one_that_generate_begins_with(video_run, projection):
    player = Player(video_run)
    first = player.next(None, Settings(projection=projection))
    expected = generate(video_run, 1, seed=0, projection=projection)[0, 0].astype(int)
    assert first.index == 0 and np.abs(first.image - expected).max() <= 3  # the burn-in was rounded to whole numbers
    assert len(player.branch(first.number)) == 1


def test_what_is_set_holds_from_the_next_frame_on(video_run):
    player = Player(video_run, 0)
    second = played(player, 2)
    played(player, 1, second.number)
    plain = player.next(second.number, Settings())  # gone back to, so that it begins anew like those below
    for settings in (Settings(seed=1), Settings(surprise=0.0), Settings(projection=0.0), Settings(steps=1),
                     Settings(frame_offset=-1), Settings(frame_offset=2)):  # fmt: skip
        assert (player.next(second.number, settings).image != plain.image).any(), settings
    assert (player.next(second.number, Settings()).image == plain.image).all()
    assert player.next(plain.number, Settings(size=(20, 40))).image.shape == (20, 40, 3)


def test_branches_share_what_was_before_them(video_run):
    player = Player(video_run, 0)
    last = played(player, 4)
    other = played(player, 2, 1, Settings(seed=7))
    one, two = player.branch(last.number), player.branch(other.number)
    assert len(one) == len(two) == 4
    assert all((a == b).all() for a, b in zip(one[:2], two[:2], strict=True)) and (one[2] != two[2]).any()


def test_speed_and_direction_decide_which_frames_were_before(video_run):
    player = Player(video_run, 5)
    third = played(player, 3)
    known = player._at_moments(third)
    assert sorted(known) == [0, 1, 2] and third.moment == 2
    # Forward from the first frame, the clip says what was before it; backward from the third, nobody says what came.
    assert (player._of_the_clip(-1, third.moment) == video_run.frames[4]).all()
    assert player._of_the_clip(3, third.moment) is None
    back = player.next(third.number, Settings(frame_offset=-2))
    assert back.moment == 0


def test_a_smaller_surprise_is_less_noise(video_run):
    player = Player(video_run, 0)
    first = player.next(None, Settings(projection=0.0))

    def spread(surprise):
        frames = [
            player.next(first.number, Settings(seed=seed, surprise=surprise, projection=0.0)).image for seed in range(4)
        ]
        return np.stack(frames).astype(float).std(0).mean()

    assert spread(0.0) == 0 < spread(1.0) < spread(2.0)


def test_an_image_run_gives_one_picture_after_another(image_run):
    player = Player(image_run)
    one, two = player.next(None, Settings()), player.next(0, Settings(size=(24, 24)))
    assert one.image.shape[:2] == image_run.size and two.image.shape == (24, 24, 3)
    assert player.offsets == ()


def test_what_cannot_be_played_is_refused(video_run, monkeypatch):
    with pytest.raises(SinfusionError, match="does not exist"):
        Player(video_run, 12)
    player = Player(video_run, 0)
    player.next(None, Settings())
    with pytest.raises(SinfusionError, match="was not trained"):
        player.next(0, Settings(frame_offset=50))
    with pytest.raises(SinfusionError, match="no frame 5"):
        player.next(5, Settings())
    monkeypatch.setattr("sinfusion.studio.playing.MOST_BYTES", 10)
    with pytest.raises(SinfusionError, match="as many frames as fit"):
        player.next(0, Settings())
