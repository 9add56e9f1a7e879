"""CUDA graphs: the kernels of a function recorded once for each shape of its arguments, then launched all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SinfusionError
from . import torch_alone

Function = Callable[..., Any]  # tensors -> tensor, tuple of tensors or None


def replayed(function: Function, device: torch.device, wanted: bool = True) -> Function:
    """`function`, replayed from a CUDA graph where the device has them and `wanted`; else just called.

    It may read and write other tensors, always the same ones, and may not wait for the device. The first call of a
    shape runs it plainly, the second records it. What it returns is overwritten by the next call.
    """
    if device.type == "cpu":
        return torch_alone()(function)
    return Replayed(function, device) if wanted else function


class Replayed:
    """See `replayed`."""

    def __init__(self, function: Function, device: torch.device):
        self.function, self.device = function, device
        self.memory = 0  # bytes that the graphs keep for themselves
        self._seen: set[Any] = set()
        self._recordings: dict[Any, _Recording] = {}
        self._stream = torch.cuda.Stream(device)

    def __call__(self, *arguments: Tensor) -> Any:
        with torch.cuda.device(self.device):  # PyTorch prepares a recording on the current one, whatever the stream's
            return self._here(*arguments)

    def _here(self, *arguments: Tensor) -> Any:
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in arguments)
        if key not in self._seen:
            self._seen.add(key)
            return self._plainly(*arguments)
        if key not in self._recordings:
            torch.cuda.empty_cache()  # as recording does: what it gives back is not the graph's
            before = torch.cuda.memory_reserved(self.device)
            self._recordings[key] = self._record(*arguments)
            self.memory += torch.cuda.memory_reserved(self.device) - before
        recording = self._recordings[key]
        for kept, tensor in zip(recording.arguments, arguments, strict=True):
            kept.copy_(tensor)
        recording.graph.replay()
        return recording.results

    def _plainly(self, *arguments: Tensor) -> Any:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = self.function(*arguments)
        current.wait_stream(self._stream)
        return results

    def _record(self, *arguments: Tensor) -> _Recording:
        kept = [tensor.clone() for tensor in arguments]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                results = self.function(*kept)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SinfusionError(f"a CUDA graph could not be recorded ({error}); go on with --no-graph.") from error
        return _Recording(graph, kept, results)


@dataclass
class _Recording:
    graph: Any
    arguments: list[Tensor]  # where the graph reads
    results: Any  # where it writes
