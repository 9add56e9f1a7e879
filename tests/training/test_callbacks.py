"""What the caller of a training passes: `on_progress` and `should_stop`, from any thread."""

import queue
import threading

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.console import Bar
from sinfusion.errors import SinfusionError
from sinfusion.progress import Progress
from sinfusion.recipe import TINY
from sinfusion.roles import PROJECTOR
from sinfusion.run import load
from sinfusion.signals import Interrupted
from sinfusion.training import logger as logger_module
from sinfusion.training.callbacks import Callbacks

STEPS = {"predictor": 6, "projector": 4}
RECIPE = TINY.replace(
    filters=4, depth=2, batch_size=2, sampling_steps=2, unconditional_sampling_steps=2, predictor_steps=6,
    projector_steps=4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def read_every_step(monkeypatch):
    monkeypatch.setattr(logger_module, "READ_SECONDS", 0.0)


def tensors(run, name):
    """Weights and optimizer state of a model's last checkpoint."""
    checkpoint = last_checkpoint(run.path / name)
    values, _ = load_weights(checkpoint / "weights.safetensors")
    for parameter, moments in load_optimizer(checkpoint)["optimizer"].items():
        values |= {f"{parameter}.{key}": value for key, value in moments.items()}
    return values


def same(a, b):
    """Whether the models of two runs are equal to the bit."""
    for name in a.models:
        first, second = tensors(a, name), tensors(b, name)
        assert first.keys() == second.keys()
        if not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return list(a.models) == list(b.models)


def in_a_thread(work):
    """Start some work in a thread; returns the thread and a list that gets what the work returns or raises."""
    ends = []

    def run():
        try:
            ends.append(work())
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ends


def test_another_thread_sees_steps_totals_and_images_in_order(clip, tmp_path):
    reports = queue.Queue()
    thread, ends = in_a_thread(
        lambda: sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True, on_progress=reports.put)
    )
    seen = []
    while thread.is_alive() or not reports.empty():
        try:
            seen.append(reports.get(timeout=0.1))
        except queue.Empty:
            pass
    assert ends[0].finished("predictor") and all(isinstance(report, Progress) for report in seen)
    for name, total in STEPS.items():
        of_model = [report for report in seen if report.task == name]
        assert [report.done for report in of_model] == [*range(total + 1), total]  # and the last preview
        assert {(report.total, report.unit) for report in of_model} == {(total, "step")}
        assert of_model[0].loss is None and all(report.loss > 0 for report in of_model[1:])
        image = of_model[-1].image
        assert image.shape == (*clip.shape[1:3], 3) and image.dtype == np.uint8
        assert of_model[0].image is None
    assert [report.task for report in seen] == sorted(report.task for report in seen)  # one model after the other


def test_a_training_with_a_callback_is_the_one_without(clip, tmp_path):
    plain = sinfusion.train(clip, tmp_path / "plain", RECIPE, quiet=True)
    watched = sinfusion.train(
        clip, tmp_path / "watched", RECIPE, quiet=True, on_progress=lambda _: None, should_stop=lambda: False
    )
    assert same(plain, watched)


def test_another_thread_stops_a_training_which_goes_on_to_the_same_bits(clip, tmp_path, capsys):
    straight = sinfusion.train(clip, tmp_path / "straight", RECIPE, quiet=True)
    third, stop = threading.Event(), threading.Event()

    def on_progress(progress):
        if progress.done == 3:
            third.set()
            assert stop.wait(60)  # until the other thread has decided

    thread, ends = in_a_thread(
        lambda: sinfusion.train(clip, tmp_path / "run", RECIPE, on_progress=on_progress, should_stop=stop.is_set)
    )
    assert third.wait(60)
    stop.set()
    thread.join()
    run = ends[0]
    assert not run.finished("predictor") and not run.has(PROJECTOR)
    assert last_checkpoint(run.path / "predictor").name == "step-00000003"
    assert f"everything is saved. Go on with: sinfusion train {run.path}" in capsys.readouterr().err
    assert same(sinfusion.train(run, quiet=True), straight)


def test_a_wish_to_stop_before_the_first_step_is_heard_after_it(clip, tmp_path):
    run = sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True, should_stop=lambda: True)
    assert last_checkpoint(run.path / "predictor").name == "step-00000001" and not run.has(PROJECTOR)


class Mine(Exception):
    pass


@pytest.mark.parametrize(
    "error", [Mine("no"), KeyboardInterrupt(), MemoryError()], ids=lambda error: type(error).__name__
)
def test_a_callback_that_raises_stops_the_training_after_a_save(clip, tmp_path, error):
    straight = sinfusion.train(clip, tmp_path / "straight", RECIPE, quiet=True)
    calls = []

    def on_progress(progress):
        calls.append(progress)
        if progress.done == 4:
            raise error

    with pytest.raises(type(error)) as raised:
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True, on_progress=on_progress)
    assert raised.value is error and calls[-1].done == 4
    assert last_checkpoint(tmp_path / "run" / "predictor").name == "step-00000004"
    assert same(sinfusion.train(tmp_path / "run", quiet=True), straight)


def test_a_callback_that_raises_at_the_very_end_leaves_a_finished_run(clip, tmp_path):
    def on_progress(progress):
        if progress.task == "projector" and progress.image is not None:
            raise Mine

    with pytest.raises(Mine):
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True, on_progress=on_progress)
    run = load(tmp_path / "run")
    assert run.finished("predictor") and run.finished("projector")


def test_the_bar_of_the_command_line_is_such_a_callback(clip, tmp_path, capsys):
    with Bar(lasting=True) as bar:
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True, on_progress=bar)
    said = capsys.readouterr().err
    assert "predictor: 6/6 steps, loss " in said and "projector: 4/4 steps, loss " in said


def test_reports_come_about_once_a_second(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(logger_module, "READ_SECONDS", 1e9)
    reports = []
    sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True, on_progress=reports.append)
    assert [report.done for report in reports if report.task == "predictor"] == [0, 6, 6]


def test_once_a_caller_wants_to_stop_it_always_does():
    says = iter((False, True, False))
    callbacks = Callbacks(should_stop=lambda: next(says))
    assert [callbacks.should_stop() for _ in range(4)] == [False, True, True, True]


def test_after_an_error_nothing_more_is_reported():
    calls = []

    def on_progress(progress):
        calls.append(progress)
        raise Mine

    callbacks = Callbacks(on_progress)
    for done in range(3):
        callbacks.report(Progress(done, 3))
    assert len(calls) == 1 and callbacks.should_stop()
    with pytest.raises(Mine):
        callbacks.raise_error()


def test_a_second_signal_within_a_callback_stops_at_once():
    def on_progress(progress):
        raise Interrupted

    with pytest.raises(Interrupted):
        Callbacks(on_progress).report(Progress(0, 1))


def test_what_is_wrong_with_a_training_is_told_before_any_callback(clip, tmp_path):
    with pytest.raises(SinfusionError):
        sinfusion.train(
            clip, tmp_path / "run", RECIPE, tasks=("dance",), on_progress=lambda _: pytest.fail("called"),
            should_stop=lambda: pytest.fail("asked"),
        )  # fmt: skip
