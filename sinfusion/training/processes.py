"""The processes that train one model together, as torchrun starts them; usually there is one."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import SettingError, SinfusionError
from ..precision import choose_device


@dataclass(frozen=True)
class Processes:
    """This process among those that train together. Where it is alone, no method does anything."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join the others if torchrun started this process. Raises SinfusionError where it can have no GPU."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            chosen = choose_device(device)
            if chosen.index is not None:
                raise SettingError(
                    f"{{device}} must be cuda, not {chosen}: several processes take a GPU each, by number."
                )
            if chosen.type == "cuda":
                number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
                if number >= gpus:
                    raise SinfusionError(f"process {number} has no GPU: PyTorch sees {gpus}; start no more processes.")
                torch.cuda.set_device(number)
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes, and talks to the user."""
        return self.rank == 0

    def samples(self, batch_size: int) -> range:
        """Which samples of a batch are this process's."""
        share = batch_size // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def barrier(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            dist.barrier()

    def broadcast(self, number: int, device: torch.device) -> int:
        """The number that the first process has."""
        if self.count == 1:
            return number
        shared = torch.tensor(number, device=device)
        dist.broadcast(shared, 0)
        return int(shared)

    def sum(self, values: Tensor) -> None:
        """Put the sum over all processes in place of `values`; a CPU does not wait for a GPU."""
        if self.count > 1:
            dist.all_reduce(values)

    def maximum(self, values: tuple[float, ...], device: torch.device) -> tuple[float, ...]:
        """The largest of each number over all processes."""
        if self.count == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return tuple(shared.tolist())


ALONE = Processes()
