"""What a function asks of the CPU's library, recorded once and then asked again on the same memory.

A CPU's CUDA graph: between two calls of the library lies none of PyTorch, which takes as long as the calls themselves
where pictures are small.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
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


def recorded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` of CPU tensors, recorded for the shapes of its last arguments; itself where there is no native code.

    The first call of a shape runs it plainly, the second records it: then it may ask for nothing but `dense`,
    `depthwise_norm` and `ddpm_step` (else: RuntimeError), without gradients and on the same weights each time. It may
    change its arguments, which the caller does not see. What it returns is overwritten by the next call.
    """
    seen: Any = None
    last: tuple[Any, list[Tensor | None], Recording] | None = None

    def call(*arguments: Tensor | None) -> Tensor:
        nonlocal seen, last
        if not cpu.loaded or chosen_backend() == "reference":
            return function(*arguments)
        key = (threading.get_ident(), *[None if a is None else (a.shape, a.stride(), a.dtype) for a in arguments])
        if key != seen:
            seen = key
            return function(*arguments)
        if last is None or last[0] != key:
            kept = [None if a is None else a.clone() for a in arguments]
            last = key, kept, Recording(lambda: function(*kept))
        _, kept, made = last
        for own, argument in zip(kept, arguments, strict=True):
            if own is not None and argument is not None:
                own.copy_(argument)
        return made.play()

    return call


class Recording:
    """The calls of a function without arguments, and the memory they work on."""

    def __init__(self, function: Callable[[], Tensor]):
        self._calls: list[Callable[[], None]] = []
        self._others: list[Tensor] = []  # whose addresses the calls hold: weights and the like
        self._blocks: dict[int, Tensor] = {}  # by address: what `like` gave out
        self._free: list[Tensor] = []  # those that nothing holds any more
        token = _current.set(self)
        try:
            with _NothingElse():
                self.result = function()
        finally:
            _current.reset(token)

    def play(self) -> Tensor:
        for call in self._calls:
            call()
        return self.result

    def add(self, function: str, *arguments: Any) -> None:
        """A call as `_native.run` makes it."""
        self._calls.append(cpu.prepared(function, *arguments))
        tensors = (value for value in arguments if isinstance(value, Tensor))
        self._others += [value for value in tensors if value.data_ptr() not in self._blocks]

    def like(self, x: Tensor, channels: int) -> Tensor:
        """As `_layout.like`, in memory that serves others once nothing holds this tensor."""
        batch, _, height, width = x.shape
        numbers = batch * height * width * channels
        fitting = [block for block in self._free if len(block) >= numbers * x.itemsize]
        if fitting:
            block = min(fitting, key=len)
            self._free = [other for other in self._free if other is not block]
        else:
            block = torch.empty(numbers * x.itemsize, dtype=torch.uint8)
            self._blocks[block.data_ptr()] = block
        out = block[: numbers * x.itemsize].view(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
        weakref.finalize(out, self._return, block).atexit = False
        return out

    def _return(self, block: Tensor) -> None:
        self._free.append(block)


class _NothingElse(TorchDispatchMode):
    """Refuses what would not be recorded; views and memory not yet written are nothing to record."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if not function.is_view and function is not torch.ops.aten.empty.memory_format:
            raise RuntimeError(f"{function} cannot be recorded")
        return function(*arguments, **(named or {}))
