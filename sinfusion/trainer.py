"""The training loop of one role. It receives frames as a tensor; of files it knows only the run's checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from .crops import (
    STREAM_CONDITION_DRIFT,
    STREAM_CONDITION_NOISE,
    STREAM_CONDITION_SHARE,
    STREAM_LEVEL,
    STREAM_NOISE,
    STREAM_TOP,
    draw,
    sample_seeds,
)
from .errors import SinfusionError
from .graph import Replayed, replayed
from .network import Dense, NextNet
from .optimizer import AdamEma, learning_rates
from .parameterization import Denoiser
from .progress import Progress
from .recipe import Recipe
from .roles import Role
from .run import Run, last_checkpoint, load_into, load_optimizer, load_weights, save_checkpoint

CHECKPOINT_SECONDS = 60.0
AGREE = 16  # steps between two times that several processes agree on whether to stop
WINDOW = 2**16  # steps that are planned at once
BLOTCH = 8  # pixels from one blotch of colour to the next


class Stopped(Exception):
    """The user asked to stop; the state has been saved."""


def levels(recipe: Recipe, role: Role, denoiser: Denoiser, spread: Tensor, seeds: Tensor, step: Tensor) -> Tensor:
    """(B,) fp32 noise levels to train on.

    preconditioned: log-normal around the spread, and for models with a condition a share at the top, where they learn
    the conditional mean. Otherwise a timestep of 1..T, or, for continuous roles, a level
    sqrt(alphas_cumprod) uniform between two neighbouring timesteps (reference: the released code).
    """
    if denoiser.parameterization == "preconditioned":
        free = role.conditions == 0
        mean, std = (recipe.free_level_mean, recipe.free_level_std) if free else (recipe.level_mean, recipe.level_std)
        logarithm = mean + std * ops.normal(seeds, STREAM_LEVEL, step, (1,), seeds.device)[:, 0]
        if free:
            return spread * logarithm.exp()
        bits = ops.uniform_bits(seeds, STREAM_TOP, step, 1, seeds.device)[:, 0]
        at_top = bits < int(recipe.level_top_share * 2**32)
        return spread * logarithm.masked_fill(at_top, float(np.log(recipe.level_top))).exp()
    signal = denoiser.signal(seeds.device)
    bits = ops.uniform_bits(seeds, STREAM_LEVEL, step, 2, seeds.device)
    timestep = 1 + (bits[:, 0] * (len(signal) - 1) >> 32)
    level = signal[timestep]
    if denoiser.continuous:
        level = level + bits[:, 1].double() / 2**32 * (signal[timestep - 1] - level)
    return (1 / level**2 - 1).clamp(min=1e-8).sqrt().float()


@dataclass(frozen=True)
class Batch:
    """What the network sees in one step, and what it should make of it."""

    inputs: Tensor  # (B, 3 (n + 1), h, w), conditions first
    target: Tensor  # (B, 3, h, w) fp32
    sigma: Tensor  # (B,) fp32
    spread: Tensor  # (B,) fp32
    frame_offset: Tensor  # (B,) int64


class Trainer:
    """One role in training. Step n is a pure function of the weights, the seed and n.

    All that changes from step to step lies on the device, n among it: nothing there waits for the host, and on a GPU
    a step is a CUDA graph.
    """

    def __init__(self, run: Run, role: Role, total: int, rank: int = 0, ranks: int = 1):
        self.run, self.role, self.total, self.ranks = run, role, total, ranks
        self.recipe = recipe = run.recipe
        self.denoiser = run.build(role)
        network = self.denoiser.network
        self.dtype = run.dtype or torch.float32
        copies = None if self.dtype == torch.float32 else self.dtype
        self.optimizer = AdamEma(network, recipe.ema_gamma, copies=copies)
        for name, copy in self.optimizer.copies.items():
            layer = network.get_submodule(name.rpartition(".")[0])
            if isinstance(layer, Dense) and name.endswith(".weight"):
                layer.adopt(copy)
        if run.device.type == "cpu" and run.graph and isinstance(network, NextNet):
            network.recorded = ops.recorded(network.evaluate, network.parameters())
        self.frames = torch.from_numpy(np.ascontiguousarray(run.frames)).to(run.device)
        self.crop = recipe.crop_size(role, *run.size)
        share = recipe.batch_size // ranks
        # The roles of a run draw different numbers from one seed.
        seed = run.seed * 16 + list("image predictor projector interpolator".split()).index(role.name)
        self.seeds = sample_seeds(seed, range(rank * share, (rank + 1) * share)).to(run.device)
        self.strength = torch.tensor((recipe.condition_noise, recipe.condition_drift), device=run.device)
        window = min(total, WINDOW)
        self.rates = np.zeros(window)
        self.coefficients = torch.zeros(window, 3, device=run.device)
        self.largest_offset = torch.zeros(window, dtype=torch.int64, device=run.device)
        self.losses = torch.zeros(window, device=run.device)  # of the last steps, likewise
        self._plan(0)
        self.done = 0
        self.counter = torch.zeros((), dtype=torch.int64, device=run.device)  # `done`, on the device
        self._at_once, self._gradient, self._update = (
            replayed(part, run.device, run.graph) for part in (self._whole_step, self._backward, self._apply)
        )

    def _plan(self, first: int) -> None:
        """Put on the device what the steps from `first` on need; step n is found at n modulo their number."""
        recipe, step = self.recipe, np.arange(first, min(first + len(self.losses), self.total))
        drop_at = 100_000 / recipe.steps(self.role)
        rates = learning_rates(step, self.total, recipe.learning_rate, recipe.decay, recipe.warmup, drop_at)
        self.rates[: len(step)] = rates
        self.coefficients[: len(step)] = self.optimizer.coefficients(rates, first)
        self.largest_offset[: len(step)] = torch.from_numpy(recipe.largest_offset(step / self.total))

    def batch(self, step: Tensor) -> Batch:
        """The examples of a step, () int64 on the device."""
        role, recipe, seeds = self.role, self.recipe, self.seeds
        largest = self.largest_offset.index_select(0, (step % len(self.losses)).view(1))
        clip = (self.frames.shape[0], self.frames.shape[1], self.frames.shape[2])
        places = draw(clip, role.conditions, self.crop, seeds, step, largest, recipe.every_triple)
        spread = self.denoiser.spread(places[:, 1] if role.frame_offset else None, len(seeds), seeds.device)
        sigma = levels(recipe, role, self.denoiser, spread, seeds, step)
        # Noise on the condition, as a rollout's own errors look: grain and blotches, each of a random strength.
        share = ops.uniform_bits(seeds, STREAM_CONDITION_SHARE, step, 2, seeds.device).float() / 2**32
        blotches = None
        if role.conditions and recipe.condition_drift > 0:
            coarse = (3 * role.conditions, self.crop[0] // BLOTCH + 2, self.crop[1] // BLOTCH + 2)
            blotches = ops.normal(seeds, STREAM_CONDITION_DRIFT, step, coarse, seeds.device)
        inputs, target = ops.sample_crops(
            self.frames,
            places,
            torch.cat((self.denoiser.training_coefficients(sigma, spread), self.strength * spread[:, None] * share), 1),
            blotches,
            seeds,
            step,
            (STREAM_NOISE, STREAM_CONDITION_NOISE),
            role.conditions,
            self.crop,
            self.dtype,
        )
        return Batch(inputs, target, sigma, spread, places[:, 1])

    @property
    def graph_bytes(self) -> int:
        """Memory that the graphs of a step keep for themselves."""
        parts = (self._at_once, self._gradient, self._update)
        return sum(part.memory for part in parts if isinstance(part, Replayed))

    def step(self) -> None:
        """The next step; its loss is in `losses` when the device gets there."""
        if self.done and self.done % len(self.losses) == 0:
            self._plan(self.done)
        if self.ranks == 1:
            self._at_once()
        else:
            # The processes' messages meet between two graphs, so that any backend and any version of NCCL serves.
            message = self._gradient()
            dist.all_reduce(message)
            self._update(message)
        self.done += 1

    def _whole_step(self) -> None:
        self._apply(self._backward())

    def _backward(self) -> Tensor:
        """(N + 1,): the gradient of this process's share of the mean over all, and the loss likewise."""
        batch = self.batch(self.counter)
        loss = self.denoiser.loss(batch.inputs, batch.target, batch.sigma, batch.spread, batch.frame_offset)
        return self.optimizer.gradient(loss / self.ranks)

    def _apply(self, message: Tensor) -> None:
        """Update the weights from a gradient and a loss (N + 1,), and count the step."""
        step = (self.counter % len(self.losses)).view(1)
        self.optimizer.step(message[:-1], self.coefficients.index_select(0, step)[0])
        self.losses.index_copy_(0, step, message[-1:])
        self.counter += 1

    def save(self) -> None:
        """Write a checkpoint of the steps done; never one that is not finite."""
        raw = {name: p.detach() for name, p in self.optimizer.parameters.items()}
        if not all(bool(p.isfinite().all()) for p in raw.values()):
            raise self._not_finite("weights", self.done)
        state = self.optimizer.state(self.done)
        save_checkpoint(self.run, self.role, self.done, raw, self.optimizer.average, state)

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
        self.counter.fill_(self.done)
        self._plan(self.done - self.done % len(self.losses))

    def train(self, progress: Progress | None, stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end. Raises Stopped after a save when `stop()`; SinfusionError on a non-finite loss."""
        saved_at = time.monotonic()
        while self.done < self.total:
            step = self.done
            self.step()
            at = step % len(self.losses)
            mean = progress.step(step, self.losses[at], float(self.rates[at])) if progress else None
            if mean is not None and not np.isfinite(mean):
                raise self._not_finite("loss", self.done)
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
        if self.done % AGREE:  # to ask is to wait for the device
            return False
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
        trainer.step()
        trainer.losses[len(times)].item()
        times.append(time.monotonic() - before)
    median = float(np.median(times[2:]))
    return median if ranks == 1 else _largest(median, run.device)


def _largest(value: float, device: torch.device) -> float:
    """The largest of the values that the processes hold."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)
