"""A role's reverse process: the levels it visits, where it enters, and that a sample depends on its own seed alone."""

import dataclasses

import numpy as np
import pytest
import torch

from sinfusion import ops
from sinfusion.diffusion.parameterization import PARAMETERIZATIONS
from sinfusion.diffusion.samplers import SAMPLERS, sample
from sinfusion.diffusion.schedule import cosine_schedule, karras_sigmas
from sinfusion.errors import SinfusionError
from sinfusion.generation.reverse_process import (
    DRAWS_A_FRAME,
    GAIN_SIGMA,
    STREAM_SAMPLE,
    Multiples,
    ReverseProcess,
    reverse_process,
)
from sinfusion.generation.reverse_process import sampling_sigmas as sigmas_of
from sinfusion.pixels import check_size, to_unit
from sinfusion.recipe import PAPER
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR


@pytest.fixture
def published(video_run, tmp_path):
    """The fixture's weights read as x0 and noise models."""
    recipe = PAPER.replace(filters=8, depth=2, dense_kernel=1, sampling_steps=10, unconditional_sampling_steps=10,
                           previous_frames=video_run.recipe.previous_frames)  # fmt: skip
    return dataclasses.replace(video_run, recipe=recipe)


def sampling_sigmas(run, role, frame_offset=1, **settings):
    return sigmas_of(run.recipe, role, run.denoiser(role), frame_offset, **settings)


def process_of(run, role, sigmas, frame_offset=None, sampler="ancestral", gain=1.0):
    steps, conditions, stream = SAMPLERS[sampler](sigmas), run.recipe.conditions(role), STREAM_SAMPLE + role.conditions
    return ReverseProcess(
        run.denoiser(role), steps, conditions, frame_offset, run.graph, stream, multiples=Multiples(change=gain)
    )


def sigma_data(run, role, frame_offset=1):
    return run.denoiser(role).sigma_data[abs(frame_offset) - 1]


@pytest.mark.parametrize("role", [PREDICTOR, INTERPOLATOR, PROJECTOR], ids=lambda role: role.name)
def test_preconditioned_levels_go_from_top_to_bottom_in_units_of_sigma_data(video_run, role):
    recipe = video_run.recipe
    top, bottom, steps = (
        (recipe.sigma_max, recipe.sigma_min, recipe.sampling_steps_of(role))
        if role.conditions
        else (recipe.unconditional_sigma_max, recipe.unconditional_sigma_min, recipe.unconditional_sampling_steps)
    )
    s = sigma_data(video_run, role)
    np.testing.assert_allclose(sampling_sigmas(video_run, role), karras_sigmas(steps, top * s, bottom * s))
    assert len(sampling_sigmas(video_run, role, steps=7)) == 8


def test_the_frame_offset_decides_sigma_data(video_run):
    tops = [sampling_sigmas(video_run, PREDICTOR, k)[0] / video_run.recipe.sigma_max for k in (1, -1, 2, -3, 9)]
    sigma_data = video_run.denoiser(PREDICTOR).sigma_data
    assert tops == pytest.approx([sigma_data[0], sigma_data[0], sigma_data[1], sigma_data[2], sigma_data[2]])
    assert sigma_data[0] < sigma_data[1] < sigma_data[2]  # the clip slides


def test_entering_at_a_level_starts_there_and_takes_all_steps(video_run):
    s = sigma_data(video_run, PREDICTOR)
    sigmas = sampling_sigmas(video_run, PREDICTOR, steps=5, sigma_start=2 * s)
    assert sigmas[0] == pytest.approx(2 * s) and len(sigmas) == 6 and sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()
    above = sampling_sigmas(video_run, PREDICTOR, steps=5, sigma_start=1e6)
    np.testing.assert_allclose(above, sampling_sigmas(video_run, PREDICTOR, steps=5))  # never above the top
    below = sampling_sigmas(video_run, PREDICTOR, steps=5, sigma_start=1e-6)
    assert below[0] == pytest.approx(1e-6) and (np.diff(below) < 0).all()  # even from below the bottom it falls


def test_strength_enters_higher_the_larger_it_is_and_1_is_the_top(video_run, published):
    for run in (video_run, published):
        entries = [sampling_sigmas(run, PROJECTOR, strength=strength)[0] for strength in (0.1, 0.3, 0.6, 0.9, 1.0)]
        assert (np.diff(entries) > 0).all()
        assert entries[-1] == pytest.approx(sampling_sigmas(run, PROJECTOR)[0])


