"""The loop of one model: resuming to the bit, stopping, a loss that is not finite, the levels it trains on."""

import contextlib
import errno
import math

import numpy as np
import pytest
import torch

from sinfusion import ops
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.diffusion.denoiser import Denoiser
from sinfusion.diffusion.parameterization import PARAMETERIZATIONS
from sinfusion.errors import SinfusionError
from sinfusion.motion import compensated
from sinfusion.pixels import to_uint8, to_unit
from sinfusion.recipe import PAPER, TINY
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, ROLES
from sinfusion.run import Run, load
from sinfusion.training import logger as logger_module
from sinfusion.training import trainer as trainer_module
from sinfusion.training.batch import (
    STREAM_NOISE,
    StepTable,
    at_half_size,
    condition_frames,
    draw_places,
    draw_sigmas,
    mirrored,
    sample_seeds,
)
from sinfusion.training.logger import TrainingLogger
from sinfusion.training.preview import preview
from sinfusion.training.trainer import Stopped, Trainer

SMALL = {"filters": 4, "depth": 2, "batch_size": 2, "unconditional_sampling_steps": 2, "sampling_steps": 2}
RECIPES = {"tiny": TINY.replace(**SMALL), "paper": PAPER.replace(**SMALL, offset_milestones=(0.25, 0.5))}
TOTAL = 9


@pytest.fixture
def new_run(clip, tmp_path):
    """A run that is not trained yet: new_run(name of its folder, role, recipe)."""

    def make(name, role=PREDICTOR, recipe="tiny", precision="fp32", **settings):
        frames = clip[:1] if role is IMAGE else clip
        models = {
            role.name: {
                "steps": TOTAL,
                "minutes": None,
                "sigma_data": [0.1, 0.2, 0.3][: 1 + 2 * (role.conditions == 1)],
            }
        }
        run = Run(tmp_path / name, "image" if role is IMAGE else "video", RECIPES[recipe].replace(**settings), frames,
                  20.0, 3, models).to("cpu", precision)  # fmt: skip
        run.save()
        return run

    return make


class EveryLoss:
    """Stands for TrainingLogger: reads every loss."""

    def __init__(self):
        self.losses = []

    def step(self, step, loss, rate):
        self.losses.append(loss.item())
        return self.losses[-1]

    def save_plan(self, plan, ended=False):
        self.plan, self.ended = plan, ended

    attempt = contextlib.nullcontext


def trained(run, role, stop=lambda trainer: False):
    """Train to the end, or to where `stop(trainer)`, from the run's last checkpoint; returns the losses."""
    trainer, logger = Trainer(run, role, TOTAL), EveryLoss()
    trainer.restore()
    try:
        trainer.train(logger, lambda: stop(trainer))
    except Stopped:
        pass
    return logger.losses


