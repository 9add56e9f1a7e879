"""Choice of device and dtype."""

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.precision import choose_device, choose_dtype

CPU = torch.device("cpu")


def test_precision_can_be_forced():
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    assert choose_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_where_the_cpu_computes_in_it(monkeypatch, has, dtype):
    monkeypatch.setattr(ops, "cpu_has_bf16", lambda: has)
    assert choose_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_is_bf16_on_gpus_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cuda")) == dtype


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert choose_device("auto").type == kind


def test_cuda_asked_for_and_absent_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SinfusionError, match="sees no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize("word", ["tpu", "meta", "", "cuda:x"])
def test_devices_that_are_none_are_refused(word):
    with pytest.raises(SinfusionError, match="auto, cpu or cuda"):
        choose_device(word)


def test_unknown_precisions_are_refused():
    with pytest.raises(SinfusionError, match="auto, bf16 or fp32"):
        choose_dtype("fp16", CPU)
