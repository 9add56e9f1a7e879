"""benchmarks/compare_loops.py: loops of clips by patches, and of runs."""

import json

import figures
from compare_loops import Settings, main

from sinfusion.media import write_video


def test_one_command_loops_clips_and_runs_and_its_table_has_a_row_for_each(tmp_path, texture, video_run):
    write_video(tmp_path / "pond", texture(12, (16, 24), 2), fps=10)
    out, pictures = tmp_path / "out.json", tmp_path / "pictures"
    clips = (str(tmp_path / "pond"), "scene")
    main(Settings(clips, (video_run.path,), "24x16", 8, 5, (0, 1), out, pictures))
    rows = json.loads(out.read_text())["rows"]
    name = video_run.path.name
    of_clip = ("as it is", 8, None), ("patches", 5, 0), ("patches", 5, 1)
    assert [(row["clip"], row["loop"], row["frames"], row["seed"]) for row in rows] == [
        *((clip, *of) for clip in ("pond", "scene") for of in of_clip),
        (name, "run", 5, 0), (name, "run", 5, 1),
    ]  # fmt: skip
    assert (pictures / "pond-patches-0.png").is_file() and (pictures / f"{name}-run-1.mp4").is_file()
    table = figures.loops(out).splitlines()
    assert [line.split(" | ")[:4] for line in table if line.startswith("| pond")] == [
        ["| pond", "as it is", "8", "1"], ["| pond", "patches", "5", "2"],
    ]  # fmt: skip
