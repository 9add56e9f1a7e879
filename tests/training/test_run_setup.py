"""A run folder gets ready to train, goes on, or gets more to do: from Python and from the command line alike."""

import json
import shutil

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.checkpoint import last_checkpoint
from sinfusion.cli import main
from sinfusion.errors import SinfusionError
from sinfusion.generation.upsampling import moved_half_way
from sinfusion.pixels import to_unit
from sinfusion.recipe import PAPER, TINY
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR
from sinfusion.run import load
from sinfusion.training.run_setup import measure_sigma_data
from sinfusion.training.trainer import Stopped, Trainer

SETTINGS = {"filters": 4, "depth": 2, "batch_size": 2, "sampling_steps": 2, "unconditional_sampling_steps": 2}


# A run that is there -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory, clip):
    path = tmp_path_factory.mktemp("runs") / "done"
    return sinfusion.train(clip, path, "fast", steps=5, settings=SETTINGS, device="cpu", quiet=True)


@pytest.fixture
def trained(done, tmp_path):
    """A finished run of five steps a model."""
    shutil.copytree(done.path, tmp_path / "done")
    return load(tmp_path / "done", "cpu")


def interrupted(run, name="predictor"):
    """The run as it is when its training was stopped in the middle of a model."""
    run.models[name] |= {"steps": run.steps_done(name) + 4, "further": run.steps_done(name)}
    run.save()
    return run


