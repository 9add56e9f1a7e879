"""CUDA graphs for the CPU: calls of the CPU library, captured once and replayed on the same memory.

    graph = CpuGraph(lambda: function(x), leaves=[weight])
    graph.replay(); graph.replay_backward(grad); graph.gradient(weight)

A replay runs nothing of PyTorch between two calls of the library, which takes as long as the calls themselves where
images are small.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .native import cpu

_current: ContextVar[CpuGraph | None] = ContextVar("sinfusion_cpu_graph", default=None)


def capturing() -> CpuGraph | None:
    """The graph that is being captured, to which operators add their calls; None outside of a capture."""
    return _current.get()


class CpuGraph:
    """The calls that a function without arguments makes, those of its backward, and the memory they work on.

    leaves: tensors it reads whose gradients are wanted. Operators may read fp32 parameters as views of a leaf too,
    activations only whole.
    """

    def __init__(self, function: Callable[[], Tensor], leaves: Iterable[Tensor] = ()):
        self._calls: list[Callable[[], Any]] = []
        self._backward_calls: list[Callable[[], Any]] = []
        self._held: list[Tensor] = []  # weights and other tensors whose addresses the calls hold
        self.pool = Pool()
        self._leaves = list(leaves)
        self._leaf_storages = {leaf.untyped_storage().data_ptr() for leaf in self._leaves}
        self.saves = bool(self._leaves)  # whether forward calls keep what their backward needs
        self._grad_storages: dict[int, Tensor] = {}  # fp32 gradients of parameters, by address of the leaf's storage
        self._grad_buffers: dict[int, Tensor] = {}  # views of these, by address of the parameter
        self._backward_hooks: list[Callable[[], None]] = []  # of the calls so far; they add `_backward_calls`
        self._grads: dict[int, Tensor] = {}  # gradients of activations, by id of the activation
        self.replays = self.last_backward = 0  # the second: the number of the replay that last went backward
        self._capture(function)

    def _capture(self, function: Callable[[], Tensor]) -> None:
        token = _current.set(self)
        try:
            with _RefuseOtherOperators():
                self.result = function()
                if self.saves:
                    self._capture_backward()
        finally:
            _current.reset(token)

    def _capture_backward(self) -> None:
        out = self.result
        self._grad_result = torch.empty(out.shape, dtype=out.dtype, memory_format=torch.channels_last)
        self._grads[id(out)] = self._grad_result
        while self._backward_hooks:
            self._backward_hooks.pop()()

    def replay(self) -> Tensor:
        """Makes the calls again; returns the static result."""
        for call in self._calls:
            call()
        self.replays += 1
        return self.result

    def replay_backward(self, grad: Tensor) -> None:
        """Computes the gradients of the leaves from that of the result."""
        self.last_backward = self.replays
        self._grad_result.copy_(grad)
        for call in self._backward_calls:
            call()

    def gradient(self, leaf: Tensor) -> Tensor | None:
        """The static gradient of a leaf, or of a view of one; None if the function does not use it."""
        if (of_activation := self._grads.get(id(leaf))) is not None:
            return of_activation
        found = self._grad_buffers.get(leaf.data_ptr())
        return found if found is None or found.shape == leaf.shape else self.grad_buffer(leaf)

    # For operators, during the capture:

    def add(self, function: str, /, **fields: Any) -> None:
        """Adds a call, as `native.run` makes it."""
        self._calls.append(cpu.prepare(function, **fields))
        self._hold(fields)

    def add_backward(self, function: str, /, **fields: Any) -> None:
        """Adds a call to the backward."""
        self._backward_calls.append(cpu.prepare(function, **fields))
        self._hold(fields)

    def _hold(self, fields: dict[str, Any]) -> None:
        tensors = (value for value in fields.values() if isinstance(value, Tensor))
        self._held += [value for value in tensors if not self.pool.owns(value)]

    def empty_like(self, x: Tensor, channels: int) -> Tensor:
        """As `layout.empty_like`, in memory that other tensors reuse once nothing refers to this one."""
        batch, _, height, width = x.shape
        return self.pool.take((batch, height, width, channels), x.dtype, (0, 3, 1, 2))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The same, contiguous and of any shape."""
        return self.pool.take(shape, dtype)

    def on_backward(self, hook: Callable[[], None]) -> None:
        """Sets what adds the backward of the last call: a hook that runs once the gradient of its result is known."""
        self._backward_hooks.append(hook)

    def pop_grad(self, activation: Tensor) -> Tensor | None:
        """The gradient of a call's result, to which all calls that read it have added; None if none of them did."""
        return self._grads.pop(id(activation), None)

    def empty_grads(self, x: Tensor, skip: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Memory for the gradients of a call's activations; None where neither is wanted."""
        if not any(value is not None and self._wants_grad(value) for value in (x, skip)):
            return None, None
        return self.empty_like(x, x.shape[1]), None if skip is None else self.empty_like(skip, skip.shape[1])

    def accumulate_grad(self, activation: Tensor | None, grad: Tensor | None) -> None:
        """Adds to the gradient of an activation; the graph may write to this memory from now on."""
        if activation is None or grad is None or not self._wants_grad(activation):
            return
        total = self._grads.setdefault(id(activation), grad)
        if total is not grad:
            self.add_backward("add", to=total, value=grad, bf16=grad.dtype == torch.bfloat16, count=grad.numel())

    def _wants_grad(self, activation: Tensor) -> bool:
        """Whether a call made it, or it is a leaf."""
        if activation.untyped_storage().data_ptr() not in self._leaf_storages:
            return self.pool.owns(activation)
        if not any(activation is leaf for leaf in self._leaves):
            raise RuntimeError("the gradient of a part of an image cannot be captured")
        return True

    def grad_buffer(self, parameter: Tensor | None) -> Tensor | None:
        """Where a call writes the gradient of a leaf, or of a view of one; None where it is not wanted."""
        if parameter is None or parameter.untyped_storage().data_ptr() not in self._leaf_storages:
            return None
        storage = parameter.untyped_storage()
        if storage.data_ptr() not in self._grad_storages:
            self._grad_storages[storage.data_ptr()] = torch.empty(storage.nbytes() // 4, dtype=torch.float32)
        grads = self._grad_storages[storage.data_ptr()]
        buffer = grads.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())
        self._grad_buffers[parameter.data_ptr()] = buffer
        return buffer


class Pool:
    """Blocks of memory that tensors reuse whose lives do not overlap."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}  # by address
        self._free: list[Tensor] = []

    def owns(self, value: Tensor) -> bool:
        return value.data_ptr() in self.blocks

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, order: tuple[int, ...] | None = None) -> Tensor:
        """An uninitialized tensor of this shape, its dimensions then permuted into this order."""
        size = torch.Size(shape).numel() * dtype.itemsize
        block = self._block(size)
        out = block[:size].view(dtype).view(shape)
        out = out if order is None else out.permute(order)
        # A method of the pool here would keep all of its memory alive as long as this tensor.
        weakref.finalize(out, self._free.append, block).atexit = False
        return out

    def _block(self, size: int) -> Tensor:
        fitting = [at for at, block in enumerate(self._free) if len(block) >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda at: len(self._free[at])))
        block = torch.empty(size, dtype=torch.uint8)
        self.blocks[block.data_ptr()] = block
        return block


class _RefuseOtherOperators(TorchDispatchMode):
    """Refuses operators that a replay would leave out. Views and uninitialized memory need no replay."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if not function.is_view and function is not torch.ops.aten.empty.memory_format:
            raise RuntimeError(f"{function} cannot be captured")
        return function(*arguments, **(named or {}))
