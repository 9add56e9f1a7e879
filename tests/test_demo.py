"""The demo, cut short."""

from __future__ import annotations

import functools

import numpy as np

from sinfusion import demo as _demo  # noqa: F401  # importable as a module
from sinfusion.cli import main
from sinfusion.media import read_image, read_media
from sinfusion.training.session import train


def test_the_demo_leaves_videos_a_sheet_and_a_usable_run(tmp_path, capsys, monkeypatch):
    scene = "sinfusion.demo.render"
    from sinfusion.scene import render

    monkeypatch.setattr(scene, lambda seed: render(6, (16, 24), seed))
    small = functools.partial(train, settings={"filters": 8, "depth": 2})
    monkeypatch.setattr("sinfusion.demo.train", small)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--minutes", "0.02"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [
        str(out / name) for name in ("original-beside-generated.mp4", "contact-sheet.png", "run")
    ]
    said = printed.err
    both = out / "original-beside-generated.mp4"
    assert str(both) in said and str(out / "contact-sheet.png") in said
    original, outputs = read_media(out / "original.mp4").frames, read_media(out / "generated.mp4").frames
    assert len(original) == len(outputs) == 6
    assert 0 < said.index("patches.mp4") < said.index("generating")  # what takes seconds comes first
    assert len(read_media(out / "patches.mp4").frames) == 3
    # The generated video starts from the first real frame; both went through H.264.
    assert np.abs(original[0].astype(int) - outputs[0]).mean() < 4
    assert len(read_media(both).frames) == 6 and read_image(out / "contact-sheet.png").size
    assert main(["demo", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["generate", str(out / "run"), "--frames", "2", "--out", str(tmp_path / "more.mp4")]) == 0