@pytest.mark.parametrize(
    "option",
    [
        {"recipe": "fast"}, {"recipe": TINY}, {"seed": 0}, {"size": (16, 24)}, {"max_side": 64}, {"start": 0},
        {"stop": 9}, {"stride": 1}, {"fps": 20.0}, {"overwrite": True}, {"settings": {"depth": 4}}, {"out": "other"},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_a_run_that_goes_on_refuses_every_other_setting(trained, option, tmp_path):
    name = next(iter(option)) if "settings" not in option else "depth"
    for run in (trained, trained.path, str(trained.path)):
        with pytest.raises(
            SinfusionError, match=f"goes on with its own settings; leave out --{name.replace('_', '-')}"
        ):
            sinfusion.train(run, **option)


@pytest.mark.parametrize(
    "words", ["--seed 0", "--recipe fast", "--max-side 64", "--stride 1", "--depth 4", "--out other", "--overwrite"]
)
def test_the_command_line_refuses_them_too(trained, refused, words):
    assert f"leave out {words.split()[0]}." in refused(trained.path, *words.split())


def test_a_run_remembers_its_arithmetic_and_goes_on_with_it(clip, tmp_path, capsys):
    for name, precision, graph in (("a", "fp32", False), ("b", "bf16", True)):
        run = sinfusion.train(clip, tmp_path / name, "fast", steps=3, settings=SETTINGS, device="cpu", quiet=True,
                              precision=precision, graph=graph)  # fmt: skip
        assert load(run.path).trained_with == {"device": "cpu", "precision": precision, "graph": graph}
        again = sinfusion.train(interrupted(run), quiet=True)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        assert (again.dtype, again.graph, again.device.type) == (dtype, graph, "cpu")
        assert load(run.path).trained_with == run.trained_with
        assert main(["train", str(interrupted(load(run.path)).path)]) == 0
        assert f"cpu, {str(dtype).removeprefix('torch.')}" in capsys.readouterr().err
    # what generates chooses as ever
    assert load(tmp_path / "a").graph


def test_another_precision_is_allowed_where_it_is_asked_for_and_said(clip, tmp_path, capsys):
    run = sinfusion.train(clip, tmp_path / "run", "fast", steps=3, settings=SETTINGS, precision="fp32", device="cpu")
    capsys.readouterr()
    assert main(["train", str(interrupted(run).path), "--precision", "bf16"]) == 0
    assert "it was trained on cpu in fp32; as asked for, it goes on on cpu in bf16\n" in capsys.readouterr().err
    assert load(run.path).trained_with["precision"] == "bf16"
    again = sinfusion.train(interrupted(run), precision="fp32", graph=False)
    assert again.dtype == torch.float32
    assert "as asked for, it goes on on cpu in fp32 without graphs" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("fast", [False, True])
def test_where_the_gpu_is_gone_that_is_said(trained, capsys, monkeypatch, fast):
    monkeypatch.setattr("sinfusion.precision.ops.cpu_has_bf16", lambda: fast)
    trained.trained_with = {"device": "cuda", "precision": "bf16", "graph": True}
    run = sinfusion.train(interrupted(trained))
    kind = "bf16" if fast else "fp32"
    said = f"it was trained on cuda in bf16; there is no GPU here: it goes on on cpu in {kind}\n"
    assert said in capsys.readouterr().err and run.trained_with["precision"] == kind
    trained.trained_with = {"device": "cpu", "precision": "bf16", "graph": True}
    sinfusion.train(interrupted(trained))
    assert ("here fp32 would be faster" in capsys.readouterr().err) is not fast


def test_a_run_of_before_that_was_remembered_goes_on(trained):
    description = json.loads((interrupted(trained).path / "run.json").read_text())
    del description["trained_with"], description["version"]
    (trained.path / "run.json").write_text(json.dumps(description))
    run = sinfusion.train(trained.path, precision="fp32", quiet=True)
    assert run.finished("predictor") and load(run.path).trained_with["precision"] == "fp32"


# Training further ----------------------------------------------------------------------------------------------------


def steps_of(path):
    return {name: int(last_checkpoint(path / name).name.removeprefix("step-")) for name in load(path).models}


def test_a_finished_run_is_trained_further_by_steps(trained):
    sinfusion.train(trained.path, steps=3, quiet=True)
    assert steps_of(trained.path) == {"predictor": 8, "projector": 8}
    assert main(["train", str(trained.path), "--steps", "2"]) == 0
    assert steps_of(trained.path) == {"predictor": 10, "projector": 10}


def test_a_finished_run_is_trained_further_by_minutes(trained):
    assert main(["train", str(trained.path), "--minutes", "0.001"]) == 0
    assert all(steps > 5 for steps in steps_of(trained.path).values())


def test_an_unfinished_run_goes_on_as_planned(trained, refused):
    run = interrupted(trained)
    for option, words in (({"minutes": 1}, ["--minutes", 1]), ({"steps": 9}, ["--steps", 9])):
        said = f"is not finished (predictor) and goes on as planned; leave out {words[0]} until it is."
        with pytest.raises(SinfusionError) as error:
            sinfusion.train(run, **option)
        assert str(error.value).endswith(said) and refused(run.path, *words).endswith(said)
    sinfusion.train(run, quiet=True)
    assert steps_of(run.path) == {"predictor": 9, "projector": 5}


def test_another_task_is_added_to_a_run(trained, capsys):
    before = steps_of(trained.path)
    assert main(["train", str(trained.path), "--tasks", "upsample", "--steps", "4"]) == 0
    assert steps_of(trained.path) == {**before, "interpolator": 4}
    run = load(trained.path)
    fresh = sinfusion.train(run.frames, run.path.parent / "fresh", "fast", tasks="upsample", steps=4, settings=SETTINGS,
                            device="cpu", quiet=True)  # fmt: skip
    assert run.models["interpolator"] == fresh.models["interpolator"]
    assert sinfusion.upsample(run).shape[0] == 2 * len(run.frames) - 1


def test_a_new_task_is_planned_as_the_models_that_are_there(trained, begun, clip, no_training):
    run = load(trained.path)
    with pytest.raises(KeyboardInterrupt):
        sinfusion.train(run, tasks=("generate", "upsample"), quiet=True)
    assert load(trained.path).models["interpolator"]["steps"] == run.recipe.interpolator_steps == 5
    timed = begun(clip, recipe="fast", minutes=85, settings=SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        sinfusion.train(timed, tasks="upsample", quiet=True)
    model = load(timed.path).models["interpolator"]
    assert model["minutes"] == pytest.approx(35)  # 60 for the Predictor, 25 for the Projector


def test_tasks_that_a_run_has_or_cannot_have_are_refused(trained, image_run, refused, tmp_path, clip):
    assert "has the models for these tasks already" in refused(trained.path, "--tasks", "generate")
    assert "is an image run" in refused(image_run.path, "--tasks", "upsample")
    short = sinfusion.train(clip[:2], tmp_path / "short", "fast", steps=2, settings=SETTINGS, quiet=True)
    with pytest.raises(SinfusionError, match="interpolator needs at least 3"):
        sinfusion.train(short, tasks="upsample")
    with pytest.raises(SinfusionError, match="not dance"):
        sinfusion.train(trained, tasks="dance")


def test_generate_of_a_run_that_was_stopped_before_its_projector_says_what_to_do(clip, tmp_path, monkeypatch, capsys):
    train = Trainer.train

    def stopped(self, logger, should_stop, clock):
        if self.role.name == "projector":
            raise Stopped
        train(self, logger, should_stop, clock)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            sinfusion.train(clip, tmp_path / "run", "fast", steps=3, settings=SETTINGS, quiet=True)
    said = f"go on with: sinfusion train {tmp_path / 'run'}, or --start 0"
    with pytest.raises(SinfusionError, match=said):
        sinfusion.generate(load(tmp_path / "run"), 2)
    assert main(["generate", str(tmp_path / "run"), "--frames", "2"]) == 2
    assert said in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "run"), "--frames", "2", "--start", "0"]) == 0
    # with the paper's correction every frame needs the Projector
    run = load(tmp_path / "run")
    run.recipe = run.recipe.replace(correction_timesteps=3)
    for start in (None, 0):
        with pytest.raises(SinfusionError, match=r"go on with: sinfusion train [^,]*$"):
            sinfusion.generate(run, 2, start=start)


