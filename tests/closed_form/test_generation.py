"""Videos by the closed-form Predictor: seeds, lengths, refusals, and that things stay whole."""

import numpy as np
import pytest
import torch

from sinfusion import closed_form
from sinfusion.closed_form.generation import Wholeness
from sinfusion.errors import SinfusionError
from sinfusion.pixels import to_unit


@pytest.fixture(scope="module")
def clip(texture):
    return texture(7, (16, 24), 1)


def test_shape_and_dtype(clip):
    videos = closed_form.generate(clip, length=3, count=2)
    assert videos.shape == (2, 3, 16, 24, 3) and videos.dtype == np.uint8


@pytest.mark.parametrize("wholeness", [0.0, 0.5])
def test_a_sample_has_its_seed_alone_and_in_a_batch(clip, wholeness):
    both = closed_form.generate(clip, 3, count=2, seed=7, wholeness=wholeness)
    assert np.array_equal(both[1:], closed_form.generate(clip, 3, seed=8, wholeness=wholeness))
    assert np.array_equal(both[:1], closed_form.generate(clip, 3, seed=7, wholeness=wholeness))
    assert not np.array_equal(both[0], both[1])


def test_a_longer_video_begins_with_the_shorter_one(clip):
    assert np.array_equal(closed_form.generate(clip, 4)[:, :2], closed_form.generate(clip, 2))


def test_it_goes_on_as_the_clip_moves():
    """A square that goes round and round: it is the same square, where it has to be."""

    def frame(n):
        image = np.full((16, 16, 3), 40, np.uint8)
        image[4:9, [(n + x) % 16 for x in range(5)]] = (220, 80, 30)
        return image

    clip = np.stack([frame(n) for n in range(20)])
    video = closed_form.generate(clip, 6)[0]
    for n, image in enumerate(video):
        assert np.abs(image.astype(int) - frame(20 + n)).mean() < 8


def test_wholeness_moves_a_frame_to_patches_of_the_clip(clip):
    known = to_unit(torch.from_numpy(clip))
    damaged = known[3:4] + 0.1 * torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    errors = [(Wholeness(known, 1, 0)(damaged, share) - known[3:4]).square().mean() for share in (0.0, 0.5, 1.0)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_a_still_clip_stays_still():
    clip = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 12, 12, 3), np.uint8), 4, 0)
    assert np.abs(closed_form.generate(clip, 3)[0].astype(int) - clip[:3]).max() <= 1


def test_progress_is_told_after_each_frame(clip):
    told = []
    closed_form.generate(clip, 3, on_progress=lambda progress: told.append((progress.done, progress.total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"length": 0}, "length must be at least 1, not 0"),
        ({"count": 0}, "count must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"wholeness": 1.5}, "wholeness must be from 0 to 1, not 1.5"),
        ({"seed": -1}, "seed must be from 0"),
        ({"device": "tpu"}, "device must be auto"),
    ],
)
def test_what_is_wrong_is_refused_in_words(clip, arguments, sentence):
    with pytest.raises(SinfusionError, match=sentence):
        closed_form.generate(clip, **arguments)


def test_two_frames_are_too_few(clip):
    with pytest.raises(SinfusionError, match="at least 3 frames of it, not 2"):
        closed_form.generate(clip[:2])
