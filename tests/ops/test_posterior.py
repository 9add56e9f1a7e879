"""posterior: native code and the reference against a softmax in float64."""

import pytest
import torch

from sinfusion import ops
from sinfusion.ops.posterior import Posterior

SHAPES = [(1, 1, 1, 1), (5, 3, 9, 2), (70, 64, 300, 27), (33, 7, 50, 16), (9, 64, 80, 54), (4, 5, 11, 3)]  # N, k, M, V


def arguments(shape, observed=True):
    count, k, rows, size = shape
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, rows, (count, k), generator=generator, dtype=torch.int32)
    distance = torch.rand(count, k, generator=generator) * 4
    values = torch.randn(rows, size, generator=generator)
    seen = torch.randn(count, size, generator=generator) if observed else None
    return Posterior(found, distance, values, 1.5, seen, 0.2)


def exact(a):
    """In float64, one row at a time."""
    rows = []
    for n in range(len(a.rows)):
        values = a.values[a.rows[n].long()].double()
        logits = -a.of_distance * a.distance[n].double()
        if a.observed is not None:
            logits -= a.of_observed * (a.observed[n].double() - values).square().sum(1)
        rows.append(logits.softmax(0) @ values)
    return torch.stack(rows)


@pytest.mark.parametrize("observed", [True, False], ids=["observed", "unobserved"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_it_is_the_weighted_mean_of_float64(backend, shape, observed):
    a = arguments(shape, observed)
    with ops.backend(backend):
        found = ops.posterior(*a)
    torch.testing.assert_close(found.double(), exact(a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_large_factors_choose_one_and_small_ones_take_the_mean(backend):
    a = arguments(SHAPES[2])
    with ops.backend(backend):
        one = ops.posterior(*a._replace(of_distance=1e9, of_observed=0.0))
        mean = ops.posterior(*a._replace(of_distance=0.0, of_observed=0.0))
    nearest = a.rows.gather(1, a.distance.argmin(1, keepdim=True))[:, 0].long()
    torch.testing.assert_close(one, a.values[nearest], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean, a.values[a.rows.long()].mean(1), rtol=1e-5, atol=1e-5)


def test_results_repeat_and_do_not_depend_on_threads(set_threads):
    a = arguments(SHAPES[2])
    first = ops.posterior(*a)
    for count in (1, 2, 3):
        set_threads(count)
        assert torch.equal(ops.posterior(*a), first)


def test_layout_in_memory_does_not_matter():
    a = arguments(SHAPES[3])
    scattered = a._replace(values=a.values.T.contiguous().T, rows=a.rows.T.contiguous().T)
    assert torch.equal(ops.posterior(*scattered), ops.posterior(*a))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck(backend):
    with ops.backend(backend):
        for observed in (True, False):
            args = tuple(arguments(SHAPES[1], observed))
            torch.library.opcheck(torch.ops.sinfusion.posterior.default, args)


WRONG = {
    "rows are \\(N, k\\), values are \\(M, V\\)": {"values": torch.ones(3)},
    "there are neighbours": {"rows": torch.zeros(5, 0, dtype=torch.int32)},
    "rows is .* torch.int32": {"rows": torch.zeros(5, 3, dtype=torch.int64)},
    "distance is .* torch.float32": {"distance": torch.zeros(5, 3, dtype=torch.float64)},
    "observed is \\(5, 2\\)": {"observed": torch.zeros(5, 3)},
    "rows are from 0 to 8, the last of values": {"rows": torch.full((5, 3), 9, dtype=torch.int32)},
    "from 0 to 8, the last of": {"rows": torch.full((5, 3), -1, dtype=torch.int32)},
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words(sentence, backend):
    a = arguments(SHAPES[1])._replace(**WRONG[sentence])
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.posterior(*a)


@pytest.mark.gpu
def test_a_gpu_takes_the_same_mean():
    a = arguments(SHAPES[2])
    on_gpu = [value.cuda() if isinstance(value, torch.Tensor) else value for value in a]
    torch.testing.assert_close(ops.posterior(*on_gpu).cpu(), ops.posterior(*a), rtol=1e-5, atol=1e-5)
