"""Everything that the page can ask for, asked of a server as users start it."""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from sinfusion.cli import main
from sinfusion.media import read_media
from sinfusion.studio.workspace import Workspace


def painting(width, height, box, colour=(200, 60, 30)):
    """RGBA bytes: a box (left, top, right, bottom) may change."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[box[1] : box[3], box[0] : box[2], 3] = 255
    return pixels.tobytes()


def test_an_upload_becomes_a_clip_under_a_name_of_ours(studio, clip_id, clip):
    about = studio.one("clips", clip_id)
    assert (about["label"], about["kind"], about["frames"], about["size"]) == ("fish.mp4", "video", 12, [24, 16])
    assert about["name"].startswith("clip-") and about["id"] != about["name"]
    status, poster = studio("GET", f"api/clips/{clip_id}/poster.png")
    assert status == 200 and np.abs(np.array(Image.open(io.BytesIO(poster))).astype(int) - clip[0]).mean() < 6
    status, view = studio("GET", f"api/clips/{clip_id}/view.mp4")
    assert status == 200 and view[4:8] == b"ftyp"


def test_a_picture_becomes_a_clip_and_can_be_removed(studio, fish):
    status, found = studio.upload(fish / "fish.png", "<b>fish</b>.png")
    assert status == 201 and found["kind"] == "image"
    assert studio.one("clips", found["id"])["label"] == "b>.png"  # no folders in a name
    assert studio("GET", f"api/clips/{found['id']}/view.png")[0] == 200
    made = studio.make("patches", "clips", found["id"], seed=3)
    assert made["kind"] == "image"
    assert studio("GET", f"api/results/{made['id']}/download.png")[0] == 200
    assert studio("GET", f"api/results/{made['id']}/download.gif")[0] == 404
    assert studio("DELETE", f"api/clips/{found['id']}")[0] == 200
    assert found["id"] not in [one["id"] for one in studio.state()["clips"]]


def test_patches_need_no_training_and_come_as_mp4_gif_and_pngs(studio, clip_id, tmp_path):
    made = studio.make("patches", "clips", clip_id, frames=8, seed=2)
    assert (made["frames"], made["size"], made["seed"], made["label"]) == (8, [24, 16], 2, "fish.mp4")
    for ending in ("mp4", "gif"):
        status, content = studio("GET", f"api/results/{made['id']}/download.{ending}")
        assert status == 200
        (tmp_path / f"p.{ending}").write_bytes(content)
        assert read_media(tmp_path / f"p.{ending}").frames.shape == (8, 16, 24, 3)
    status, content = studio("GET", f"api/results/{made['id']}/download.zip")
    assert len(zipfile.ZipFile(io.BytesIO(content)).namelist()) == 8


def test_a_clip_becomes_a_loop_and_another_shape(studio, clip_id):
    looped = studio.make("loop", "clips", clip_id, frames=8)
    assert looped["frames"] == 8 and "seam" in looped["note"]
    assert studio.make("retarget", "clips", clip_id, size=[40, 16])["size"] == [40, 16]


def test_what_is_painted_over_is_filled_in_and_the_rest_stays(studio, clip_id, clip):
    where = f"api/paintings?verb=inpaint&kind=clips&id={clip_id}&width=24&height=16&seed=1"
    job = studio.made(studio("POST", where, painting(24, 16, (8, 4, 14, 9)), Content_Type="application/octet-stream"))
    assert job["state"] == "done", job
    archive = zipfile.ZipFile(io.BytesIO(studio("GET", f"api/results/{job['result']}/download.zip")[1]))
    first = np.array(Image.open(io.BytesIO(archive.read("00001.png")))).astype(int)
    source = np.array(Image.open(io.BytesIO(studio("GET", f"api/clips/{clip_id}/poster.png")[1])))
    changed = (first != source).any(-1)
    assert changed[4:9, 8:14].mean() > 0.5 and not changed[:, :7].any() and not changed[10:].any()


def test_a_painted_picture_is_edited_and_played(studio, run_ids):
    run = studio.one("runs", run_ids["photo"])
    width, height = run["size"]
    where = f"api/paintings?verb=edit&kind=runs&id={run['id']}&width={width}&height={height}&strength=0.5"
    job = studio.made(studio("POST", where, painting(width, height, (2, 2, 12, 10))))
    assert job["state"] == "done" and studio.one("results", job["result"])["kind"] == "image"
    status, played = studio("POST", "api/play", {"id": run["id"], "options": {}})
    assert status == 200 and run["offsets"] == []
    images = [
        studio("POST", "api/next", {"session": played["session"], "after": None, "settings": {}})[1] for _ in "ab"
    ]
    assert images[0][:4] == b"\x89PNG" and images[0] != images[1]


def test_a_run_is_played_changed_rewound_branched_and_kept(studio, run_ids):
    status, played = studio("POST", "api/play", {"id": run_ids["fish"], "options": {"start": 0}})
    assert status == 200

    def ask_next(after, **settings):
        request = {"session": played["session"], "after": after, "settings": settings}
        headers = {"Origin": studio.origin, "Content-Type": "application/json"}
        status, answered, png = studio.raw("POST", f"{studio.base}api/next", json.dumps(request).encode(), headers)
        assert status == 200, png
        return int(answered["x-frame"]), int(answered["x-index"]), np.array(Image.open(io.BytesIO(png)))

    first, index, image = ask_next(None)
    assert index == 0 and image.shape == (16, 24, 3)
    second, index, plain = ask_next(first)
    assert index == 1
    for other in ({"seed": 5}, {"surprise": 0.0}, {"projection": 0.0}, {"steps": 1}, {"frame_offset": -1}):
        _, index, image = ask_next(first, **other)
        assert index == 1 and (image != plain).any(), other
    assert (ask_next(first)[2] == plain).all()  # the same settings: the same frame
    _, index, image = ask_next(second, size=[40, 24])
    assert index == 2 and image.shape == (24, 40, 3)
    status, kept = studio("POST", "api/keep", {"session": played["session"], "frame": second})
    assert status == 201 and studio.one("results", kept["result"])["frames"] == 2


def test_a_run_becomes_a_loop(studio, run_ids):
    assert studio.make("loop", "runs", run_ids["fish"], frames=6)["frames"] == 6


def test_results_are_measured_against_what_they_were_made_of(studio, clip_id):
    made = studio.make("patches", "clips", clip_id, seed=9)
    job = studio.made(studio("POST", "api/jobs", {"verb": "measure", "id": made["id"]}))
    assert job["state"] == "done", job
    about = studio.one("results", made["id"])
    assert about["figures"]["nnfdist"] >= 0 and about["self_baseline"].keys() >= {"nnfdiv", "change"}
    assert studio("DELETE", f"api/results/{made['id']}")[0] == 200


def test_jobs_wait_up_to_eight_are_cancelled_and_the_next_one_is_made(studio, clip_id):
    long = {"verb": "retarget", "kind": "clips", "id": clip_id, "options": {"size": [800, 600]}}
    answers = [studio("POST", "api/jobs", long) for _ in range(9)]
    assert [status for status, _ in answers] == [202] * 8 + [400]
    assert "wait to be made already" in answers[-1][1]["error"]
    studio.until(lambda: "working" in [job["state"] for job in studio.state()["jobs"]])
    for _, begun in answers[:-1]:
        assert studio("POST", f"api/jobs/{begun['job']}/cancel", {})[0] == 200
    studio.until(lambda: [job["state"] for job in studio.state()["jobs"][:8]] == ["cancelled"] * 8)
    assert studio.make("patches", "clips", clip_id, frames=4)["frames"] == 4


def test_pictures_of_runs_are_shown(studio, run_ids, video_run):
    status, frame = studio("GET", f"api/runs/{run_ids['fish']}/frame.png")
    assert status == 200 and (np.array(Image.open(io.BytesIO(frame))) == video_run.frames[0]).all()
    about = studio.one("runs", run_ids["fish"])
    assert about["finished"] and about["playable"] and not about["busy"] and about["models"][0]["loss"]


def test_a_clip_is_trained_on_one_at_a_time_and_stopped_saved(studio, clip_id):
    request = {"kind": "clips", "id": clip_id, "options": {"minutes": 30}}
    status, begun = studio("POST", "api/train", request)
    assert status == 202
    status, refused = studio("POST", "api/train", request)
    assert status == 409 and "stop it first" in refused["error"]

    def learns():
        return [run for run in studio.state()["runs"] if run["id"] == begun["run"] and run["models"][0]["loss"]]

    (run,) = studio.until(learns)
    assert run["busy"] and run["label"] == "fish.mp4" and run["clip"] == clip_id and run["name"] == "run-1"
    assert studio("POST", "api/stop", {"id": run["id"]})[0] == 200
    studio.until(lambda: not studio.one("runs", run["id"])["busy"])
    run = studio.one("runs", run["id"])
    assert run["models"][0]["saved"] > 0 and not run["finished"] and studio.state()["training"]["error"] == ""


def test_a_server_that_ends_leaves_its_training_saved(tmp_path, start_server, video_run):
    shutil.copytree(video_run.path, tmp_path / "runs" / "fish", ignore=shutil.ignore_patterns("outputs"))
    with start_server(tmp_path) as studio:
        (run,) = studio.state()["runs"]
        before = run["models"][0]["saved"]
        assert studio("POST", "api/train", {"kind": "runs", "id": run["id"], "options": {"minutes": 30}})[0] == 202
        studio.until(lambda: studio.one("runs", run["id"])["models"][0]["done"] > before)
    (run,) = Workspace(tmp_path).describe("runs")
    assert run["models"][0]["saved"] > before and not run["finished"] and not run["busy"]
    assert [path.name for path in tmp_path.glob(".writer")] == []


def test_a_second_server_does_not_share_a_folder(studio, start_server):
    with pytest.raises(AssertionError, match="is being written by process"), start_server(studio.folder):
        pass
    assert studio("GET", "api/state")[0] == 200


def test_the_server_is_small_beside_its_workers(studio):
    status = f"/proc/{studio.process.pid}/status"
    if not os.path.exists(status):
        pytest.skip("reads /proc, which is Linux's")
    peak = next(int(line.split()[1]) for line in open(status) if line.startswith("VmHWM"))
    assert peak < 80 * 1024  # KiB


def test_without_its_packages_one_sentence_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["studio", str(tmp_path / "studio"), "--no-open"]) == 2
    assert "starlette and uvicorn: pip install 'sinfusion[studio]'" in capsys.readouterr().err
    assert not (tmp_path / "studio").exists()


def test_the_command_line_refuses_what_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["studio", str(tmp_path / "file"), "--no-open"]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert main(["studio", str(tmp_path), "--port", "70000", "--no-open"]) == 2
    assert "--port must be" in capsys.readouterr().err
