"""benchmarks/load.py: whether other work takes the cores."""

import load
import pytest


@pytest.mark.parametrize("cpu, expected", [(0.2, 0.5), (0.4, 1.0), (0.41, 1.0)])
def test_a_share_is_cpu_time_of_wall_time_and_threads(cpu, expected):
    assert load.share(cpu, wall=0.2, threads=2) == pytest.approx(expected)


def test_this_process_gets_a_share_of_the_cores():
    assert 0 < load.cores_share(1, seconds=0.02) <= 1


def test_a_machine_under_load_is_said():
    assert load.sentence([0.99, 0.5, 0.98], 2, 0.3) == (
        "The machine was quiet: this process got 98% of 2 core(s), load average 0.3 at the start."
    )
    assert load.sentence([0.99, 0.5, 0.6], 2, None) == (
        "UNDER LOAD: this process got 60% of 2 core(s). Times are too long and ratios uncertain; measure again on a "
        "quiet machine."
    )
