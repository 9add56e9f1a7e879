"""Frames on their way from the device to the host, each copied while the next is generated."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor


def copy_to_host_async(outputs: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Arrays on the host of tensors made one after the other; from a GPU, each is copied while the next is made."""
    under_way: deque[tuple[Tensor, Tensor, torch.cuda.Event]] = deque()
    copying: torch.cuda.Stream | None = None
    for tensor in outputs:
        if tensor.device.type == "cpu":
            yield tensor.numpy()
            continue
        if copying is None:
            copying = torch.cuda.Stream(tensor.device)
        source = tensor.clone()  # the next one may be written to the same place
        copying.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(copying):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(copying)
        under_way.append((source, host, done))
        if len(under_way) > 1:
            yield _arrived(*under_way.popleft())
    while under_way:
        yield _arrived(*under_way.popleft())


def _arrived(source: Tensor, host: Tensor, done: torch.cuda.Event) -> np.ndarray:
    """`source` is kept alive until its copy is there."""
    done.synchronize()
    return host.numpy().copy()
