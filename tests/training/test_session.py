"""`train`: which models, how long, where; continuing; and being stopped by signals, politely or not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.errors import SinfusionError
from sinfusion.files import remove
from sinfusion.media import Clip
from sinfusion.recipe import FAST, PAPER, TINY
from sinfusion.roles import PREDICTOR
from sinfusion.run import load
from sinfusion.signals import Interrupted
from sinfusion.training.plan import MOST_STEPS, read_journal, stored_plan
from sinfusion.training.trainer import Stopped, Trainer

SETTINGS = {"filters": 4, "depth": 2, "batch_size": 2, "sampling_steps": 2, "unconditional_sampling_steps": 2}
RECIPE = TINY.replace(**SETTINGS, predictor_steps=8, projector_steps=8, interpolator_steps=8, image_steps=8)


def state(run, name="predictor"):
    """Step, weights and optimizer state of a model's last checkpoint, as one flat dict."""
    checkpoint = last_checkpoint(run.path / name)
    values, _ = load_weights(checkpoint / "weights.safetensors")
    for parameter, moments in load_optimizer(checkpoint)["optimizer"].items():
        values |= {f"{parameter}.{key}": value for key, value in moments.items()}
    return checkpoint.name, values


def equal(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


@pytest.mark.parametrize(
    ("tasks", "models"),
    [
        (("generate",), ["predictor", "projector"]),
        (("upsample",), ["interpolator"]),
        (("upsample", "generate"), ["predictor", "projector", "interpolator"]),
    ],
)
def test_the_tasks_decide_the_models_of_a_video(clip, tmp_path, tasks, models):
    run = sinfusion.train(clip, tmp_path / "run", RECIPE, tasks=tasks, quiet=True)
    assert list(run.models) == models and run.kind == "video"
    for name in models:
        assert {p.name for p in (run.path / name).iterdir() if not p.name.startswith("events")} == {
            "step-00000008", "log.jsonl", "plan.jsonl", "loss.png", "preview.png",
        }  # fmt: skip


def test_an_image_gives_an_image_model(clip, tmp_path):
    run = sinfusion.train(clip[0], tmp_path / "run", RECIPE, quiet=True)
    assert list(run.models) == ["image"] and run.kind == "image"


def test_a_clip_keeps_its_frames_per_second(clip, tmp_path):
    run = sinfusion.train(Clip(clip, 12.5, "video", (16, 24)), tmp_path / "run", RECIPE, quiet=True)
    assert load(run.path).fps == 12.5


def test_a_time_budget_becomes_a_plan_that_is_kept(clip, tmp_path):
    run = sinfusion.train(clip, tmp_path / "run", "tiny", 0.02, settings=SETTINGS, quiet=True)
    for name, model in run.models.items():
        plan = read_journal(run.path / name)
        assert plan.total == model["steps"] and plan.at(plan.total) == 1 and plan.segments[0] == (0, 0.0, MOST_STEPS)
        checkpoint = last_checkpoint(run.path / name)
        assert stored_plan(load_weights(checkpoint / "weights.safetensors")[1], checkpoint) == plan
        assert checkpoint.name == f"step-{plan.total:08d}"
        log = [json.loads(line) for line in (run.path / name / "log.jsonl").read_text().splitlines()]
        assert log[-1]["step"] == log[-1]["total"] == plan.total
    assert load(run.path).models == run.models
    before = {name: state(run, name) for name in run.models}
    sinfusion.train(run.path, quiet=True)
    assert all(equal(state(run, name), before[name]) for name in run.models)


def test_a_training_by_the_clock_whose_checkpoints_are_gone_is_repeated_to_the_bit(clip, tmp_path):
    run = sinfusion.train(clip, tmp_path / "run", "tiny", 0.03, settings=SETTINGS, quiet=True)
    before = {name: state(run, name) for name in run.models}
    for name in run.models:
        shutil.rmtree(last_checkpoint(run.path / name))
    sinfusion.train(run.path, quiet=True)
    assert all(equal(state(run, name), before[name]) for name in run.models)


@pytest.mark.parametrize("model", ["predictor", "projector", "interpolator"])
def test_a_training_by_the_clock_that_was_stopped_is_the_one_that_its_journal_tells(clip, tmp_path, monkeypatch, model):
    train, stops = Trainer.train, iter((3, 9))

    def stopped(self, logger, should_stop, clock):
        stop = next(stops, None) if self.role.name == model else None
        train(self, logger, (lambda: self.done == stop) if stop else should_stop, clock)

    monkeypatch.setattr(Trainer, "train", stopped)
    path = tmp_path / "run"
    for first in (True, False):
        with pytest.raises(KeyboardInterrupt):
            if first:
                sinfusion.train(clip, path, "tiny", 0.05, ("generate", "upsample"), settings=SETTINGS, quiet=True)
            else:
                sinfusion.train(path, quiet=True)
    run = sinfusion.train(path, quiet=True)
    before = {name: state(run, name) for name in run.models}
    for name in run.models:
        shutil.rmtree(last_checkpoint(path / name))
    sinfusion.train(path, quiet=True)
    assert all(equal(state(run, name), before[name]) for name in run.models)


def test_what_a_stopped_training_has_used_of_its_time_counts(clip, tmp_path, monkeypatch):
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, logger, stop, clock: train(self, logger, lambda: True, clock))
    with pytest.raises(KeyboardInterrupt):
        sinfusion.train(clip, tmp_path / "run", "tiny", 7, settings=SETTINGS, quiet=True)
    used = load(tmp_path / "run", "cpu").seconds_used()
    assert 0 < used < 420
    budgets = []
    monkeypatch.setattr(Trainer, "train", lambda self, *_: budgets.append(self.budget))
    sinfusion.train(tmp_path / "run", quiet=True)
    assert {(budget.seconds, budget.used) for budget in budgets} == {(420.0, used)}


