"""The scene of `sinfusion demo`: repeatable, and lively everywhere without jumps."""

from __future__ import annotations

import numpy as np
import pytest

from sinfusion.scene import render


@pytest.fixture(scope="module")
def scene():
    return render()


def _rms(a, b):
    return np.sqrt((np.subtract(a, b, dtype=np.float64) ** 2).mean((-3, -2, -1)))


def test_the_scene_is_the_same_every_time_and_another_with_another_seed(scene):
    assert np.array_equal(render(5), scene[:5])
    assert not np.array_equal(render(5, seed=1), scene[:5])


@pytest.mark.parametrize("frames, size", [(48, (40, 64)), (2, (36, 64)), (1, (64, 48)), (3, (33, 33))])
def test_the_scene_has_the_frames_and_the_size_asked_for(frames, size):
    outputs = render(frames, size)
    assert outputs.shape == (frames, *size, 3) and outputs.dtype == np.uint8


@pytest.mark.parametrize(
    "part, rows, columns",
    [("sky on the left", (2, 20), (0, 32)), ("sky on the right", (2, 20), (32, 64)), ("glow", (24, 28), (0, 40)),
     ("windmill", (18, 30), (41, 54)), ("grass", (29, 33), (0, 44)), ("water", (35, 40), (0, 64))],
)  # fmt: skip
def test_every_part_of_the_scene_moves_a_little_in_every_frame(scene, part, rows, columns):
    shown = scene[:, slice(*rows), slice(*columns)]
    change = _rms(shown[1:], shown[:-1])
    assert 0.5 < change.min() and change.max() < 60, part


def test_few_pixels_never_move(scene):
    assert (scene != scene[0]).any((0, 3)).mean() > 0.9


def test_neighbouring_frames_differ_moderately_and_nothing_jumps(scene):
    change = _rms(scene[1:], scene[:-1])
    assert 5 < change.min() and change.max() < 30
    assert change.max() < 1.3 * np.median(change)


def test_the_scene_goes_on_and_does_not_repeat(scene):
    neighbours = np.median(_rms(scene[1:], scene[:-1]))
    for gap in range(8, len(scene)):
        assert _rms(scene[gap:], scene[:-gap]).min() > neighbours


def test_the_scene_is_colourful(scene):
    assert (scene.std((1, 2)) > 30).all()
    assert len(np.unique(scene[0].reshape(-1, 3) // 32, axis=0)) > 40
