"""What a training leaves behind to be looked at: log.jsonl, loss.png, the preview; and that none of it is needed."""

import errno
import importlib.util
import itertools
import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from sinfusion.training import logger as module
from sinfusion.training.logger import TrainingLogger
from sinfusion.training.plan import MOST_STEPS, Plan, read_journal


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def read_every_step(monkeypatch):
    monkeypatch.setattr(module, "READ_SECONDS", 0.0)


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run(logger, start, stop):
    return [logger.step(n, torch.tensor(float(n)), 0.1) for n in range(start, stop)]


def test_a_row_is_the_mean_loss_since_the_last_row(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock) * 0.4)
    logger = TrainingLogger(tmp_path, "predictor", 0, 100, preview_seconds=1e9, quiet=True)
    means = run(logger, 0, 8)
    logger.close(False)
    assert [row["step"] for row in rows(tmp_path)] == [n + 1 for n, mean in enumerate(means) if mean is not None]
    assert [row["loss"] for row in rows(tmp_path)] == [mean for mean in means if mean is not None]
    steps = [0, *(row["step"] for row in rows(tmp_path))]
    assert len(steps) > 2 and max(b - a for a, b in itertools.pairwise(steps)) > 1
    for first, last, row in zip(steps[:-1], steps[1:], rows(tmp_path), strict=True):
        assert row["loss"] == pytest.approx(sum(range(first, last)) / (last - first))
        assert set(row) == {"step", "loss", "learning_rate", "steps_per_second", "seconds", "total", "expected_seconds",
                            "cpu_share"}  # fmt: skip
        assert row["total"] == 100 and row["cpu_share"] >= 0
        left = (100 - row["step"]) / row["steps_per_second"]
        assert row["expected_seconds"] == pytest.approx(row["seconds"] + left)


@pytest.mark.parametrize("quiet", [True, False])
def test_the_last_step_is_always_read(tmp_path, quiet):
    logger = TrainingLogger(tmp_path, "predictor", 0, 5, quiet=quiet)
    means = run(logger, 0, 5)
    logger.close(True)
    assert means == [None] * 4 + [2.0]
    assert [row["step"] for row in rows(tmp_path)] == [5]


def test_a_resumed_training_keeps_the_rows_up_to_its_checkpoint(tmp_path, read_every_step):
    first = TrainingLogger(tmp_path, "predictor", 0, 10, quiet=True)
    run(first, 0, 6)
    first.close(False)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "lo\xff')  # cut short by a kill
    again = TrainingLogger(tmp_path, "predictor", 4, 10, quiet=True)
    again.step(4, torch.tensor(9.0), 0.1)
    again.close(False)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 9)]


def test_a_finished_training_has_a_loss_curve_and_one_preview(tmp_path):
    outputs = []
    logger = TrainingLogger(tmp_path, "predictor", 0, 3, preview=lambda: outputs.append(1), quiet=True)
    run(logger, 0, 3)
    logger.close(True)
    assert Image.open(tmp_path / "loss.png").size[0] > 100
    assert outputs == [1]


def test_an_interrupted_training_makes_no_images(tmp_path, read_every_step):
    logger = TrainingLogger(tmp_path, "predictor", 0, 3, preview=lambda: pytest.fail("made a preview"), quiet=True)
    run(logger, 0, 2)
    logger.close(False)
    assert not (tmp_path / "loss.png").exists()


def test_previews_take_a_small_share_of_the_time(tmp_path, monkeypatch, read_every_step):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    outputs = []

    def preview():
        outputs.append(clock[0])
        clock[0] += 60  # a slow one

    logger = TrainingLogger(tmp_path, "predictor", 0, 10**6, preview=preview, preview_seconds=30, quiet=True)
    for n in range(4000):
        clock[0] += 1
        logger.step(n, torch.tensor(1.0), 0.1)
    logger.close(False)
    assert len(outputs) >= 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(outputs)]
    assert min(gaps) >= 60 / module.PREVIEW_SHARE


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), ValueError("?")])
def test_what_cannot_be_written_is_reported_once_and_ends_nothing(
    tmp_path, monkeypatch, capsys, read_every_step, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module, "append_row", fail)
    monkeypatch.setattr(module.Figure, "savefig", fail)
    logger = TrainingLogger(tmp_path, "predictor", 0, 5, preview=fail, preview_seconds=0.0)
    assert run(logger, 0, 5) == [0, 1, 2, 3, 4]
    logger.close(True)
    said = capsys.readouterr().err
    for what in ("log.jsonl", "loss.png", "preview.png"):
        assert said.count(f"predictor: {what} cannot be written") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_cannot_be_begun_ends_nothing(tmp_path, capsys):
    (tmp_path / "predictor").write_text("a file in the way")
    logger = TrainingLogger(tmp_path / "predictor", "predictor", 0, 2)
    run(logger, 0, 2)
    logger.close(True)
    assert "log.jsonl cannot be written" in capsys.readouterr().err


