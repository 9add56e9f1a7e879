"""sinfusion/metrics/coverage.py: what has vanished loses its share, in the frames in which it has."""

import numpy as np
import pytest

from sinfusion.errors import SinfusionError
from sinfusion.metrics.coverage import Coverage, coverage

SHAPES = {"square": np.ones((6, 6)), "bars": np.tile([1, 0], (6, 3)), "stripes": np.tile([[1], [0]], (3, 6))}


def scene(*objects, frames=6, size=(36, 64)):
    """A grey video in which each of the objects (name, row) moves to the right."""
    video = np.full((frames, *size, 3), 90, np.uint8)
    for t in range(frames):
        for number, (name, row) in enumerate(objects):
            left = 4 + 9 * number + 2 * t
            video[t, row : row + 6, left : left + 6] += (SHAPES[name] * 120).astype(np.uint8)[..., None]
    return video


def test_a_copy_covers_everything():
    video = scene(("square", 4), ("bars", 20))
    assert coverage(video, video) == 1
    assert coverage(np.concatenate((video, video)), video) == 1


@pytest.mark.parametrize("kept", [0, 1])
def test_an_object_that_has_vanished_loses_its_share(kept):
    """Of its detail: bars have more than a square, whose inside is flat."""
    objects = [("stripes", 4), ("bars", 20)]
    assert coverage(scene(objects[kept]), scene(*objects)) == pytest.approx(0.5, abs=0.05)


def test_half_of_the_objects_that_look_the_same_are_half_of_their_share():
    objects = [("square", 4), ("square", 4), ("square", 24), ("square", 24)]
    assert coverage(scene(*objects[::2]), scene(*objects)) == pytest.approx(0.5, abs=0.05)


def test_empty_background_does_not_count():
    assert coverage(scene(), scene(("bars", 10))) < 0.05


def test_it_is_measured_over_any_frames():
    """The object is there in the first frames and vanishes."""
    video = scene(("stripes", 4), ("bars", 20))
    reference = Coverage.of(video)
    counts = reference.counts(np.concatenate((video, scene(("stripes", 4)))))
    assert counts.shape == (12, len(reference.patches))
    assert reference.share(counts[:6]) == 1
    assert reference.share(counts[6:]) == pytest.approx(0.5, abs=0.05)


def test_a_little_noise_and_blur_are_not_taken_for_other_content(clip):
    noise = np.random.default_rng(0).normal(0, 3, clip.shape)
    noisy = (clip + noise).clip(0, 255).astype(np.uint8)
    assert coverage(noisy, clip) > 0.9
    assert coverage(255 - clip, clip) < 0.3


def test_large_frames_are_reduced_and_measure_the_same():
    small, objects = scene(("stripes", 4), ("bars", 20)), scene(("bars", 20))
    large, half = (video.repeat(3, 1).repeat(3, 2) for video in (small, objects))
    assert Coverage.of(large).downscale == 3
    assert coverage(half, large) == pytest.approx(coverage(objects, small), abs=0.02)


def test_images_and_frames_without_detail_are_measured():
    image = scene(("bars", 10), frames=1)[0]
    assert coverage(image, image) == 1 and coverage(image[::-1], image) > 0.9
    flat = np.full((3, 36, 36, 3), 7, np.uint8)
    assert coverage(flat, flat) == 1 and coverage(flat + 60, flat) == 0


def test_frames_smaller_than_a_patch_are_refused():
    with pytest.raises(SinfusionError, match="too small for patches of 1 frames of 5x5"):
        coverage(scene()[:, :4], scene())
