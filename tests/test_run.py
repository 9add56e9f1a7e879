"""The run folder: what is written comes back, atomically; what is damaged or foreign is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion import checkpoint as checkpoint_module
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.errors import SinfusionError
from sinfusion.recipe import TINY
from sinfusion.roles import INTERPOLATOR, PREDICTOR, PROJECTOR
from sinfusion.run import Run, load, writing

RECIPE = TINY.replace(filters=4, depth=2, predictor_steps=3)


@pytest.fixture
def run(clip, tmp_path):
    models = {"predictor": {"steps": 3, "minutes": None, "sigma_data": [0.1, 0.2, 0.3]}}
    run = Run(tmp_path / "run", "video", RECIPE, clip, 12.5, 7, models, "clip.mp4").to("cpu", "fp32")
    run.save()
    return run


def weights(run, value=0.0):
    return {name: torch.full_like(p, value) for name, p in run.build(PREDICTOR).network.named_parameters()}


def write(run, step, value=0.0):
    raw = weights(run, value)
    state = {name: {"step": torch.tensor(1.0), "exp_avg": p, "exp_avg_sq": p} for name, p in raw.items()}
    return run.save_checkpoint(PREDICTOR, step, raw, weights(run, value + 1), state)


def test_a_run_comes_back_as_it_was_saved(run):
    back = load(run.path, "cpu", "fp32")
    for name in ("path", "kind", "recipe", "fps", "seed", "models", "source", "device", "dtype", "size"):
        assert getattr(back, name) == getattr(run, name), name
    assert np.array_equal(back.frames, run.frames)


def test_a_checkpoint_holds_raw_and_averaged_weights_and_sampling_takes_the_average(run):
    path = write(run, 2, 0.5)
    tensors, metadata = load_weights(path / "weights.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"raw", "average"}
    state = load_optimizer(path)
    assert state["step"] == 2
    assert (state["optimizer"]["final.bias"]["exp_avg"] == 0.5).all()
    assert json.loads(metadata["sinfusion"])["step"] == 2
    assert run.has(PREDICTOR) and not run.has(PROJECTOR)
    assert all((p == 1.5).all() for p in run.denoiser(PREDICTOR).network.parameters())


def test_a_recipe_without_an_average_samples_from_the_raw_weights(clip, tmp_path):
    models = {"predictor": {"steps": 3, "minutes": None, "sigma_data": [0.1]}}
    run = Run(tmp_path / "run", "video", RECIPE.replace(ema_gamma=0.0), clip, 20, 0, models).to("cpu")
    run.save()
    write(run, 2, 0.5)
    assert all((p == 0.5).all() for p in run.denoiser(PREDICTOR).network.parameters())


def test_only_the_newest_checkpoint_is_kept_and_half_written_ones_are_ignored_and_cleaned(run):
    write(run, 1)
    half = run.path / "predictor" / ".writing-123-step-00000009"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert last_checkpoint(run.path / "predictor").name == "step-00000001"
    with writing(run.path):
        assert not half.exists()
        write(run, 2)
    assert [p.name for p in (run.path / "predictor").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("interruption", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_last_checkpoint_and_nothing_else(run, monkeypatch, interruption):
    write(run, 1)

    def fail(*_):
        raise interruption

    monkeypatch.setattr(checkpoint_module.torch, "save", fail)
    with pytest.raises(type(interruption)):
        write(run, 2)
    assert [p.name for p in (run.path / "predictor").iterdir()] == ["step-00000001"]
    load_optimizer(last_checkpoint(run.path / "predictor"))


def test_a_reader_that_loses_a_checkpoint_to_a_newer_one_takes_that(run, monkeypatch):
    write(run, 1, 0.5)
    real = checkpoint_module.load_weights

    def while_training(path):
        if path.parent.name == "step-00000001":  # the training is faster
            monkeypatch.setattr(checkpoint_module, "load_weights", real)
            write(run, 2, 2.5)
        return real(path)

    monkeypatch.setattr(checkpoint_module, "load_weights", while_training)
    assert all((p == 3.5).all() for p in run.denoiser(PREDICTOR).network.parameters())


def test_a_run_that_was_stopped_before_it_began_says_so(run):
    (run.path / "input.safetensors").unlink()
    with pytest.raises(SinfusionError, match="was stopped before it began; begin again with: sinfusion train INPUT"):
        load(run.path)


def test_a_checkpoint_is_on_the_disk_before_older_ones_are_removed(run, monkeypatch):
    write(run, 1)
    said, fsync, remove = [], os.fsync, checkpoint_module.remove
    monkeypatch.setattr(os, "fsync", lambda d: said.append(Path(os.readlink(f"/proc/self/fd/{d}")).name) or fsync(d))
    monkeypatch.setattr(checkpoint_module, "remove", lambda path: said.append("removed") or remove(path))
    write(run, 2)
    assert set(said[:2]) == {"weights.safetensors", "optimizer.pt"} and said[2].endswith("step-00000002")
    assert said[3:] == ["predictor", "removed"]


def test_untrained_weights_are_a_function_of_the_seed_and_leave_the_random_state_alone(run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = (list(run.build(PREDICTOR).network.parameters()) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
    run.seed = 8
    assert not torch.equal(first[0], next(run.build(PREDICTOR).network.parameters()))


def test_a_model_that_was_not_trained_is_named(run):
    with pytest.raises(SinfusionError, match=r"stopped before its predictor .* go on with: sinfusion train .*run$"):
        run.denoiser(PREDICTOR)
    with pytest.raises(SinfusionError, match=r"go on with: sinfusion train .*run, or --start 0$"):
        run.denoiser(PREDICTOR, otherwise="--start 0")
    write(run, 1)
    with pytest.raises(SinfusionError, match=r"no trained projector .it has: predictor.; add it .* --tasks generate"):
        run.denoiser(PROJECTOR)
    with pytest.raises(SinfusionError, match=r"no trained interpolator .* sinfusion train .*run --tasks upsample"):
        run.denoiser(INTERPOLATOR)


def test_weights_of_another_network_are_refused(run):
    write(run, 1)
    run.recipe = run.recipe.replace(depth=3)
    with pytest.raises(SinfusionError, match="do not fit"):
        run.denoiser(PREDICTOR)


def test_a_run_of_another_format_is_refused(run):
    description = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(SinfusionError, match="format 99"):
        load(run.path)


def rewritten(run, change):
    """run.json, changed."""
    description = json.loads((run.path / "run.json").read_text())
    change(description)
    (run.path / "run.json").write_text(json.dumps(description))


def test_a_run_of_a_version_with_other_settings_loads_and_both_versions_are_named(run):
    said = []
    load(run.path, log=said.append)
    assert said == []

    def change(description):
        description["version"] = "7.6.5"
        description["recipe"]["momentum"] = 0.9
        del description["recipe"]["sigma_max_share"]

    rewritten(run, change)
    back = load(run.path, log=said.append)
    assert back.recipe == RECIPE.replace(sigma_max_share=0.0) and len(said) == 1
    assert "written by sinfusion 7.6.5, this is " + sinfusion.__version__ in said[0]
    assert "momentum, which is gone" in said[0] and "sigma_max_share is new: 0.0" in said[0]
    back.save()
    assert json.loads((run.path / "run.json").read_text())["version"] == sinfusion.__version__
    assert load(run.path, log=said.append).recipe == back.recipe and len(said) == 1


def test_a_run_of_before_versions_were_kept_loads(run, capsys):
    rewritten(run, lambda description: description["recipe"].pop("crop"))
    rewritten(run, lambda description: [description.pop(name) for name in ("version", "trained_with")])
    assert load(run.path).trained_with is None
    assert "written by an earlier sinfusion, this is " in capsys.readouterr().err


def test_what_a_run_was_trained_with_comes_back_and_nonsense_is_refused(run):
    run.trained_with = {"device": "cuda", "precision": "bf16", "graph": False}
    run.save()
    assert load(run.path).trained_with == run.trained_with
    for nonsense in ({"device": "abacus"}, {"precision": 7}, {"graph": "yes"}):
        rewritten(run, lambda description, part=nonsense: description["trained_with"].update(part))
        with pytest.raises(SinfusionError, match="damaged"):
            load(run.path)
        run.save()


def test_a_folder_that_is_no_run_says_how_to_make_one(tmp_path):
    with pytest.raises(SinfusionError, match=r"no run.json.*sinfusion train"):
        load(tmp_path)
    with pytest.raises(SinfusionError, match="does not exist"):
        load(tmp_path / "nothing")
