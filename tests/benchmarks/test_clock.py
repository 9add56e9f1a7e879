"""benchmarks/clock.py: what is called with which implementations, and limits that a device can have."""

import types

import clock
import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError


@pytest.fixture
def backends(monkeypatch):
    """The backends that are asked for, in order."""
    asked = []
    backend = ops.backend
    monkeypatch.setattr(ops, "backend", lambda name: asked.append(name) or backend(name))
    return asked


def test_what_a_user_gets_is_measured_only_where_native_code_can_run(backends):
    image, weight = torch.ones(1, 4, 8, 8, dtype=torch.float64), torch.ones(4, 4, 1, 1, dtype=torch.float64)
    with ops.backend("native"), pytest.raises(SinfusionError, match="native dense cannot run here"):
        clock.shipped(lambda: ops.dense(image, weight))
    with ops.backend("reference"):
        clock.shipped(lambda: ops.dense(image, weight))()
    assert backends == ["native", "reference", "auto"]


def test_the_reference_is_called_in_place_of_every_kernel(backends):
    clock.by_reference(lambda: None)()
    assert backends == ["reference"]


@pytest.mark.parametrize("seconds, rounds", [(0.1, 9), (1.0, 5), (60.0, 3)])
def test_slow_functions_have_fewer_rounds_but_at_least_three(monkeypatch, seconds, rounds):
    now, calls = [0.0], []

    def slow():
        calls.append(now[0])
        now[0] += seconds

    clocks = types.SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(clock, "time", clocks)
    assert clock.medians({"slow": slow}, torch.device("cpu"))["slow"] == pytest.approx(seconds)
    assert len(calls) == 2 + rounds


def test_the_share_of_an_operator_is_that_of_all_its_calls_within(monkeypatch):
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(ops, "vote", wait)
    real = ops.vote

    def function():
        ops.vote(2)
        wait(6)
        ops.vote(1)

    assert clock.share("vote", function, 3) == pytest.approx(1 / 3)
    assert ops.vote is real


def test_limits_are_between_those_of_the_slowest_and_of_the_fastest_cpu():
    limits = clock.measured_limits(torch.device("cpu"), quick=True)
    assert 1e8 < limits.copy < 1e13 and 1e8 < limits.cached_copy < 1e14
    assert 1e8 < limits.arithmetic < 1e14 and 1e8 < limits.matrix < 1e16
    assert 2**16 <= limits.cache <= 2**31
