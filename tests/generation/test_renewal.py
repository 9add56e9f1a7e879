"""What comes back in a rollout, once it is gone, where nothing enters in its clip."""

import pytest
import torch

from sinfusion import extend, generate, retarget
from sinfusion.generation.projection import PatchProjection
from sinfusion.generation.renewal import Renewal

HEIGHT, WIDTH = 48, 64


def blobs(places, width, height=HEIGHT):
    """(1, 3, H, W): soft discs of this radius on grey."""
    rows, columns = torch.arange(height)[:, None], torch.arange(WIDTH)
    discs = [torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)) for x, y in places]
    return (0.9 * sum(discs, torch.zeros(height, WIDTH))).expand(1, 3, -1, -1).contiguous()


def clip_of(width, count=12):
    """Two discs that sway: (T, H, W, 3)."""
    sway = [min(n % 6, 6 - n % 6) for n in range(count)]
    return torch.cat([blobs([(16 + x, 16), (46 + x, 30)], width) for x in sway]).movedim(1, -1)


FLOCK = clip_of(1.5)
COMING = FLOCK[3].movedim(-1, 0)[None]


def emptied(renewal, image, frames):
    """The last of so many frames that are like this before anything comes back."""
    renewal.begin(image)
    for _ in range(frames):
        found = renewal(image, COMING)
    return found


def test_what_is_gone_comes_back_after_a_while():
    renewal, gone = Renewal(FLOCK), torch.zeros_like(COMING)
    assert renewal.active
    assert torch.equal(emptied(renewal, gone, 59), gone)
    found = emptied(renewal, gone, 70)
    assert (found - COMING).abs().max() < 0.02, "all of it, and in one piece"


def test_only_where_it_is_gone():
    one_left = blobs([(19, 16)], 1.5)
    found = emptied(Renewal(FLOCK), one_left, 70)
    assert torch.equal(found[..., :24, :26], one_left[..., :24, :26])
    assert (found[..., 22:40, 38:58] - COMING[..., 22:40, 38:58]).abs().max() < 0.02


def test_what_is_still_there_stays_as_it_is_near_its_place():
    elsewhere = blobs([(17.5, 17), (47.5, 29)], 1.5)
    assert torch.equal(emptied(Renewal(FLOCK), elsewhere, 100), elsewhere)


def test_what_comes_back_stays_once_the_rollout_has_it():
    renewal, image = Renewal(FLOCK), torch.zeros_like(COMING)
    renewal.begin(image)
    for number in range(260):  # the rollout goes on from what it was given
        before, image = image, renewal(image, COMING)
        if number == 75:
            assert (image - COMING).abs().max() < 0.3 < 0.8 < COMING.max()
    assert torch.equal(image, before), "then it is left alone"


def test_nothing_comes_where_the_clip_has_nothing():
    found = emptied(Renewal(FLOCK), torch.full_like(COMING, 0.1), 200)
    corner = found[..., :6, 40:]
    assert torch.equal(corner, torch.full_like(corner, 0.1))


def test_large_things_would_come_back_in_pieces_and_do_not():
    renewal = Renewal(clip_of(7.0))
    gone = torch.zeros_like(COMING)
    assert not renewal.active
    assert torch.equal(emptied(renewal, gone, 200), gone)


@pytest.mark.parametrize("height, width", [(7, 7), (9, 40), (1, 1)])
def test_frames_of_any_size_and_without_contrast(height, width):
    renewal, image = Renewal(torch.zeros(3, height, width, 3)), torch.ones(1, 3, height, width)
    renewal.begin(image)
    for _ in range(100):
        assert torch.equal(renewal(image, -image), image)


def test_a_sample_is_the_same_alone_and_in_a_batch():
    images = torch.cat([blobs([(19, 16)], 1.5), torch.zeros_like(COMING), blobs([(47, 27)], 1.5)])
    together = emptied(Renewal(FLOCK), images, 70)
    for i, image in enumerate(images):
        assert torch.equal(emptied(Renewal(FLOCK), image[None], 70)[0], together[i])


def test_it_is_for_clips_into_whose_view_nothing_comes():
    still = PatchProjection(FLOCK, 1.0, tolerance=0.05, border=4, sigma_data=0.02)
    assert still.framing.active and still.renewal.active
    entering = torch.cat([blobs([(8 * n - 8, 16), (80 - 8 * n, 30)], 1.5) for n in range(12)]).movedim(1, -1)
    assert PatchProjection(entering, 1.0, tolerance=0.05, border=4, sigma_data=0.02).renewal is None
    assert PatchProjection(FLOCK, 1.0, tolerance=0.05, border=0, sigma_data=0.02).renewal is None


def test_a_projected_rollout_that_lost_all_gets_it_back():
    projection, gone = PatchProjection(FLOCK, 1.0, border=4, sigma_data=0.02), torch.zeros_like(COMING)
    previous = torch.cat([gone] * 3, 1)
    projection.begin(previous)
    seen = []
    for _ in range(75):
        image = projection(gone, previous)
        seen.append(float(image.max()))
        previous = torch.cat((image, previous[:, :-3]), 1)
    assert max(seen[:55]) < 0.3 < 0.8 < max(seen)


def test_where_something_is_kept_or_drawn_to_or_of_another_size_nothing_comes_back(video_run, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "sinfusion.generation.framing.Framing.__call__",
        lambda self, image, previous: image,
    )
    monkeypatch.setattr(Renewal, "__call__", lambda self, image, coming: calls.append(image) or image)
    init = PatchProjection.__init__

    def with_renewal(self, clip, *arguments, **named):
        init(self, clip, *arguments, **named)
        if self.framing is not None:
            self.renewal = Renewal(clip)

    monkeypatch.setattr(PatchProjection, "__init__", with_renewal)
    height, width = video_run.size
    extend(video_run, (height + 8, width + 8))
    retarget(video_run, (height, width + 8))
    generate(video_run, frames=3, start=0, size=(height, width + 8))
    assert not calls
    generate(video_run, frames=4, start=0)
    assert len(calls) == 3