def test_continuing_a_finished_run_changes_nothing(clip, tmp_path):
    run = sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)
    before = state(run), (run.path / "predictor" / "log.jsonl").stat().st_mtime_ns
    again = sinfusion.train(run.path, quiet=True)
    assert equal(state(again), before[0]) and (run.path / "predictor" / "log.jsonl").stat().st_mtime_ns == before[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("model", ["predictor", "projector"])
def test_a_signal_saves_and_the_continued_run_is_the_uninterrupted_one(clip, tmp_path, monkeypatch, capsys, number,
                                                                       model):  # fmt: skip
    straight = sinfusion.train(clip, tmp_path / "straight", RECIPE, quiet=True)
    step = Trainer.step

    def signalled(self):
        if self.done == 3 and self.role.name == model:
            os.kill(os.getpid(), number)
        step(self)

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    monkeypatch.setattr(Trainer, "step", signalled)
    with pytest.raises(Interrupted) as stopped:
        sinfusion.train(clip, tmp_path / "parts", RECIPE)
    assert stopped.value.exit_code == 128 + number
    assert last_checkpoint(tmp_path / "parts" / model).name == "step-00000004"
    assert f"sinfusion train {tmp_path / 'parts'}" in capsys.readouterr().err
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == handlers
    monkeypatch.undo()
    parts = sinfusion.train(tmp_path / "parts", quiet=True)
    assert all(equal(state(parts, name), state(straight, name)) for name in ("predictor", "projector"))


def test_a_second_ctrl_c_stops_at_once(clip, tmp_path, monkeypatch):
    def twice(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(Trainer, "step", twice)
    with pytest.raises(KeyboardInterrupt):
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)
    assert last_checkpoint(tmp_path / "run" / "predictor") is None


def test_training_works_in_a_thread(clip, tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)))
    thread.start()
    thread.join()
    assert done[0].has(PREDICTOR)


def in_another_process(tmp_path, clip):
    """A process that trains for longer than anyone waits, saving at every step; returns once it has begun to."""
    np.save(tmp_path / "clip.npy", clip)
    script = (
        "import numpy, sinfusion, sinfusion.training.logger, sinfusion.training.trainer\n"
        "from sinfusion.recipe import Recipe\n"
        "sinfusion.training.logger.READ_SECONDS, sinfusion.training.trainer.CHECKPOINT_SECONDS = 0.0, -1.0\n"
        f"sinfusion.train(numpy.load('clip.npy'), 'run', {LONG!r}, quiet=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(process, lambda: last_checkpoint(tmp_path / "run" / "predictor"))
    return process


LONG = RECIPE.replace(predictor_steps=1_000_000, projector_steps=1)


def wait_for(process, condition):
    while not condition():
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        time.sleep(0.02)


def uninterrupted(path, clip, steps, monkeypatch):
    """The state of the same training after some steps without interruption."""
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, logger, *_: train(self, logger, lambda: self.done == steps))
    with pytest.raises(KeyboardInterrupt):
        sinfusion.train(clip, path, LONG, quiet=True)
    return state(load(path))


