"""Damaged run folders: a result or a SinfusionError, never a crash, a hang, or code run from a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sinfusion
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.errors import SinfusionError
from sinfusion.roles import PREDICTOR
from sinfusion.run import load
from sinfusion.training.trainer import Trainer

ROUNDS = 40  # damaged versions of each file


@pytest.fixture
def copy(video_run, tmp_path):
    shutil.copytree(video_run.path, tmp_path / "copy")
    return tmp_path / "copy"


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Cut, overwritten, with a piece moved, or with bits flipped; often near the start, where the headers are."""
    data = bytearray(whole)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 256)
    at, length = int(rng.integers(reach)), int(rng.integers(1, 64))
    kind = rng.integers(5)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at : at + length] = rng.bytes(length)
    elif kind == 2:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        del data[at : at + length]
    else:
        data[at:at] = data[:length]
    return bytes(data)


def use(path) -> None:
    """Load a run, sample from it, and take a training step from its checkpoint."""
    run = load(path, "cpu", "fp32")
    sinfusion.generate(run, frames=2, start=0, steps=1)
    trainer = Trainer(run, PREDICTOR, 10**6)
    trainer.restore()
    trainer.step()


@pytest.mark.parametrize("name", ["run.json", "input.safetensors", "weights.safetensors", "optimizer.pt"])
@pytest.mark.filterwarnings("ignore")
def test_damage_is_refused_or_harmless(copy, name):
    rng = np.random.default_rng(list(name.encode()))
    path = copy / name if (copy / name).exists() else last_checkpoint(copy / "predictor") / name
    whole = path.read_bytes()
    refused = 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(whole, rng))
        try:
            use(copy)
        except SinfusionError:
            refused += 1
    assert refused > 0
    path.write_bytes(whole)
    use(copy)


VALUES = [None, -1, 0, 10**30, 1e300, float("nan"), float("inf"), "", "x" * 1000, [], {}, True, [[]], {"steps": None}]


@pytest.mark.filterwarnings("ignore")
def test_valid_json_of_the_wrong_meaning_is_refused_or_harmless(copy):
    path = copy / "run.json"
    whole = json.loads(path.read_text())
    places = [(key,) for key in whole] + [("recipe", key) for key in whole["recipe"]]
    places += [("models", "predictor"), *(("models", "predictor", key) for key in whole["models"]["predictor"])]
    rng = np.random.default_rng(0)
    for place in places:
        for value in (VALUES[i] for i in rng.choice(len(VALUES), 4, replace=False)):
            changed = json.loads(json.dumps(whole))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            path.write_text(json.dumps(changed))
            try:
                use(copy)
            except SinfusionError:
                continue


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.filterwarnings("ignore")  # PyTorch's about the pickle it refuses
def test_a_pickle_bomb_in_the_optimizer_state_is_not_executed(copy, tmp_path):
    checkpoint, target = last_checkpoint(copy / "predictor"), tmp_path / "executed"
    torch.save({"step": 20, "optimizer": {"x": Bomb(target)}}, checkpoint / "optimizer.pt")
    with pytest.raises(SinfusionError, match="damaged"):
        load_optimizer(checkpoint)
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(SinfusionError, match="damaged"):
        load_optimizer(checkpoint)
    assert not target.exists()
    pickle.loads((checkpoint / "optimizer.pt").read_bytes())
    assert target.exists(), "the bomb does not work, so this test shows nothing"


def test_a_pickle_under_the_name_of_the_weights_is_not_executed(copy, tmp_path):
    checkpoint, target = last_checkpoint(copy / "predictor"), tmp_path / "executed"
    torch.save(Bomb(target), checkpoint / "weights.safetensors")
    with pytest.raises(SinfusionError):
        use(copy)
    assert not target.exists()


def test_an_archive_of_something_else_is_refused(copy):
    checkpoint = last_checkpoint(copy / "predictor")
    with zipfile.ZipFile(checkpoint / "optimizer.pt", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(SinfusionError, match="damaged"):
        load_optimizer(checkpoint)
    torch.save([1, 2, 3], checkpoint / "optimizer.pt")
    with pytest.raises(SinfusionError, match="damaged"):
        load_optimizer(checkpoint)


def _another_step(state):
    state["step"] += 1


def _no_such_weight(state):
    state["optimizer"]["nothing"] = {}


def _without_a_weight(state):
    state["optimizer"].popitem()


def _without_a_moment(state):
    next(iter(state["optimizer"].values())).pop("exp_avg")


def _of_another_shape(state):
    moments = next(iter(state["optimizer"].values()))
    moments["exp_avg"] = moments["exp_avg"].flatten()[:-1]


@pytest.mark.parametrize(
    "change", [_another_step, _no_such_weight, _without_a_weight, _without_a_moment, _of_another_shape]
)
def test_an_optimizer_state_that_does_not_fit_its_weights_is_refused(copy, change):
    checkpoint = last_checkpoint(copy / "predictor")
    state = load_optimizer(checkpoint)
    change(state)
    torch.save(state, checkpoint / "optimizer.pt")
    with pytest.raises(SinfusionError, match="damaged"):
        load_optimizer(checkpoint)


@pytest.mark.parametrize("change", ["average.missing", "average.shape", "both.missing"])
def test_weights_that_are_not_those_of_the_network_are_refused(copy, change):
    checkpoint = last_checkpoint(copy / "predictor")
    weights, metadata = load_weights(checkpoint / "weights.safetensors")
    if change == "average.shape":
        weights["average.final.bias"] = weights["average.final.bias"][:-1].clone()
    else:
        del weights["average.final.bias"]
        if change == "both.missing":
            del weights["raw.final.bias"]
    save_file(weights, checkpoint / "weights.safetensors", metadata)
    with pytest.raises(SinfusionError, match="weights"):
        use(copy)
