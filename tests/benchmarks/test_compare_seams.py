"""benchmarks/compare_seams.py: patches across the seam of what is made around kept pixels."""

import json

import figures
import numpy as np
import pytest
from compare_seams import Settings, known_share, larger, least_across, main
from compare_seams import figures as figures_of


def test_patches_across_a_seam_have_pixels_of_both_sides():
    known = np.zeros((6, 8), bool)
    known[:, :3] = True
    share = known_share(known)
    assert share.shape == (4, 6) and np.array_equal(share[0], [9, 6, 3, 0, 0, 0])


def test_a_line_along_the_seam_shows_in_the_ratio(texture):
    clip = texture(4, (24, 32), 3)
    known = np.zeros((24, 32), bool)
    known[6:18, 8:24] = True
    seamless = figures_of(clip, known, clip)
    assert seamless["across"] == seamless["inside"] == seamless["ratio"] == 0
    noise = np.random.default_rng(0).integers(-6, 7, clip.shape)
    noisy = np.where(known[..., None], clip, (clip.astype(int) + noise).clip(0, 255)).astype(np.uint8)
    framed = noisy.copy()
    framed[:, 5, 7:25] = framed[:, 18, 7:25] = 0
    fair, bad = figures_of(noisy, known, clip), figures_of(framed, known, clip)
    assert 0 < fair["ratio"] < 1  # half of those pixels are the clip's
    assert bad["ratio"] > 3 * fair["ratio"]


def test_the_least_distance_is_that_of_what_is_kept_and_below_that_of_any_result(texture):
    clip = texture(2, (12, 14), 3)
    made = np.zeros((2, 20, 22, 3), np.uint8)
    made[:, 4:16, 4:18] = clip
    known = np.zeros((20, 22), bool)
    known[4:16, 4:18] = True
    least = least_across(made, known, clip)
    assert 0 < least < figures_of(made, known, clip)["across"]
    otherwise = np.where(known[..., None], made, 200)
    assert least_across(otherwise, known, clip) == pytest.approx(least)  # what is made does not matter
    left = np.broadcast_to(np.arange(14) < 7, (12, 14))
    assert least_across(clip, left, clip) == pytest.approx(0, abs=1e-5)  # the clip itself goes on beyond it


@pytest.mark.parametrize("kind", ["video", "image"])
def test_one_command_measures_runs_and_its_table_has_a_row_for_each_task(tmp_path, kind, video_run, image_run):
    run = video_run if kind == "video" else image_run
    out, pictures = tmp_path / "out.json", tmp_path / "pictures"
    main(Settings((run.path,), frames=3, seeds=(0, 1), out=out, pictures=pictures))
    rows = json.loads(out.read_text())["rows"]
    tasks = ["extend"] if kind == "video" else ["edit --mask", "edit --canvas"]
    assert [(row["clip"], row["task"], row["seeds"]) for row in rows] == [(run.path.name, task, 2) for task in tasks]
    assert all(row["ratio"] > 0 for row in rows)
    assert len(list(pictures.iterdir())) == len(tasks)
    table = figures.seams(out).splitlines()
    assert sum(line.startswith(f"| {run.path.name} |") for line in table) == len(tasks)


def test_a_canvas_is_larger_on_all_sides():
    assert larger((72, 128)) == (96, 160)
