"""Samplers against textbook loops and against a distribution whose perfect denoiser is known."""

import math

import numpy as np
import pytest
import torch

from sinfusion.diffusion import samplers
from sinfusion.diffusion.samplers import SAMPLERS, Step, ddpm, heun, resampled
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


def sample(sampler, denoise, x, sigmas, noise):
    """The loop that ships, with estimates clamped to the range of images."""
    return samplers.sample(lambda x, sigma: denoise(x, sigma).clamp(-1, 1), x, SAMPLERS[sampler](sigmas), noise)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_has_the_textbook_coefficients(schedule):
    schedule = SCHEDULES[schedule](50)
    abar, beta = schedule.alphas_cumprod, np.append(0.0, schedule.betas)
    clean, x_t = torch.randn(2, 5, dtype=torch.float64)
    for t in (1, 2, 25, 49, 50):
        a_t, a_before = math.sqrt(abar[t]), math.sqrt(abar[t - 1])
        (step,) = ddpm(schedule.sigma[[t, t - 1]])
        mean, deviation = step.of_x * x_t / a_t + step.of_clean * clean, step.of_noise
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
        clean = Gaussian()(x / a[i], torch.full((2,), levels[i], dtype=torch.float64)).clamp(-1, 1)
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


def test_gradients_flow_through_the_loop_to_the_first_x():
    """With x0 = (v x + s m) / (v + s) and one Euler step from sigma to 0, d(out)/dx is v / (v + s)."""
    denoise = Gaussian()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    out = samplers.sample(denoise, x, SAMPLERS["euler"](np.array([0.4, 0.0])))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, denoise.variance / (denoise.variance + 0.16)))
    (gradient,) = torch.autograd.grad(samplers.sample(denoise, x, heun(np.array([1.0, 0.4, 0.1, 0.0]))).sum(), x)
    assert gradient.isfinite().all() and (gradient > 0).all()


def test_the_loop_clamps_nothing_and_shows_every_estimate():
    seen = []
    out = samplers.sample(
        lambda x, sigma: 3 * torch.ones_like(x), torch.zeros(1, 3, 2, 2), [Step(1.0, 0.0, 0.0, 1.0, 0.0)],
        callback=lambda i, x, clean: seen.append((i, x.max().item(), clean.max().item())),
    )  # fmt: skip
    assert (out == 3).all() and seen == [(0, 0.0, 3.0)]


def test_noise_is_drawn_where_none_is_given_and_only_for_samplers_that_need_it():
    x, sigmas = torch.zeros(2, 3, 8, 8), np.array([1.0, 0.5, 0.1, 0.0])

    def outputs(sampler, seed):
        torch.manual_seed(seed)
        return samplers.sample(Gaussian(), x, SAMPLERS[sampler](sigmas))

    assert torch.equal(outputs("euler", 0), outputs("euler", 1))
    assert torch.equal(outputs("ancestral", 0), outputs("ancestral", 0))
    assert not torch.equal(outputs("ancestral", 0), outputs("ancestral", 1))


# Resampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_jumps_the_table_stays_and_with_them_all_steps_but_the_last_are_repeated(sampler):
    steps = SAMPLERS[sampler](np.array([8.0, 2.0, 0.5, 0.0]))
    assert resampled(steps, 0) == steps
    visited = [step.sigma for step in resampled(steps, 2)]
    once = [[8.0, 2.0], [2.0, 0.5]] if sampler == "heun" else [[8.0], [2.0]]
    assert visited == once[0] * 3 + once[1] * 3 + [0.5]


def test_a_jump_brings_back_the_noise_that_the_step_took_away():
    (first, again, last) = resampled(ddpm(np.array([2.0, 0.5, 0.0])), 1)
    step = ddpm(np.array([2.0, 0.5, 0.0]))[0]
    assert first.of_noise**2 == pytest.approx(step.of_noise**2 + 2.0**2 - 0.5**2)
    assert again == step and last.of_clean == 1


def test_jumps_keep_the_distribution():
    """Of which the denoiser is the perfect one, and x has a wrong mean to begin with, which they mend."""
    denoise, shape = Gaussian(), (400, 3, 8, 8)
    table = ddpm(karras_sigmas(100, 3.0, 0.02))
    errors = []
    for jumps in (0, 3):
        outputs = samplers.sample(denoise, 1.0 + 3.0 * Noises(shape)(999), resampled(table, jumps), noise=Noises(shape))
        assert outputs.std().item() == pytest.approx(0.2, rel=0.05)
        errors.append(abs(outputs.mean().item() - 0.1))
    assert errors[1] < errors[0]
