"""The closed-form Predictor against a plain softmax in float64, its limits, and clips whose future is known."""

import math

import pytest
import torch

from sinfusion.closed_form import ClosedFormPredictor
from sinfusion.diffusion.samplers import ddim, sample
from sinfusion.diffusion.schedule import karras_sigmas
from sinfusion.errors import SinfusionError
from sinfusion.linear import LinearPredictor


def noise(frames=5, height=8, width=9, seed=0):
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def circling(frames, height=10, width=14):
    """A texture that moves to the left by a pixel a frame, and comes in again at the right."""
    return torch.stack([noise(1, height, width)[0].roll(-n, -1) for n in range(frames)])


def surroundings(image, y, x):
    """27 values colour by colour of (3, H, W), edges repeated."""
    rows, columns = (
        [min(max(at + d, 0), size - 1) for d in (-1, 0, 1)] for at, size in ((y, image.shape[1]), (x, image.shape[2]))
    )
    return image[:, rows][:, :, columns].flatten().double()


def plain_denoiser(frames, last, x, sigma, bandwidth):
    """One frame back, all transitions, a pixel's own patch alone: (3, H, W) float64."""
    height, width = frames.shape[2:]
    spread = (frames[1:] - frames[:-1]).double().square().mean().sqrt()
    places = [(t, y, x_) for t in range(len(frames) - 1) for y in range(height) for x_ in range(width)]
    seen = torch.stack([surroundings(frames[t], y, x_) for t, y, x_ in places])
    change = torch.stack([surroundings(frames[t + 1] - frames[t], y, x_) for t, y, x_ in places])
    out = torch.empty(3, height, width, dtype=torch.float64)
    for y in range(height):
        for x_ in range(width):
            logits = -(surroundings(last, y, x_) - seen).square().sum(1) / (2 * (bandwidth * spread) ** 2 * 27)
            logits -= (surroundings(x - last, y, x_) - change).square().sum(1) / (2 * sigma**2)
            out[:, y, x_] = last[:, y, x_].double() + (logits.softmax(0) @ change)[4::9]
    return out


