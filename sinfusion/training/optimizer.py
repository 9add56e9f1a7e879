"""Adam with a moving average of the weights whose length grows with training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..ops.layout import weight_order

ALIGNMENT = 64  # numbers, at a multiple of which each weight begins: 128 bytes of bf16, a line of a GPU's cache


class AdamEma:
    """Adam on a network's fp32 weights, and their exponential moving average.

    The average is a power function of time (Karras et al. 2024, arXiv 2312.02696): step n decays it by
    (1 - 1/n)^(gamma + 1) (equation 127), so it always spans the same fraction of the training so far, whatever the
    budget; gamma = 0 is the plain mean.

    All weights are stored in one tensor (the network's parameters become views of it), and so are the moments, the
    averages and, if a dtype is given for them, copies of the weights in that dtype: a step is one pass. Zeros between
    the weights, which stay zeros, align each. On a GPU gradients have a tensor of their own, `gradients` by name, which
    `gradient` overwrites: what lies there already is not copied.
    """

    def __init__(
        self,
        network: nn.Module,
        gamma: float,
        betas: tuple[float, float] = (0.9, 0.999),
        copies: torch.dtype | None = None,
    ):
        self.gamma, self.betas = gamma, betas
        named = dict(network.named_parameters())
        self._on_gpu = next(iter(named.values())).is_cuda
        self._zeros = torch.zeros(ALIGNMENT, device=next(iter(named.values())).device)
        self._shapes = {name: p.shape for name, p in named.items()}
        self._value = torch.cat(self._aligned(p.detach() for p in named.values()))
        for name, view in self._views(self._value).items():
            named[name].data = view
        self._exp_avg, self._exp_avg_sq = torch.zeros_like(self._value), torch.zeros_like(self._value)
        self._average = self._value.clone()
        self._copies = None if copies is None else self._value.to(copies)
        self.parameters = named
        self.average = self._views(self._average)
        # Each has a version counter of its own for autograd: a layer may write its copy while others are in use.
        copied = {} if self._copies is None else self._views(self._copies)
        self.copies = {name: view.data for name, view in copied.items()}
        self._gradient = self._value.new_zeros(len(self._value) + 1) if self._on_gpu else None
        self._one = None if self._gradient is None else self._value.new_ones(())  # the gradient of a loss by itself
        self.gradients = {} if self._gradient is None else self._views(self._gradient[:-1])

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """Tensors by parameter name in one that holds them all, each in the order that kernels read."""
        numbers = [shape.numel() for shape in self._shapes.values()]
        parts = [part[:n] for part, n in zip(flat.split([n + _gap(n) for n in numbers]), numbers, strict=True)]
        orders = {name: weight_order(shape, self._on_gpu) for name, shape in self._shapes.items()}
        return {
            name: part.view([shape[i] for i in orders[name]]).permute(
                [orders[name].index(i) for i in range(len(shape))]
            )
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _aligned(self, values: Iterable[Tensor]) -> list[Tensor]:
        """What lies behind each other in the one tensor: values as their parameters lie there, zeros between them."""
        flat = (value.permute(weight_order(value.shape, self._on_gpu)).reshape(-1) for value in values)
        return [part for value in flat for part in (value, self._zeros[: _gap(len(value))]) if len(part)]

    def coefficients(self, rates: np.ndarray, first: int = 0) -> Tensor:
        """(n, 3) fp32: what `ops.adam_ema` takes in the steps from `first` on, with learning rates (n,) float64.

        A row is the step size and the scale of Adam's bias correction (Kingma and Ba 2015, algorithm 1), and the weight
        of the new value in the average (equation 127).
        """
        n = first + np.arange(1, len(rates) + 1)
        size = rates / (1 - self.betas[0] ** n)
        scale = (1 - self.betas[1] ** n) ** -0.5
        weight = 1 - (1 - 1 / n) ** (self.gamma + 1)
        return torch.from_numpy(np.stack((size, scale, weight), 1)).float()

    def gradient(self, loss: Tensor) -> Tensor:
        """(N + 1,) fp32: the gradient of a loss () by all weights, aligned as they are, and then the loss itself."""
        weights = list(self.parameters.values())
        gradients = torch.autograd.grad(loss, weights, self._one, allow_unused=True, materialize_grads=True)
        if self._gradient is None:
            return torch.cat([*self._aligned(gradients), loss.detach().view(1)])
        places, values = [*self.gradients.values(), self._gradient[-1:]], [*gradients, loss.detach().view(1)]
        elsewhere = [at for at, value in enumerate(values) if value.data_ptr() != places[at].data_ptr()]
        torch._foreach_copy_([places[at] for at in elsewhere], [values[at] for at in elsewhere])
        return self._gradient

    def step(self, gradient: Tensor, coefficients: Tensor) -> None:
        """One update from a gradient (N,) in the order of `gradient` and a row of `coefficients` (3,)."""
        ops.adam_ema(
            self._value,
            self._exp_avg,
            self._exp_avg_sq,
            self._average,
            self._copies,
            gradient,
            coefficients,
            self.betas,
        )

    def state(self, done: int) -> dict[str, dict[str, Tensor]]:
        """Adam's state after `done` steps by parameter name, as torch.optim.Adam keeps it."""
        moments = {"exp_avg": self._views(self._exp_avg), "exp_avg_sq": self._views(self._exp_avg_sq)}
        return {
            name: {"step": torch.tensor(float(done))}
            | {key: views[name].clone(memory_format=torch.contiguous_format) for key, views in moments.items()}
            for name in self.parameters
        }

    def load(self, state: dict[str, Any], average: dict[str, Tensor]) -> None:
        """Continue from `state` and `average`; moments that are missing begin at 0."""
        for key, flat in (("exp_avg", self._exp_avg), ("exp_avg_sq", self._exp_avg_sq)):
            for name, view in self._views(flat).items():
                view.copy_(state[name].get(key, torch.zeros(())))
        for name, view in self.average.items():
            view.copy_(average[name])
        if self._copies is not None:
            self._copies.copy_(self._value)


def _gap(numbers: int) -> int:
    """Of so many numbers to the next multiple of ALIGNMENT."""
    return -numbers % ALIGNMENT


def learning_rates(
    progress: np.ndarray, after: np.ndarray, peak: float, decay: str, warmup: float, drop_at: float
) -> np.ndarray:
    """(n,) float64: the learning rate of steps that begin at `progress` (n,) and end at `after` (n,), in [0, 1].

    warmup: the progress at which a linear warm-up ends. decay: `cosine` to zero at the end, or `step`: a tenth from
    progress `drop_at` on.
    """
    ramp = np.minimum(1.0, after / warmup) if warmup > 0 else 1.0
    if decay == "step":
        return peak * ramp * np.where(progress >= drop_at, 0.1, 1.0)
    return peak * ramp * 0.5 * (1 + np.cos(np.pi * progress))