def test_a_log_that_is_begun_again_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch, read_every_step):
    first = TrainingLogger(tmp_path, "predictor", 0, 5, quiet=True)
    run(first, 0, 3)
    first.close(False)
    before = (tmp_path / "log.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        TrainingLogger(tmp_path, "predictor", 2, 5, quiet=True)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_plan_that_changes_is_kept_and_reported(tmp_path, read_every_step):
    reports = []
    logger = TrainingLogger(tmp_path, "predictor", 0, MOST_STEPS, on_progress=reports.append, quiet=True)
    logger.step(0, torch.tensor(1.0), 0.1)
    plan = Plan.even(MOST_STEPS)
    plan.end_after(2, 1)
    logger.save_plan(plan)
    assert read_journal(tmp_path) is None
    logger.step(1, torch.tensor(1.0), 0.1)
    logger.save_plan(plan, ended=True)
    logger.close(True)
    assert [row["total"] for row in rows(tmp_path)] == [MOST_STEPS, 2] and read_journal(tmp_path) == plan
    assert [(report.done, report.total) for report in reports] == [(0, None), (1, None), (2, 2), (2, 2)]


def test_a_preview_waits_until_it_can_be_afforded(tmp_path, monkeypatch):
    now, outputs = [1000.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    logger = TrainingLogger(tmp_path, "predictor", 0, 1000, preview=lambda: outputs.append(now[0]), quiet=True)
    for step in range(700):  # two seconds a step: a preview takes a minute, by estimate
        now[0] += 2.0
        logger.step(step, torch.tensor(1.0), 0.1)
        if step == 100:
            assert not outputs
    assert outputs
    outputs.clear()
    short = TrainingLogger(tmp_path, "predictor", 0, 20, preview=lambda: outputs.append(0), quiet=True)
    short.preview_cost, short.preview_at = 60.0, math.inf
    for step in range(20):
        now[0] += 2.0
        short.step(step, torch.tensor(1.0), 0.1)
    short.close(True)
    assert not outputs and (tmp_path / "loss.png").exists()


def test_a_loss_that_is_not_finite_is_reported_and_still_drawn(tmp_path):
    logger = TrainingLogger(tmp_path, "predictor", 0, 1, quiet=True)
    assert math.isnan(logger.step(0, torch.tensor(float("nan")), 0.1))
    logger.close(True)
    assert (tmp_path / "loss.png").exists()


def test_a_report_has_steps_and_loss_and_an_image_when_there_is_a_new_preview(tmp_path, read_every_step):
    frames = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
    reports = []
    logger = TrainingLogger(
        tmp_path, "predictor", 2, 5, on_progress=reports.append, preview=lambda: frames, preview_seconds=1e9, quiet=True
    )
    logger.preview_cost, logger.preview_at = 1e-9, 0.0  # the first is due
    run(logger, 2, 5)
    logger.close(True)
    shown = [(report.done, report.total, report.unit, report.task, report.loss) for report in reports]
    assert shown == [(n, 5, "step", "predictor", loss) for n, loss in ((2, None), (3, 2), (4, 3), (5, 4), (5, 4))]
    assert [report.image is not None for report in reports] == [False, True, False, False, True]
    assert np.array_equal(reports[-1].image, frames[-1])
    assert Image.open(tmp_path / "preview.png").size[0] >= 32


def test_a_preview_that_was_interrupted_is_no_image(tmp_path, read_every_step):
    reports = []
    logger = TrainingLogger(tmp_path, "predictor", 0, 1, on_progress=reports.append, preview=lambda: None, quiet=True)
    logger.step(0, torch.tensor(1.0), 0.1)
    logger.close(True)
    assert reports[-1].image is None and not (tmp_path / "preview.png").exists()


def test_losses_go_to_tensorboard_where_it_is_installed(tmp_path, monkeypatch, read_every_step):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    logger = TrainingLogger(tmp_path, "predictor", 1, 10, quiet=True)
    logger.step(1, torch.tensor(0.5), 0.1)
    logger.close(False)
    assert written == [(str(tmp_path), 1), ("loss", 0.5, 2), "closed"]


def test_a_tensorboard_that_fails_is_reported_once_and_ends_nothing(tmp_path, monkeypatch, capsys, read_every_step):
    class Writer:
        def __init__(self, *_, **__):
            pass

        def add_scalar(self, *_):
            raise FULL

        close = add_scalar

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    logger = TrainingLogger(tmp_path, "predictor", 0, 10)
    run(logger, 0, 4)
    logger.close(False)
    assert capsys.readouterr().err.count("TensorBoard's log cannot be written") == 1
