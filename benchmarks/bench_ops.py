"""Every operator: how long it takes beside PyTorch, and beside the least that is possible on the device.

pytest benchmarks/bench_ops.py --benchmark-json=OUT.json                          # on a GPU if there is one
pytest benchmarks/bench_ops.py --device cpu -k depthwise
"""

from __future__ import annotations

import floors
import pytest
import torch
from operators import OPERATORS, Shapes
from rows import THEIRS


def runs(name, function):
    """Whether an implementation works here: a configuration may ask for more shared memory than there is."""
    try:
        function()
    except Exception as error:
        if not name.startswith("triton "):
            raise
        print(f"\n{name} cannot run here: {error}")
        return False
    return True


def shares_of_limits(work, floor, seconds, limits):
    """How close to the floor, to the bandwidth of a copy, to the rate of matrix products."""
    bandwidth, matrix = work.bytes / seconds / limits.copy, work.dense / seconds / limits.matrix
    return {"floor": floor / seconds, "bandwidth": bandwidth, "matrix": matrix}


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(measure, benchmark, device, scale, limits, operator, batch):
    functions, work = OPERATORS[operator](Shapes(device, batch, scale.crop, scale.network))
    functions = {name: function for name, function in functions.items() if runs(name, function)}
    works = work if isinstance(work, list) else [work]
    seconds = measure(functions, works, operator=operator, batch=batch, size=scale.crop)
    # Where nothing is ours, the fastest of theirs under its own name.
    ours = min([name for name in seconds if name not in THEIRS] or seconds, key=seconds.get)
    whole, floor = floors.total(works), floors.total_seconds(works, limits)
    shares = shares_of_limits(whole, floor, seconds[ours], limits)
    benchmark.extra_info.update(ours=ours, shares=shares, **whole._asdict())