def test_a_truncated_schedule_enters_at_its_level_and_visits_each_lower_one(published):
    schedule = cosine_schedule(50)
    np.testing.assert_allclose(sampling_sigmas(published, PREDICTOR, steps=50), schedule.sigma[::-1], rtol=1e-12)
    correction = sampling_sigmas(published, PROJECTOR, steps=50, sigma_start=schedule.sigma[3])
    np.testing.assert_allclose(correction, schedule.sigma[[3, 2, 1, 0]], rtol=1e-12)
    half = sampling_sigmas(published, PROJECTOR, steps=50, strength=0.5)
    np.testing.assert_allclose(half, schedule.sigma[25::-1], rtol=1e-6)
    few = sampling_sigmas(published, PROJECTOR, steps=10, strength=0.5)
    assert few[0] == pytest.approx(schedule.sigma[25]) and 5 <= len(few) <= 7 and few[-1] == 0


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(video_run, strength):
    with pytest.raises(SinfusionError, match="strength"):
        sampling_sigmas(video_run, PROJECTOR, strength=strength)


def test_no_steps_are_refused(video_run, published):
    for run in (video_run, published):
        with pytest.raises(SinfusionError, match="at least 1 step"):
            sampling_sigmas(run, PREDICTOR, steps=0)


def test_sizes_too_small_for_the_network_are_refused():
    assert check_size((8, 30)) == (8, 30)
    with pytest.raises(SinfusionError, match="30x7"):
        check_size((7, 30))


def image(run, seeds, frame_index=1, sampler="ancestral", **arguments):
    process = process_of(run, PROJECTOR, sampling_sigmas(run, PROJECTOR, steps=3), sampler=sampler)
    return process(torch.tensor(seeds), frame_index, size=(11, 13), **arguments)


def test_a_sample_is_a_function_of_its_seed_and_frame_index(video_run):
    first = image(video_run, [5, 6])
    torch.manual_seed(9)
    assert torch.equal(image(video_run, [5, 6]), first)
    assert not torch.equal(image(video_run, [5, 6], frame_index=2)[0], first[0])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sampler", ["ancestral", "euler", "heun"])
