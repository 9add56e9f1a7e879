"""Samplers against textbook loops and against a distribution whose perfect denoiser is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from sinfusion.diffusion.samplers import SAMPLERS, ddpm
from sinfusion.diffusion.schedule import SCHEDULES, karras_sigmas, truncated


class Gaussian:
    """Pixels are N(mean, deviation^2): E[clean | x] is linear in x. Counts its evaluations."""

    def __init__(self, mean=0.1, deviation=0.2):
        self.mean, self.variance, self.levels = mean, deviation**2, []

    def __call__(self, x, sigma):
        self.levels.append(sigma[0].item())
        s = sigma[:, None, None, None].to(x) ** 2
        return (self.variance * x + s * self.mean) / (self.variance + s)


class Noises:
    """Fresh standard normals, the same for every instance; keeps those it gave."""

    def __init__(self, shape, dtype=torch.float32):
        self.shape, self.dtype, self.given = shape, dtype, {}

    def __call__(self, step):
        generator = torch.Generator().manual_seed(step + 1)
        self.given[step] = torch.randn(self.shape, generator=generator, dtype=self.dtype)
        return self.given[step]


def sample(sampler, denoise, x, levels, noise):
    """Follow a sampler's table; estimates are clamped to the range of images."""
    previous = torch.full_like(x, torch.nan)
    for i, step in enumerate(SAMPLERS[sampler](levels)):
        clean = denoise(x, torch.full((len(x),), step.sigma)).clamp(-1, 1)
        after = step.of_state * x + step.of_clean * clean
        if step.of_previous:
            after = after + step.of_previous * previous
        if step.of_noise:
            after = after + step.of_noise * noise(i)
        previous, x = x, after
    return x


SHAPE = (4, 3, 64, 64)


def ancestral_deviation(levels, deviation=0.2):
    """What ancestral sampling with the perfect denoiser of N(m, deviation^2) makes of it at just these levels.

    Each step is x' = a x + const + b noise, with a and b known; it falls short of `deviation` to first order.
    """
    variance = levels[0] ** 2
    for sigma, lower in itertools.pairwise(levels):
        share, keep = deviation**2 / (deviation**2 + sigma**2), (lower / sigma) ** 2
        variance = (share + keep * (1 - share)) ** 2 * variance + lower**2 * (1 - keep)
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [
        ("ddpm", SCHEDULES["cosine"](1000).sigmas(1000)),
        ("ddpm", SCHEDULES["linear"](1000).sigmas(250)),
        ("ancestral", karras_sigmas(400, 20, 0.002)),
        ("ddpm", SCHEDULES["cosine"](50).sigmas(50)),
    ],
)
def test_ancestral_sampling_of_gaussian_pixels_has_their_mean_and_the_deviation_that_theory_says(sampler, levels):
    torch.manual_seed(0)
    outputs = sample(sampler, Gaussian(), levels[0] * torch.randn(SHAPE), levels, Noises(SHAPE))
    # 49152 pixels: the standard error of the mean is 0.5%, that of the deviation 0.3%, of the deviation.
    assert outputs.mean().item() == pytest.approx(0.1, abs=0.005)
    assert outputs.std().item() == pytest.approx(ancestral_deviation(levels), rel=0.015)