def test_after_a_kill_the_last_checkpoint_resumes_to_the_bit(clip, tmp_path, monkeypatch):
    process = in_another_process(tmp_path, clip)
    time.sleep(0.3 * np.random.default_rng().random())
    process.kill()
    process.wait()
    checkpoint = last_checkpoint(tmp_path / "run" / "predictor")
    steps = int(checkpoint.name.removeprefix("step-"))
    straight = uninterrupted(tmp_path / "straight", clip, steps + 2, monkeypatch)
    run = load(tmp_path / "run")
    trainer = Trainer(run, PREDICTOR, LONG.predictor_steps)
    trainer.restore()
    for _ in range(2):
        trainer.step()
    trainer.save()
    assert equal(state(run), straight)
    assert [p.name for p in (tmp_path / "run" / "predictor").glob("*-*")] == [straight[0]]  # nothing half-written


def test_the_command_saves_on_a_signal_and_tells_how_to_go_on(clip, tmp_path):
    sinfusion.write_video(tmp_path / "clip.gif", clip, fps=10)
    settings = "--recipe tiny --filters 4 --depth 2 --predictor-steps 1000000 --precision fp32".split()
    started = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        command = [sys.executable, "-m", "sinfusion.train", "clip.gif", *settings, "--out", f"run{number}"]
        started[number] = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for number, process in started.items():
        folder = tmp_path / f"run{number}"
        log = folder / "predictor" / "log.jsonl"
        wait_for(process, lambda log=log: log.exists() and log.stat().st_size)
        process.send_signal(number)
        _, said = process.communicate()
        assert process.returncode == 128 + number
        assert f"sinfusion train run{number}" in said and "Traceback" not in said
        run = load(folder)
        trainer = Trainer(run, PREDICTOR, run.models["predictor"]["steps"])
        trainer.restore()
        assert trainer.done >= json.loads(log.read_text().splitlines()[-1])["step"] > 0
        trainer.step()
        assert trainer.losses[(trainer.done - 1) % len(trainer.losses)].isfinite()


def test_an_earlier_run_is_only_replaced_on_request_and_then_wholly(clip, tmp_path):
    sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)
    with pytest.raises(SinfusionError, match=r"exists; pass --overwrite.*to go on training"):
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)
    fresh = sinfusion.train(clip[::-1], tmp_path / "fresh", RECIPE, seed=1, quiet=True)
    again = sinfusion.train(clip[::-1], tmp_path / "run", RECIPE, seed=1, overwrite=True, quiet=True)
    assert np.array_equal(load(again.path).frames, clip[::-1])
    assert all(equal(state(again, name), state(fresh, name)) for name in ("predictor", "projector"))
    assert len((again.path / "predictor" / "log.jsonl").read_text().splitlines()) == 1


def test_a_run_has_one_trainer_at_a_time(clip, tmp_path, monkeypatch):
    step, refusals = Trainer.step, []

    def meanwhile(self):
        if self.done == 1:
            for words in ((tmp_path / "run",), (clip, tmp_path / "run", RECIPE)):
                with pytest.raises(SinfusionError) as refused:
                    sinfusion.train(*words, overwrite=len(words) > 1, quiet=True)
                refusals.append(str(refused.value))
        step(self)

    monkeypatch.setattr(Trainer, "step", meanwhile)
    sinfusion.train(clip, tmp_path / "run", RECIPE, tasks=("upsample",), quiet=True)
    sentence = f"{tmp_path / 'run'} is being written by process {os.getpid()}: wait for it, or stop it."
    assert refusals == [sentence] * 2
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_run_that_was_stopped_before_it_began_is_begun_again_unasked(clip, tmp_path):
    sinfusion.train(clip, tmp_path / "run", RECIPE, tasks=("upsample",), quiet=True)
    for name in ("input.safetensors", "interpolator"):
        remove(tmp_path / "run" / name)
    sinfusion.train(clip, tmp_path / "run", RECIPE, tasks=("upsample",), quiet=True)
    remove(tmp_path / "run" / "run.json")  # as older versions did in the middle of --overwrite
    with pytest.raises(SinfusionError, match="exists; pass --overwrite"):
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)
    sinfusion.train(clip, tmp_path / "run", RECIPE, tasks=("upsample",), overwrite=True, quiet=True)


