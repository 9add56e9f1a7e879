"""The training loop of one model. It receives frames as a tensor; of files it knows only the run's checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..checkpoint import last_checkpoint, load_into, load_optimizer, load_weights
from ..errors import SinfusionError
from ..network import Dense, NextNet
from ..ops.cuda_graph import CudaGraphed, cuda_graphed
from ..roles import Role
from ..run import Run
from .batch import Batch, BatchSampler, Draws, StepTable
from .budget import Budget, Clock
from .logger import TrainingLogger
from .optimizer import AdamEma, learning_rates
from .plan import MOST_STEPS, Plan, stored_plan
from .processes import ALONE, Processes

CHECKPOINT_SECONDS = 60.0
AGREE_STEPS = 16  # between two times that several processes agree on whether to stop, and when to end
REPLAN_SHARE = 0.01  # of the steps that are left: smaller changes of the total wait
WINDOW = 2**12  # steps whose settings are on the device at once


class Stopped(Exception):
    """The training was asked to stop; its state has been saved."""


class Trainer:
    """One model in training. Step n is a pure function of the weights, the seed, the plan and n.

    All that changes from step to step is on the device, n among it: nothing there waits for the host, and on a GPU a
    step is a CUDA graph.
    """

    def __init__(
        self,
        run: Run,
        role: Role,
        plan: Plan | int,  # or a number of steps
        processes: Processes = ALONE,
        budget: Budget | None = None,  # whose seconds are stored in checkpoints
    ):
        self.run, self.role, self.recipe, self.processes, self.budget = run, role, run.recipe, processes, budget
        self.plan = Plan.even(plan) if isinstance(plan, int) else plan
        self.denoiser = run.build(role)
        self.optimizer = _optimizer(run, self.denoiser.network)
        self.batch_sampler = BatchSampler(run, role, self.denoiser, processes.samples(run.recipe.batch_size))
        self.done = 0  # steps
        self.counter = torch.zeros((), dtype=torch.int64, device=run.device)  # `done`, on the device
        # What the steps of a window need, step n at n modulo their number; and their losses.
        self.rates = np.zeros(WINDOW)
        self.coefficients = torch.zeros(WINDOW, 3, device=run.device)
        self.largest_offset = torch.zeros(WINDOW, dtype=torch.int64, device=run.device)
        self.losses = torch.zeros(WINDOW, device=run.device)
        self.table = None
        if self.counter.is_cuda:  # what a step needs is made for a window at once
            *draws, coefficients = self._settings_of(0, slice(0, 1))
            self.table = StepTable([*draws, coefficients[0]], WINDOW)
        self._fill_window()
        self._step, self._gradient, self._update = (
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

    @property
    def graph_bytes(self) -> int:
        """Memory that the graphs of a step keep for themselves."""
        parts = (self._step, self._gradient, self._update)
        return sum(part.memory for part in parts if isinstance(part, CudaGraphed))

    # One step ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """The next step; its loss is in `losses` when the device gets there."""
        if self.done and self.done % WINDOW == 0:
            self._fill_window()
        if self.processes.count == 1:
            self._step()
        else:
            # The processes exchange gradients between two graphs, so that any backend and any version of NCCL serves.
            gradient = self._gradient()
            self.processes.sum(gradient)
            self._update(gradient)
        self.done += 1

    def _whole_step(self) -> None:
        row = self._row()
        coefficients, draws = self._settings(row)
        self._update_by(self._gradient_of(draws), coefficients, row)

    def _backward(self) -> Tensor:
        """The first half of a step."""
        return self._gradient_of(self._settings(self._row())[1])

    def _apply(self, gradient: Tensor) -> None:
        """The second half."""
        row = self._row()
        self._update_by(gradient, self._settings(row)[0], row)

    def _row(self) -> Tensor:
        """(1,) int64 on the device: where a window has the next step."""
        return (self.counter % WINDOW).view(1)

    def _settings(self, row: Tensor, step: Tensor | None = None) -> tuple[Tensor, Draws]:
        """What a step takes: the optimizer's coefficients (3,), and what is drawn; step: None: the next."""
        if self.table is not None:
            *draws, coefficients = self.table.at(row)
            return coefficients, Draws._make(draws)
        largest_offset = self.largest_offset.index_select(0, row)
        draws_of_step = self.batch_sampler.draw(self.counter if step is None else step, largest_offset)
        return self.coefficients.index_select(0, row)[0], draws_of_step

    def _gradient_of(self, draws: Draws) -> Tensor:
        """(N + 1,): this process's share of the gradient of the mean loss over all, and of that loss."""
        batch = self.batch_sampler(self.counter, draws)
        loss = self.denoiser.loss(batch.inputs, batch.target, draws.time, draws.frame_offset)
        return self.optimizer.gradient(loss if self.processes.count == 1 else loss / self.processes.count)

    def _update_by(self, gradient: Tensor, coefficients: Tensor, row: Tensor) -> None:
        """Update the weights by a gradient and a loss (N + 1,), and count the step."""
        self.optimizer.step(gradient[:-1], coefficients)
        self.losses.index_copy_(0, row, gradient[-1:])
        self.counter += 1

    def batch(self, step: Tensor) -> Batch:
        """The batch of a step, () int64 on the device."""
        return self.batch_sampler(step, self._settings((step % WINDOW).view(1), step)[1])

    def _fill_window(self) -> None:
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
        if self.table is not None:
            self.table.fill(rows.start, len(step), self._settings_of(first, rows))

    def _settings_of(self, first: int, rows: slice) -> list[Tensor]:
        """What the steps of some rows of the window take, from a first step on: draws, then coefficients."""
        steps = torch.arange(first, first + rows.stop - rows.start, device=self.run.device)
        return [*self.batch_sampler.draw(steps, self.largest_offset[rows]), self.coefficients[rows]]

    # All steps --------------------------------------------------------------------------------------------------------

    def train(
        self,
        logger: TrainingLogger | None,  # of the first process
        should_stop: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
    ) -> None:
        """Train to the end of the plan, which the clock keeps up to date; then save.

        Raises Stopped after a save when `should_stop()`; SinfusionError where the loss or a weight is not finite.
        """
        planned_at, saved_at = self.done, time.monotonic()  # a step, a time
        while self.done < self.total:
            row = self.done % WINDOW
            self.step()
            loss = logger.step(self.done - 1, self.losses[row], float(self.rates[row])) if logger else None
            if loss is not None and not np.isfinite(loss):
                raise self._not_finite("loss")
            total = None
            # Where the device was waited for anyway, while nothing is known, and after a quarter of what was left.
            soon = self.total == MOST_STEPS or 4 * (self.done - planned_at) >= self.total - planned_at
            if clock and (loss is not None or soon or (self.processes.count > 1 and self._agrees_now())):
                self.losses[row].item()
                total, planned_at = clock.total(self.done, self.plan), self.done
            stop, total = self._agree(should_stop(), total)
            if total and self.done < self.total and abs(total - self.total) > REPLAN_SHARE * (self.total - self.done):
                self.end_after(total)
                if logger:
                    logger.save_plan(self.plan)
            if stop:
                if logger:
                    self.save()
                raise Stopped
            if logger and loss is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                with logger.attempt("a checkpoint"):
                    self.save()
                saved_at = time.monotonic()
        if logger:
            self.save()
            logger.save_plan(self.plan, ended=True)

    def end_after(self, total: int, progress: float | None = None) -> None:
        """Change the plan from here on: end after `total` steps. progress: where to go on from; None: from here."""
        self.plan.end_after(total, self.done, progress)
        self._fill_window()

    def _agrees_now(self) -> bool:
        """Whether several processes agree after this step; that waits for the device."""
        return self.done % AGREE_STEPS == 0

    def _agree(self, stop: bool, total: int | None) -> tuple[bool, int | None]:
        """Whether any process was asked to stop, and the total that one of them proposes: the same for all."""
        if self.processes.count == 1:
            return stop, total
        if not self._agrees_now():
            return False, None
        stops, totals = self.processes.maximum((float(stop), float(total or 0)), self.run.device)
        return bool(stops), int(totals) or None

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the steps done; never one that is not finite."""
        raw = {name: p.detach() for name, p in self.optimizer.parameters.items()}
        if not all(bool(p.isfinite().all()) for p in raw.values()):
            raise self._not_finite("weights")
        state = self.optimizer.state(self.done)
        seconds = self.budget.spent() if self.budget else 0.0
        segments = [*map(tuple, self.plan.segments)]
        self.run.save_checkpoint(self.role, self.done, raw, self.optimizer.average, state, segments, seconds)

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
        self.plan = stored_plan(metadata, checkpoint) or self.plan
        self._fill_window()

    def _not_finite(self, what: str) -> SinfusionError:
        return SinfusionError(
            f"the {what} of the {self.role.name} stopped being finite by step {self.done}; the last good checkpoint is "
            f"kept: lower --learning-rate (now {self.recipe.learning_rate}) or use --precision fp32."
        )


def _optimizer(run: Run, network: nn.Module) -> AdamEma:
    """The optimizer of a network, whose layers compute with its copies of the weights in the run's dtype."""
    copies = None if run.dtype in (None, torch.float32) else run.dtype
    optimizer = AdamEma(network, run.recipe.ema_gamma, copies=copies)
    for name, copy in optimizer.copies.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, Dense) and name.endswith(".weight"):
            layer.adopt(copy)
    if optimizer.gradients and isinstance(network, NextNet):
        network.adopt(optimizer.gradients)
    if run.device.type == "cpu" and run.graph and isinstance(network, NextNet):
        network.graphed_evaluate = ops.cpu_graphed(network.evaluate, network.parameters())
    return optimizer
