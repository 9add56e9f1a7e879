"""What a machine can train: the largest frames with enough steps, and a word where there are none."""

import pytest
import torch

import sinfusion
from sinfusion.media import Source
from sinfusion.recipe import FAST, TINY
from sinfusion.run import Run
from sinfusion.training import capacity, session
from sinfusion.training.capacity import (
    GOOD,
    SIDES,
    Speed,
    choose,
    fit_frames,
    measure_speed,
    outlook,
    shortfall,
    watchable_steps,
)
from sinfusion.training.request import Compute, TrainingRequest

MINUTES = {"predictor": 7.0, "projector": 3.0}
NATIVE = (720, 1280)
SMALL = {"filters": 4, "depth": 2, "batch_size": 1, "sampling_steps": 2, "unconditional_sampling_steps": 2}


def speed(seconds, share=1.0, threads=2):
    return Speed(TINY, seconds, share, threads)


def test_a_faster_machine_trains_larger_frames():
    sides = [max(choose(speed(seconds), NATIVE, MINUTES).size) for seconds in (1.0, 0.1, 0.03, 0.01, 0.001)]
    assert sides == sorted(sides) and sides[0] < 96 and sides[-1] == SIDES[-1]


def test_the_frames_chosen_are_the_largest_with_which_all_models_become_good():
    found = choose(speed(0.03), NATIVE, MINUTES)
    larger = SIDES[SIDES.index(max(found.size)) + 1]
    assert found.reached >= GOOD > outlook(speed(0.03), (round(larger * 9 / 16), larger), MINUTES).reached
    for name, minutes in MINUTES.items():
        steps = 60 * minutes / speed(0.03).step(found.size)
        assert steps >= GOOD * watchable_steps(TINY, name, found.size)


def test_more_time_is_spent_on_larger_frames():
    sides = [max(choose(speed(0.03), NATIVE, {"predictor": m}).size) for m in (0.5, 1, 3, 10)]
    assert sides == sorted(sides) and len(set(sides)) == 4


def test_frames_are_never_larger_than_the_input_and_keep_its_shape():
    assert choose(speed(0.001), (40, 64), MINUTES).size == (40, 64)
    assert choose(speed(0.001), (300, 100), MINUTES).size == (256, 85)


def test_a_load_that_takes_half_of_the_cores_changes_nothing_since_it_may_be_over_soon():
    alone, busy, very_busy = (choose(speed(0.03, share), NATIVE, MINUTES) for share in (1.0, 0.5, 0.1))
    assert busy.size == alone.size and very_busy.size < alone.size
    assert busy.minutes == pytest.approx(2 * alone.minutes) and busy.step == pytest.approx(2 * alone.step)


def test_where_nothing_gets_there_the_smallest_frames_are_chosen_with_the_minutes_that_would_do():
    found = choose(speed(3.0), NATIVE, MINUTES)
    assert max(found.size) == SIDES[0] and found.reached < 1
    enough = {name: minutes * found.minutes / 10 for name, minutes in MINUTES.items()}
    assert choose(speed(3.0), NATIVE, enough).reached == pytest.approx(1)


def test_a_speed_is_that_of_the_recipe_on_any_frames():
    measured = measure_speed(TINY.replace(**SMALL), torch.device("cpu"), torch.float32, True)
    assert measured.seconds > 0 and 0 < measured.share <= 1 and measured.threads == torch.get_num_threads()
    step = measured.step((72, 128), 1.0)
    assert measured.step((144, 128), 1.0) == pytest.approx(2 * step)
    assert measured.step((72, 128), 0.25) == pytest.approx(4 * step)
    assert measured.step((100, 200), 1.0, "image") == pytest.approx(measured.step((100, 200), 1.0) * 3.61)
    assert measured.step((100, 200), 1.0, "projector") < measured.step((100, 200), 1.0)  # its frames are reduced


@pytest.fixture
def machine(monkeypatch):
    """The machine takes so many seconds for a step."""

    def make(seconds, share=1.0):
        monkeypatch.setattr("sinfusion.training.capacity.measure_speed", lambda *_: speed(seconds, share))

    return make


def fitted(source, minutes, recipe=TINY, patient=False, tasks=None):
    said = []
    request = TrainingRequest(source=source, recipe=recipe, minutes=minutes, tasks=tasks, patient=patient)
    return fit_frames(request, Compute("cpu", "fp32"), said.append), said


def test_what_was_chosen_and_why_is_said_in_one_line(machine, texture):
    source = Source(texture(4, (72, 128)))
    machine(0.03)
    side, said = fitted(source, 1.0)
    assert side in SIDES and len(said) == 1 and f"frames of {side}x" in said[0]
    assert said[0].endswith("as large as this machine can train in 1 minutes")
    machine(30.0)
    side, said = fitted(source, 1.0)
    assert side == 48 and "does not get to where results are worth watching; --minutes " in said[0]
    assert ", so it takes about " in fitted(source, 1.0, patient=True)[1][0]
    side, said = fitted(Source(texture(4, (72, 128)), max_side=128), 1.0)
    assert side == 128 and said[0].endswith("or smaller frames (--max-side 64) would do")


def test_other_recipes_and_numbers_of_steps_say_nothing(machine, texture):
    machine(0.03)
    assert fitted(Source(texture(4, (72, 128))), 1.0, FAST) == (256, [])
    assert fitted(Source(texture(4, (72, 128))), None)[1] == []


def test_too_few_steps_are_told_at_the_end_and_by_info(clip, tmp_path, capsys):
    run = sinfusion.train(clip, tmp_path / "run", "tiny", steps=3, settings=SMALL)
    sentence = shortfall(run)
    assert sentence.startswith(
        "too few steps for results worth watching (predictor 3 of about 1000, projector 3 of about"
    )
    assert f"sinfusion train {run.path} --minutes " in sentence
    assert capsys.readouterr().err.strip().endswith(sentence)
    from sinfusion.cli import main

    assert main(["info", str(run.path)]) == 0
    assert sentence in capsys.readouterr().out


def test_enough_steps_and_unfinished_models_are_no_shortfall(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "WATCHABLE", {name: (2, 2) for name in capacity.WATCHABLE})
    run = sinfusion.train(clip, tmp_path / "run", "tiny", steps=3, settings=SMALL, quiet=True)
    assert shortfall(run) is None
    begun = Run(tmp_path / "begun", "video", TINY, clip, 20.0, 0, {"predictor": run.models["predictor"]})
    assert shortfall(begun) is None


def test_a_measurement_leaves_random_numbers_and_folders_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    measure_speed(TINY.replace(**SMALL), torch.device("cpu"), torch.float32, False)
    assert torch.equal(torch.rand(4), expected) and not list(tmp_path.iterdir())


def test_who_says_nothing_does_not_look(clip, tmp_path, monkeypatch):
    """Of several processes the first writes, and the others are done before it is."""
    looked = []
    monkeypatch.setattr(session, "shortfall", looked.append)
    for quiet in (True, False):
        sinfusion.train(clip, tmp_path / f"{quiet}", "tiny", steps=3, settings=SMALL, quiet=quiet)
    assert len(looked) == 1
