"""Videos for metrics: without two patches alike, noisy, shuffled; their patches."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def clouds():
    """clouds(...): (frames, H, W, 3) uint8, noise smooth in space and time, in which no two patches are alike."""

    def render(frames=8, size=(26, 30), seed=0, blur=60):
        shape = (3, frames, *size)
        spectrum = np.fft.fftn(np.random.default_rng(seed).normal(size=shape), axes=(1, 2, 3))
        squares = sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in shape[1:]), indexing="ij"))
        smooth = np.fft.ifftn(spectrum * np.exp(-blur * squares), axes=(1, 2, 3)).real
        return (128 + 45 * smooth / smooth.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 3, 0)

    return render


@pytest.fixture(scope="session")
def noisy():
    """noisy(frames, deviation): the frames with normal noise of that standard deviation."""

    def add_noise(frames, deviation, seed=0):
        noise = np.random.default_rng(seed).normal(0, deviation, frames.shape)
        return (frames + noise).round().clip(0, 255).astype(np.uint8)

    return add_noise


@pytest.fixture(scope="session")
def shuffled():
    """shuffled(frames): the same frames in another order."""
    return lambda frames: frames[np.random.default_rng(0).permutation(len(frames))]


@pytest.fixture(scope="session")
def patches():
    """patches(frames, patch): (t, y, x, values) float64 in [-1, 1], every patch of a video (T, H, W, 3) uint8."""

    def unfold(frames, patch):
        values = torch.from_numpy(frames).double() / 127.5 - 1
        for axis, side in enumerate(patch):
            values = values.unfold(axis, side, 1)
        return values.flatten(3)

    return unfold
