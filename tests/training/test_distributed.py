"""Two processes under torchrun train the same model as one process with the whole batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.checkpoint import last_checkpoint, load_weights
from sinfusion.recipe import TINY
from sinfusion.roles import ROLES
from sinfusion.run import load
from sinfusion.training import logger

RECIPE = TINY.replace(filters=4, depth=2, batch_size=4, sampling_steps=2, unconditional_sampling_steps=2,
                      predictor_steps=12, projector_steps=4)  # fmt: skip

# Each process runs this: a training of so many steps, over an older run; then one with a time budget; then a batch
# that cannot be split.
SCRIPT = f"""
import numpy, sinfusion, sinfusion.training.logger, torch
from sinfusion.errors import SinfusionError
from sinfusion.recipe import Recipe

torch.set_num_threads(1)
sinfusion.training.logger.READ_SECONDS = 0.0
frames, recipe = numpy.load("clip.npy"), {RECIPE!r}
sinfusion.train(frames, "run", recipe, precision="fp32", overwrite=True, quiet=True)
timed = recipe.replace(predictor_steps=10_000, projector_steps=4_000, interpolator_steps=5_000, image_steps=5_000)
sinfusion.train(frames, "timed", timed, precision="fp32", minutes=0.001, quiet=True)
try:
    sinfusion.train(frames, "odd", recipe.replace(batch_size=3), quiet=True)
except SinfusionError as error:
    open(f"refused{{torch.distributed.get_rank()}}", "w").write(str(error))
torch.distributed.destroy_process_group()
"""


def losses(run, name):
    return [json.loads(line)["loss"] for line in (run.path / name / "log.jsonl").read_text().splitlines()]


def test_two_processes_are_one_with_the_whole_batch(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(logger, "READ_SECONDS", 0.0)
    alone = sinfusion.train(clip, tmp_path / "alone", RECIPE, precision="fp32", quiet=True)
    sinfusion.train(clip, tmp_path / "run", RECIPE.replace(predictor_steps=2), seed=9, precision="fp32", quiet=True)
    np.save(tmp_path / "clip.npy", clip)
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launcher, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr

    together = load(tmp_path / "run")
    for name in ("predictor", "projector"):
        assert len(losses(alone, name)) == RECIPE.steps(ROLES[name])
        assert losses(together, name) == pytest.approx(losses(alone, name), rel=1e-4)
        ours, theirs = (
            load_weights(last_checkpoint(run.path / name) / "weights.safetensors")[0] for run in (together, alone)
        )
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)

    timed = load(tmp_path / "timed")
    for name, model in timed.models.items():
        assert last_checkpoint(timed.path / name).name == f"step-{model['steps']:08d}" and model["steps"] >= 20

    assert not (tmp_path / "odd").exists()
    for rank in range(2):
        assert "batch size 3 cannot be split over 2 processes" in (tmp_path / f"refused{rank}").read_text()
