"""Plans as data: how far a training is at each step, in memory and on the disk."""

import json

import numpy as np
import pytest

from sinfusion.errors import SinfusionError
from sinfusion.training.plan import Plan, read_journal, stored_plan, write_journal


def test_a_number_of_steps_is_even_progress():
    assert np.array_equal(Plan.even(8).progress(np.arange(9)), np.arange(9) / 8)


def test_a_new_end_goes_on_from_where_the_training_is():
    plan = Plan.even(10)
    plan.end_after(25, step=5)
    assert plan.total == 25 and plan.at(4) == 0.4 and plan.at(5) == 0.5
    assert plan.at(15) == 0.75 and plan.at(25) == 1 and plan.at(30) == 1
    plan.end_after(7, step=6, progress=0.9)
    assert (plan.at(5), plan.at(6), plan.at(7)) == (0.5, 0.9, 1)


def test_a_new_end_at_the_same_step_replaces_the_one_before():
    plan = Plan.even(10)
    plan.end_after(20, step=5)
    plan.end_after(30, step=5)
    assert len(plan.segments) == 2 and plan.total == 30 and plan.at(5) == 0.5


def test_a_plan_comes_back_from_its_journal_once_it_has_ended(tmp_path):
    plan = Plan.even(10)
    plan.end_after(13, step=3)
    plan.end_after(17, step=7)
    write_journal(tmp_path, plan, ended=False)
    assert read_journal(tmp_path) is None
    write_journal(tmp_path, plan, ended=True)
    assert read_journal(tmp_path) == plan


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ended": 3}', '{"step": 0, "progress": 0, "total": 3}',
                                  '{"step": 0, "progress": 0, "total": 3}\n{"ended": 4}'])  # fmt: skip
def test_a_journal_that_is_none_is_left_alone(tmp_path, text):
    (tmp_path / "plan.jsonl").write_text(text)
    assert read_journal(tmp_path) is None


@pytest.mark.parametrize("rows", [[[0, 0]], [[1, 0, 3]], [[0, 0, 3], [0, 0, 3]], [[0, 2, 3]], [[0, 0, 9], [5, 0, 4]],
                                  "words", [[0, 0, 1e300]]])  # fmt: skip
def test_a_damaged_plan_is_told(tmp_path, rows):
    with pytest.raises(SinfusionError, match="damaged"):
        stored_plan({"sinfusion": json.dumps({"plan": rows})}, tmp_path)


def test_checkpoints_of_older_versions_have_no_plan(tmp_path):
    assert stored_plan({}, tmp_path) is None and stored_plan({"sinfusion": '{"plan": []}'}, tmp_path) is None
