"""Who computes on which threads: the CPU library on its own, PyTorch on OpenMP's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .dispatch import chosen_backend
from .native import cpu


@contextmanager
def torch_alone() -> Iterator[None]:
    """Inside, PyTorch's own operators run on the calling thread; those of the CPU library run as before.

    For code that calls the library all the time. OpenMP's threads spin for some milliseconds after each operator,
    waiting for the next, on the cores that the library's threads need; and in a forked child they never answer.
    """
    count = torch.get_num_threads()
    if count == 1 or not cpu.loaded or chosen_backend() == "reference":
        yield
        return
    cpu.hold_threads(count)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        cpu.hold_threads(0)
