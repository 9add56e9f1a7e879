"""Schedules and noise levels against formulas written out by hand in float64."""

import math

import numpy as np
import pytest

from sinfusion.diffusion.schedule import SCHEDULES, cosine_schedule, karras_sigmas, linear_schedule, truncated
from sinfusion.errors import SinfusionError

EVERY = pytest.mark.parametrize("name", SCHEDULES)


@pytest.mark.parametrize("timesteps", [20, 50, 500])
def test_linear_betas_run_from_a_ten_thousandth_to_two_hundredths_times_1000_over_t(timesteps):
    product, expected = 1.0, [1.0]
    for i in range(timesteps):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / (timesteps - 1)) * 1000 / timesteps
        expected.append(max(product, expected[-1] * 0.001))  # betas are at most 0.999
    np.testing.assert_allclose(linear_schedule(timesteps).alphas_cumprod, expected, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [10, 50, 500])
def test_cosine_schedule_has_the_released_spacing_and_clipping(timesteps):
    def curve(i):  # T + 1 points spread over 0 .. T + 1
        point = i * (timesteps + 1) / timesteps / (timesteps + 1)
        return math.cos((point + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [1.0]
    for i in range(timesteps):
        beta = min(1 - curve(i + 1) / curve(i), 0.999)
        expected.append(expected[-1] * (1 - beta))
    np.testing.assert_allclose(cosine_schedule(timesteps).alphas_cumprod, expected, rtol=1e-9)


@EVERY
def test_a_schedule_goes_from_clean_to_almost_pure_noise(name):
    schedule = SCHEDULES[name](50)
    assert schedule.timesteps == 50 and schedule.alphas_cumprod.dtype == np.float64
    assert schedule.alphas_cumprod[0] == 1 and schedule.alphas_cumprod[-1] < 1e-3
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod[1:], rtol=1e-12)


@EVERY
def test_sigma_is_noise_over_signal(name):
    schedule = SCHEDULES[name](50)
    signal, noise = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
    np.testing.assert_allclose(schedule.sigma, noise / signal, rtol=1e-12)


@EVERY
def test_levels_at_whole_timesteps_are_the_schedules_and_rise_in_between(name):
    schedule = SCHEDULES[name](50)
    whole = np.arange(1, 51)
    np.testing.assert_allclose(schedule.sigma_at(whole), schedule.sigma[1:], rtol=1e-12)
    fractional = np.linspace(1, 50, 173)
    assert (np.diff(schedule.sigma_at(fractional)) > 0).all()


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 120])
def test_a_reverse_process_of_any_number_of_steps_falls_strictly_from_the_top_to_zero(name, steps):
    schedule = SCHEDULES[name](50)
    sigmas = schedule.sigmas(steps)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(schedule.sigma[-1])
    assert (np.diff(sigmas) < 0).all()


def test_as_many_steps_as_timesteps_visit_every_timestep():
    schedule = cosine_schedule(50)
    np.testing.assert_allclose(schedule.sigmas(50), schedule.sigma[::-1], rtol=1e-12)


def test_karras_levels_are_equally_spaced_in_the_seventh_root():
    sigmas = karras_sigmas(9, 20.0, 0.05)
    assert sigmas[0] == pytest.approx(20) and sigmas[-2] == pytest.approx(0.05) and sigmas[-1] == 0
    gaps = np.diff(sigmas[:-1] ** (1 / 7))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    assert karras_sigmas(1, 20.0, 0.05).tolist() == pytest.approx([20.0, 0.0])


def test_no_steps_at_all_is_refused():
    for make in (lambda: karras_sigmas(0, 1, 0.1), lambda: cosine_schedule().sigmas(0)):
        with pytest.raises(SinfusionError, match="at least 1 step"):
            make()


def test_a_truncated_process_starts_at_its_entry_and_visits_each_lower_level_once():
    sigmas = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    assert truncated(sigmas, 3.0).tolist() == [3, 2, 1, 0]
    assert truncated(sigmas, 2.0).tolist() == [2, 1, 0]
    assert truncated(sigmas, float(np.float32(2.0) * (1 + 1e-7))).tolist()[1:] == [1, 0]
