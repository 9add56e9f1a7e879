"""The training loop of one role. It receives frames as a tensor; of files it knows only the run's checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import ops
from ..checkpoint import last_checkpoint, load_into, load_optimizer, load_weights
from ..errors import SinfusionError
from ..network import Dense, NextNet
from ..ops.cuda_graph import CudaGraphed, cuda_graphed
from ..roles import Role
from ..run import Run
from .crops import (
    STREAM_COARSE_CONDITION_NOISE,
    STREAM_CONDITION_NOISE_SHARE,
    STREAM_NOISE,
    STREAM_WHITE_CONDITION_NOISE,
    draw,
    sample_seeds,
)
from .optimizer import AdamEma, learning_rates
from .plan import MOST_STEPS, Budget, Clock, Plan, planned
from .progress import Progress
from .sigma_distribution import draw_sigmas

CHECKPOINT_SECONDS = 60.0
MEETING = 16  # steps between two times that several processes agree on whether to stop, and when to end
REVISED = 0.01  # of the steps that are left: smaller changes of the total wait
WINDOW = 2**12  # steps whose settings are on the device at once
COARSE_PIXELS = 8  # pixels from one sample of the coarse noise to the next


class Stopped(Exception):
    """The user asked to stop; the state has been saved."""


@dataclass(frozen=True)
class Batch:
    """What the network sees in one step, and what it should make of it."""

    inputs: Tensor  # (B, 3 (n + 1), h, w), conditions first
    target: Tensor  # (B, 3, h, w) fp32
    sigma: Tensor  # (B,) fp32
    sigma_data: Tensor  # (B,) fp32
    frame_offset: Tensor  # (B,) int64


class Trainer:
    """One role in training. Step n is a pure function of the weights, the seed and n.

    All that changes from step to step lies on the device, n among it: nothing there waits for the host, and on a GPU
    a step is a CUDA graph.
    """

    def __init__(
        self,
        run: Run,
        role: Role,
        plan: Plan | int,  # or a number of steps
        rank: int = 0,
        ranks: int = 1,
        budget: Budget | None = None,  # whose seconds the checkpoints tell
    ):
        self.run, self.role, self.ranks, self.budget = run, role, ranks, budget
        self.plan = Plan.of(plan) if isinstance(plan, int) else plan
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
            network.graphed_evaluate = ops.cpu_graphed(network.evaluate, network.parameters())
        self.frames = torch.from_numpy(np.ascontiguousarray(run.frames)).to(run.device)
        self.crop = recipe.crop_size(role, *run.size)
        share = recipe.batch_size // ranks
        # The roles of a run draw different numbers from one seed.
        seed = run.seed * 16 + list("image predictor projector interpolator".split()).index(role.name)
        self.seeds = sample_seeds(seed, range(rank * share, (rank + 1) * share)).to(run.device)
        self.strength = torch.tensor((recipe.white_condition_noise, recipe.coarse_condition_noise), device=run.device)
        # What the steps need, step n at n modulo their number.
        self.rates = np.zeros(WINDOW)
        self.coefficients = torch.zeros(WINDOW, 3, device=run.device)
        self.largest_offset = torch.zeros(WINDOW, dtype=torch.int64, device=run.device)
        self.losses = torch.zeros(WINDOW, device=run.device)  # of the last steps, likewise
        self.done = 0
        self._tabulate()
        self.counter = torch.zeros((), dtype=torch.int64, device=run.device)  # `done`, on the device
        self._at_once, self._gradient, self._update = (
            cuda_graphed(part, run.device, run.graph) for part in (self._whole_step, self._backward, self._apply)
        )

    @property
    def total(self) -> int:
        """Steps after which the training ends, as far as is known."""
        return self.plan.total

    @property
    def progress(self) -> float:
        """How far the training is, from 0 to 1."""
        return self.plan.at(self.done)

    def _tabulate(self) -> None:
        """Put on the device what the plan says of the steps from the next one to the end of the window."""
        recipe, first = self.recipe, self.done
        step = np.arange(first, first - first % WINDOW + WINDOW)
        progress, after = self.plan.progress(step), self.plan.progress(step + 1)
        drop_at = 100_000 / recipe.steps(self.role)
        rates = learning_rates(progress, after, recipe.learning_rate, recipe.decay, recipe.warmup, drop_at)
        rows = slice(first % WINDOW, WINDOW)
        self.rates[rows] = rates
        self.coefficients[rows] = self.optimizer.coefficients(rates, first)
        self.largest_offset[rows] = torch.from_numpy(recipe.largest_offset(progress))

    def batch(self, step: Tensor) -> Batch:
        """The examples of a step, () int64 on the device."""
        role, recipe, seeds = self.role, self.recipe, self.seeds
        largest = self.largest_offset.index_select(0, (step % WINDOW).view(1))
        clip = (self.frames.shape[0], self.frames.shape[1], self.frames.shape[2])
        places = draw(clip, role.conditions, self.crop, seeds, step, largest, recipe.every_triple)
        sigma_data = self.denoiser.sigma_data_of(places[:, 1] if role.frame_offset else None, len(seeds), seeds.device)
        sigma = draw_sigmas(recipe, role, self.denoiser, sigma_data, seeds, step)
        # Noise on the condition, as a rollout's own errors look: white noise and coarse_noise, each of a random strength.
        share = ops.uniform_bits(seeds, STREAM_CONDITION_NOISE_SHARE, step, 2, seeds.device).float() / 2**32
        coarse_noise = None
        if role.conditions and recipe.coarse_condition_noise > 0:
            coarse = (3 * role.conditions, self.crop[0] // COARSE_PIXELS + 2, self.crop[1] // COARSE_PIXELS + 2)
            coarse_noise = ops.normal(seeds, STREAM_COARSE_CONDITION_NOISE, step, coarse, seeds.device)
        inputs, target = ops.sample_crops(
            self.frames,
            places,
            torch.cat(
                (self.denoiser.training_coefficients(sigma, sigma_data), self.strength * sigma_data[:, None] * share), 1
            ),
            coarse_noise,
            seeds,
            step,
            (STREAM_NOISE, STREAM_WHITE_CONDITION_NOISE),
            role.conditions,
            self.crop,
            self.dtype,
        )
        return Batch(inputs, target, sigma, sigma_data, places[:, 1])

    @property
    def graph_bytes(self) -> int:
        """Memory that the graphs of a step keep for themselves."""
        parts = (self._at_once, self._gradient, self._update)
        return sum(part.memory for part in parts if isinstance(part, CudaGraphed))

    def step(self) -> None:
        """The next step; its loss is in `losses` when the device gets there."""
        if self.done and self.done % WINDOW == 0:
            self._tabulate()
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
        loss = self.denoiser.loss(batch.inputs, batch.target, batch.sigma, batch.sigma_data, batch.frame_offset)
        return self.optimizer.gradient(loss / self.ranks)

    def _apply(self, message: Tensor) -> None:
        """Update the weights from a gradient and a loss (N + 1,), and count the step."""
        step = (self.counter % WINDOW).view(1)
        self.optimizer.step(message[:-1], self.coefficients.index_select(0, step)[0])
        self.losses.index_copy_(0, step, message[-1:])
        self.counter += 1

    def save(self) -> None:
        """Write a checkpoint of the steps done; never one that is not finite."""
        raw = {name: p.detach() for name, p in self.optimizer.parameters.items()}
        if not all(bool(p.isfinite().all()) for p in raw.values()):
            raise self._not_finite("weights", self.done)
        state = self.optimizer.state(self.done)
        seconds = self.budget.spent() if self.budget else 0.0
        pieces = [*map(tuple, self.plan.pieces)]
        self.run.save_checkpoint(self.role, self.done, raw, self.optimizer.average, state, pieces, seconds)

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        checkpoint = last_checkpoint(self.run.path / self.role.name)
        if checkpoint is None:
            return
        weights, metadata = load_weights(checkpoint / "weights.safetensors")
        load_into(self.denoiser.network, weights, "raw.", checkpoint)
        state = load_optimizer(checkpoint)
        average = {name.removeprefix("average."): v for name, v in weights.items() if name.startswith("average.")}
        try:
            self.optimizer.load(state["optimizer"], average)
        except (KeyError, RuntimeError, AttributeError) as error:
            raise SinfusionError(f"{checkpoint} is damaged: {type(error).__name__}: {error}") from error
        self.done = state["step"]
        self.counter.fill_(self.done)
        self.plan = planned(metadata, checkpoint) or self.plan
        self._tabulate()

    def end_after(self, total: int, progress: float | None = None) -> None:
        """Change the plan from here on: end after `total` steps. progress: where to go on from; None: from here."""
        self.plan.end_after(total, self.done, progress)
        self._tabulate()

    def train(
        self, progress: Progress | None, stop: Callable[[], bool] = lambda: False, clock: Clock | None = None
    ) -> None:
        """Train to the end of the plan, which the clock keeps up to date.

        Raises Stopped after a save when `stop()`; SinfusionError on a non-finite loss.
        """
        checked, saved_at = self.done, time.monotonic()
        while self.done < self.total:
            at = self.done % WINDOW
            self.step()
            mean = progress.step(self.done - 1, self.losses[at], float(self.rates[at])) if progress else None
            if mean is not None and not np.isfinite(mean):
                raise self._not_finite("loss", self.done)
            wanted = None
            # Where the device was waited for anyway, while nothing is known, and after a quarter of what was left.
            soon = self.total == MOST_STEPS or 4 * (self.done - checked) >= self.total - checked
            if clock and (mean is not None or self._meet() or soon):
                self.losses[at].item()
                wanted, checked = clock.total(self.done, self.plan), self.done
            stopping, wanted = self._agree(stop(), wanted)
            if wanted and self.done < self.total and abs(wanted - self.total) > REVISED * (self.total - self.done):
                self.end_after(wanted)
                if progress:
                    progress.follow(self.plan)
            if stopping:
                if progress:
                    self.save()
                raise Stopped
            if progress and mean is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                with progress.attempt("a checkpoint"):
                    self.save()
                saved_at = time.monotonic()
        if progress:
            self.save()
            progress.follow(self.plan, ended=True)

    def _not_finite(self, what: str, step: int) -> SinfusionError:
        return SinfusionError(
            f"the {what} of the {self.role.name} stopped being finite by step {step}; the last good checkpoint is "
            f"kept: lower --learning-rate (now {self.recipe.learning_rate}) or use --precision fp32."
        )

    def _meet(self) -> bool:
        """Whether several processes talk to each other after this step; to talk is to wait for the device."""
        return self.ranks > 1 and self.done % MEETING == 0

    def _agree(self, stop: bool, total: int | None) -> tuple[bool, int | None]:
        """Whether any process was asked to stop, and the total that one of them proposes: the same for all."""
        if self.ranks == 1:
            return stop, total
        if not self._meet():
            return False, None
        asked = torch.tensor((float(stop), float(total or 0)), dtype=torch.float64, device=self.run.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked[0]), int(asked[1]) or None
