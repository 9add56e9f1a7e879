"""Targets and estimates of each parameterization, and the Denoiser around them."""

import numpy as np
import pytest
import torch

from sinfusion.diffusion.denoiser import Denoiser, rms_change
from sinfusion.diffusion.parameterization import PARAMETERIZATIONS
from sinfusion.diffusion.schedule import cosine_schedule

EVERY = pytest.mark.parametrize("name", PARAMETERIZATIONS)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


@pytest.fixture
def parts():
    """clean, noise, sigma, prior_mean, sigma_data: float64, five samples of little to much noise."""
    torch.manual_seed(0)
    clean, noise, prior_mean = torch.randn(3, 5, 3, 4, 6, dtype=torch.float64)
    return clean, noise, column(1e-3, 0.1, 1, 10, 1e3), prior_mean, column(0.05, 0.2, 1, 0.02, 0.5)


def target(form, clean, noise, sigma, prior_mean, sigma_data):
    """What the network's output should be."""
    of_clean, of_noise, of_prior_mean = form.target(sigma, sigma_data)
    return of_clean * clean + of_noise * noise + of_prior_mean * prior_mean


def estimate(form, output, x, sigma, prior_mean, sigma_data):
    """The clean image that an output stands for."""
    of_output, of_state, of_prior_mean = form.estimate(sigma, sigma_data)
    return of_output * output + of_state * x + of_prior_mean * prior_mean


def seen(form, x, sigma, prior_mean, sigma_data):
    """The noisy image as the network sees it."""
    of_state, of_prior_mean = form.input(sigma, sigma_data)
    return of_state * x + of_prior_mean * prior_mean


@EVERY
def test_the_estimate_undoes_the_target(name, parts):
    clean, noise, sigma, prior_mean, sigma_data = parts
    form = PARAMETERIZATIONS[name]
    x = clean + sigma * noise
    output = target(form, clean, noise, sigma, prior_mean, sigma_data)
    torch.testing.assert_close(estimate(form, output, x, sigma, prior_mean, sigma_data), clean, rtol=1e-9, atol=1e-9)