def same_state(a, b, role):
    """Whether the last checkpoints of two runs are equal to the bit: weights, average, optimizer."""
    first, second = (last_checkpoint(run.path / role.name) for run in (a, b))
    assert first.name == second.name
    weights, other = (load_weights(path / "weights.safetensors")[0] for path in (first, second))
    states, others = (load_optimizer(path)["optimizer"] for path in (first, second))
    assert weights.keys() == other.keys() and states.keys() == others.keys() and len(states) * 2 == len(weights)
    return all(torch.equal(weights[name], other[name]) for name in weights) and all(
        torch.equal(states[name][key], others[name][key])
        for name in states
        for key in ("step", "exp_avg", "exp_avg_sq")
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(new_run, role, recipe):
    straight = new_run("straight", role, recipe)
    losses = trained(straight, role)
    parts = new_run("parts", role, recipe)
    resumed = []
    for steps in (2, 5, TOTAL):
        run = load(parts.path, "cpu", "fp32")
        resumed += trained(run, role, lambda trainer, n=steps: trainer.done == n)
        assert last_checkpoint(parts.path / role.name).name == f"step-{steps:08d}"
    assert resumed == losses
    assert same_state(straight, parts, role)


def test_a_training_planned_in_parts_is_the_one_planned_at_once(new_run, monkeypatch):
    straight, parts = new_run("straight"), new_run("parts")
    losses = trained(straight, PREDICTOR)
    monkeypatch.setattr(trainer_module, "WINDOW", 3)
    resumed = trained(parts, PREDICTOR, lambda trainer: trainer.done == 4)
    assert resumed + trained(parts, PREDICTOR) == losses
    assert same_state(straight, parts, PREDICTOR)


def test_resuming_is_exact_in_bf16_too(new_run):
    straight, parts = (new_run(name, precision="bf16") for name in ("straight", "parts"))
    trained(straight, PREDICTOR)
    trained(parts, PREDICTOR, lambda trainer: trainer.done == 4)
    trained(parts, PREDICTOR)
    assert same_state(straight, parts, PREDICTOR)


def test_after_a_crash_the_last_checkpoint_resumes_exactly(new_run, monkeypatch):
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", -1.0)  # a checkpoint each time the loss is read
    straight, crashed = new_run("straight"), new_run("crashed")
    trained(straight, PREDICTOR)

    def crash(trainer):
        if trainer.done == 6:
            raise MemoryError
        return False

    with pytest.raises(MemoryError):
        trained(crashed, PREDICTOR, crash)
    assert last_checkpoint(crashed.path / "predictor").name == "step-00000005"
    trained(crashed, PREDICTOR)
    assert same_state(straight, crashed, PREDICTOR)


def test_the_seed_and_the_role_decide_what_is_drawn(new_run):
    def first_loss(role, seed):
        run = new_run(f"{role.name}{seed}", role)
        run.seed = seed
        return Trainer(run, role, TOTAL).batch(torch.tensor(0)).target

    assert not torch.equal(first_loss(PREDICTOR, 0), first_loss(PREDICTOR, 1))
    assert torch.equal(first_loss(PREDICTOR, 1), first_loss(PREDICTOR, 1))
    assert not torch.equal(first_loss(PROJECTOR, 0), first_loss(INTERPOLATOR, 0))


def test_training_neither_uses_nor_disturbs_the_global_random_state(new_run):
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    trained(new_run("run"), PREDICTOR)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_previews_do_not_change_the_training(new_run, role, monkeypatch):
    monkeypatch.setattr(logger_module, "READ_SECONDS", 0.0)
    monkeypatch.setattr(logger_module, "PREVIEW_SHARE", math.inf)
    without, with_previews = new_run("without", role), new_run("with", role)
    trained(without, role)
    trainer = Trainer(with_previews, role, TOTAL)
    outputs = []

    def counted():
        outputs.append(trainer.done)
        return preview(with_previews, role, trainer)

    logger = TrainingLogger(
        with_previews.path / role.name, role.name, 0, TOTAL, preview=counted, preview_seconds=4e-2, quiet=True
    )
    logger.preview_at = 0.0
    trainer.train(logger)
    logger.close(True)
    assert outputs[0] == 1 and outputs[-1] == TOTAL
    assert (with_previews.path / role.name / "preview.png").stat().st_size > 100
    assert same_state(without, with_previews, role)


def poison(monkeypatch, step):
    """The loss of that step (counted from 0) is not a number."""
    calls, loss = [], Denoiser.loss

    def poisoned(*arguments):
        calls.append(1)
        return loss(*arguments) * (float("nan") if len(calls) > step else 1)

    monkeypatch.setattr(Denoiser, "loss", poisoned)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(new_run, monkeypatch):
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", -1.0)
    run, good = new_run("run"), new_run("good")
    trained(good, PREDICTOR, lambda trainer: trainer.done == 4)
    poison(monkeypatch, 4)
    with pytest.raises(SinfusionError, match=r"loss of the predictor stopped being finite by step 5.*learning-rate"):
        trained(run, PREDICTOR)
    assert same_state(run, good, PREDICTOR)
    assert next(run.denoiser(PREDICTOR).network.parameters()).isfinite().all()


def test_weights_that_are_not_finite_are_never_saved_even_if_no_loss_was_read(new_run, monkeypatch):
    run = new_run("run")
    trained(run, PREDICTOR, lambda trainer: trainer.done == 2)
    poison(monkeypatch, 1)
    monkeypatch.setattr(logger_module, "READ_SECONDS", math.inf)
    trainer = Trainer(run, PREDICTOR, TOTAL)
    trainer.restore()
    logger = TrainingLogger(run.path / "predictor", "predictor", 2, TOTAL, quiet=True)
    with pytest.raises(SinfusionError, match="weights of the predictor stopped being finite"):
        trainer.train(logger, lambda: trainer.done == 5)
    logger.close(False)
    assert last_checkpoint(run.path / "predictor").name == "step-00000002"


def test_a_loss_that_is_not_finite_at_the_very_end_is_noticed(new_run, monkeypatch):
    run = new_run("run")
    poison(monkeypatch, TOTAL - 1)
    logger = TrainingLogger(run.path / "predictor", "predictor", 0, TOTAL, quiet=True)
    with pytest.raises(SinfusionError, match=f"by step {TOTAL}"):
        Trainer(run, PREDICTOR, TOTAL).train(logger)
    logger.close(False)
    assert last_checkpoint(run.path / "predictor") is None


def test_a_stop_at_the_last_step_keeps_the_finished_state(new_run):
    run = new_run("run")
    trained(run, PREDICTOR, lambda trainer: trainer.done == TOTAL)
    assert trained(run, PREDICTOR) == []
    assert last_checkpoint(run.path / "predictor").name == f"step-{TOTAL:08d}"


def drawn(role, recipe, count=4000, run=None, sigma_data=0.1):
    parameterization = PARAMETERIZATIONS[recipe.parameterization_of(role)]
    schedule = run.build(role).schedule
    denoiser = Denoiser(torch.nn.Identity(), parameterization, schedule, role.continuous, (sigma_data,))
    return draw_sigmas(
        recipe, role, denoiser, torch.full((count,), sigma_data), sample_seeds(5, range(count)), torch.tensor(17)
    ).double()


@pytest.mark.parametrize("role", [PREDICTOR, PROJECTOR], ids=lambda role: role.name)
def test_preconditioned_levels_are_log_normal_around_sigma_data(new_run, role):
    recipe = RECIPES["tiny"].replace(sigma_max_share=0.0, log_sigma_mean=0.3, log_sigma_std=1.1,
                                     unconditional_log_sigma_mean=-0.5, unconditional_log_sigma_std=1.4)  # fmt: skip
    mean, std = (0.3, 1.1) if role.conditions else (-0.5, 1.4)
    z = ((drawn(role, recipe, run=new_run("run", role)) / 0.1).log() - mean) / std
    check_standard_normal(z)


def test_the_levels_below_the_top_keep_their_distribution_when_some_are_put_at_the_top(new_run):
    recipe = RECIPES["tiny"].replace(sigma_max_share=0.25, log_sigma_mean=0.0, log_sigma_std=1.0, sigma_max=1000.0)
    sigma = drawn(PREDICTOR, recipe, 6000, new_run("run")) / 0.1
    at_top = sigma > 999
    assert at_top.double().mean().item() == pytest.approx(0.25, abs=0.03)
    check_standard_normal(sigma[~at_top].log())


def check_standard_normal(z):
    """Mean, deviation and tails of some thousand samples, each within five standard errors."""
    count = len(z)
    assert z.mean().item() == pytest.approx(0, abs=5 / count**0.5)
    assert z.std().item() == pytest.approx(1, abs=5 / (2 * count) ** 0.5)
    for bound, share in ((1.0, 0.31731), (2.0, 0.0455)):
        found = (z.abs() > bound).double().mean().item()
        assert found == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5)


