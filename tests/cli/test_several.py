"""train and generate with several inputs: where each goes, what is left out, what is said at the end."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from sinfusion.cli import COMMANDS, main, several
from sinfusion.cli.jobs import Outcome
from sinfusion.cli.several import in_a_line, option_words, table, visible_gpus
from sinfusion.media import write_image
from sinfusion.run import load
from sinfusion.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SHORT = "--recipe tiny --filters 4 --depth 2 --image-steps 3".split()


@pytest.fixture
def photos(tmp_path, clip, monkeypatch):
    """Names of three images in the folder that the test works in, two of them alike; and of a file that is none."""
    monkeypatch.chdir(tmp_path)
    Path("more").mkdir()
    for name, image in zip(("fish.png", "ants.png", "more/fish.png"), clip, strict=False):
        write_image(Path(name), image)
    Path("broken.png").write_text("no image")
    return ["fish.png", "ants.png", "more/fish.png", "broken.png"]


@pytest.fixture
def done(monkeypatch):
    """Jobs are done in this process, one after another; their command lines are in this list."""
    lines = []

    def run_jobs(jobs, most, start):
        outcomes = []
        for job in jobs:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(list(job.words))
            lines.append(list(job.words))
            outcomes.append(Outcome(code, 1.0, out.getvalue().splitlines(), err.getvalue().strip().split("\n")[-1]))
        return outcomes, None

    monkeypatch.setattr(several, "run_jobs", run_jobs)
    return lines


@pytest.fixture
def asked(monkeypatch):
    """Jobs are not done, but said to be; their command lines are in this list."""
    lines = []

    def run_jobs(jobs, most, start):
        lines.extend(list(job.words) for job in jobs)
        return [Outcome(0) for _ in jobs], None

    monkeypatch.setattr(several, "run_jobs", run_jobs)
    return lines


def rows(printed):
    """The rows of the table on standard output: label -> state and result."""
    header, *lines = printed.out.splitlines()
    at = [header.index(word) for word in ("state", "time", "result")]
    return {line[: at[0]].rstrip(): (line[at[0] : at[1]].rstrip(), line[at[2] :]) for line in lines}


# Training ------------------------------------------------------------------------------------------------------------


def test_several_clips_are_trained_by_processes_and_a_broken_one_ends_nothing(photos):
    words = [
        sys.executable,
        "-m",
        "sinfusion",
        "train",
        "broken.png",
        "fish.png",
        "--out",
        "runs",
        *SHORT,
        "--jobs",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert finished.returncode == 2, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["input", "state"], ["broken", "failed"], ["fish", "trained"]]
    said = finished.stderr.splitlines()
    assert any(line.startswith("fish: image: 3 steps in ") for line in said)
    assert said[-1] == "error: 1 of 2 failed (broken); the same command tries again."
    assert load("runs/fish").finished("image")


def test_the_same_command_leaves_out_what_is_done_and_goes_on_with_what_was_stopped(photos, done, capsys, monkeypatch):
    line = ["train", *photos, "--out", "runs", *SHORT, "--device", "cpu"]
    step = Trainer.step

    def interrupted(trainer):
        if trainer.done == 1 and trainer.run.path.name == "ants":
            raise KeyboardInterrupt
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert main(line) == 2
    capsys.readouterr()
    done.clear()
    assert main(line) == 2
    printed = capsys.readouterr()
    assert "more/fish.png goes to runs/fish-2, because another is named fish, too" in printed.err
    found = rows(printed)
    assert {label: state for label, (state, _) in found.items()} == {
        "fish": "done before", "ants": "trained", "fish-2": "done before", "broken": "failed"
    }  # fmt: skip
    assert found["fish"][1] == "runs/fish" and found["broken"][1].startswith("broken.png is a text file")
    assert done[0] == ["train", "runs/ants", "--device=cpu"] and len(done) == 2
    Path("broken.png").unlink()
    assert main([word for word in line if word != "broken.png"]) == 0 and len(done) == 2


def test_with_overwrite_all_are_trained_anew(photos, asked, image_run):
    for name in ("fish", "ants"):
        shutil.copytree(image_run.path, Path("runs") / name)
    assert main(["train", *photos[:2], "--out", "runs", *SHORT, "--overwrite"]) == 0
    assert [words[:3] for words in asked] == [
        ["train", f"{name}.png", f"--out=runs/{name}"] for name in ("fish", "ants")
    ]
    assert all("--overwrite" in words for words in asked)


def test_a_run_of_another_clip_is_not_taken_for_done(photos, asked, image_run, capsys):
    shutil.copytree(image_run.path, "runs/fish")
    description = json.loads(Path("runs/fish/run.json").read_text())
    said = "runs/fish is a run of fish.png, not of more/fish.png; choose another --out."
    for source, row in (("fish.png", ("failed", said)), ("gone/fish.png", ("done before", "runs/fish"))):
        Path("runs/fish/run.json").write_text(json.dumps(description | {"source": source}))
        main(["train", "more/fish.png", "ants.png", "--out", "runs", *SHORT])
        assert rows(capsys.readouterr())["fish"] == row


def test_several_runs_go_on_where_they_are(tmp_path, asked, image_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fish", "ants"):
        shutil.copytree(image_run.path, Path("runs") / name)
    assert main(["train", "runs/fish", "runs/ants"]) == 0 and asked == []
    assert main(["train", "runs/fish", "runs/ants", "--steps", "2"]) == 0
    assert asked == [["train", f"runs/{name}", "--steps=2"] for name in ("fish", "ants")]


def test_one_clip_is_no_job_and_its_folder_is_that_of_the_run(photos, done, capsys):
    assert main(["train", "fish.png", "--out", "runs", *SHORT, "--jobs", "3"]) == 0
    assert done == [] and load("runs").source == "fish.png"
    assert capsys.readouterr().out == "trained runs; next: sinfusion generate runs\n"


def test_a_clip_that_is_given_twice_counts_once(photos, asked, capsys):
    assert main(["train", "fish.png", "./more/../fish.png", "ants.png", "--out", "runs"]) == 0
    assert len(asked) == 2 and "fish.png is given more than once, and counts once" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-fish.png", "~fish.png", "a b'c.png", "clip_2024.01.02.png", "line\nbreak.png"])
def test_any_name_goes_through(photos, asked, name, capsys):
    os.rename("fish.png", name)
    assert main(["train", f"./{name}" if name[0] == "-" else name, "ants.png", "--out", "."]) == 0
    command = parsed("train", asked[0][1:])
    assert command.input.resolve() == Path.cwd() / name and command.input.exists()
    assert command.out.resolve() == Path.cwd() / Path(name).stem
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--jobs", "0"], "--jobs must be at least 1, not 0."),
        (["--minutes", "1", "--steps", "2"], "--minutes and --steps both say how long to train; give one of them."),
        (["--size", "big"], "a size is WIDTHxHEIGHT in pixels, such as 256x144, not 'big'."),
        (["--out", "fish.png"], "--out fish.png is a file; of several inputs it is the folder of their runs."),
        (["--device", "tpu"], "--device must be auto, cpu or cuda, or cuda:1 of several GPUs, not 'tpu'."),
    ],
)
def test_what_is_wrong_with_all_is_said_once_before_any_work(photos, done, refused, words, said):
    assert refused("train", *photos[:2], *words) == said and done == []


def test_several_clips_are_not_for_torchrun(photos, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in refused("train", *photos[:2])


def test_a_folder_of_runs_that_is_a_run_is_refused(photos, image_run, refused):
    said = refused("train", *photos[:2], "--out", image_run.path)
    assert said == f"--out {image_run.path} is a run; of several inputs it is the folder of their runs."


# Generating ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, video_run, image_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in (video_run, image_run):
        shutil.copytree(run.path, Path("runs") / run.path.name, ignore=shutil.ignore_patterns("outputs"))
    return ["runs/video", "runs/image"]


def test_several_runs_generate_once_for_the_same_request(runs, done, capsys):
    for seed, jobs, state in ((0, 2, "generated"), (0, 2, "done before"), (1, 4, "generated"), (1, 4, "done before")):
        assert main(["generate", *runs, "--seed", str(seed)]) == 0
        number = seed + 1
        assert rows(capsys.readouterr()) == {
            "runs/video": (state, f"runs/video/outputs/generate-{number}.mp4"),
            "runs/image": (state, f"runs/image/outputs/generate-{number}.png"),
        }
        assert len(done) == jobs
    record = json.loads(Path("runs/video/outputs/generate-1.mp4.json").read_text())
    assert record["arguments"]["run"] == "runs/video" and not {"others", "jobs", "cluster"} & set(record["arguments"])


def test_a_run_that_was_trained_further_generates_again(runs, done):
    assert main(["generate", *runs]) == 0
    later = Path("runs/video/outputs/generate-1.mp4.json").stat().st_mtime + 10
    os.utime("runs/video/run.json", (later, later))
    assert main(["generate", *runs]) == 0
    assert len(done) == 3 and Path("runs/video/outputs/generate-2.mp4").exists()


def test_results_of_several_runs_go_to_a_folder(runs, done, capsys):
    shutil.copytree("runs/video", "others/video")
    line = ["generate", *runs, "others/video", "--out", "all/", "--format", "gif"]
    assert main(line) == 2  # an image is no gif
    assert {path.name for path in Path("all").glob("*.gif")} == {"video.gif", "video-2.gif"}
    assert "others/video goes to all/video-2, because another is named video, too" in capsys.readouterr().err
    done.clear()
    main(line)
    assert len(done) == 1  # the one that has failed
    assert main([*line[:-1], "mp4", "--overwrite"]) == 2 and Path("all/video.mp4").exists()


def test_a_result_of_another_run_is_not_taken_for_done(runs, asked, capsys):
    shutil.copytree("runs/video", "others/video")
    for name in ("runs", "others"):
        assert main(["generate", f"{name}/video", "--frames", "2", "--out", f"{name}.mp4"]) == 0
    Path("all").mkdir()
    for path in Path().glob("others.mp4*"):
        path.rename(Path("all") / path.name.replace("others", "video"))
    record = json.loads(Path("all/video.mp4.json").read_text())
    Path("all/video.mp4.json").write_text(json.dumps(record | {"files": ["video.mp4"]}))
    main(["generate", "runs/video", "runs/image", "--frames", "2", "--out", "all"])
    main(["generate", "others/video", "runs/image", "--frames", "2", "--out", "all"])
    assert [words[1] for words in asked] == ["runs/video", "runs/image", "runs/image"]


def test_a_folder_that_is_no_run_ends_nothing(runs, done, capsys):
    assert main(["generate", "runs/none", *runs]) == 2
    found = rows(capsys.readouterr())
    assert found["runs/none"][0] == "failed" and found["runs/none"][1].startswith("runs/none does not exist; train")
    assert found["runs/video"][0] == "generated"


def test_the_out_of_several_runs_is_no_file(runs, done, refused):
    assert refused("generate", *runs, "--out", "x.mp4").startswith("--out x.mp4 is one file; of several runs")


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "train a --recipe tiny --minutes 0.1 --tasks generate upsample --size 32x16 --no-graph --overwrite --fps 12.5",
        "train a --dense-kernel 3 --predictor-steps 9 --seed 3 --device cuda:1 --precision fp32",
        "generate a --frames 3 --count 2 --start x=y.png --frame-offset=-1 --projection 0.25 --no-graph --format png",
        "generate a --tile x,y --seed 4 --steps 9 --size 64x32",
    ],
)
def test_the_words_of_a_command_say_what_it_was(line):
    name, *words = line.split()
    command = parsed(name, words)
    rebuilt = [words[0], *option_words(command, set(vars(command)) - {"recipe_settings", "input", "run"})]
    if hasattr(command, "recipe_settings"):
        rebuilt += option_words(command.recipe_settings, vars(command.recipe_settings))
    assert parsed(name, rebuilt) == command


def parsed(name, words):
    return tyro.cli(COMMANDS[name], args=words, config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone))


def test_a_table_has_columns_and_no_blanks_at_the_ends():
    assert table([("a", "bb", "c"), ("aaa", "", "")]) == "a    bb  c\naaa"
    assert in_a_line("a\nb\x1b\udcff é魚") == "a\\nb\\x1b\\udcff é魚"


def test_gpus_are_those_that_are_visible(monkeypatch):
    import torch

    assert visible_gpus("cpu") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("auto") == visible_gpus("cuda") == ["0", "1", "2"]
    assert visible_gpus("cuda:1") == visible_gpus("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a,6,7")
    assert visible_gpus("auto") == ["4", "GPU-a", "6"]