@pytest.mark.parametrize(
    ("sampler", "levels", "tolerance"),
    [
        ("ddpm", SCHEDULES["cosine"](1000).sigmas(1000), 0.02),
        ("ancestral", karras_sigmas(400, 20, 0.002), 0.03),
        ("ddim", SCHEDULES["cosine"](1000).sigmas(1000), 0.02),
        ("euler", karras_sigmas(400, 20, 0.002), 0.02),
        ("heun", karras_sigmas(40, 20, 0.002), 0.02),
    ],
)
def test_with_enough_steps_every_sampler_gives_the_deviation_of_gaussian_pixels(sampler, levels, tolerance):
    torch.manual_seed(0)
    outputs = sample(sampler, Gaussian(), levels[0] * torch.randn(SHAPE), levels, Noises(SHAPE))
    assert outputs.mean().item() == pytest.approx(0.1, abs=0.005)
    assert outputs.std().item() == pytest.approx(0.2, rel=tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fifty_ddpm_steps_are_the_textbook_loop(schedule):
    """Ho et al. 2020, algorithm 2, in variance-preserving coordinates and with its own coefficients."""
    torch.manual_seed(0)
    shape = (2, 3, 8, 8)
    schedule = SCHEDULES[schedule](50)
    denoise, noises = Gaussian(0.2, 0.4), Noises(shape, torch.float64)
    start = torch.randn(shape, dtype=torch.float64)
    top_signal = math.sqrt(schedule.alphas_cumprod[-1])
    outputs = sample("ddpm", denoise, start / top_signal, schedule.sigmas(50), noises)

    abar, beta = schedule.alphas_cumprod, np.append(0.0, schedule.betas)
    x = start
    for i, t in enumerate(range(50, 0, -1)):
        level = math.sqrt((1 - abar[t]) / abar[t])
        clean = Gaussian(0.2, 0.4)(x / math.sqrt(abar[t]), torch.full((2,), level, dtype=torch.float32)).clamp(-1, 1)
        x = (
            beta[t] * math.sqrt(abar[t - 1]) / (1 - abar[t]) * clean
            + (1 - abar[t - 1]) * math.sqrt(1 - beta[t]) / (1 - abar[t]) * x
        )
        if t > 1:
            x = x + math.sqrt(beta[t] * (1 - abar[t - 1]) / (1 - abar[t])) * noises.given[i]
    torch.testing.assert_close(outputs, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_has_the_textbook_coefficients(schedule):
    schedule = SCHEDULES[schedule](50)
    abar, beta = schedule.alphas_cumprod, np.append(0.0, schedule.betas)
    clean, x_t = torch.randn(2, 5, dtype=torch.float64)
    for t in (1, 2, 25, 49, 50):
        a_t, a_before = math.sqrt(abar[t]), math.sqrt(abar[t - 1])
        (step,) = ddpm(schedule.sigma[[t, t - 1]])
        mean, deviation = step.of_state * x_t / a_t + step.of_clean * clean, step.of_noise
        by_hand = (
            a_before * beta[t] / (1 - abar[t]) * clean
            + math.sqrt(1 - beta[t]) * (1 - abar[t - 1]) / (1 - abar[t]) * x_t
        )
        torch.testing.assert_close(mean * a_before, by_hand, rtol=1e-9, atol=1e-11)
        variance = (1 - abar[t - 1]) / (1 - abar[t]) * beta[t]
        assert (deviation * a_before) ** 2 == pytest.approx(variance, rel=1e-8, abs=1e-15)


def test_ddim_is_the_textbook_loop():
    """Song et al. 2021, equation 12 with eta = 0."""
    torch.manual_seed(0)
    schedule = SCHEDULES["cosine"](50)
    levels = schedule.sigmas(10)
    a = 1 / np.sqrt(1 + levels**2)
    start = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    outputs = sample("ddim", Gaussian(), start / a[0], levels, None)
    x = start
    for i in range(10):
        clean = Gaussian()(x / a[i], torch.full((2,), levels[i], dtype=torch.float32)).clamp(-1, 1)
        direction = (x - a[i] * clean) / math.sqrt(1 - a[i] ** 2)
        x = a[i + 1] * clean + math.sqrt(1 - a[i + 1] ** 2) * direction
    torch.testing.assert_close(outputs, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sampler", "evaluations"), [("ddpm", 9), ("ddim", 9), ("heun", 17)])
def test_samplers_evaluate_the_network_as_often_as_they_say(sampler, evaluations):
    shape = (1, 3, 8, 8)
    denoise, noises = Gaussian(), Noises(shape)
    sample(sampler, denoise, torch.zeros(shape), karras_sigmas(9, 5, 0.1), noises)
    assert len(denoise.levels) == evaluations
    assert sorted(noises.given) == (list(range(8)) if sampler == "ddpm" else [])  # none at the last step


def test_euler_is_first_and_heun_second_order():
    """Doubling the steps halves Euler's error and quarters Heun's. With this denoiser the exact flow scales x."""
    variance, top = 0.04, 20.0
    exact = math.sqrt(variance / (variance + top**2))
    x = torch.full((1, 3, 1, 1), top, dtype=torch.float64)
    for sampler, ratio in (("euler", 2), ("heun", 4)):
        errors = []
        for steps in (40, 80, 160):
            # The bottom is so low that the last step, which is Euler's in both, adds nothing that shows.
            outputs = sample(sampler, Gaussian(mean=0), x, karras_sigmas(steps, top, 0.0005), None)
            errors.append(abs(outputs.mean().item() / (exact * top) - 1))
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)
        assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.1)
    assert errors[-1] < 1e-3


def test_a_truncated_start_visits_only_the_levels_below_it():
    schedule = SCHEDULES["cosine"](50)
    shape = (1, 3, 8, 8)
    denoise = Gaussian()
    sample("ddpm", denoise, torch.zeros(shape), truncated(schedule.sigmas(50), schedule.sigma[3]), Noises(shape))
    np.testing.assert_allclose(denoise.levels, schedule.sigma[[3, 2, 1]], rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_estimates_are_clamped_to_the_range_of_images(sampler):
    shape = (1, 3, 4, 4)
    outputs = sample(sampler, lambda x, s: torch.full_like(x, 7), torch.zeros(shape), karras_sigmas(5, 3, 0.1),
                             Noises(shape))  # fmt: skip
    torch.testing.assert_close(outputs, torch.ones(shape), rtol=0, atol=1e-5)
