"""Counting work that is done in several places."""

import numpy as np

from sinfusion.progress import Progress, ProgressCounter


def test_a_counter_reports_the_sum_after_each_part():
    seen, image = [], np.zeros((2, 2, 3), np.uint8)
    counter = ProgressCounter(5, seen.append)
    counter.add(2)
    counter.add(3, image)
    assert seen == [Progress(2, 5), Progress(5, 5, image=image)]


def test_a_counter_that_nobody_listens_to_counts():
    counter = ProgressCounter(5, None)
    counter.add(2)
    assert counter.done == 2
