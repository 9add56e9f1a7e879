"""The figures of a loop and of a tile: they see a jump wherever it is, and a loop that begins elsewhere is the same."""

import numpy as np
import pytest

from sinfusion.metrics.loops import loop_figures, tile_seam


@pytest.fixture
def sliding(texture):
    """A texture that slides once round in 24 frames, twice."""
    return texture(48, (16, 24))


def test_a_whole_turn_loops(sliding):
    figures = loop_figures(sliding[:24], sliding)
    assert figures.seam == pytest.approx(1, abs=0.05) and figures.wrap == pytest.approx(0, abs=0.5)
    assert figures.largest < 1.1 and figures.loops and figures.motion == pytest.approx(1, abs=0.02)
    assert "the seam: the last frame to the first changes 1.0" in str(figures)


def test_half_a_turn_jumps(sliding):
    figures = loop_figures(sliding[:12], sliding)
    assert figures.seam > 3 and figures.seam == pytest.approx(figures.largest, rel=0.1)
    assert figures.wrap > 5 and not figures.loops


def test_a_roll_changes_neither_what_is_largest_nor_the_motion(sliding):
    looped = sliding[:12]
    before = loop_figures(looped, sliding)
    for roll in (1, 5, 9):
        after = loop_figures(np.roll(looped, roll, 0), sliding)
        assert after.largest == pytest.approx(before.largest, rel=1e-9)
        assert after.motion == pytest.approx(before.motion, rel=1e-9)
        assert after.farthest == pytest.approx(before.farthest, rel=0.1)  # its search is random
    assert loop_figures(np.roll(looped, 5, 0), sliding).seam < before.seam / 3  # this is of the end alone


def test_a_roll_of_a_loop_changes_no_figure(sliding):
    before, after = (loop_figures(np.roll(sliding[:24], roll, 0), sliding) for roll in (0, 7))
    assert after.seam == pytest.approx(before.seam, abs=0.05) and after.largest == pytest.approx(before.largest)
    assert after.wrap == pytest.approx(before.wrap, abs=0.5)


def test_what_does_not_move_loops(sliding):
    still = np.repeat(sliding[:1], 6, 0)
    figures = loop_figures(still, still)
    assert (figures.seam, figures.largest, figures.motion, figures.loops) == (1, 1, 1, True)


def test_the_seam_of_a_tile_is_that_across_its_borders(texture):
    tile = texture(2, (16, 24))  # it repeats both ways
    assert tile_seam(tile, "x") < 2 and tile_seam(tile[0], "y") < 2
    assert tile_seam(tile[:, :, :12], "x") > 4 and tile_seam(tile[0, :, :12], "y") < 2
    assert tile_seam(tile[0, :8], "y") > 4
