"""The counter-based generator: known answers, the same numbers on every backend."""

import importlib

import pytest
import torch

from sinfusion import ops

ARGUMENTS = "plwuplp"  # of the CPU bindings


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_known_answer_of_philox_4x32_10(backend):
    with ops.backend(backend):
        assert ops.uniform_bits([0], 0, 0, 4)[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_backends_agree_on_bits_and_normals():
    seeds = [0, 1, 2**40 + 7, 2**62]
    with ops.backend("reference"):
        bits, normals = ops.uniform_bits(seeds, 3, 2**33 + 5, 1001), ops.normal(seeds, 3, 2**33 + 5, (7, 11, 13))
    with ops.backend("native"):
        assert torch.equal(bits, ops.uniform_bits(seeds, 3, 2**33 + 5, 1001))
        assert torch.equal(normals, ops.normal(seeds, 3, 2**33 + 5, (7, 11, 13)))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_step_may_be_read_from_memory(backend):
    step = torch.tensor(2**33 + 5)
    with ops.backend(backend):
        assert torch.equal(ops.normal([1, 2], 3, step, (9,)), ops.normal([1, 2], 3, 2**33 + 5, (9,)))
        assert torch.equal(ops.uniform_bits([1, 2], 3, step, 9), ops.uniform_bits([1, 2], 3, 2**33 + 5, 9))


@pytest.mark.parametrize("name", ["uniform_bits", "normal"])
@pytest.mark.parametrize("count", [0, 1, 4, 1003])
def test_the_code_of_the_device_draws_the_same_numbers_on_the_host(name, count, device_code, monkeypatch):
    def draws():
        steps = (0, 2**33 + 5, torch.tensor(2**33 + 6))
        shape = (lambda n: n) if name == "uniform_bits" else (lambda n: (n,))
        with ops.backend("native"):
            return [getattr(ops, name)([0, 1, 2**40 + 7, 2**62], 2**32 - 1, step, shape(count)) for step in steps]

    expected = draws()
    monkeypatch.setattr(importlib.import_module("sinfusion.ops._native"), "cpu", device_code(name, ARGUMENTS, "philox"))
    for found, wanted in zip(draws(), expected, strict=True):
        assert found.shape == (4, count) and torch.equal(found, wanted)


def test_a_sample_is_the_same_alone_and_in_a_batch():
    together = ops.normal([4, 5, 6], 1, 2, (3, 5, 5))
    assert torch.equal(together[1:2], ops.normal([5], 1, 2, (3, 5, 5)))


def test_streams_steps_and_seeds_draw_different_numbers():
    draws = [ops.normal([s], a, b, (50,)) for s, a, b in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))]
    for i, first in enumerate(draws):
        assert all(not torch.equal(first, second) for second in draws[i + 1 :])


def test_normals_are_normal():
    x = ops.normal([7], 0, 0, (400_000,))[0].double()
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**3).mean()) < 0.02 and abs((x**4).mean() - 3) < 0.05
    assert x.isfinite().all()
    assert abs(float((x[::2] * x[1::2]).mean())) < 0.01


@pytest.mark.gpu
def test_the_gpu_draws_the_numbers_of_the_cpu():
    seeds = [0, 1, 2**40 + 7]
    on_gpu = ops.normal(seeds, 3, 5, (1001,), "cuda").cpu()
    assert (on_gpu != ops.normal(seeds, 3, 5, (1001,))).float().mean() < 1e-3
    assert torch.equal(ops.uniform_bits(seeds, 3, 5, 1001, "cuda").cpu(), ops.uniform_bits(seeds, 3, 5, 1001))
    torch.testing.assert_close(on_gpu, ops.normal(seeds, 3, 5, (1001,)), rtol=1e-6, atol=1e-7)
