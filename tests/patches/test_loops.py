"""Loops by patches: their length, the seam, what they refuse; and tiles."""

import numpy as np
import pytest

from sinfusion import patches
from sinfusion.metrics.loops import loop_figures, tile_seam

PERIOD = 9


def ring(frames, size=(30, 40)):
    """A disc that goes round on a smooth ground, once in PERIOD frames."""
    y, x = np.mgrid[: size[0], : size[1]]
    images = []
    for t in range(frames):
        angle = 2 * np.pi * t / PERIOD
        cy, cx = size[0] / 2 + 8 * np.sin(angle), size[1] / 2 + 11 * np.cos(angle)
        disc = np.clip(6 - np.hypot(y - cy, x - cx), 0, 1)[..., None]
        ground = np.stack((60 + 2 * x, 90 + 2 * y, 60 + x + y), -1)
        images.append(ground + disc * (np.array([230, 120, 40]) - ground))
    return np.stack(images).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def circling():
    return ring(25)


@pytest.fixture(scope="module")
def looped(circling):
    return patches.loop(circling)


def test_a_scene_that_repeats_itself_loops_at_exactly_its_period(circling, looped):
    assert len(looped) == PERIOD
    figures = loop_figures(looped, circling)
    assert figures.seam <= 1.1 and figures.largest <= 1.15 and figures.wrap <= 1.3 and figures.loops
    assert figures.motion == pytest.approx(1, abs=0.1)


def test_the_first_frame_is_not_the_last_one_again(looped):
    assert np.abs(looped[0].astype(int) - looped[-1]).max() > 100
    assert np.abs(looped[0].astype(int) - looped[1]).max() > 100


def test_a_clip_that_slides_on_loops_with_its_motion_where_it_would_jump(fine):
    """The texture repeats after 40 frames, of which the clip has 20."""
    clip = fine(20, (24, 40), 1)
    result = patches.loop(clip)
    figures, as_it_is = loop_figures(result, clip), loop_figures(clip[: len(result)], clip)
    assert 10 <= len(result) <= 13 and result.shape[1:] == clip.shape[1:]
    assert figures.largest < 1.35 < as_it_is.largest and figures.wrap < 1.3 < as_it_is.wrap
    assert 0.4 < figures.motion < 1.2


@pytest.mark.parametrize("frames", [4, 7, 13])
def test_a_loop_has_the_length_that_is_asked_for(video, frames):
    assert patches.loop(video, frames).shape == (frames, 24, 40, 3)


def test_a_loop_has_the_size_that_is_asked_for(video):
    assert patches.loop(video, 5, size=(20, 52)).shape == (5, 20, 52, 3)


def test_a_still_video_loops_as_it_is(video):
    still = np.repeat(video[:1], 8, 0)
    assert np.abs(patches.loop(still).astype(int) - still[:4]).max() <= 1


def test_a_seed_repeats_a_loop_to_the_bit(video):
    assert np.array_equal(patches.loop(video, 6, seed=3), patches.loop(video, 6, seed=3))


def test_progress_ends_with_all_of_it(video):
    seen = []
    patches.loop(video, 5, on_progress=lambda progress: seen.append(progress.done))
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)


def test_what_cannot_loop_is_refused(video, refusal):
    assert "a loop needs a video" in refusal(patches.loop, video[0])
    assert "at least 4" in refusal(patches.loop, video[:3])
    assert "from 4 frames to as many as the input, 13, not 14" in refusal(patches.loop, video, 14)
    assert "not 3" in refusal(patches.loop, video, 3)
    assert "size" not in refusal(patches.loop, video, 5, size=(3, 3))


# Tiles ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slope():
    """A video whose borders differ as much as can be."""
    y, x = np.mgrid[:24, :32]
    rng = np.random.default_rng(0)
    image = np.stack((7 * x, 9 * y, 3 * x + 3 * y), -1) + rng.integers(0, 12, (24, 32, 3))
    return np.stack([np.roll(image, t, 1) for t in range(6)]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("tile, meets", [("x", "x"), ("y", "y"), ("x,y", "xy"), ("y,x", "xy"), (None, "")])
@pytest.mark.parametrize("verb", [patches.generate, patches.retarget])
def test_the_borders_of_a_tile_meet_and_others_do_not(slope, verb, tile, meets):
    image = slope[0]
    result = verb(image, tile=tile)
    result = result[0] if verb is patches.generate else result
    for axis in "xy":
        assert (tile_seam(result, axis) < tile_seam(image, axis) / 2) == (axis in meets)


def test_a_video_tiles_too_and_loops_at_once(slope):
    assert tile_seam(patches.generate(slope, tile="y")[0], "y") < tile_seam(slope, "y") / 3
    result = patches.loop(slope, 5, tile="x,y")
    assert result.shape == (5, 24, 32, 3) and tile_seam(result, "y") < tile_seam(slope, "y") / 3


@pytest.mark.parametrize("tile", ["", "z", "x,x", "xy", "x,", "x,y,x"])
@pytest.mark.parametrize("verb", [patches.generate, patches.retarget, patches.loop])
def test_another_word_for_a_tile_is_refused(video, refusal, verb, tile):
    assert refusal(verb, video, tile=tile) == f"tile must be x, y or x,y, not {tile!r}."
