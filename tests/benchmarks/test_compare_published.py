"""benchmarks/compare_published.py: clips with published results and ours, whole and by windows, in one table."""

import json

import compare_published
import numpy as np
import pytest
from compare_published import Settings, files_of, main, named, shown_parts, summary, table

from sinfusion.errors import SinfusionError
from sinfusion.media import write_video

SIZE = "40x30"


@pytest.fixture
def folder(tmp_path, clip):
    larger = clip.repeat(2, 1).repeat(2, 2)
    (tmp_path / "pond").mkdir()
    for name in ("input", "authors-1", "authors-2", "vgpnn"):
        write_video(tmp_path / "pond" / f"{name}.mp4", larger, fps=20)
    return tmp_path / "pond"


def test_other_videos_beside_the_input_are_published_results(folder):
    name, own, published = files_of(folder)
    assert (name, own.name) == ("pond", "input.mp4")
    assert [path.stem for path in published] == ["authors-1", "authors-2", "vgpnn"]
    assert files_of(folder / "vgpnn.mp4") == ("vgpnn", folder / "vgpnn.mp4", [])


def test_results_name_their_clip_where_there_are_several(folder):
    path = folder / "vgpnn.mp4"
    assert named([f"ours={path}"], ["a"]) == {"a": [("ours", path)]}
    assert named([f"b/ours={path}"], ["a", "b"]) == {"a": [], "b": [("ours", path)]}
    for wrong in (f"ours={path}", f"c/ours={path}", "a/ours"):
        with pytest.raises(SinfusionError, match="is not CLIP/NAME=PATH with one of the clips a, b"):
            named([wrong], ["a", "b"])
    with pytest.raises(SinfusionError, match="does not exist"):
        named(["a/ours=nothing.mp4"], ["a", "b"])


def test_of_several_windows_the_second_and_the_last_are_shown():
    assert shown_parts(["whole", "0-20"]) == ["whole"]
    assert shown_parts(["whole", "0-20", "20-40"]) == ["whole", "20-40"]
    assert shown_parts(["whole", "0-20", "20-40", "40-60", "60-80"]) == ["whole", "20-40", "60-80"]


def test_several_samples_are_a_median_with_the_smallest_and_the_largest():
    assert summary([2.0]) == "2.000"
    assert summary([3.0, 1.0, 5.0]) == "3.000 (1.000 to 5.000)"


def test_windows_shorter_than_a_patch_are_refused(folder):
    with pytest.raises(SinfusionError, match=r"windows of 2 frame\(s\) are shorter than patches of 3"):
        main(Settings((folder,), size=SIZE, window=2))


def test_one_command_measures_a_clip_its_published_results_and_ours(folder, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_published, "PATCHES", {(3, 3, 3): 1})
    out, pictures = tmp_path / "out.json", tmp_path / "pictures"
    videos = (f"ours={folder / 'authors-2.mp4'}",)
    main(Settings((folder,), videos, size=SIZE, window=5, out=out, pictures=pictures))
    rows = json.loads(out.read_text())["rows"]
    results = [(row["result"], row["sample"]) for row in rows]
    assert results[:4] == [
        ("halves", "first"),
        ("halves", "second"),
        ("authors", "authors-1"),
        ("authors", "authors-2"),
    ]
    assert [name for name, _ in results[4:]] == ["vgpnn", "ours"]
    for row in rows[2:]:
        assert set(row["figures"]) == {"whole", *(f"{i}-{min(i + 5, len(clip))}" for i in range(0, len(clip) - 2, 5))}
        assert row["figures"]["whole"]["coverage"] == 1 and row["figures"]["whole"]["change"] == 1
    assert table(rows) in capsys.readouterr().out
    assert {path.name for path in pictures.iterdir()} == {"pond.png", "pond.mp4"}


@pytest.fixture
def run(tmp_path, clip):
    from runs import new_run

    from sinfusion.recipe import TINY
    from sinfusion.roles import PREDICTOR
    from sinfusion.training.trainer import Trainer

    run = new_run(clip[:6], tmp_path / "run", TINY.replace(filters=4, depth=2, sampling_steps=1), [PREDICTOR])
    Trainer(run, PREDICTOR, 1).save()
    return tmp_path / "run"


@pytest.fixture
def frames_of_clip(tmp_path, clip):
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i:02}.png")
    return tmp_path / "frames"


def test_a_run_generates_from_each_seed_and_predicts_what_it_has_not_seen(
    run, frames_of_clip, clip, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare_published, "PATCHES", {(3, 3, 3): 1})
    out, size = tmp_path / "out.json", f"{clip.shape[2]}x{clip.shape[1]}"
    main(
        Settings(
            (frames_of_clip,), runs=(f"ours={run}",), size=size, frames=6, start=0, seeds=(0, 3), held_out=True, out=out
        )
    )
    report = json.loads(out.read_text())
    ours = [row for row in report["rows"] if row["result"] == "ours"]
    assert [(row["sample"], row["frames"]) for row in ours] == [("seed 0", 6), ("seed 3", 6)]
    (held,) = report["held_out"]
    assert held["frames"] == len(clip) - 6 and all(np.isfinite(held[k]) for k in ("mean_db", "linear_db", "repeat_db"))


def test_a_run_of_all_frames_has_none_held_out(run, frames_of_clip, clip):
    for path in sorted(frames_of_clip.iterdir())[6:]:
        path.unlink()
    with pytest.raises(SinfusionError, match="it was trained on all of its last frames"):
        main(Settings((frames_of_clip,), runs=(f"ours={run}",), held_out=True))
