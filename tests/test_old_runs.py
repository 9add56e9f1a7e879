"""Runs of an earlier version, with the names that settings had then: they generate what they generated, and go on.

tests/old_runs/ was written at commit 9593183, expected.npz by what that commit generated from it in fp32.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import sinfusion
from sinfusion.cli import main
from sinfusion.errors import SinfusionError
from sinfusion.generation import seam
from sinfusion.roles import PREDICTOR

RUNS = Path(__file__).parent / "old_runs"
FRAMES = slice(0, 3)


def generated(name):
    """What `expected.npz` holds of a run, by the code at hand."""
    run = sinfusion.load(RUNS / name, "cpu", "fp32")
    if name == "image":
        return {
            "generate": sinfusion.generate(run, count=2, size=(17, 30), seed=7),
            "edit": sinfusion.edit(run, run.frames[0], canvas=(24, 40), strength=0.6, seed=1, jumps=0),
        }
    outputs = {
        "generate": sinfusion.generate(run, 4, 2, (18, 25), seed=3),
        "extrapolate": sinfusion.extrapolate(run, after=2, before=1, seed=4)[0],
        "retarget": sinfusion.retarget(run, (20, 33), run.frames[FRAMES]),
    }
    if name == "video":
        outputs["upsample"] = sinfusion.upsample(run, 2, run.frames[FRAMES])
    return outputs


@pytest.mark.parametrize("name", ["video", "paper", "image"])
def test_old_runs_generate_what_they_generated(name, capsys, monkeypatch):
    monkeypatch.setattr(seam, "LEAST_SIGMA", math.inf)  # what is made did not take on the brightness of what is kept
    monkeypatch.setattr(seam, "TIMES", 0)  # nor was it drawn to patches
    with np.load(RUNS / "expected.npz") as expected:
        for task, outputs in generated(name).items():
            difference = np.abs(outputs.astype(int) - expected[f"{name}-{task}"])
            assert difference.max() <= 1 and difference.mean() < 0.01, task  # other machines round otherwise
    assert "gone" not in capsys.readouterr().err


def test_settings_of_old_runs_have_their_new_names():
    old = json.loads((RUNS / "video/run.json").read_text())
    run = sinfusion.load(RUNS / "video", "cpu")
    assert run.recipe.sigma_max == old["recipe"]["level_top"] == 20
    assert run.recipe.log_sigma_mean == old["recipe"]["level_mean"] == -0.75
    assert run.recipe.burn_in_frames == old["recipe"]["hidden_frames"] == 2
    assert run.recipe.coarse_condition_noise == old["recipe"]["condition_drift"] == 1
    assert run.denoiser(PREDICTOR).sigma_data == tuple(old["models"]["predictor"]["spreads"])


def test_an_old_run_is_trained_further(tmp_path):
    shutil.copytree(RUNS / "video", tmp_path / "run")
    for name in ("projector", "interpolator"):
        shutil.rmtree(tmp_path / "run" / name)
    description = json.loads((tmp_path / "run/run.json").read_text())
    description["models"] = {"predictor": description["models"]["predictor"]}
    (tmp_path / "run/run.json").write_text(json.dumps(description))
    run = sinfusion.train(tmp_path / "run", steps=2, quiet=True)
    assert run.steps_done("predictor") == 32
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert "level_top" not in stored["recipe"] and "spreads" not in stored["models"]["predictor"]


def test_a_setting_by_its_old_name_is_refused_with_the_new_one(texture, tmp_path, capsys):
    with pytest.raises(SinfusionError, match="'level_top'; it is called 'sigma_max' now"):
        sinfusion.train(texture(4), tmp_path / "run", settings={"level_top": 3.0})
    sinfusion.write_video(tmp_path / "clip.gif", texture(4), fps=10)
    assert main(["train", str(tmp_path / "clip.gif"), "--level-top", "3"]) == 2
    assert capsys.readouterr().err == "error: --level-top is called --sigma-max now.\n"
