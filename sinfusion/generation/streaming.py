"""Frames from the device to the host, each copied while the next is generated."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor


def copy_to_host_async(outputs: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Arrays on the host, of tensors that may overwrite each other; each is copied while a GPU computes the next."""
    in_flight: deque[tuple[Tensor, Tensor, torch.cuda.Event]] = deque()
    copying: torch.cuda.Stream | None = None
    for tensor in outputs:
        if tensor.device.type == "cpu":
            yield tensor.numpy()
            continue
        if copying is None:
            copying = torch.cuda.Stream(tensor.device)
        source = tensor.clone()  # the next one may overwrite it
        copying.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(copying):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(copying)
        in_flight.append((source, host, done))
        if len(in_flight) > 1:
            yield _wait_for(*in_flight.popleft())
    while in_flight:
        yield _wait_for(*in_flight.popleft())


def _wait_for(source: Tensor, host: Tensor, done: torch.cuda.Event) -> np.ndarray:
    """The copy on the host; `source` lives until it is complete."""
    done.synchronize()
    return host.numpy().copy()
