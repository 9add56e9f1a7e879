"""The linear filter of the last frames."""

import pytest
import torch

from sinfusion.errors import SinfusionError
from sinfusion.linear import LinearPredictor


def sliding(frames=8, height=16, width=24, step=1, seed=0):
    """(T, 3, H, W) in [-1, 1]: a texture that moves to the left, of more columns than are seen."""
    texture = torch.rand(3, height, width + step * frames, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.stack([texture[..., n * step : n * step + width] for n in range(frames)])


def error(predicted, frames, edge=1):
    return (predicted - frames)[..., :-edge].abs().max()


def rms(difference):
    return difference.double().square().mean().sqrt()


@pytest.mark.parametrize("previous", [1, 2])
def test_a_clip_that_slides_is_predicted_beyond_its_end(previous):
    frames = sliding(12)
    # Its right column shows what was never seen; what it is taken for must not matter much inside.
    predictor = LinearPredictor.fit(frames[:8, ..., :-1], previous)
    inside = predictor.predict(frames[None, 8 - previous : 8])
    assert rms((inside - frames[8:9])[..., :-1]) < 0.05 * rms(frames[8] - frames[7])


def test_a_clip_that_fades_is_predicted_exactly_by_two_frames():
    first, step = sliding(1)[0] / 4, sliding(1, seed=1)[0] / 40
    frames = torch.stack([first + n * step for n in range(8)])  # each pixel goes on as it did
    two, one = (LinearPredictor.fit(frames[:5], previous) for previous in (2, 1))
    assert (two.predict(frames[None, 5:7]) - frames[7]).abs().max() < 1e-5
    assert (one.predict(frames[None, 5:7]) - frames[7]).abs().max() > 0.01


def test_it_is_the_least_squares_of_its_rows():
    frames = torch.rand(4, 3, 6, 7, generator=torch.Generator().manual_seed(2)) * 2 - 1
    predictor = LinearPredictor.fit(frames)
    padded = torch.nn.functional.pad(frames.double(), (1, 1, 1, 1), mode="replicate")
    rows, targets = [], []
    for t in (2, 3):
        for y in range(6):
            for x in range(7):
                last, before = (padded[n, :, y : y + 3, x : x + 3] for n in (t - 1, t - 2))
                rows.append(torch.cat([last.flatten(), (last - before).flatten(), torch.ones(1).double()]))
                targets.append(frames[t, :, y, x].double() - frames[t - 1, :, y, x].double())
    exact = torch.linalg.lstsq(torch.stack(rows), torch.stack(targets)).solution.T
    torch.testing.assert_close(predictor.filters[1].flatten(1).double(), exact[:, :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor.biases[1].double(), exact[:, -1], rtol=1e-4, atol=1e-5)


def test_a_still_clip_stays_as_it_is():
    frames = sliding(1).expand(4, -1, -1, -1)
    assert torch.equal(LinearPredictor.fit(frames).predict(frames[None]), frames[:1])


def test_a_first_frame_is_predicted_by_the_filter_of_one():
    frames = sliding(6)
    two, one = LinearPredictor.fit(frames), LinearPredictor.fit(frames, previous=1)
    assert torch.equal(two.predict(frames[None, :1]), one.predict(frames[None, :1]))
    predicted = two.predict_all(frames)
    assert predicted.shape == (5, 3, 16, 24)
    assert torch.equal(predicted[:1], one.predict(frames[None, :1]))
    assert torch.equal(predicted[3:4], two.predict(frames[None, :4])), "earlier frames do not matter"
    assert len(two.predict_all(frames[:1])) == 0


def test_a_filter_serves_other_sizes_and_batches():
    frames = sliding(6)
    predictor = LinearPredictor.fit(frames)
    larger = torch.rand(2, 2, 3, 20, 40) * 2 - 1
    both = predictor.predict(larger)
    assert both.shape == (2, 3, 20, 40)
    torch.testing.assert_close(both[1:], predictor.predict(larger[1:]))


@pytest.mark.parametrize("previous", [1, 2])
def test_too_few_frames_are_refused_in_words(previous):
    with pytest.raises(SinfusionError, match=f"at least {previous + 1} to fit, not {previous}"):
        LinearPredictor.fit(sliding(previous), previous)
    with pytest.raises(SinfusionError, match="previous is 1 or 2 and taps are odd, not 3 and 3"):
        LinearPredictor.fit(sliding(4), 3)
