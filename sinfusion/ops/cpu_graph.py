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

_current: ContextVar[Recording | None] = ContextVar("sinfusion_recording", default=None)


def recording() -> Recording | None:
    """The recording that operators put their calls into, if there is one."""
    return _current.get()


def recorded(function: Callable[..., Tensor], weights: Iterable[Tensor] = ()) -> Callable[..., Tensor]:
    """`function` of CPU tensors, recorded for the shapes of its last arguments; itself where there is no native code.

    The first call of a shape runs it plainly, the second records it: then it may ask for nothing but `dense`,
    `depthwise_norm` and `ddpm_step` (else: RuntimeError), on the same weights each time. It may change its arguments:
    in the first call these themselves, later copies of them. What it returns is overwritten by the next call.

    weights: those it reads that have gradients. Where gradients are wanted, of them or of an argument (not of a
    image), these too are overwritten by the next call.
    """
    weights = list(weights)
    seen: Any = None
    last: tuple[Any, list[Tensor | None], Recording] | None = None

    def call(*arguments: Tensor | None) -> Tensor:
        nonlocal seen, last
        if not cpu.loaded or chosen_backend() == "reference":
            return function(*arguments)
        wanted = [a is not None and a.requires_grad for a in arguments]
        saves = torch.is_grad_enabled() and (any(wanted) or any(weight.requires_grad for weight in weights))
        shapes = [None if a is None else (a.shape, a.stride(), a.dtype) for a in arguments]
        key = threading.get_ident(), saves and wanted, shapes
        if key != seen:
            seen = key
            return function(*arguments)
        mine = last  # another thread may put its own there at any time
        if mine is None or mine[0] != key:
            kept = [None if a is None else a.detach().clone() for a in arguments]
            leaves = [k for k, w in zip(kept, wanted, strict=True) if k is not None and w]
            mine = last = key, kept, Recording(lambda: function(*kept), [*leaves, *weights] if saves else [])
        _, kept, capture = mine
        if not capture.saves:
            return _played(capture, kept, arguments)
        result: Tensor = _Replay.apply(capture, kept, wanted, *arguments, *weights)
        return result

    return call


def _played(capture: Recording, kept: list[Tensor | None], arguments: tuple[Tensor | None, ...]) -> Tensor:
    for own, argument in zip(kept, arguments, strict=True):
        if own is not None and argument is not None:
            own.copy_(argument)
    return capture.play()


class _Replay(torch.autograd.Function):
    """A recording as a node of autograd."""

    @staticmethod
    def forward(ctx: Any, capture: Recording, kept: list[Tensor | None], wanted: list[bool], *tensors: Any) -> Tensor:
        result = _played(capture, kept, tensors[: len(kept)])
        ctx.capture, ctx.kept, ctx.wanted, ctx.weights = capture, kept, wanted, tensors[len(kept) :]
        ctx.played = capture.played
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        capture: Recording = ctx.capture
        if ctx.played != capture.played:
            raise RuntimeError("a recording was played again before its backward: what that needs is overwritten")
        if ctx.played == capture.played_back:
            raise RuntimeError(
                "a recording goes backward once for each time it is played: that overwrites what it needs"
            )
        capture.play_back(grads[0])
        leaves = [k if w else None for k, w in zip(ctx.kept, ctx.wanted, strict=True)]
        return None, None, None, *[None if leaf is None else capture.gradient(leaf) for leaf in (*leaves, *ctx.weights)]