@pytest.mark.parametrize("name", ["x0", "noise"])
def test_integer_timesteps_are_all_of_1_to_t_alike(new_run, name):
    recipe = RECIPES["paper"].replace(parameterization=name, timesteps=10)
    run = new_run("run", PROJECTOR, "paper", parameterization=name, timesteps=10)
    values, counts = np.unique(drawn(PROJECTOR, recipe, run=run).float().numpy(), return_counts=True)
    np.testing.assert_allclose(values, run.build(PROJECTOR).schedule.sigma[1:], rtol=1e-6)
    assert abs(counts - 400).max() < 5 * 20


def test_continuous_levels_fill_every_gap_between_neighbouring_timesteps_uniformly(new_run):
    run = new_run("run", PREDICTOR, "paper", timesteps=10)
    signal = (1 + drawn(PREDICTOR, RECIPES["paper"], run=run) ** 2).rsqrt().numpy()
    root = np.sqrt(run.build(PREDICTOR).schedule.alphas_cumprod)[::-1]
    gap = np.searchsorted(root, signal) - 1
    assert abs(np.bincount(gap, minlength=10) - 400).max() < 5 * 20
    within = (signal - root[gap]) / (root[gap + 1] - root[gap])
    assert abs(np.histogram(within, 4, (0, 1))[0] - 1000).max() < 5 * 32


