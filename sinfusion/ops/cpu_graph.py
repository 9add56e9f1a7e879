"""What a function asks of the CPU's library, recorded once and then asked again on the same memory.

A CPU's CUDA graph: between two calls of the library lies none of PyTorch, which takes as long as the calls themselves
where images are small.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ._choice import chosen_backend
from ._native import cpu

_current: ContextVar[CpuGraph | None] = ContextVar("sinfusion_recording", default=None)


def capturing() -> CpuGraph | None:
    """The recording that operators put their calls into, if there is one."""
    return _current.get()


def cpu_graphed(function: Callable[..., Tensor], weights: Iterable[Tensor] = ()) -> Callable[..., Tensor]:
    """`function` of CPU tensors, recorded for the shapes of its last arguments; itself where there is no native code.

    The first call of a shape runs it plainly, the second records it: then it may ask for nothing but `dense`,
    `depthwise_norm` and `ddpm_step` (else: RuntimeError), on the same weights each time. It may change its arguments:
    in the first call these themselves, later copies of them. What it returns is overwritten by the next call.

    weights: those it reads that have gradients. Where gradients are wanted, of them or of an argument (not of an
    image), these too are overwritten by the next call.
    """
    weights = list(weights)
    seen: Any = None
    last: tuple[Any, list[Tensor | None], CpuGraph] | None = None

    def call(*arguments: Tensor | None) -> Tensor:
        nonlocal seen, last
        if not cpu.loaded or chosen_backend() == "reference":
            return function(*arguments)
        needs_grad = [a is not None and a.requires_grad for a in arguments]
        saves = torch.is_grad_enabled() and (any(needs_grad) or any(weight.requires_grad for weight in weights))
        shapes = [None if a is None else (a.shape, a.stride(), a.dtype) for a in arguments]
        key = threading.get_ident(), saves and needs_grad, shapes
        if key != seen:
            seen = key
            return function(*arguments)
        mine = last  # another thread may put its own there at any time
        if mine is None or mine[0] != key:
            static_inputs = [None if a is None else a.detach().clone() for a in arguments]
            leaves = [k for k, w in zip(static_inputs, needs_grad, strict=True) if k is not None and w]
            mine = last = (
                key,
                static_inputs,
                CpuGraph(lambda: function(*static_inputs), [*leaves, *weights] if saves else []),
            )
        _, static_inputs, graph = mine
        if not graph.saves:
            return _replay(graph, static_inputs, arguments)
        result: Tensor = _Replay.apply(graph, static_inputs, needs_grad, *arguments, *weights)
        return result

    return call


def _replay(graph: CpuGraph, static_inputs: list[Tensor | None], arguments: tuple[Tensor | None, ...]) -> Tensor:
    for own, argument in zip(static_inputs, arguments, strict=True):
        if own is not None and argument is not None:
            own.copy_(argument)
    return graph.replay()


class _Replay(torch.autograd.Function):
    """A recording as a node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, graph: CpuGraph, static_inputs: list[Tensor | None], needs_grad: list[bool], *tensors: Any
    ) -> Tensor:
        result = _replay(graph, static_inputs, tensors[: len(static_inputs)])
        ctx.graph, ctx.static_inputs, ctx.needs_grad, ctx.weights = (
            graph,
            static_inputs,
            needs_grad,
            tensors[len(static_inputs) :],
        )
        ctx.replays = graph.replays
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        graph: CpuGraph = ctx.graph
        if ctx.replays != graph.replays:
            raise RuntimeError("a recording was played again before its backward: what that needs is overwritten")
        if ctx.replays == graph.replayed_backward:
            raise RuntimeError(
                "a recording goes backward once for each time it is played: that overwrites what it needs"
            )
        graph.replay_backward(grads[0])
        leaves = [k if w else None for k, w in zip(ctx.static_inputs, ctx.needs_grad, strict=True)]
        return None, None, None, *[None if leaf is None else graph.gradient(leaf) for leaf in (*leaves, *ctx.weights)]