class Recording:
    """The calls of a function without arguments, the memory they work on, and the calls of its derivative.

    leaves: tensors it reads whose gradients are wanted, whole or as views of others with the same memory.
    """

    def __init__(self, function: Callable[[], Tensor], leaves: Iterable[Tensor] = ()):
        self._calls: list[Callable[[], Any]] = []
        self._back: list[Callable[[], Any]] = []
        self._others: list[Tensor] = []  # whose addresses the calls hold: weights and the like
        self._blocks: dict[int, Tensor] = {}  # by address: what `like` gave out
        self._free: list[Tensor] = []  # those that nothing holds any more
        self._leaves = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        self.saves = bool(self._leaves)  # for a derivative
        self._gradients: dict[int, Tensor] = {}  # by the address of a leaf's storage: in the same places as in that
        self._asked: dict[int, Tensor] = {}  # gradients by the address of a leaf, or of a view of one
        self._pending: list[Callable[[], None]] = []  # of the calls so far, what their derivatives add to `_back`
        self._arriving: dict[int, Tensor] = {}  # gradients of activations, by the activation's identity
        self.played = self.played_back = 0  # the second: as which of those it last went backward
        token = _current.set(self)
        try:
            with _NothingElse():
                self.result = function()
                if self.saves:
                    self._differentiate()
        finally:
            _current.reset(token)

    def play(self) -> Tensor:
        for call in self._calls:
            call()
        self.played += 1
        return self.result

    def play_back(self, grad: Tensor) -> None:
        """From the gradient of the result to those of the leaves."""
        self.played_back = self.played
        self._grad_result.copy_(grad)
        for call in self._back:
            call()

    def gradient(self, leaf: Tensor) -> Tensor | None:
        """That of a leaf, or of a view of one; None if the function does not use it."""
        found = self._asked.get(leaf.data_ptr())
        return found if found is None or found.shape == leaf.shape else self.gradient_at(leaf)

    # For operators, while a function is recorded:

    def add(self, function: str, *arguments: Any) -> None:
        """A call as `_native.run` makes it."""
        self._calls.append(cpu.prepared(function, *arguments))
        self._hold(arguments)

    def add_back(self, function: str, *arguments: Any) -> None:
        """The same in the derivative."""
        self._back.append(cpu.prepared(function, *arguments))
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

    def then(self, derivative: Callable[[], None]) -> None:
        """What is to be done for the last call where gradients come: `arrived` and all that follows here."""
        self._pending.append(derivative)

    def _differentiate(self) -> None:
        out = self.result
        self._grad_result = torch.empty(out.shape, dtype=out.dtype, memory_format=torch.channels_last)
        self._arriving[id(out)] = self._grad_result
        while self._pending:
            self._pending.pop()()

    def arrived(self, activation: Tensor) -> Tensor | None:
        """The gradient of what a call made, once all that use it have been asked; None if nothing does."""
        return self._arriving.pop(id(activation), None)

    def gradients_for(self, x: Tensor, skip: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Memory for the gradients of what a call read, where it matters: where another call made it."""
        if not any(value is not None and self._made_here(value) for value in (x, skip)):
            return None, None
        return self.like(x, x.shape[1]), None if skip is None else self.like(x, skip.shape[1])

    def arrives(self, activation: Tensor | None, gradient: Tensor | None) -> None:
        """A part of the gradient of what a call read; this memory may be changed."""
        if activation is None or gradient is None or not self._made_here(activation):
            return
        already = self._arriving.get(id(activation))
        if already is not None:
            self.add_back("add", already, gradient, gradient.dtype == torch.bfloat16, gradient.numel())
        else:
            self._arriving[id(activation)] = gradient

    def _made_here(self, activation: Tensor) -> bool:
        if activation.untyped_storage().data_ptr() in self._leaves:
            raise RuntimeError("an image's gradient cannot be recorded")
        return activation.data_ptr() in self._blocks

    def gradient_at(self, leaf: Tensor) -> Tensor:
        """Where the gradient of a leaf, or of a view of one, is to be written."""
        storage = leaf.untyped_storage()
        if storage.data_ptr() not in self._gradients:
            self._gradients[storage.data_ptr()] = torch.empty(storage.nbytes() // 4, dtype=torch.float32)
        gradients = self._gradients[storage.data_ptr()]
        found = gradients.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())
        self._asked[leaf.data_ptr()] = found
        return found


class _NothingElse(TorchDispatchMode):
    """Refuses what would not be recorded; views and memory not yet written are nothing to record."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if not function.is_view and function is not torch.ops.aten.empty.memory_format:
            raise RuntimeError(f"{function} cannot be recorded")
        return function(*arguments, **(named or {}))