def test_levels_split_over_processes_are_those_of_the_whole_batch(new_run):
    recipe, denoiser = RECIPES["tiny"], new_run("run").build(PREDICTOR)

    def drawn_for(samples):
        seeds = sample_seeds(5, samples)
        return draw_sigmas(recipe, PREDICTOR, denoiser, torch.full((len(seeds),), 0.1), seeds, torch.tensor(17))

    whole, parts = drawn_for(range(6)), [drawn_for(part) for part in (range(3), range(3, 6))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_many_steps_drawn_at_once_are_each_as_drawn_alone(new_run, role, recipe):
    trainer = Trainer(new_run("run", role, recipe, batch_size=3, previous_frames=2), role, TOTAL)
    sampler, steps, largest = trainer.batch_sampler, torch.arange(5, 12), torch.tensor([1, 1, 1, 2, 2, 2, 2])
    table = StepTable(sampler.draw(steps[:1], largest[:1]), 10)
    table.fill(3, len(steps), sampler.draw(steps, largest))
    for i, step in enumerate(steps):
        for value, alone in zip(table.at(torch.tensor([3 + i])), sampler.draw(step, largest[i]), strict=True):
            assert value.is_contiguous()
            torch.testing.assert_close(value, alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
@pytest.mark.parametrize("previous_frames", [1, 2, 3])
def test_a_batch_is_what_the_method_says_of_the_frames(new_run, role, recipe, previous_frames):
    """Put together from its parts: cuts, levels, noise, the parameterization."""
    run = new_run("run", role, recipe, batch_size=6, white_condition_noise=0.0, coarse_condition_noise=0.0,
                  previous_frames=previous_frames, half_size_share=0.0, motion_compensation=False)  # fmt: skip
    trainer, step = Trainer(run, role, TOTAL), torch.tensor(7)
    batch = trainer.batch(step)
    crop, seeds = trainer.batch_sampler.crop, trainer.batch_sampler.seeds
    height, width = crop
    places, offset = draw_places(run.frames.shape[:3], role, crop, seeds, step,
                                 trainer.largest_offset[7], run.recipe.every_triple)  # fmt: skip
    assert torch.equal(batch.draws.frame_offset, offset)
    frames = condition_frames(run.recipe, role, len(run.frames), places[:, 0], offset, seeds, step)
    noise = ops.normal(seeds, STREAM_NOISE, step, (3, height, width))
    form = trainer.denoiser.parameterization
    for b, (target, top, left) in enumerate(places.tolist()):
        around = frames[b].tolist()
        cut = to_unit(torch.from_numpy(run.frames[:, top : top + height, left : left + width]))
        clean, conditions = cut[target], cut[around]
        sigma, sigma_data = float(batch.draws.sigma[b]), float(batch.draws.sigma_data[b])
        if role is PREDICTOR:  # the last frame, then changes of about unit variance
            prior_mean = conditions[0]
            conditions = torch.cat((conditions[:1], (conditions[:-1] - conditions[1:]) / sigma_data))
        else:
            prior_mean = conditions.mean(0) if around else torch.zeros_like(clean)
        of_state, of_prior_mean = form.input(sigma, sigma_data)
        seen = of_state * (clean + sigma * noise[b]) + of_prior_mean * prior_mean
        torch.testing.assert_close(batch.inputs[b], torch.cat((conditions.flatten(0, 1), seen)), rtol=1e-4, atol=1e-4)
        of_clean, of_noise, of_prior_mean = form.target(sigma, sigma_data)
        wanted = of_clean * clean + of_noise * noise[b] + of_prior_mean * prior_mean
        torch.testing.assert_close(batch.target[b], wanted, rtol=1e-4, atol=1e-4)


def test_an_interpolator_sees_its_share_of_samples_at_half_the_size_and_no_noise_on_its_condition(new_run):
    run = new_run("run", INTERPOLATOR, "tiny", batch_size=400, half_size_share=0.75, motion_compensation=False)
    trainer, step, count = Trainer(run, INTERPOLATOR, TOTAL), torch.tensor(7), len(run.frames)
    batch = trainer.batch(step)
    frames = torch.from_numpy(run.frames)
    frames = torch.cat((frames, mirrored(at_half_size(frames), run.size)))
    target = batch.draws.places[:, 0]
    assert 0.65 < (target >= count).float().mean() < 0.85
    assert torch.equal(batch.draws.around, torch.stack((target - 1, target + 1), 1))
    assert set((target % count).tolist()) <= set(range(1, count - 1))
    height, width = trainer.batch_sampler.crop
    for b, (_, top, left) in enumerate(batch.draws.places[:40].tolist()):
        cut = to_unit(frames[batch.draws.around[b]][:, top : top + height, left : left + width])
        torch.testing.assert_close(batch.inputs[b, :6], cut.flatten(0, 1), rtol=0, atol=1e-6)


def test_an_interpolator_sees_both_neighbours_moved_to_the_frame_between(new_run):
    run = new_run("run", INTERPOLATOR, "tiny", batch_size=200, half_size_share=0.5)
    trainer, whole = Trainer(run, INTERPOLATOR, TOTAL), torch.from_numpy(run.frames)
    batch, count, sizes = trainer.batch(torch.tensor(7)), len(run.frames), (whole, at_half_size(whole))
    height, width = trainer.batch_sampler.crop
    for b, (target, top, left) in enumerate(batch.draws.places.tolist()):
        half, middle = divmod(target, 3 * count)
        before, after = to_unit(sizes[half])[[middle - 1, middle + 1]][:, None]
        seen = to_uint8(compensated(before, after)[0].unflatten(0, (2, 3)))
        cut = (mirrored(seen, run.size) if half else seen)[:, top : top + height, left : left + width]
        torch.testing.assert_close(batch.inputs[b, :6], to_unit(cut).flatten(0, 1), rtol=0, atol=2 / 127.5)
    assert {target // (3 * count) for target in batch.draws.places[:, 0].tolist()} == {0, 1}


def test_noise_on_the_condition_is_uniform_in_strength_up_to_the_setting_and_spares_the_target(new_run):
    run = new_run("noisy", white_condition_noise=2.0, coarse_condition_noise=0.0, batch_size=400)
    clear = new_run("clear", white_condition_noise=0.0, coarse_condition_noise=0.0, batch_size=400)
    noisy, plain = (Trainer(r, PREDICTOR, TOTAL).batch(torch.tensor(3)) for r in (run, clear))
    assert torch.equal(noisy.draws.sigma, plain.draws.sigma) and torch.equal(
        noisy.draws.frame_offset, plain.draws.frame_offset
    )
    strength = (
        (noisy.inputs - plain.inputs)[:, :3].flatten(1).std(1) / plain.draws.sigma_data / 2.0
    )  # uniform in 0 .. 1
    assert strength.max().item() == pytest.approx(1, abs=0.1)
    assert abs(np.histogram(strength.numpy(), 4, (0, 1.1))[0] - 110).max() < 60
    assert strength.mean().item() == pytest.approx(0.5, abs=5 * 0.289 / 20)


def test_coarse_noise_on_the_condition_is_coarse_noise_of_a_few_pixels(new_run):
    run = new_run("drifting", white_condition_noise=0.0, coarse_condition_noise=2.0, batch_size=400)
    clear = new_run("clear", white_condition_noise=0.0, coarse_condition_noise=0.0, batch_size=400)
    drifting, plain = (Trainer(r, PREDICTOR, TOTAL).batch(torch.tensor(3)) for r in (run, clear))
    drift = (drifting.inputs - plain.inputs)[:, :3]
    step = drift.diff(dim=3).square().mean().sqrt() / drift.square().mean().sqrt()
    assert 0.05 < step < 0.5  # white noise would have the square root of 2
    assert abs(drift.mean()) < 0.1 * drift.std()


def test_noise_on_a_change_is_its_share_of_that_on_the_last_frame_and_spares_missing_ones(new_run):
    shared = {"coarse_condition_noise": 0.0, "batch_size": 400, "previous_frames": 2, "condition_dropout": 0.5}
    run = new_run("noisy", white_condition_noise=2.0, change_noise=0.25, **shared)
    clear = new_run("clear", white_condition_noise=0.0, **shared)
    noisy, plain = (Trainer(r, PREDICTOR, TOTAL).batch(torch.tensor(3)) for r in (run, clear))
    noise = (noisy.inputs - plain.inputs).flatten(2).std(2)
    of_last, of_change = noise[:, :3].mean(1) / plain.draws.sigma_data, noise[:, 3:6].mean(1)
    missing = (plain.inputs[:, 3:6] == 0).flatten(1).all(1)
    assert 100 < missing.sum() < 350  # half of them, and the first transitions
    assert (of_change[missing] == 0).all()
    torch.testing.assert_close(of_change[~missing], 0.25 * of_last[~missing], rtol=0.2, atol=1e-3)


def test_a_model_without_a_condition_has_no_share_at_the_top(new_run):
    recipe = RECIPES["tiny"].replace(
        sigma_max_share=1.0, unconditional_log_sigma_mean=0.0, unconditional_log_sigma_std=1.0
    )
    assert drawn(PROJECTOR, recipe, run=new_run("run", PROJECTOR)).log().std() > 0.9


def test_a_checkpoint_that_cannot_be_written_is_reported_once_and_the_last_one_is_an_error(
    new_run, monkeypatch, capsys
):
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(logger_module, "READ_SECONDS", 0.0)
    run, steps = new_run("run"), []

    def full(run, role, step, *_):
        steps.append(step)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sinfusion.run.Run.save_checkpoint", full)
    logger = TrainingLogger(run.path / "predictor", "predictor", 0, TOTAL, preview_seconds=1e9)
    with pytest.raises(OSError, match="No space"):
        Trainer(run, PREDICTOR, TOTAL).train(logger)
    assert steps == [*range(1, TOTAL + 1), TOTAL]
    assert capsys.readouterr().err.count("a checkpoint cannot be written") == 1
