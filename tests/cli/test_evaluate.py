"""sinfusion evaluate: table, JSON, plot, fields; the outputs of a run; what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import sinfusion
from sinfusion.cli import main
from sinfusion.cli.evaluation_report import draw, table
from sinfusion.media import read_image, read_media, write_image, write_video
from sinfusion.metrics.nearest_neighbors import field_image, nnf


@pytest.fixture
def files(tmp_path, clip, texture):
    """An original and two results, of which one is its beginning."""
    write_video(tmp_path / "fish", clip, fps=10)
    write_video(tmp_path / "a/outputs", clip[:7], fps=10)
    write_video(tmp_path / "b/outputs", texture(8, seed=1), fps=10)
    return tmp_path / "fish", tmp_path / "a/outputs", tmp_path / "b/outputs"


def do(*words):
    """Run a command that must succeed."""
    assert main([str(word) for word in words]) == 0


@pytest.fixture
def refused(refused, monkeypatch):
    """As everywhere; and before any work."""

    def no_work(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr("sinfusion.metrics.comparison.nnf", no_work)
    monkeypatch.setattr("sinfusion.generation.reverse_process.ReverseProcess.__call__", no_work)
    return refused


# Results -------------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_the_self_baseline_and_for_each_result(files, capsys):
    do("evaluate", *files)
    title, self_baseline, a, b, *legend = capsys.readouterr().out.rstrip().split("\n")
    assert title.split() == "NNFDIV NNFDIST SWD 1/1 SWD 1/2 coverage change high freq. frames size".split()
    assert (
        self_baseline.startswith("self-baseline: first and second half ") and a.startswith("a/outputs ") and "0.00" in a
    )
    assert b.split()[0] == "b/outputs" and b.split()[-2:] == ["8", "24x16"]
    assert (
        "self-baseline is the original" in legend[0] and len({len(line) for line in (title, self_baseline, a, b)}) == 1
    )


def test_json_holds_the_rows_and_how_they_came_about(files, tmp_path):
    do("evaluate", *files, "--json", tmp_path / "new/figures.json", "--seed", 4, "--stop", 11)
    report = json.loads((tmp_path / "new/figures.json").read_text())
    assert report["rows"] == sinfusion.evaluate(files[0], files[1:], seed=4, stop=11)
    assert report["original"] == str(files[0]) and report["generated"] == [str(path) for path in files[1:]]
    assert report["version"] == sinfusion.__version__ and report["seed"] == 4
    assert report["settings"] == {"nnf_patch": [3, 3, 3], "nnf_steps": 100, "swd_patch": [3, 7, 7],
                                  "swd_projections": 64}  # fmt: skip


def test_fields_are_sheets_and_videos_numbered_as_in_the_table(files, clip, tmp_path):
    do("evaluate", *files, "--fields", tmp_path / "fields")
    assert sorted(path.name for path in (tmp_path / "fields").iterdir()) == [
        "1-a-outputs.mp4", "1-a-outputs.png", "2-b-outputs.mp4", "2-b-outputs.png",
    ]  # fmt: skip
    images = field_image(nnf(read_media(files[2]).frames, clip)[0])
    video = read_media(tmp_path / "fields/2-b-outputs.mp4", max_side=None).frames
    assert len(video) == len(images) == 6 and read_image(tmp_path / "fields/2-b-outputs.png").size
    small = video[:, ::10, ::10][:, : images.shape[1], : images.shape[2]]
    assert small.shape == images.shape and np.abs(small.astype(int) - images).mean() < 20


def test_the_field_of_an_image_is_one_image(tmp_path, clip):
    write_image(tmp_path / "fish.png", clip[0])
    write_image(tmp_path / "other.png", clip[3])
    do("evaluate", tmp_path / "fish.png", tmp_path / "other.png", "--fields", tmp_path / "fields")
    assert [path.name for path in (tmp_path / "fields").iterdir()] == ["1-other-png.png"]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_plot_names_every_result_and_the_self_baseline(files, tmp_path, ending):
    do("evaluate", *files, "--plot", tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").stat().st_size > 2000
    if ending == "svg":
        text = (tmp_path / "plot.svg").read_text()
        assert all(
            f"<!-- {name} -->" in text for name in ("a/outputs", "b/outputs", "self-baseline: first and second half")
        )


def test_names_in_a_plot_do_not_overlap_however_many_there_are(monkeypatch, tmp_path):
    heights = []
    monkeypatch.setattr("matplotlib.axes.Axes.annotate", lambda self, name, at, place, **_: heights.append(place[1]))
    for count in (2, 12, 40):
        heights.clear()
        draw([{"kind": "result", "name": "x", "nnfdiv": 0.3, "nnfdist": 1 + i // 2} for i in range(count)],
             tmp_path / f"{count}.png")  # fmt: skip
        assert np.diff(heights).min() > 0.99 * min(0.045, 1 / count) and heights[-1] <= 1 and heights[0] >= -0.01


def test_a_figure_that_only_some_rows_have_is_a_dash_in_the_others():
    row = {"nnfdiv": 0.1, "nnfdist": 1.0, "swd": [], "frames": 3, "size": "8x8"}
    text = table(
        [{**row, "kind": "self_baseline", "name": "halves"}, {**row, "kind": "result", "name": "a", "change": 2}]
    )
    assert text.split("\n")[1].split() == ["self-baseline:", "halves", "0.100", "1.00", "-", "3", "8x8"]


def test_how_results_drift_is_a_table_of_its_own():
    row = {"nnfdiv": 0.1, "nnfdist": 1.0, "swd": [], "frames": 3, "size": "8x8"}
    drifting = row | {"kind": "result", "name": "a", "nnfdist_drift": 1.5, "coverage_drift": 0.5}
    lines = table([row | {"kind": "self_baseline", "name": "halves"}, drifting]).split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("last quarter over the first"))
    assert lines[at].split()[5:] == "NNFDIST coverage change high freq.".split()
    assert lines[at + 1].split() == ["a", "1.50", "0.50", "-", "-"]


def test_what_needs_no_training_stands_beside_predictions():
    row = {"mean_db": 30.0, "sample_db": 29.0, "baseline_db": 20.0, "baseline": "b", "frames": 3}
    result = {"kind": "self_baseline", "name": "halves", "nnfdiv": 0.1, "nnfdist": 1.0, "swd": []}
    rows = [
        row | {"name": "next", "linear_db": 25.0},
        row | {"name": "between", "motion_db": 27.0},
        result | {"frames": 3, "size": "8x8"},
    ]
    title, following, between, *_ = table(rows).split("\n")
    assert title.split()[3:8] == ["expected", "sampled", "linear", "motion", "baseline"]
    assert following.split()[:6] == ["next", "30.00", "29.00", "25.00", "-", "20.00"]
    assert between.split()[:6] == ["between", "30.00", "29.00", "-", "27.00", "20.00"]


def test_overwrite_replaces_what_was_there(files, tmp_path, capsys):
    outputs = ("--json", tmp_path / "x.json", "--plot", tmp_path / "x.png", "--fields", tmp_path / "fields")
    do("evaluate", *files, *outputs)
    do("evaluate", files[0], files[2], *outputs, "--overwrite")
    assert len(json.loads((tmp_path / "x.json").read_text())["rows"]) == 2


# Runs ----------------------------------------------------------------------------------------------------------------


def test_of_a_run_videos_sheet_plot_and_record_are_kept_in_its_folder(run_copy, video_run, capsys):
    for number in (1, 2):
        do("evaluate", run_copy, "--count", 2, "--steps", 1)
        said = capsys.readouterr().out
        outputs, stem = run_copy / "outputs", f"evaluate-{number}"
        whole = f"{stem}.mp4"
        videos = [f"{stem}-{i}.mp4" for i in (1, 2, 3, 4)]
        assert {path.name for path in outputs.glob(f"{stem}*")} == {
            *videos, f"{whole}-sheet.png", f"{whole}-plot.png", f"{whole}.json",
        }  # fmt: skip
        assert all(str(path) in said for path in outputs.glob(f"{stem}*"))
        assert "next frame, its own frames " in said and "from noise, mean " in said and "self-baseline: " in said
        record = json.loads((outputs / f"{whole}.json").read_text())
        assert record["files"] == videos and record["seeds"] == [0, 1, 0, 1] and record["command"] == "evaluate"
        assert record["rows"] == sinfusion.evaluate(video_run, count=2, steps=1)
        assert len(read_media(outputs / videos[0]).frames) == len(video_run.frames)


def test_of_an_image_run_images_are_kept(image_run, tmp_path):
    do("evaluate", image_run.path, "--out", tmp_path / "x", "--count", 2, "--plot", tmp_path / "quality.svg")
    assert {path.name for path in tmp_path.iterdir()} == {
        "x-1.png", "x-2.png", "x.png-sheet.png", "x.png.json", "quality.svg",
    }  # fmt: skip
    assert np.array_equal(read_image(tmp_path / "x-2.png"), sinfusion.generate(image_run, count=2)[1])


def test_a_run_that_only_interpolates_leaves_no_video(run_copy):
    shutil.rmtree(run_copy / "predictor")
    do("evaluate", run_copy, "--steps", 1)
    assert {path.name for path in (run_copy / "outputs").iterdir()} == {
        "evaluate-1.mp4-plot.png", "evaluate-1.mp4-sheet.png", "evaluate-1.mp4.json",
    }  # fmt: skip
    assert json.loads((run_copy / "outputs/evaluate-1.mp4.json").read_text())["files"] == []


def test_held_out_frames_are_cut_by_start_and_stop(run_copy, clip, tmp_path, capsys):
    write_video(tmp_path / "all", np.concatenate((clip, clip[:6] ^ 1)), fps=10)
    words = ("evaluate", run_copy, "--held-out", tmp_path / "all", "--count", 1, "--steps", 1)
    do(*words, "--start", 12, "--stop", 17)
    row = next(line for line in capsys.readouterr().out.split("\n") if line.startswith("next frame, held-out frames"))
    assert row.split()[-6:] == ["4", "baseline:", "the", "last", "frame", "again"]
    assert main([str(word) for word in words]) == 2
    assert "up to number 11; begin after it (--start)" in capsys.readouterr().err


def test_results_are_compared_with_the_frames_of_a_run(run_copy, files, capsys):
    do("evaluate", run_copy, files[1])
    assert "\noutputs " in capsys.readouterr().out
    assert not (run_copy / "outputs").exists()


def test_files_are_compared_at_the_rate_that_was_asked_for(texture, tmp_path):
    frames = texture(24, (16, 24))
    write_video(tmp_path / "a.mp4", frames, fps=20)
    write_video(tmp_path / "b.mp4", frames[::2], fps=10)
    do("evaluate", tmp_path / "a.mp4", tmp_path / "b.mp4", "--fps", 10, "--json", tmp_path / "a.json")
    assert [row["frames"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]][-1] == 12


def test_a_run_alone_has_its_rate(run_copy, refused):
    assert "--fps is for" in refused("evaluate", run_copy, "--fps", 5)


# Requests that cannot be met -----------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused_in_one_sentence(refused, files, video_run, clip, tmp_path):
    fish, a, b = files
    write_image(tmp_path / "one.png", clip[0])
    write_video(tmp_path / "two", clip[:2], fps=10)
    write_video(tmp_path / "wide", clip.repeat(2, 2), fps=10)
    for words, sentence in {
        (fish,): "is not a run; give results",
        (tmp_path / "missing",): "does not exist",
        (tmp_path / "missing", a): "does not exist",
        (fish, a, tmp_path / "missing.mp4"): "missing.mp4 does not exist",
        (fish, tmp_path / "one.png"): "one.png is an image",
        (tmp_path / "one.png", a): "outputs is a video",
        (fish, tmp_path / "two"): "two has 2 frame(s)",
        (fish, tmp_path / "wide", "--max-side", "20"): "--size",
        (fish, a, "--inception", tmp_path / "w.pth"): "weights of Inception are for images",
        (tmp_path / "one.png", tmp_path / "one.png", "--c3d", tmp_path / "w.pth"): "weights of C3D are for videos",
        (fish, a, "--c3d", tmp_path / "w.pth"): "w.pth does not exist",
        (fish, a, "--size", "12"): "WIDTHxHEIGHT",
        (fish, a, "--seed", "-1"): "--seed",
        (fish, a, "--count", "2"): "--count is for the evaluation of a run alone",
        (fish, a, "--held-out", b): "--held-out is for the evaluation of a run alone",
        (video_run.path, "--size", "24x16"): "--size is for generated files",
        (video_run.path, "--stop", "4"): "--stop is for an ORIGINAL with results",
        (video_run.path, "--count", "0"): "--count must be at least 1",
        (video_run.path, "--steps", "0"): "--steps must be from 1",
        (video_run.path, "--held-out", tmp_path / "one.png"): "1 frame(s)",
    }.items():
        assert sentence in refused("evaluate", *words)


def test_what_exists_or_cannot_be_written_is_refused(refused, files, run_copy, tmp_path):
    (tmp_path / "x.json").write_text("precious")
    (tmp_path / "x.mp4.json").write_text("precious")
    (tmp_path / "x.png").write_text("precious")
    (tmp_path / "fields").mkdir()
    for words, sentence in {
        ("--json", tmp_path / "x.json"): "x.json exists",
        ("--plot", tmp_path / "x.png"): "x.png exists",
        ("--plot", tmp_path / "x.txt"): "must end in .png",
        ("--fields", tmp_path / "fields"): "fields exists",
        ("--fields", tmp_path / "x.json", "--overwrite"): "x.json exists",
        ("--json", tmp_path / "x.json/y.json"): "is not a folder",
    }.items():
        assert sentence in refused("evaluate", *files, *words)
    assert "x.mp4.json exists" in refused("evaluate", run_copy, "--out", tmp_path / "x.mp4")


def test_ctrl_c_leaves_nothing(run_copy, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sinfusion.metrics.comparison.Comparison.self_baseline", interrupted)
    assert main(["evaluate", str(run_copy), "--count", "1", "--steps", "1"]) == 130
    assert not (run_copy / "outputs").exists()
