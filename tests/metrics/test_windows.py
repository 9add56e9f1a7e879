"""sinfusion/metrics/windows.py: stretches of frames, one after the other, and the patches inside them."""

import numpy as np
import pytest

from sinfusion.errors import SinfusionError
from sinfusion.metrics.nearest_neighbors import nnf
from sinfusion.metrics.windows import Window, patches_in, windows


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(60, ["0-20", "20-40", "40-60"]), (59, ["0-20", "20-40", "40-59"]), (49, ["0-20", "20-40"]), (8, ["0-8"])],
)
def test_the_last_window_is_shorter_but_no_less_than_half(frames, expected):
    assert [str(window) for window in windows(frames, 20, 3)] == expected


def test_no_window_is_shorter_than_a_patch():
    assert windows(14, 4, 3) == [Window(0, 4), Window(4, 8), Window(8, 12)]
    with pytest.raises(SinfusionError, match=r"windows of 2 frame\(s\) are shorter than patches of 3"):
        windows(60, 2, 3)
    with pytest.raises(SinfusionError, match=r"a video of 2 frame\(s\) is shorter"):
        windows(2, 20, 3)
    with pytest.raises(SinfusionError, match="frames 2-4 are fewer than the 3 of a patch"):
        patches_in(Window(2, 4), np.zeros(10), 3)


def test_a_window_has_the_patches_that_lie_wholly_inside(clip):
    _, distance = nnf(clip[::-1], clip, (3, 3, 3))
    parts = [patches_in(window, distance, 3) for window in (Window(0, 4), Window(4, len(clip)))]
    assert [len(part) for part in parts] == [2, len(clip) - 4 - 2]
    assert np.array_equal(parts[1], distance[4:])


def test_a_window_has_its_frames(clip):
    assert np.array_equal(Window(2, 5).of(clip), clip[2:5])
