"""What was asked of a training is done, or refused: from Python and from the command line, by the same checks."""

import json
import shutil

import pytest
import torch
from PIL import Image

import sinfusion
from sinfusion.checkpoint import last_checkpoint
from sinfusion.cli import main
from sinfusion.errors import SinfusionError
from sinfusion.media import Clip, write_image, write_video
from sinfusion.recipe import PAPER, TINY
from sinfusion.run import load
from sinfusion.training.trainer import Stopped, Trainer

SETTINGS = {"filters": 4, "depth": 2, "batch_size": 2, "sampling_steps": 2, "unconditional_sampling_steps": 2}


@pytest.fixture
def no_training(monkeypatch):
    """Training stops before its first step: the run is there, with its plan."""

    def stop(self, logger, should_stop, clock):
        raise Stopped

    monkeypatch.setattr(Trainer, "train", stop)


@pytest.fixture
def begun(no_training, tmp_path):
    """Begins a training and returns its run."""

    def begin(*given, **named):
        with pytest.raises(KeyboardInterrupt):
            sinfusion.train(*given, **{"out": tmp_path / "run", "quiet": True, "overwrite": True, **named})
        return load(tmp_path / "run")

    return begin


@pytest.fixture
def command(no_training, tmp_path):
    """Begins a training by the command line and returns its run."""

    def begin(*words):
        assert main(["train", *map(str, words), "--out", str(tmp_path / "run"), "--overwrite"]) == 130
        return load(tmp_path / "run")

    return begin


@pytest.fixture
def refused(capsys):
    """The sentence with which the command line refuses."""

    def run(*words):
        assert main(["train", *map(str, words)]) == 2
        said = capsys.readouterr().err.strip()
        assert "Traceback" not in said and said.split("\n")[-1].startswith("error: ")
        return said.split("\n")[-1]

    return run


@pytest.fixture
def video_file(tmp_path, clip):
    write_video(tmp_path / "fish.mp4", clip, fps=10)
    return tmp_path / "fish.mp4"


# The source ----------------------------------------------------------------------------------------------------------


def test_range_size_and_longer_side_apply_to_frames_in_memory(clip, begun):
    for frames in (clip, Clip(clip, 20, "video", (16, 24)), list(clip), torch.from_numpy(clip)):
        run = begun(frames, recipe="fast", start=1, stop=10, stride=2, size=(12, 20))
        assert run.frames.shape == (5, 12, 20, 3) and run.fps == 10
    assert begun(clip, recipe="fast", max_side=15).frames.shape == (12, 10, 15, 3)


def test_large_frames_in_memory_are_scaled_down_as_those_of_a_file(texture, begun):
    large = texture(4, (200, 300))
    assert begun(large, recipe="fast").size == (171, 256)
    tiny = begun(large, recipe="tiny", minutes=1e-6).size
    assert tiny == (32, 48)  # the smallest
    assert begun(large, recipe="tiny", minutes=5, max_side=0).size == (200, 300)


def test_an_image_of_any_kind_is_trained_on_and_takes_no_range_and_no_tasks(clip, begun, tmp_path, refused):
    write_image(tmp_path / "a.png", clip[0])
    for image in (clip[0], Image.fromarray(clip[0]), tmp_path / "a.png", str(tmp_path / "a.png"), [clip[0]]):
        assert list(begun(image, recipe="fast").models) == ["image"]
        with pytest.raises(SinfusionError, match="start is for videos"):
            sinfusion.train(image, tmp_path / "no", start=0)
        with pytest.raises(SinfusionError, match=r"tasks are for videos.*--tasks"):
            sinfusion.train(image, tmp_path / "no", tasks=("generate",))
    out = ("--out", tmp_path / "no")
    assert "start is for videos" in refused(tmp_path / "a.png", "--start", 0, *out)
    assert "tasks are for videos" in refused(tmp_path / "a.png", "--tasks", "generate", *out)
    assert not (tmp_path / "no").exists()