class CpuGraph:
    """The calls of a function without arguments, the memory they work on, and the calls of its derivative.

    leaves: tensors it reads whose gradients are wanted, whole or as views of others with the same memory.
    """

    def __init__(self, function: Callable[[], Tensor], leaves: Iterable[Tensor] = ()):
        self._calls: list[Callable[[], Any]] = []
        self._backward_calls: list[Callable[[], Any]] = []
        self._others: list[Tensor] = []  # whose addresses the calls hold: weights and the like
        self._blocks: dict[int, Tensor] = {}  # by address: what `like` gave out
        self._free: list[Tensor] = []  # those that nothing holds any more
        self._leaves = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        self.saves = bool(self._leaves)  # for a derivative
        self._gradients: dict[int, Tensor] = {}  # by the address of a leaf's storage: in the same places as in that
        self._grad_views: dict[int, Tensor] = {}  # gradients by the address of a leaf, or of a view of one
        self._backward_hooks: list[
            Callable[[], None]
        ] = []  # of the calls so far, what their derivatives add to `_backward_calls`
        self._grads: dict[int, Tensor] = {}  # gradients of activations, by the activation's identity
        self.replays = self.replayed_backward = 0  # the second: as which of those it last went backward
        token = _current.set(self)
        try:
            with _RefuseOtherOperators():
                self.result = function()
                if self.saves:
                    self._differentiate()
        finally:
            _current.reset(token)

    def replay(self) -> Tensor:
        for call in self._calls:
            call()
        self.replays += 1
        return self.result

    def replay_backward(self, grad: Tensor) -> None:
        """From the gradient of the result to those of the leaves."""
        self.replayed_backward = self.replays
        self._grad_result.copy_(grad)
        for call in self._backward_calls:
            call()

    def gradient(self, leaf: Tensor) -> Tensor | None:
        """That of a leaf, or of a view of one; None if the function does not use it."""
        found = self._grad_views.get(leaf.data_ptr())
        return found if found is None or found.shape == leaf.shape else self.grad_buffer(leaf)

    # For operators, while a function is recorded:

    def add(self, function: str, *arguments: Any) -> None:
        """A call as `_native.run` makes it."""
        self._calls.append(cpu.prepared(function, *arguments))
        self._hold(arguments)

    def add_backward(self, function: str, *arguments: Any) -> None:
        """The same in the derivative."""
        self._backward_calls.append(cpu.prepared(function, *arguments))
        self._hold(arguments)

    def _hold(self, arguments: tuple[Any, ...]) -> None:
        tensors = (value for value in arguments if isinstance(value, Tensor))
        self._others += [value for value in tensors if value.data_ptr() not in self._blocks]

    def like(self, x: Tensor, channels: int) -> Tensor:
        """As `_layout.like`, in memory that serves others once nothing holds this tensor."""
        batch, _, height, width = x.shape
        return self.empty((batch, height, width, channels), x.dtype, (0, 3, 1, 2))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, order: tuple[int, ...] | None = None) -> Tensor:
        """The same for any shape, its dimensions then put into an order."""
        out = self._flat(torch.Size(shape).numel(), dtype).view(shape)
        out = out if order is None else out.permute(order)
        block = self._blocks[out.data_ptr()]
        # A method of this class here would keep the whole recording alive as long as its result.
        weakref.finalize(out, self._free.append, block).atexit = False
        return out

    def _flat(self, numbers: int, dtype: torch.dtype) -> Tensor:
        size = numbers * dtype.itemsize
        fitting = [at for at, block in enumerate(self._free) if len(block) >= size]
        if fitting:
            block = self._free.pop(min(fitting, key=lambda at: len(self._free[at])))
        else:
            block = torch.empty(size, dtype=torch.uint8)
            self._blocks[block.data_ptr()] = block
        return block[:size].view(dtype)

    def on_backward(self, derivative: Callable[[], None]) -> None:
        """What is to be done for the last call where gradients come: `arrived` and all that follows here."""
        self._backward_hooks.append(derivative)

    def _differentiate(self) -> None:
        out = self.result
        self._grad_result = torch.empty(out.shape, dtype=out.dtype, memory_format=torch.channels_last)
        self._grads[id(out)] = self._grad_result
        while self._backward_hooks:
            self._backward_hooks.pop()()

    def pop_grad(self, activation: Tensor) -> Tensor | None:
        """The gradient of what a call made, once all that use it have been asked; None if nothing does."""
        return self._grads.pop(id(activation), None)

    def grads_like(self, x: Tensor, skip: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Memory for the gradients of what a call read, where it matters: where another call made it."""
        if not any(value is not None and self._made_here(value) for value in (x, skip)):
            return None, None
        return self.like(x, x.shape[1]), None if skip is None else self.like(x, skip.shape[1])

    def accumulate_grad(self, activation: Tensor | None, gradient: Tensor | None) -> None:
        """A part of the gradient of what a call read; this memory may be changed."""
        if activation is None or gradient is None or not self._made_here(activation):
            return
        already = self._grads.get(id(activation))
        if already is not None:
            self.add_backward("add", already, gradient, gradient.dtype == torch.bfloat16, gradient.numel())
        else:
            self._grads[id(activation)] = gradient

    def _made_here(self, activation: Tensor) -> bool:
        if activation.untyped_storage().data_ptr() in self._leaves:
            raise RuntimeError("an image's gradient cannot be recorded")
        return activation.data_ptr() in self._blocks

    def grad_buffer(self, leaf: Tensor) -> Tensor:
        """Where the gradient of a leaf, or of a view of one, is to be written."""
        storage = leaf.untyped_storage()
        if storage.data_ptr() not in self._gradients:
            self._gradients[storage.data_ptr()] = torch.empty(storage.nbytes() // 4, dtype=torch.float32)
        gradients = self._gradients[storage.data_ptr()]
        found = gradients.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())
        self._grad_views[leaf.data_ptr()] = found
        return found


class _RefuseOtherOperators(TorchDispatchMode):
    """Refuses what would not be recorded; views and memory not yet written are nothing to record."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if not function.is_view and function is not torch.ops.aten.empty.memory_format:
            raise RuntimeError(f"{function} cannot be recorded")
        return function(*arguments, **(named or {}))
