"""The counter-based generator: known answers, the same numbers on every backend."""

import hashlib
import math

import pytest
import torch

from sinfusion import ops


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
def test_the_code_of_the_device_draws_the_same_numbers_on_the_host(name, count, use_device_code):
    def draws():
        steps = (0, 2**33 + 5, torch.tensor(2**33 + 6))
        shape = (lambda n: n) if name == "uniform_bits" else (lambda n: (n,))
        with ops.backend("native"):
            return [getattr(ops, name)([0, 1, 2**40 + 7, 2**62], 2**32 - 1, step, shape(count)) for step in steps]

    expected = draws()
    use_device_code("philox")
    for found, wanted in zip(draws(), expected, strict=True):
        assert found.shape == (4, count) and torch.equal(found, wanted)


def words():
    """The extremes, both sides of where the functions pass from one piece to the next, and a spread of others."""
    borders = [eighth << 29 for eighth in range(9)] + [round(2 ** (power + 0.5)) for power in range(32)]
    near = {word + d for word in (*borders, *(1 << power for power in range(33))) for d in range(-3, 4)}
    spread = torch.randint(2**32, (50_000,), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([word for word in sorted(near) if 0 <= word < 2**32] + spread)


def worst(found, exact):
    """In units of the last place of what is exact."""
    return max(abs(one - other) / math.ulp(other) for one, other in zip(found.tolist(), exact, strict=True))


def test_logarithm_cosine_and_sine_are_those_of_python(device_code):
    k = words()
    logarithms, turns = torch.empty(len(k)).double(), torch.empty(len(k), 2).double()
    device_code("philox").call("logarithms", words=k, count=len(k), out=logarithms)
    device_code("philox").call("turns", words=k, count=len(k), out=turns)
    assert worst(logarithms, [math.log((word + 0.5) / 2**32) for word in k.tolist()]) < 2
    angles = [2 * math.pi * (word / 2**32) for word in k.tolist()]
    assert worst(turns[:, 0], map(math.cos, angles)) < 2
    assert worst(turns[:, 1], map(math.sin, angles)) < 2


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for count in (0, 1, 4, 127, 1003, 50_001):
        for draw in (ops.uniform_bits, lambda *a: ops.normal(*a[:3], (a[3],))):
            with ops.backend("native"):
                total.update(draw([0, 1, 2**40 + 7, 2**62], 2**32 - 1, 2**33 + 5, count).numpy().tobytes())
    return total.hexdigest()


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
    assert torch.equal(ops.normal(seeds, 3, 5, (1001,), "cuda").cpu(), ops.normal(seeds, 3, 5, (1001,)))
    assert torch.equal(ops.uniform_bits(seeds, 3, 5, 1001, "cuda").cpu(), ops.uniform_bits(seeds, 3, 5, 1001))


@pytest.mark.parametrize("draw", [ops.uniform_bits, ops.normal])
def test_rows_may_have_steps_of_their_own(draw):
    seeds, steps = torch.tensor([3, 3, 2**40 + 1]), torch.tensor([5, 2**33, 5])
    count = 6 if draw is ops.uniform_bits else (2, 3)
    with ops.backend("native"):  # even then
        rows = draw(seeds, 4, steps, count)
    for i in range(3):
        assert torch.equal(rows[i], draw(seeds[i : i + 1], 4, int(steps[i]), count)[0])
