"""`cpu_graphed`: a function whose calls are replays of a `CpuGraph`, with gradients."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cpu_graph import CpuGraph
from .dispatch import chosen_backend
from .native import cpu


class _Captured(NamedTuple):
    key: Any  # what it was captured for
    graph: CpuGraph
    static_inputs: list[Tensor | None]
    needs_grad: list[bool]  # for each static input


def cpu_graphed(function: Callable[..., Tensor], weights: Iterable[Tensor] = ()) -> Callable[..., Tensor]:
    """`function` of CPU tensors, replayed from a graph for the shapes of its last arguments.

    The first call of a shape is a warm-up, which runs eagerly; the second captures a graph. The function may then call
    no operators but `dense`, `depthwise_norm` and `ddpm_step` (else: RuntimeError), on the same weights each time. It
    may change its arguments: those of the warm-up themselves, later the graph's copies of them. The next call
    overwrites the result. Without native code every call runs eagerly.

    weights: tensors it reads that may have gradients. The next call overwrites gradients too, of weights and of
    arguments.
    """
    weights = list(weights)
    warmed_up: Any = None
    last: _Captured | None = None

    def call(*arguments: Tensor | None) -> Tensor:
        nonlocal warmed_up, last
        if not cpu.loaded or chosen_backend() == "reference":
            return function(*arguments)
        needs_grad = [a is not None and a.requires_grad for a in arguments]
        trained = [weight.requires_grad for weight in weights]
        saves = torch.is_grad_enabled() and (any(needs_grad) or any(trained))
        shapes = [None if a is None else (a.shape, a.stride(), a.dtype) for a in arguments]
        key = threading.get_ident(), saves and (needs_grad, trained), shapes
        if key != warmed_up:
            warmed_up = key
            return function(*arguments)
        captured = last  # another thread may replace it at any time
        if captured is None or captured.key != key:
            leaves = list(itertools.compress(weights, trained)) if saves else []
            captured = last = _capture(function, key, arguments, needs_grad if saves else [], leaves)
        if not saves:
            return _replay(captured, arguments)
        result: Tensor = _Replay.apply(captured, *arguments, *weights)
        return result

    return call


def _capture(
    function: Callable[..., Tensor],
    key: Any,
    arguments: tuple[Tensor | None, ...],
    needs_grad: list[bool],
    leaves: list[Tensor],
) -> _Captured:
    static_inputs = [None if a is None else a.detach().clone() for a in arguments]
    wanted = [own for own, needed in zip(static_inputs, needs_grad, strict=False) if own is not None and needed]
    graph = CpuGraph(lambda: function(*static_inputs), [*wanted, *leaves])
    return _Captured(key, graph, static_inputs, needs_grad)


def _replay(captured: _Captured, arguments: tuple[Tensor | None, ...]) -> Tensor:
    for own, argument in zip(captured.static_inputs, arguments, strict=True):
        if own is not None and argument is not None:
            own.copy_(argument)
    return captured.graph.replay()


class _Replay(torch.autograd.Function):
    """A replay as a node of autograd; its inputs are the arguments, then the weights."""

    @staticmethod
    def forward(ctx: Any, captured: _Captured, *tensors: Any) -> Tensor:
        count = len(captured.static_inputs)
        result = _replay(captured, tensors[:count])
        ctx.captured, ctx.weights, ctx.replay = captured, tensors[count:], captured.graph.replays
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        captured: _Captured = ctx.captured
        graph = captured.graph
        if ctx.replay != graph.replays:
            raise RuntimeError("a graph was replayed before the backward of its last replay, whose memory it overwrote")
        if ctx.replay == graph.last_backward:
            raise RuntimeError("a graph goes backward once for each replay, because that overwrites what it needs")
        graph.replay_backward(grads[0])
        inputs = [
            own if needed else None for own, needed in zip(captured.static_inputs, captured.needs_grad, strict=True)
        ]
        return None, *[None if leaf is None else graph.gradient(leaf) for leaf in (*inputs, *ctx.weights)]
