"""The processes of a training: who trains what, and what one alone does without."""

import pytest
import torch

from sinfusion.errors import SinfusionError
from sinfusion.training.processes import ALONE, Processes

CPU = torch.device("cpu")


def test_a_process_alone_has_the_whole_batch_and_keeps_what_it_has():
    values = torch.ones(3)
    ALONE.sum(values)
    ALONE.barrier()
    assert ALONE.is_first and ALONE.samples(6) == range(6) and values.tolist() == [1, 1, 1]
    assert ALONE.broadcast(5, CPU) == 5 and ALONE.maximum((1.0, 2.0), CPU) == (1.0, 2.0)


def test_processes_divide_a_batch_and_the_first_one_writes():
    several = [Processes(rank, 3) for rank in range(3)]
    assert [sample for one in several for sample in one.samples(6)] == list(range(6))
    assert [one.is_first for one in several] == [True, False, False]


@pytest.mark.parametrize("size", [None, "1"])
def test_without_torchrun_a_process_is_alone(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert Processes.join("no device is looked for") == ALONE


@pytest.mark.parametrize(
    ("device", "gpus", "sentence"),
    [("cuda:1", 4, "device must be cuda, not cuda:1: several processes"), ("cuda", 2, "process 2 has no GPU")],
)
def test_a_process_without_a_gpu_of_its_own_is_refused_before_it_joins(monkeypatch, device, gpus, sentence):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr("sinfusion.training.processes.choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_: pytest.fail("joined"))
    with pytest.raises(SinfusionError, match=sentence):
        Processes.join(device)
