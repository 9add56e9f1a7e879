"""benchmarks/clock.py: what is called with which implementations, and limits that a device can have."""

import types

import clock
import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.ops._choice import chosen_backend, use_native
from sinfusion.ops._native import cpu


def test_what_a_user_gets_is_measured_only_where_native_code_can_run():
    chosen = []
    with ops.backend("native"):
        run = clock.shipped(lambda: chosen.append(chosen_backend()))
        run()
        clock.by_reference(run)()
        with pytest.raises(SinfusionError, match="the native dense cannot run here: no library"):
            clock.shipped(lambda: use_native("dense", ["no library"]))
    assert chosen == ["native", "auto", "auto"]


def test_the_reference_is_called_in_place_of_every_kernel():
    chosen = []
    with ops.backend("native"):
        clock.by_reference(lambda: chosen.append(chosen_backend()))()
    assert chosen == ["reference"]


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


@pytest.mark.skipif(not cpu.loaded, reason="there is no library for the CPU")
def test_the_last_recorded_call_is_made_again_alone():
    x = torch.ones(1, 4, 8, 8).to(memory_format=torch.channels_last)
    weights = torch.ones(4, 4, 1, 1), 2 * torch.ones(4, 4, 1, 1)
    function = ops.cpu_graphed(lambda x: ops.dense(ops.dense(x, weights[0]), weights[1]))
    again = clock.last_recorded("dense_forward", lambda: function(x))
    out = function(x)
    assert (out == 32).all()
    out.zero_()
    again()
    assert (out == 32).all()


def test_limits_are_between_those_of_the_slowest_and_of_the_fastest_cpu():
    limits = clock.measured_limits(torch.device("cpu"), quick=True)
    assert 1e8 < limits.copy < 1e13 and 1e8 < limits.cached_copy < 1e14
    assert 1e8 < limits.arithmetic < 1e14 and 1e8 < limits.matrix < 1e16
    assert 2**16 <= limits.cache <= 2**31