def test_a_finished_run_says_how_to_train_it_further(trained, capsys):
    sinfusion.train(trained)
    assert f"to train it further: sinfusion train {trained.path} --minutes M, or --steps N\n" in capsys.readouterr().err


@pytest.mark.parametrize("role", [IMAGE, PREDICTOR, PROJECTOR, INTERPOLATOR], ids=lambda role: role.name)
def test_sigma_data_of_a_clip_takes_the_memory_of_some_frames_and_is_that_of_its_values(role, large_clip, peak):
    recipe = TINY.replace(motion_compensation=False)
    found, bytes_ = peak(lambda: measure_sigma_data(large_clip, role, recipe))
    assert bytes_ < large_clip.nbytes / 4
    part = large_clip[:, :64, :64]
    values = part.astype(np.float64) / 127.5 - 1
    wanted = {
        "predictor": [values[k:] - values[:-k] for k in (1, 2, 3)],
        "interpolator": [values[1:-1] - (values[:-2] + values[2:]) / 2],
    }.get(role.name, [values])
    wanted = [np.sqrt(np.mean(differences**2)) for differences in wanted]
    assert measure_sigma_data(part, role, recipe) == pytest.approx(wanted, rel=1e-12)
    assert found == pytest.approx(wanted, rel=0.05)


def test_sigma_data_of_an_interpolator_is_what_motion_does_not_explain(texture):
    clip = texture(40, (36, 64), step=2)
    (moved,), (plain,) = (measure_sigma_data(clip, INTERPOLATOR, recipe) for recipe in (TINY, PAPER))
    before, after = (to_unit(torch.from_numpy(part)) for part in (clip[:-2], clip[2:]))
    error = to_unit(torch.from_numpy(clip[1:-1])) - moved_half_way(torch.cat((before, after), 1))
    assert moved == pytest.approx(float(error.square().mean().sqrt()), rel=0.1) and moved < plain / 3