@pytest.mark.parametrize("sigma", [0.3, 1.0, 20.0])
def test_with_all_neighbours_it_is_the_plain_softmax(sigma):
    frames, last, x = noise(4, 5, 6), noise(1, 5, 6, seed=1)[0], noise(1, 5, 6, seed=2)[0]
    predictor = ClosedFormPredictor.fit(frames, 1, neighbours=10**6, bandwidth=0.7)
    assert predictor.neighbours == 3 * 5 * 6
    found = predictor.denoiser(last[None, None], centre_weight=1.0)(x[None], torch.tensor([sigma]))[0]
    torch.testing.assert_close(found.double(), plain_denoiser(frames, last, x, sigma, 0.7), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("previous", [1, 2])
def test_without_noise_a_known_frame_is_itself(previous, linear):
    frames = noise()
    predictor = ClosedFormPredictor.fit(frames, previous, linear, bandwidth=1.0)
    denoise = predictor.denoiser(frames[None, 1:3])
    torch.testing.assert_close(denoise(frames[3:4], torch.tensor([1e-4])), frames[3:4], rtol=0, atol=1e-5)


def test_with_much_noise_it_is_the_mean():
    frames = noise()
    denoise = ClosedFormPredictor.fit(frames, bandwidth=1.0).denoiser(frames[None, :2])
    torch.testing.assert_close(denoise(noise(1, seed=9) * 1e6, torch.tensor([1e12])), denoise.mean())


@pytest.mark.parametrize("previous", [1, 2])
def test_a_wide_bandwidth_gives_the_mean_of_all_changes(previous):
    frames = noise()
    predictor = ClosedFormPredictor.fit(frames, previous, neighbours=10**6, bandwidth=1e5)
    mean = predictor.changes.view(-1, 3, 9)[..., 4].mean(0)
    found = predictor.denoiser(frames[None, :previous], centre_weight=1.0).mean() - frames[previous - 1]
    torch.testing.assert_close(found, mean.view(1, 3, 1, 1).expand_as(found), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("previous", [1, 2])
def test_a_clip_that_circles_is_predicted_beyond_its_end(previous):
    frames = circling(18)
    predictor = ClosedFormPredictor.fit(frames[:16], previous, bandwidth=0.05)  # it has been all round
    for n in (16, 17):
        found = predictor.predict(frames[None, n - previous : n])
        assert (found - frames[n])[..., 1:-1].abs().max() < 1e-4


@pytest.mark.parametrize("previous", [1, 2])
def test_the_bandwidth_is_chosen_by_transitions_left_out(previous):
    """Sharp where a change has been seen before; wide where all is chance."""
    sharp = ClosedFormPredictor.fit(circling(16), previous).bandwidth
    wide = ClosedFormPredictor.fit(noise(8).cumsum(0), previous).bandwidth
    assert sharp <= 0.35 < 1.0 < wide


def test_the_linear_filter_goes_first():
    """Of what it predicts exactly nothing is left to say."""
    first, step = noise(1)[0] / 4, noise(1, seed=1)[0] / 40
    frames = torch.stack([first + n * step for n in range(7)])
    predictor = ClosedFormPredictor.fit(frames[:5], linear=True)
    assert predictor.changes.abs().max() < 1e-5
    assert (predictor.predict(frames[None, 4:6]) - frames[6]).abs().max() < 1e-5
    assert isinstance(predictor.linear, LinearPredictor)


def test_few_neighbours_are_close_to_all():
    frames = circling(9)
    few, all_of_them = (ClosedFormPredictor.fit(frames, neighbours=n, bandwidth=0.1) for n in (32, 10**6))
    torch.testing.assert_close(few.predict(frames[None]), all_of_them.predict(frames[None]), rtol=0, atol=0.02)


def test_it_samples_known_futures_in_the_place_of_a_network():
    """Two futures of one frame: a sample is one of them, the mean between them."""
    a, b, c = noise(3, 8, 8)
    frames = torch.stack([a, b, a, c])
    predictor = ClosedFormPredictor.fit(frames, 1, neighbours=10**6, bandwidth=0.05)
    table = ddim(karras_sigmas(12, 20 * predictor.change, 0.02 * predictor.change))
    torch.testing.assert_close(predictor.predict(a[None, None])[0], (b + c) / 2, rtol=0, atol=1e-4)
    x = a + table[0].sigma * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = sample(predictor.denoiser(a.expand(16, 1, 3, 8, 8), centre_weight=1.0), x, table)
    near = torch.minimum((found - b).abs(), (found - c).abs()).amax(1).flatten()
    assert near.quantile(0.9) < 0.02 < (b - c).abs().mean()
    assert (found.std(0) > 0.01).any(), "both are drawn"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_batch_is_its_sequences_one_by_one(backend):
    from sinfusion import ops

    frames = noise()
    predictor = ClosedFormPredictor.fit(frames)
    history = torch.stack((frames[:2], frames[1:3]))
    with ops.backend(backend):
        both = predictor.predict(history)
        torch.testing.assert_close(both[1:], predictor.predict(history[1:]))


def test_another_size_than_the_clips_serves():
    found = ClosedFormPredictor.fit(noise()).predict(noise(2, 12, 20)[None])
    assert found.shape == (1, 3, 12, 20)


def test_the_spread_is_the_rms_change():
    frames = noise()
    predictor = ClosedFormPredictor.fit(frames, 1, bandwidth=1.0)
    assert math.isclose(predictor.spread, (frames[1:] - frames[:-1]).square().mean().sqrt(), rel_tol=1e-5)
    assert predictor.change == predictor.spread


def test_what_is_wrong_is_refused_in_words():
    with pytest.raises(SinfusionError, match="from 2 frame\\(s\\) takes at least 4, not 3"):
        ClosedFormPredictor.fit(noise(3))
    with pytest.raises(SinfusionError, match="takes at least 2, not 1"):
        ClosedFormPredictor.fit(noise(1), 1, bandwidth=1.0)
    with pytest.raises(SinfusionError, match="side odd and neighbours above 0, not 1, 4 and 64"):
        ClosedFormPredictor.fit(noise(), 1, side=4)