def test_a_preview_that_fails_ends_no_training(clip, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("sinfusion.training.logger.write_image", fail)
    run = sinfusion.train(clip, tmp_path / "run", RECIPE, tasks=("upsample",))
    assert last_checkpoint(run.path / "interpolator").name == "step-00000008"
    assert capsys.readouterr().err.count("preview.png cannot be written (MemoryError)") == 1


def test_a_folder_that_is_no_run_is_never_overwritten(clip, tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(SinfusionError, match="not a run folder"):
        sinfusion.train(clip, tmp_path, RECIPE, overwrite=True, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ("dance",)}, "generate and upsample, not dance"),
        ({"tasks": ()}, "not none"),
        ({"minutes": 0}, "minutes must be above 0"),
        ({"recipe": "huge"}, "paper, fast, tiny"),
        ({"input": np.full((1, 16, 24, 3), 2.0)}, "uint8"),
        ({"input": np.zeros((2, 16, 24, 3), np.uint8), "tasks": ("upsample",)}, "interpolator needs at least 3"),
        ({"input": np.zeros((5, 6, 24, 3), np.uint8)}, "too small"),
        ({"input": np.zeros((5, 8, 24, 3), np.uint8)}, "a crop needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is_written(clip, tmp_path, arguments, message):
    with pytest.raises(SinfusionError, match=message):
        sinfusion.train(**{"input": clip, "out": tmp_path / "run", "recipe": RECIPE, "quiet": True, **arguments})
    assert not (tmp_path / "run").exists()


def test_out_of_memory_names_what_to_lower(clip, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(SinfusionError, match=r"24x16, batch size 2, 4 filters; lower --max-side"):
        sinfusion.train(clip, tmp_path / "run", RECIPE, quiet=True)


@pytest.mark.parametrize(("preset", "expected"), [("paper", PAPER), ("fast", FAST)])
def test_a_preset_is_trained_as_it_is(clip, tmp_path, monkeypatch, preset, expected):
    def stop(self, logger, should_stop, clock):
        raise Stopped

    monkeypatch.setattr(Trainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        sinfusion.train(clip, tmp_path / "run", preset, device="cpu", quiet=True)
    run = load(tmp_path / "run")
    assert run.recipe == expected
    assert {n: m["steps"] for n, m in run.models.items()} == {
        "predictor": expected.predictor_steps, "projector": expected.projector_steps,
    }  # fmt: skip


def test_steps_ask_the_system_for_no_more_memory():
    """In a process of its own: page faults of a step, and how much the peak grows, once a few are made.

    Now and then the threads' allocations fall in a new order and the heap grows by some megabytes: the median counts.
    """
    code = (
        "import resource, tempfile, numpy as np, sinfusion\n"
        "from sinfusion.media import Clip\n"
        "from sinfusion.recipe import TINY\n"
        "from sinfusion.roles import PREDICTOR\n"
        "from sinfusion.training.trainer import Trainer\n"
        "from sinfusion.training.run_setup import plan_run\n"
        "from sinfusion.training.session import peak_memory\n"
        "frames = np.random.default_rng(0).integers(0, 255, (5, 72, 128, 3), dtype=np.uint8)\n"
        "recipe = TINY.replace(dense_kernel=3, depth=2)\n"
        "sinfusion.keep_memory()\n"
        "folder = tempfile.mkdtemp() + '/run'\n"
        "clip = Clip(frames, 20.0, 'video', (72, 128))\n"
        "run = plan_run(folder, clip, recipe, [PREDICTOR]).to('cpu')\n"
        "trainer = Trainer(run, PREDICTOR, 100)\n"
        "def step():\n"
        "    trainer.step()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt, peak_memory(run.device)\n"
        "faults, peaks = np.array([step() for _ in range(38)])[8:].T\n"
        "print(np.median(np.diff(faults)), (peaks[-1] - peaks[0]) / 2**20)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    faults, growth = map(float, result.stdout.split())
    # An activation of this network alone is 900 pages (3.5 MiB), and a step makes dozens; one kept a step is 100 MiB.
    assert faults < 100 and growth < 50