@EVERY
def test_coefficients_of_a_number_are_those_of_a_tensor(name):
    form = PARAMETERIZATIONS[name]
    sigma, sigma_data = torch.tensor([0.3, 7.0], dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    for of in (form.input, form.target, form.estimate):
        for i in range(2):
            assert [float(c[i]) for c in of(sigma, sigma_data)] == pytest.approx(
                of(float(sigma[i]), float(sigma_data[i]))
            )


def test_x0_and_noise_see_and_mean_what_they_do_in_variance_preserving_coordinates(parts):
    clean, noise, sigma, prior_mean, sigma_data = parts
    a = 1 / (1 + sigma**2).sqrt()
    s = (1 - a**2).sqrt()
    x_t = a * clean + s * noise
    for name in ("x0", "noise"):
        image = seen(PARAMETERIZATIONS[name], clean + sigma * noise, sigma, prior_mean, sigma_data)
        torch.testing.assert_close(image, x_t, rtol=1e-6, atol=1e-9)
    output = torch.randn_like(clean)
    outputs = estimate(PARAMETERIZATIONS["noise"], output, x_t / a, sigma, prior_mean, sigma_data)
    torch.testing.assert_close(outputs, (x_t - s * output) / a, rtol=1e-6, atol=1e-6)


def test_preconditioned_with_no_output_is_the_best_linear_guess_around_the_prior_mean(parts):
    clean, noise, sigma, prior_mean, sigma_data = parts
    x = clean + sigma * noise
    guess = estimate(PARAMETERIZATIONS["preconditioned"], torch.zeros_like(x), x, sigma, prior_mean, sigma_data)
    # Two measurements of one image, weighed by their inverse variances.
    torch.testing.assert_close(guess, (prior_mean / sigma_data**2 + x / sigma**2) / (1 / sigma_data**2 + 1 / sigma**2))


@pytest.mark.parametrize("sigma", [0.01, 0.3, 5.0])
def test_preconditioned_inputs_and_targets_have_unit_variance(sigma):
    torch.manual_seed(1)
    prior_mean, change, noise = torch.randn(3, 1, 3, 200, 200, dtype=torch.float64)
    sigma_data, level = column(0.3), column(sigma)
    clean = prior_mean + sigma_data * change
    form = PARAMETERIZATIONS["preconditioned"]
    for value in (
        seen(form, clean + level * noise, level, prior_mean, sigma_data),
        target(form, clean, noise, level, prior_mean, sigma_data),
    ):
        assert value.std().item() == pytest.approx(1, abs=0.02)


class Recorder(torch.nn.Module):
    """Stands for a network: keeps what it is told, answers with a fixed image."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, x, time, frame_offset=None):
        self.x, self.time, self.frame_offset = x, time, frame_offset
        return torch.zeros_like(x[:, -3:]) if self.answer is None else self.answer


def denoiser(name, network=None, continuous=False, sigma_data=(0.1, 0.2), frame_offset=False):
    return Denoiser(
        network or Recorder(), PARAMETERIZATIONS[name], cosine_schedule(), continuous, sigma_data, frame_offset
    )


def test_several_conditions_are_seen_as_they_are_or_as_the_first_and_changes_of_unit_variance():
    torch.manual_seed(2)
    last, older = torch.rand(2, 4, 3, 8, 8)
    condition, x = torch.cat((last, older, older), 1), torch.rand(4, 3, 8, 8)
    for changes, prior_mean in ((False, (last + older + older) / 3), (True, last)):
        model = denoiser("preconditioned")
        model.changes = changes
        model(x, torch.full((4,), 0.3), condition)
        wanted = torch.cat((last, (last - older) / 0.1, 0 * older), 1) if changes else condition
        torch.testing.assert_close(model.network.x[:, :9], wanted)
        torch.testing.assert_close(model.prior_mean(x, condition), prior_mean)
    assert torch.equal(model.seen(last, torch.ones(4)), last)  # a single frame is seen as it is
    assert torch.equal(model.prior_mean(x, None), torch.zeros_like(x))


def test_the_network_is_told_the_timestep_counted_from_0_or_the_level_itself():
    schedule = cosine_schedule()
    timesteps = np.array([1, 2, 27, 50])
    sigma = torch.tensor(schedule.sigma[timesteps], dtype=torch.float32)
    x = torch.zeros(4, 3, 8, 8)
    whole = denoiser("x0")
    whole(x, sigma)
    torch.testing.assert_close(whole.network.time, torch.tensor([0.0, 1.0, 26.0, 49.0]), rtol=1e-5, atol=1e-5)
    level = denoiser("noise", continuous=True)
    level(x, sigma)
    expected = torch.tensor(np.sqrt(schedule.alphas_cumprod[timesteps]), dtype=torch.float32)
    torch.testing.assert_close(level.network.time, expected, rtol=1e-5, atol=1e-6)


def test_a_level_between_two_timesteps_is_told_as_the_timestep_it_lies_at():
    timestep = np.linspace(1, 50, 173)
    sigma = torch.tensor(cosine_schedule().sigma_at(timestep), dtype=torch.float64)
    told = denoiser("noise").time(sigma, torch.ones_like(sigma))
    torch.testing.assert_close(told, torch.tensor(timestep - 1, dtype=torch.float32), rtol=1e-5, atol=1e-5)


def test_preconditioned_time_depends_on_the_level_in_units_of_sigma_data_alone():
    model = denoiser("preconditioned")
    first = model.time(torch.tensor([0.1, 2.0]), torch.tensor([0.1, 0.1]))
    second = model.time(torch.tensor([0.7, 14.0]), torch.tensor([0.7, 0.7]))
    torch.testing.assert_close(first, second)
    assert first[0] == 0


def test_each_sample_has_the_sigma_data_of_its_frame_offset():
    model = denoiser("preconditioned", sigma_data=(0.1, 0.2, 0.3))
    offsets = torch.tensor([1, -1, 2, -3, 9])
    expected = torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])
    torch.testing.assert_close(model.sigma_data_of(offsets, 5, torch.device("cpu")), expected)
    torch.testing.assert_close(model.sigma_data_of(None, 2, torch.device("cpu")), torch.tensor([0.1, 0.1]))


def test_the_network_sees_the_conditions_first_and_the_noisy_image_last():
    model = denoiser("noise", continuous=True, frame_offset=True)
    condition, x = torch.rand(2, 6, 8, 8), torch.randn(2, 3, 8, 8)
    offset = torch.tensor([1, -1])
    model(x, torch.tensor([0.5, 2.0]), condition, offset)
    assert torch.equal(model.network.x[:, :6], condition)
    torch.testing.assert_close(model.network.x[1, 6:], x[1] / 5**0.5)
    assert model.network.frame_offset is offset


def test_two_conditions_are_centred_on_their_mean():
    before, after = torch.full((1, 3, 8, 8), -0.5), torch.full((1, 3, 8, 8), 0.3)
    model = denoiser("preconditioned", sigma_data=(0.01,))
    far_above = model(torch.zeros(1, 3, 8, 8), torch.tensor([1e4]), torch.cat((before, after), 1))
    torch.testing.assert_close(far_above, torch.full_like(before, -0.1))


@EVERY
def test_training_coefficients_make_what_the_network_sees_and_should_answer(name):
    torch.manual_seed(2)
    clean, noise, condition = torch.rand(3, 2, 3, 8, 8) * 2 - 1
    sigma, sigma_data = torch.tensor([0.1, 3.0]), torch.tensor([0.1, 0.2])
    model = denoiser(name, sigma_data=(0.1,))
    c = model.training_coefficients(sigma, sigma_data)[..., None, None, None]
    s, d = (value[:, None, None, None] for value in (sigma, sigma_data))
    expected = seen(model.parameterization, clean + s * noise, s, condition, d)
    torch.testing.assert_close(c[:, 0] * clean + c[:, 1] * noise + c[:, 2] * condition, expected, rtol=1e-5, atol=1e-5)
    expected = target(model.parameterization, clean, noise, s, condition, d)
    torch.testing.assert_close(c[:, 3] * clean + c[:, 4] * noise + c[:, 5] * condition, expected, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_mean_square_of_what_the_network_misses_its_target_by():
    inputs, wanted = torch.rand(2, 6, 8, 8), torch.rand(2, 3, 8, 8)
    time = torch.tensor([0.1, 3.0])
    assert denoiser("x0", Recorder(wanted)).loss(inputs, wanted, time).item() == 0
    assert denoiser("x0", Recorder(wanted + 2)).loss(inputs, wanted, time).item() == pytest.approx(4)


def test_rms_change_is_measured_on_the_unit_scale_and_never_zero():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    frames[1::2] = 51  # a fifth of the range, which is 2 wide
    assert rms_change(frames, 1) == pytest.approx(0.4)
    assert rms_change(frames, 2) == 1e-3


@pytest.mark.parametrize("offset", [1, 3])
def test_the_change_of_a_clip_takes_the_memory_of_some_frames_and_is_exact(large_clip, peak, offset):
    change, bytes_ = peak(lambda: rms_change(large_clip, offset))
    assert bytes_ < large_clip.nbytes / 4
    part = large_clip[:, :64, :64]
    values = part.astype(np.float64) / 127.5
    wanted = np.sqrt(np.mean((values[offset:] - values[:-offset]) ** 2))
    assert rms_change(part, offset) == pytest.approx(wanted, rel=1e-12) and change == pytest.approx(wanted, rel=0.05)
    assert rms_change(part[:1].repeat(4, 0), offset) == 1e-3  # never 0
