"""Inversion, sampling and windows, with networks whose answers are known."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'sinfusion[tune]'")

from hypothesis import given
from hypothesis import strategies as st

from sinfusion.tuning.sampling import CLEAN, Denoiser, invert, sample, schedulers, window_starts

CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TEXT = torch.zeros(1, 2, 3)


class Linear:
    """Says that some share of what it sees is noise, whatever the text."""

    def __init__(self, share=0.3):
        self.share, self.lengths = share, []

    def __call__(self, latents, timesteps, text):
        assert timesteps.shape == latents.shape[:1] == text.shape[:1]
        self.lengths.append(latents.shape[2])
        return self.share * latents


@given(st.integers(1, 200), st.integers(2, 40))
def test_windows_cover_all_frames_and_overlap(count, window):
    starts = window_starts(count, window)
    covered = [frame for start in starts for frame in range(start, min(count, start + window))]
    assert set(covered) == set(range(count))
    assert starts[0] == 0 and (len(starts) == 1) == (count <= window)
    steps = [after - before for before, after in pairwise(starts)]
    assert all(0 < step <= max(1, window - window // 3) for step in steps)


def test_windows_of_a_network_without_neighbours_are_the_whole():
    latents = torch.randn(2, 4, 13, 3, 5, dtype=torch.float64)
    network = Linear()
    in_windows = Denoiser(network, 5)(latents, 7, TEXT.expand(2, -1, -1))
    assert torch.allclose(in_windows, 0.3 * latents) and set(network.lengths) == {5}
    assert torch.equal(Denoiser(Linear(), 13)(latents, 7, TEXT.expand(2, -1, -1)), 0.3 * latents)


@pytest.mark.parametrize("steps", [50, 200])
def test_sampling_undoes_an_inversion(steps):
    latents = torch.randn(1, 4, 3, 4, 4, dtype=torch.float64)
    denoise, (forward, inverse) = Denoiser(Linear(0.1), 24), schedulers(CONFIG)
    levels = invert(denoise, latents, inverse, TEXT, steps)
    assert levels[CLEAN] is latents and len(levels) == steps + 1
    again = sample(denoise, levels, forward, TEXT.expand(2, -1, -1), 12.5, steps)
    assert (again - latents).norm() < 0.1 * (50 / steps) * latents.norm()


def test_more_levels_than_steps_serve_as_well():
    latents = torch.randn(1, 4, 3, 4, 4)
    denoise, (forward, inverse) = Denoiser(Linear(0.1), 24), schedulers(CONFIG)
    levels = invert(denoise, latents, inverse, TEXT, 100)
    for keep in (None, torch.ones(3, 4, 4)):
        told = sample(denoise, levels, forward, TEXT.expand(2, -1, -1), 1.0, 50, keep)
        assert (told - latents).norm() < (0.2 if keep is None else 1e-6) * latents.norm()


def test_latents_that_are_kept_are_those_of_the_clip():
    denoise, (forward, inverse) = Denoiser(Linear(0.1), 24), schedulers(CONFIG)
    levels = invert(denoise, torch.randn(1, 4, 3, 4, 4), inverse, TEXT, 10)
    keep = torch.zeros(3, 4, 4)
    keep[1, :2] = 1
    told = sample(denoise, levels, forward, TEXT.expand(2, -1, -1), 1.0, 10, keep)
    assert torch.equal(told[:, :, 1, :2], levels[CLEAN][:, :, 1, :2])
    assert not torch.equal(told[:, :, 1, 2:], levels[CLEAN][:, :, 1, 2:])


def test_schedulers_never_clip_whatever_the_file_says():
    for scheduler in schedulers(
        {**CONFIG, "clip_sample": True, "skip_prk_steps": True, "_class_name": "PNDMScheduler"}
    ):
        assert scheduler.config.clip_sample is False
        assert scheduler.config.steps_offset == 1 and scheduler.config.set_alpha_to_one is False
    forward, inverse = schedulers(CONFIG)
    forward.set_timesteps(50)
    inverse.set_timesteps(50)
    assert forward.timesteps.tolist() == inverse.timesteps.tolist()[::-1] and forward.timesteps[0] == 981
