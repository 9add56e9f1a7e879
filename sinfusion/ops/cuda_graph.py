"""CUDA graphs: the kernels of a function, captured once for each shape of its arguments, then launched all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SinfusionError
from .threads import torch_alone

Function = Callable[..., Any]  # tensors -> tensor, tuple of tensors or None


def cuda_graphed(function: Function, device: torch.device, enabled: bool = True) -> Function:
    """`function`, replayed from a CUDA graph if the device has them and `enabled`; else called.

    It may read and write other tensors, always the same ones, and may not wait for the device. The first call of a
    shape is a warm-up, which runs eagerly; the second captures a graph. The next call overwrites the results.
    """
    if device.type == "cpu":
        return torch_alone()(function)
    return CudaGraphed(function, device) if enabled else function


class CudaGraphed:
    """See `cuda_graphed`."""

    def __init__(self, function: Function, device: torch.device):
        self.function, self.device = function, device
        self.memory = 0  # bytes that the graphs keep for themselves
        self._warmed_up: set[Any] = set()
        self._captured: dict[Any, _Captured] = {}
        self._stream = torch.cuda.Stream(device)

    def __call__(self, *arguments: Tensor) -> Any:
        with torch.cuda.device(self.device):  # PyTorch prepares a capture on the current device, not the stream's
            return self._call(*arguments)

    def _call(self, *arguments: Tensor) -> Any:
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in arguments)
        if key not in self._warmed_up:
            self._warmed_up.add(key)
            return self._warm_up(*arguments)
        if key not in self._captured:
            torch.cuda.empty_cache()  # a capture does so too; memory that it gives back does not count as the graph's
            before = torch.cuda.memory_reserved(self.device)
            self._captured[key] = self._capture(*arguments)
            self.memory += torch.cuda.memory_reserved(self.device) - before
        captured = self._captured[key]
        for static_input, tensor in zip(captured.static_inputs, arguments, strict=True):
            static_input.copy_(tensor)
        captured.graph.replay()
        return captured.results

    def _warm_up(self, *arguments: Tensor) -> Any:
        """Runs eagerly, on the stream of the captures."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = self.function(*arguments)
        current.wait_stream(self._stream)
        return results

    def _capture(self, *arguments: Tensor) -> _Captured:
        static_inputs = [tensor.clone() for tensor in arguments]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                results = self.function(*static_inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SinfusionError(f"a CUDA graph could not be captured ({error}); go on with --no-graph.") from error
        return _Captured(graph, static_inputs, results)


@dataclass
class _Captured:
    graph: Any  # a torch.cuda.CUDAGraph
    static_inputs: list[Tensor]
    results: Any  # static too