def test_a_sample_is_the_same_alone_and_in_a_batch(video_run, precision, sampler):
    """Not promised to the bit: a convolution of a larger batch may add in another order."""
    run = video_run.to("cpu", precision)
    together = image(run, [5, 6, 7], sampler=sampler)
    for i, seed in enumerate((5, 6, 7)):
        torch.testing.assert_close(image(run, [seed], sampler=sampler)[0], together[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
@pytest.mark.parametrize("role", [PREDICTOR, PROJECTOR], ids=lambda role: role.name)
def test_a_captured_process_is_the_eager_one(video_run, role, precision, sampler, monkeypatch):
    """From the second call of a shape on a CPU replays a graph; to the bit, whatever came between."""
    run, sigmas, images = video_run.to("cpu", precision), np.array([2.0, 0.7, 0.2, 0.0]), []
    known = torch.zeros(1, 1, *run.size, dtype=torch.bool)
    known[..., :5] = True
    frames = to_unit(torch.from_numpy(run.frames[:8]))
    process = process_of(run, role, sigmas, -2 if role.frame_offset else None, sampler)
    graphed, captured = process.graphed, []
    monkeypatch.setattr(process, "graphed", lambda *state: captured.append(1) or graphed(*state))

    def outputs_of(frame_index):
        seeds, some = torch.tensor([frame_index, 3]), frames[frame_index : frame_index + 2]
        if role.conditions:
            some = torch.cat([some, frames[frame_index + 1 : frame_index + 3]][: run.recipe.conditions(role)], 1)
        mask = (known, frames[:1]) if frame_index > 2 else (None, None)
        return process(seeds, frame_index, *((some, None) if role.conditions else (None, some)), None, *mask)

    for pixels in (2**14, 0):
        monkeypatch.setattr("sinfusion.generation.reverse_process.GRAPHED_PIXELS", pixels)
        images.append([outputs_of(frame_index) for frame_index in range(5) for _ in range(2)])
    assert len(captured) == 10 and all(torch.equal(a, b) for a, b in zip(*images, strict=True))


@pytest.mark.parametrize("graph", [True, False])
def test_the_noise_is_scaled_and_comes_back_to_the_bit(video_run, graph):
    video_run = dataclasses.replace(video_run, graph=graph)
    process, condition = reverse_process(video_run, PREDICTOR, frame_offset=1), torch.zeros(1, 6, 16, 24)

    def samples(surprise):
        process.scale_noise(surprise)
        return [process(torch.tensor([seed]), 0, condition) for seed in (0, 1)]

    usual = samples(1.0)
    assert torch.equal(*samples(0.0))  # no noise, no difference
    assert not torch.equal(samples(1.3)[0], usual[0])
    assert torch.equal(samples(1.0)[0], usual[0])


def test_a_gain_makes_more_of_what_changes(video_run):
    run, seeds = video_run.to("cpu", "fp32"), torch.tensor([0])
    condition = to_unit(torch.from_numpy(run.frames[:2])).reshape(1, -1, *run.size)
    usual = reverse_process(run, PREDICTOR, frame_offset=1)
    changes = [
        process(seeds, 0, condition) - condition[:, :3] for process in (usual, usual.livelier(Multiples(1.0, 1.3)))
    ]
    small, large = (change.square().mean().sqrt() for change in changes)
    assert usual.livelier(Multiples()) is usual and 1.05 < large / small < 3


def test_what_is_known_is_kept(video_run):
    known = torch.zeros(1, 1, 11, 13, dtype=torch.bool)
    known[..., :6] = True
    given = torch.rand(1, 3, 11, 13)
    outputs = image(video_run, [5, 6], known_mask=known, known_image=given)
    torch.testing.assert_close(outputs[..., :6], given[..., :6].expand(2, -1, -1, -1))
    assert not torch.allclose(outputs[..., 6:], given[..., 6:].expand(2, -1, -1, -1), atol=0.1)


def test_samples_are_images(image_run):
    outputs = reverse_process(image_run, IMAGE)(torch.tensor([0, -3]), 0, size=(16, 24))
    assert outputs.shape == (2, 3, 16, 24) and outputs.dtype == torch.float32 and not outputs.requires_grad
    assert outputs.abs().max() <= 1


@pytest.mark.parametrize("gain", [1.0, 1.2])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("role", [PREDICTOR, PROJECTOR, INTERPOLATOR], ids=lambda role: role.name)
def test_the_fused_process_is_the_plain_loop_with_the_denoiser(video_run, role, parameterization, sampler, gain):
    """To fp32's rounding: the loop embeds the time of one evaluation at once, and adds in another order."""
    run = video_run.to("cpu", "fp32")
    run.models = {**run.models, role.name: {**run.models[role.name], "parameterization": parameterization}}
    denoiser = run.denoiser(role)
    seeds, frame_index, offset = torch.tensor([3, 8]), 5, -2 if role.frame_offset else None
    conditions = run.recipe.conditions(role)
    frames = to_unit(torch.from_numpy(run.frames[: 2 * conditions])).reshape(2, -1, *run.size)
    condition = frames if conditions else None
    init_image = None if role.conditions else to_unit(torch.from_numpy(run.frames[:2]))
    known = torch.zeros(1, 1, *run.size, dtype=torch.bool)
    known[..., :5] = True
    image = to_unit(torch.from_numpy(run.frames[5:6]))
    least = GAIN_SIGMA * denoiser.sigma_data_at(offset)  # the last evaluation is below it
    sigmas = np.array([4.0, 1.4, 1.01, 0.5, 0.0]) * least
    process = process_of(run, role, sigmas, offset, sampler, gain)
    outputs = process(seeds, frame_index, condition, init_image, None, known, image)

    def noise(step):
        return ops.normal(seeds, STREAM_SAMPLE + role.conditions, frame_index * DRAWS_A_FRAME + step, outputs.shape[1:])

    offsets = None if offset is None else torch.tensor([offset, offset])

    def denoise(x, sigma):
        clean, prior_mean = denoiser(x, sigma, condition, offsets), denoiser.prior_mean(x, condition)
        if (sigma >= least).all():
            clean = prior_mean + gain * (clean - prior_mean)
        return torch.where(known, image, clean.clamp(-1, 1))

    mean = denoiser.prior_mean(outputs, condition) if init_image is None else init_image
    with torch.no_grad():
        plain = sample(denoise, mean + sigmas[0] * noise(DRAWS_A_FRAME - 1), SAMPLERS[sampler](sigmas), noise)
    torch.testing.assert_close(outputs, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs[..., :5].round(decimals=5), image.expand_as(outputs)[..., :5].round(decimals=5))
