"""Adam with a moving average of the weights whose length grows with training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class AdamEma:
    """Adam on a network's fp32 weights, and their exponential moving average.

    The average is Karras et al.'s power function (2024, eq. 123): after n steps its decay is (1 - 1/n)^(gamma + 1),
    so it always spans the same fraction of the training so far, whatever the budget; gamma = 0 would be the plain mean.
    """

    def __init__(self, network: nn.Module, gamma: float, betas: tuple[float, float] = (0.9, 0.999)):
        self.parameters = dict(network.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.gamma = gamma
        self.adam = torch.optim.Adam(list(self.parameters.values()), lr=0.0, betas=betas, fused=True)

    def step(self, learning_rate: float, done: int) -> None:
        """One update from the gradients at hand; `done` is the number of steps made before this one."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        weight = 1.0 - (1.0 - 1.0 / (done + 1)) ** (self.gamma + 1)
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], weight)

    def state(self) -> dict[str, Any]:
        """Adam's state by parameter name, of tensors only."""
        return {
            name: {key: value for key, value in self.adam.state[p].items() if isinstance(value, Tensor)}
            for name, p in self.parameters.items()
        }

    def load(self, state: dict[str, Any], average: dict[str, Tensor]) -> None:
        """Continue from `state` and `average`."""
        for name, p in self.parameters.items():
            self.adam.state[p] = {key: value.to(p.device, copy=True) for key, value in state[name].items()}
            self.average[name].copy_(average[name])


def learning_rate(progress: float, steps: int, peak: float, decay: str, warmup: float, drop_at: float) -> float:
    """Learning rate at `progress` in [0, 1) of a training of `steps` steps, after a linear warm-up.

    warmup: its length as a fraction of the training. decay: `cosine` to zero at the end, or `step`: a tenth from
    progress `drop_at` on.
    """
    ramp = min(1.0, (progress * steps + 1) / max(1.0, warmup * steps))
    if decay == "step":
        return peak * ramp * (0.1 if progress >= drop_at else 1.0)
    return peak * ramp * 0.5 * (1 + math.cos(math.pi * progress))
