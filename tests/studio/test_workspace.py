"""The studio's folder: what counts, and by which id it is known."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sinfusion.files import sole_writer, writer_of
from sinfusion.studio.options import checked
from sinfusion.studio.workspace import Missing, Workspace, id_of, png


@pytest.fixture
def workspace(tmp_path, video_run):
    shutil.copytree(video_run.path, tmp_path / "runs" / "fish", ignore=shutil.ignore_patterns("outputs"))
    return Workspace(tmp_path)


def test_ids_are_no_paths(workspace):
    (run,) = workspace.describe("runs")
    assert run["id"] == id_of("fish") and "fish" not in run["id"]
    assert workspace.path("runs", run["id"]) == workspace.folder / "runs" / "fish"
    for id in ("fish", "../runs/fish", "", "."):
        with pytest.raises(Missing):
            workspace.path("runs", id)


def test_new_names_are_never_given_twice(workspace):
    one, two = workspace.new("clips"), workspace.new("clips")
    assert (one.name, two.name) == ("clip-1", "clip-2")
    (workspace.folder / "results" / "result-41").mkdir()
    assert workspace.new("results").name == "result-42"


def test_what_is_not_whole_does_not_count(workspace):
    (workspace.folder / "results" / "result-1").mkdir()
    (workspace.folder / "results" / ".writing-1-result-2").mkdir()
    (workspace.folder / "results" / ".writing-1-result-2" / "result.json").write_text("{}")
    assert list(workspace.names("results")) == []


def test_a_damaged_run_is_left_out_and_the_others_stay(workspace):
    for name, content in (("a", "{"), ("b", '{"kind": "video"}'), ("c", "[]"), ("d", '{"kind": "tuned"}')):
        (workspace.folder / "runs" / name).mkdir()
        (workspace.folder / "runs" / name / "run.json").write_text(content)
    broken = workspace.folder / "runs" / "e"
    shutil.copytree(workspace.folder / "runs" / "fish", broken)
    (broken / "input.safetensors").write_bytes(b"\xff" * 100)
    assert [run["name"] for run in workspace.describe("runs")] == ["fish"]


def test_what_an_upload_that_was_killed_has_left_is_removed(workspace):
    left = workspace.folder / "clips" / ".upload-x"
    left.mkdir()
    Workspace(workspace.folder)
    assert not left.exists()


def test_a_run_tells_how_far_it_is(workspace, video_run):
    (run,) = workspace.describe("runs")
    assert (run["frames"], run["size"], run["kind"]) == (12, [24, 16], "video")
    assert run["finished"] and run["share"] == 1 and run["playable"] and not run["busy"]
    assert [model["name"] for model in run["models"]] == list(video_run.models)
    assert (run["offsets"], run["steps"]) == (list(video_run.recipe.offsets()), video_run.recipe.sampling_steps)
    assert run["projection"] == video_run.recipe.projection_weight
    with sole_writer(workspace.folder / "runs" / "fish"):
        assert workspace.describe("runs")[0]["busy"]
    assert not workspace.describe("runs")[0]["busy"]


def test_a_folder_without_a_writer_has_none(tmp_path):
    assert writer_of(tmp_path) is None
    with sole_writer(tmp_path):
        assert writer_of(tmp_path) is not None
    (tmp_path / ".writer").write_text("1\nlong ago\nhere\n")
    assert str(writer_of(tmp_path)) == "process 1 on here"


def test_the_first_frame_of_a_run_is_a_png(workspace, video_run):
    found = np.array(Image.open(io.BytesIO(workspace.first_frame(id_of("fish")))))
    assert (found == video_run.frames[0]).all()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (np.array(Image.open(io.BytesIO(png(pixels.tobytes(), 7)))) == pixels).all()


def test_what_runs_were_trained_on_is_kept(workspace):
    workspace.remember("fish", "fish.mp4", "0" * 12)
    assert workspace.describe("runs")[0]["label"] == "fish.mp4"
    (workspace.folder / "studio.json").write_text(json.dumps([1]))
    assert workspace.describe("runs")[0]["label"] == "fish"


def test_options_that_are_left_out_have_their_defaults():
    assert checked("train", {}) == {"minutes": 2}
    found = checked("settings", {"size": [64, 40]})
    assert found == {"frame_offset": 1, "size": (40, 64), "seed": 0, "surprise": 1, "projection": None, "steps": None}
