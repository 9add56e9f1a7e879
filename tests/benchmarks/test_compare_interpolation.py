"""benchmarks/compare_interpolation.py: frames between others, by blending, by optical flow and by an Interpolator."""

import json

import compare_interpolation
import numpy as np
import pytest
from compare_interpolation import Settings, blended, compensated, flowed, main, of_run
from PIL import Image
from runs import new_run

from sinfusion.errors import SinfusionError
from sinfusion.media import write_video
from sinfusion.metrics.fidelity import mean_psnr
from sinfusion.recipe import TINY
from sinfusion.roles import INTERPOLATOR
from sinfusion.training.trainer import Trainer

NETWORK = {"filters": 4, "depth": 2, "sampling_steps": 1}


@pytest.fixture
def folder(tmp_path, clip):
    (tmp_path / "pond").mkdir()
    for i, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / "pond" / f"{i:02}.png")
    return tmp_path / "pond"


def test_optical_flow_finds_the_frame_between_where_a_texture_slides(texture):
    pytest.importorskip("cv2")
    frames = texture(5, (36, 64), step=2)
    inside = np.s_[:, 8:-8, 12:-12]
    flow, blend = (mean_psnr(method(frames[::2])[inside], frames[1::2][inside]) for method in (flowed, blended))
    assert flow > blend + 6


def test_optical_flow_leaves_what_does_not_move_as_it_is(clip):
    pytest.importorskip("cv2")
    still = np.repeat(clip[:1], 2, 0)
    assert mean_psnr(flowed(still), still[:1]) > 50


def test_motion_alone_finds_it_as_well(texture):
    frames = texture(5, (36, 64), step=2)
    inside = np.s_[:, 8:-8, 12:-12]
    motion, blend = (mean_psnr(method(frames[::2])[inside], frames[1::2][inside]) for method in (compensated, blended))
    assert motion > blend + 6


def test_an_interpolator_is_asked_for_the_frame_between_each_pair(clip, tmp_path):
    """Untrained, its mean is that of both, moved half way."""
    run = new_run(clip[::2], tmp_path / "run", TINY.replace(**NETWORK), [INTERPOLATOR])
    Trainer(run, INTERPOLATOR, 1).save()
    predicted = of_run(run, 0)(clip[::2])
    assert predicted.shape == (5, 16, 24, 3)
    assert mean_psnr(predicted, compensated(clip[::2])) > 40 > mean_psnr(predicted, blended(clip[::2]))


def test_one_command_compares_all_methods_on_several_clips(folder, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_interpolation, "TINY", TINY.replace(**NETWORK))
    out, pictures = tmp_path / "out.json", tmp_path / "pictures"
    four = np.concatenate([clip.repeat(2, 0)] * 4, 1).repeat(2, 1).repeat(2, 2)
    write_video(tmp_path / "rows", four, fps=10)
    settings = Settings((folder,), tmp_path / "rows", "24x16", "24x16", steps=1, out=out, pictures=pictures)
    main(settings)
    report = json.loads(out.read_text())
    assert [row["method"] for row in report["rows"]] == ["blend", "flow", "motion", "interpolator"]
    assert all(row["frames"] == 5 and row["psnr_db"] > 10 and row["cpu_seconds_a_frame"] >= 0 for row in report["rows"])
    assert [row["method"] for row in report["published"]] == [
        "linear",
        "RIFE",
        "SinFusion",
        "flow",
        "motion",
        "interpolator",
    ]
    assert {path.name for path in pictures.iterdir()} == {"pond.png", "rows.png"}


def test_a_run_of_other_frames_is_refused(folder, clip, tmp_path):
    run = new_run(clip, tmp_path / "run", TINY.replace(**NETWORK), [INTERPOLATOR])
    Trainer(run, INTERPOLATOR, 1).save()
    with pytest.raises(SinfusionError, match="was not trained on the even frames of pond at 24x16"):
        main(Settings((folder,), size="24x16", runs=(f"pond={tmp_path / 'run'}",)))
