"""The training loop of one role. It receives frames as a tensor; of files it knows only the run's checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .crops import (
    STREAM_CONDITION_DRIFT,
    STREAM_CONDITION_NOISE,
    STREAM_CONDITION_SHARE,
    STREAM_LEVEL,
    STREAM_NOISE,
    STREAM_TOP,
    Examples,
    draw,
    sample_seeds,
)
from .errors import SinfusionError
from .optimizer import AdamEma, learning_rate
from .parameterization import Denoiser
from .progress import Progress
from .recipe import Recipe
from .roles import Role
from .run import Run, last_checkpoint, load_into, load_optimizer, load_weights, save_checkpoint

CHECKPOINT_SECONDS = 60.0
BLOTCH = 8  # pixels from one blotch of colour to the next


class Stopped(Exception):
    """The user asked to stop; the state has been saved."""


def levels(
    recipe: Recipe, role: Role, denoiser: Denoiser, spread: Tensor, seed: int, step: int, samples: range
) -> Tensor:
    """(B,) fp32 noise levels to train on.

    preconditioned: log-normal around the spread, and for models with a condition a share at the top, where they learn
    the conditional mean. Otherwise a timestep of 1..T, or, for continuous roles, a level
    sqrt(alphas_cumprod) uniform between two neighbouring timesteps (reference: the released code).
    """
    seeds = sample_seeds(seed, samples)
    if denoiser.parameterization == "preconditioned":
        free = role.conditions == 0
        mean, std = (recipe.free_level_mean, recipe.free_level_std) if free else (recipe.level_mean, recipe.level_std)
        logarithm = mean + std * ops.normal(seeds, STREAM_LEVEL, step, (1,))[:, 0].to(spread.device)
        if free:
            return spread * logarithm.exp()
        top = torch.full_like(logarithm, np.log(recipe.level_top))
        at_top = ops.uniform_bits(seeds, STREAM_TOP, step, 1)[:, 0] < recipe.level_top_share * 2**32
        return spread * torch.where(at_top.to(spread.device), top, logarithm).exp()
    schedule = denoiser.schedule
    bits = ops.uniform_bits(seeds, STREAM_LEVEL, step, 2).double() / 2**32  # (B, 2) in [0, 1)
    timestep = 1 + (bits[:, 0] * schedule.timesteps).long().numpy()
    if not denoiser.continuous:
        return torch.as_tensor(schedule.sigma[timestep], dtype=torch.float32, device=spread.device)
    root = np.sqrt(schedule.alphas_cumprod)
    level = root[timestep] + bits[:, 1].numpy() * (root[timestep - 1] - root[timestep])
    sigma = np.sqrt(np.maximum(1 / level**2 - 1, 1e-8))
    return torch.as_tensor(sigma, dtype=torch.float32, device=spread.device)


class Trainer:
    """One role in training: `step(n)` does step n, which is a pure function of the weights, the seed and n."""

    def __init__(self, run: Run, role: Role, total: int, rank: int = 0, ranks: int = 1):
        self.run, self.role, self.total = run, role, total
        self.recipe = run.recipe
        self.denoiser = run.build(role)
        self.optimizer = AdamEma(self.denoiser.network, run.recipe.ema_gamma)
        self.frames = torch.from_numpy(np.ascontiguousarray(run.frames)).to(run.device)
        self.crop = run.recipe.crop_size(role, *run.size)
        share = run.recipe.batch_size // ranks
        self.samples, self.ranks = range(rank * share, (rank + 1) * share), ranks
        self.done = 0
        # The roles of a run draw different numbers from one seed.
        self.seed = run.seed * 16 + list("image predictor projector interpolator".split()).index(role.name)

    def examples(self, step: int) -> Examples:
        """The crops of a step, noise already on the condition."""
        examples = draw(
            self.frames,
            self.role.conditions,
            self.crop,
            self.seed,
            step,
            self.samples,
            self.recipe.offsets(step / self.total),
            self.recipe.every_triple,
        )
        if examples.condition is None or self.recipe.condition_noise == self.recipe.condition_drift == 0:
            return examples
        condition = examples.condition + self._condition_noise(examples.condition, examples.frame_offset, step)
        return Examples(examples.clean, condition, examples.frame_offset)

    def _condition_noise(self, condition: Tensor, frame_offset: Tensor | None, step: int) -> Tensor:
        """What a rollout's own errors look like: grain and blotches, each of a random strength."""
        seeds = sample_seeds(self.seed, self.samples)
        size = condition.shape[2:]
        coarse = (condition.shape[1], size[0] // BLOTCH + 2, size[1] // BLOTCH + 2)
        grain = ops.normal(seeds, STREAM_CONDITION_NOISE, step, condition.shape[1:], condition.device)
        blotches = ops.normal(seeds, STREAM_CONDITION_DRIFT, step, coarse, condition.device)
        blotches = F.interpolate(blotches, size, mode="bilinear", align_corners=True)
        share = ops.uniform_bits(seeds, STREAM_CONDITION_SHARE, step, 2).to(condition) / 2**32  # (B, 2)
        spread = self.denoiser.spread(frame_offset, len(seeds), condition.device)
        strength = (spread[:, None] * share)[..., None, None, None]  # (B, 2, 1, 1, 1)
        return (
            self.recipe.condition_noise * strength[:, 0] * grain
            + self.recipe.condition_drift * strength[:, 1] * blotches
        )

    def step(self, step: int) -> tuple[Tensor, float]:
        """One step of training; returns the loss (a scalar on the device) and the learning rate."""
        examples = self.examples(step)
        seeds = sample_seeds(self.seed, self.samples)
        spread = self.denoiser.spread(examples.frame_offset, len(seeds), self.frames.device)
        sigma = levels(self.recipe, self.role, self.denoiser, spread, self.seed, step, self.samples)
        noise = ops.normal(seeds, STREAM_NOISE, step, examples.clean.shape[1:], self.frames.device)
        loss = self.denoiser.loss(examples.clean, noise, sigma, examples.condition, examples.frame_offset)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.ranks > 1:
            self._average_gradients(loss)
        nominal = self.recipe.steps(self.role)
        rate = learning_rate(
            step / self.total,
            self.total,
            self.recipe.learning_rate,
            self.recipe.decay,
            self.recipe.warmup,
            100_000 / nominal,
        )
        self.optimizer.step(rate, step)
        return loss.detach(), rate

    def _average_gradients(self, loss: Tensor) -> None:
        """The mean over processes of all gradients and of the loss, in one message."""
        gradients = [p.grad for p in self.optimizer.parameters.values() if p.grad is not None]
        message = torch.cat([g.flatten() for g in gradients] + [loss.detach().flatten()])
        dist.all_reduce(message)
        message /= self.ranks
        parts = message.split([g.numel() for g in gradients] + [1])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view_as(gradient))
        loss.data.copy_(parts[-1][0])

    def save(self) -> None:
        """Write a checkpoint of the steps done; never one that is not finite."""
        raw = {name: p.detach() for name, p in self.optimizer.parameters.items()}
        if not all(bool(p.isfinite().all()) for p in raw.values()):
            raise self._not_finite("weights", self.done)
        save_checkpoint(self.run, self.role, self.done, raw, self.optimizer.average, self.optimizer.state())

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        checkpoint = last_checkpoint(self.run.path / self.role.name)
        if checkpoint is None:
            return
        weights, _ = load_weights(checkpoint / "weights.safetensors")
        load_into(self.denoiser.network, weights, "raw.", checkpoint)
        state = load_optimizer(checkpoint)
        average = {name.removeprefix("average."): v for name, v in weights.items() if name.startswith("average.")}
        try:
            self.optimizer.load(state["optimizer"], average)
        except (KeyError, RuntimeError, AttributeError) as error:
            raise SinfusionError(f"{checkpoint} is damaged: {type(error).__name__}: {error}") from error
        self.done = state["step"]

    def train(self, progress: Progress | None, stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end. Raises Stopped after a save when `stop()`; SinfusionError on a non-finite loss."""
        saved_at = time.monotonic()
        while self.done < self.total:
            loss, rate = self.step(self.done)
            mean = progress.step(self.done, loss, rate) if progress else None
            if mean is not None and not np.isfinite(mean):
                raise self._not_finite("loss", self.done + 1)
            self.done += 1
            if self._all_agree(stop()):
                if progress:
                    self.save()
                raise Stopped
            if progress and mean is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self.save()
                saved_at = time.monotonic()
        if progress:
            self.save()

    def _not_finite(self, what: str, step: int) -> SinfusionError:
        return SinfusionError(
            f"the {what} of the {self.role.name} stopped being finite by step {step}; the last good checkpoint is "
            f"kept: lower --learning-rate (now {self.recipe.learning_rate}) or use --precision fp32."
        )

    def _all_agree(self, stop: bool) -> bool:
        """Whether any process was asked to stop, so that all stop at the same step."""
        if self.ranks == 1:
            return stop
        return bool(_largest(float(stop), self.run.device))


def measure_speed(run: Run, role: Role, seconds: float, rank: int = 0, ranks: int = 1) -> float:
    """Seconds a step takes: the median of as many as fit into `seconds`, of a trainer that is then thrown away."""
    trainer = Trainer(run, role, 200, rank, ranks)
    times: list[float] = []
    started = time.monotonic()
    # Several processes meet in every step, so all must make the same number of them.
    while len(times) < (8 if ranks > 1 else 4) or (
        ranks == 1 and time.monotonic() - started < seconds and len(times) < trainer.total
    ):
        before = time.monotonic()
        loss, _ = trainer.step(len(times))
        loss.item()
        times.append(time.monotonic() - before)
    median = float(np.median(times[2:]))
    return median if ranks == 1 else _largest(median, run.device)


def _largest(value: float, device: torch.device) -> float:
    """The largest of the values that the processes hold."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)