def test_what_contradicts_itself_is_refused_from_both_sides(clip, video_file, tmp_path, refused):
    for options, words, sentence in (
        ({"size": (16, 24), "max_side": 20}, ["--size", "24x16", "--max-side", 20], "size and max_side both"),
        ({"fps": 8}, ["--fps", 8], "frames per second of its own"),
        ({"minutes": 1, "steps": 5}, ["--minutes", 1, "--steps", 5], "--minutes and --steps both"),
        ({"steps": 0}, ["--steps", 0], "steps must be a whole number from 1"),
        ({"minutes": -1}, ["--minutes", -1], "minutes must be above 0"),
        ({"minutes": 1, "settings": {"predictor_steps": 9}}, ["--minutes", 1, "--predictor-steps", 9],
         "--minutes and --predictor-steps both"),
        ({"steps": 5, "settings": {"image_steps": 9}}, ["--steps", 5, "--image-steps", 9], "--steps and --image-steps"),
    ):  # fmt: skip
        with pytest.raises(SinfusionError, match=sentence):
            sinfusion.train(video_file, tmp_path / "run", **options)
        assert sentence in refused(video_file, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_frames_per_second_are_for_a_folder_of_frames(clip, tmp_path, command, begun):
    write_video(tmp_path / "frames", clip, fps=20)
    assert command(tmp_path / "frames", "--fps", 8, "--stride", 2).fps == 4
    assert begun(tmp_path / "frames", fps=8).fps == 8 and begun(clip).fps == 20


# Settings ------------------------------------------------------------------------------------------------------------


def test_what_was_set_stays_though_it_equals_the_default_of_tiny(video_file, clip, begun, command):
    settings = {"filters": TINY.filters, "depth": TINY.depth}
    kept = begun(clip, recipe="tiny", minutes=90, settings=settings).recipe
    assert (kept.filters, kept.depth) == (TINY.filters, TINY.depth)
    half = command(video_file, "--recipe", "tiny", "--minutes", 90, "--filters", TINY.filters).recipe
    assert half.filters == TINY.filters


def test_steps_that_were_set_stay_though_they_equal_the_default_of_tiny(video_file, clip, begun, command):
    for run in (begun(clip, recipe="tiny", settings={"predictor_steps": TINY.predictor_steps}),
                command(video_file, "--recipe", "tiny", "--predictor-steps", TINY.predictor_steps)):  # fmt: skip
        assert run.models["predictor"]["steps"] == TINY.predictor_steps
        assert run.models["predictor"]["minutes"] is None
    assert begun(clip, recipe="tiny").models["predictor"]["minutes"] > 1


def test_a_recipe_object_is_taken_as_it_is(clip, begun):
    run = begun(clip, recipe=TINY)
    assert run.recipe == TINY and run.models["predictor"]["steps"] == TINY.predictor_steps
    assert begun(clip, recipe=TINY, minutes=90).recipe == TINY
    changed = begun(clip, recipe=TINY, settings={"crop": 0.9}).recipe
    assert changed == TINY.replace(crop=0.9)


def test_minutes_do_not_beat_the_steps_of_a_recipe_in_silence(clip, tmp_path):
    with pytest.raises(SinfusionError, match="--minutes and --predictor-steps both say how long"):
        sinfusion.train(clip, tmp_path / "run", PAPER.replace(predictor_steps=7), minutes=1)


def test_steps_are_those_of_each_model(clip, video_file, begun, command):
    for run in (begun(clip, recipe="fast", steps=7), command(video_file, "--steps", 7)):
        assert {name: model["steps"] for name, model in run.models.items()} == {"predictor": 7, "projector": 7}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"filtres": 8}}, "no setting 'filtres'"), ({"settings": {"name": "mine"}}, "no setting 'name'"),
        ({"settings": {"filters": "many"}}, "filters must be"), ({"recipe": {"filters": 8}}, "a Recipe, not"),
        ({"recipe": 7}, "a Recipe, not 7"), ({"tasks": "dance"}, "not dance"), ({"minutes": "5"}, "minutes must be"),
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(clip, tmp_path, options, words):
    with pytest.raises(SinfusionError, match=words):
        sinfusion.train(clip, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_one_task_may_be_a_word(clip, begun):
    assert list(begun(clip, tasks="upsample").models) == ["interpolator"]


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
