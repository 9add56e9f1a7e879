"""Checkpoints of the released code: read without running anything, and the same numbers come out."""

import math
import os
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sinfusion
from sinfusion.diffusion.schedule import cosine_schedule, linear_schedule
from sinfusion.errors import SinfusionError
from sinfusion.released import import_released, read_checkpoint
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, ROLES
from sinfusion.run import load

FILTERS, DEPTH = 8, 5


def released_weights(channels, frame_encoder=False, filters=FILTERS, depth=DEPTH, seed=0):
    """Random weights under the names and with the shapes of the released code."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def layer(name, *shape):
        fan_in = math.prod(shape[1:])
        weights[f"model.{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        weights[f"model.{name}.bias"] = torch.randn(shape[0], generator=generator) / 5

    for encoder in ["time_encoder"] + ["frame_encoder"] * frame_encoder:
        layer(f"{encoder}.1", 4 * filters, filters)
        layer(f"{encoder}.3", filters, 4 * filters)
    for i in range(depth):
        width = channels if i == 0 else filters if i < math.ceil(depth / 2) else 2 * filters
        layer(f"layers.{i}.ds_conv", width, 1, 7, 7)
        layer(f"layers.{i}.mlp.1", width, filters * (1 + frame_encoder))
        layer(f"layers.{i}.net.1", 3 * filters, width, 3, 3)
        layer(f"layers.{i}.net.3", filters, 3 * filters, 3, 3)
        if i > 0:
            weights[f"model.layers.{i}.net.0.g"] = 1 + torch.randn((1, width, 1, 1), generator=generator) / 5
            weights[f"model.layers.{i}.net.0.b"] = torch.randn((1, width, 1, 1), generator=generator) / 5
        if width != filters:
            layer(f"layers.{i}.res_conv", filters, width, 1, 1)
    layer("final_conv", 3, filters, 1, 1)
    return weights


def released_forward(weights, x, time, frame_offset=None):
    """The released network as it is described, with plain PyTorch operators."""

    def get(name):
        return weights[f"model.{name}.weight"], weights[f"model.{name}.bias"]

    def encode(value, encoder):
        half = weights["model.time_encoder.1.weight"].shape[1] // 2
        angle = value[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        waves = torch.cat((angle.sin(), angle.cos()), 1)
        return F.linear(F.gelu(F.linear(waves, *get(f"{encoder}.1"))), *get(f"{encoder}.3"))

    def block(x, i):
        h = F.conv2d(x, *get(f"layers.{i}.ds_conv"), padding=3, groups=x.shape[1])
        h = h + F.linear(F.gelu(embedding), *get(f"layers.{i}.mlp.1"))[:, :, None, None]
        if i > 0:
            mean = h.mean(1, keepdim=True)
            variance = (h - mean).square().mean(1, keepdim=True)
            gain, offset = (weights[f"model.layers.{i}.net.0.{name}"] for name in "gb")
            h = (h - mean) / (variance + 1e-5).sqrt() * gain + offset
        h = F.conv2d(h, *get(f"layers.{i}.net.1"), padding=1)
        h = F.conv2d(F.gelu(h), *get(f"layers.{i}.net.3"), padding=1)
        wider = f"model.layers.{i}.res_conv.weight" in weights
        return h + (F.conv2d(x, *get(f"layers.{i}.res_conv")) if wider else x)

    embedding = encode(time, "time_encoder")
    if frame_offset is not None:
        embedding = torch.cat((embedding, encode(frame_offset.float(), "frame_encoder")), 1)
    depth = sum(name.endswith("ds_conv.weight") for name in weights)
    first = math.ceil(depth / 2)
    skips = []
    for i in range(depth):
        x = block(x if i < first else torch.cat((x, skips.pop()), 1), i)
        if i < first:
            skips.append(x)
    return F.conv2d(x, *get("final_conv"))


class Foreign:
    """Stands for an object of a library that the reader does not have."""

    def __init__(self):
        self.inner = {"numbers": [1, 2], "set": {3}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name, weights): a Lightning checkpoint, with the odds and ends of one."""

    def make(name, weights, schedule=None, **more):
        module = types.ModuleType("a_library_that_is_gone")
        Foreign.__module__, module.Foreign = module.__name__, Foreign
        monkeypatch.setitem(sys.modules, module.__name__, module)
        buffers = {} if schedule is None else {"betas": torch.tensor(schedule.betas, dtype=torch.float32)}
        content = {
            "epoch": 3, "global_step": 1234, "pytorch-lightning_version": "1.6.1", "state_dict": {**weights, **buffers},
            "callbacks": {Foreign: Foreign()}, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
            "hyper_parameters": Foreign(), **more,
        }  # fmt: skip
        torch.save(content, tmp_path / name)
        monkeypatch.delitem(sys.modules, module.__name__)
        return tmp_path / name

    return make


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_an_imported_network_computes_what_the_released_one_does(write, clip, tmp_path, role):
    weights = released_weights(role.in_channels, role.frame_offset)
    path = write("model.ckpt", weights, cosine_schedule(50))
    run = import_released(path, tmp_path / "run", clip[0] if role is IMAGE else clip)
    network = run.to("cpu", "fp32").denoiser(role).network
    torch.manual_seed(0)
    x, time = torch.randn(2, role.in_channels, 19, 23), torch.tensor([0.37, 21.0])
    offset = torch.tensor([-1, 3]) if role.frame_offset else None
    with torch.no_grad():
        assert relative_error(network(x, time, offset), released_forward(weights, x, time, offset)) < 1e-5
    assert run.models[role.name]["steps"] == 1234


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
@pytest.mark.parametrize("timestep", [1, 20, 50])
def test_an_imported_model_denoises_by_the_released_equations(write, clip, tmp_path, role, timestep):
    weights = released_weights(role.in_channels, role.frame_offset)
    path = write("model.ckpt", weights, cosine_schedule(50))
    run = import_released(path, tmp_path / "run", clip[0] if role is IMAGE else clip).to("cpu", "fp32")
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 9, 10)
    condition = torch.randn(2, 3 * role.conditions, 9, 10) if role.conditions else None
    offset = torch.tensor([-1, 2]) if role.frame_offset else None
    abar = cosine_schedule(50).alphas_cumprod[timestep]
    x_t = abar**0.5 * clean + (1 - abar) ** 0.5 * noise
    told = abar**0.5 if role.conditions else timestep - 1  # the level itself, or the timestep counted from 0
    inputs = x_t if condition is None else torch.cat((condition, x_t), 1)
    output = released_forward(weights, inputs, torch.full((2,), float(told)), offset)
    predicts_noise = role in (PREDICTOR, PROJECTOR)
    expected = (x_t - (1 - abar) ** 0.5 * output) / abar**0.5 if predicts_noise else output
    sigma = torch.full((2,), ((1 - abar) / abar) ** 0.5)
    with torch.no_grad():
        outputs = run.denoiser(role)(x_t / abar**0.5, sigma, condition, offset)
    assert relative_error(outputs, expected) < 1e-4  # sigma in fp32 tells the timestep to five digits


def test_models_join_one_run_and_make_a_video(write, clip, tmp_path):
    schedule = linear_schedule(20)
    import_released(write("a.ckpt", released_weights(6, True), schedule), tmp_path / "run", clip)
    run = import_released(write("b.ckpt", released_weights(3), schedule), tmp_path / "run")
    assert set(run.models) == {"predictor", "projector"} and run.recipe.schedule == "linear"
    assert (run.recipe.timesteps, run.recipe.filters, run.recipe.depth) == (20, FILTERS, DEPTH)
    assert sinfusion.generate(load(run.path), frames=2, steps=2).shape == (1, 2, 16, 24, 3)


def test_networks_are_recognised_by_their_inputs(write, clip, tmp_path):
    for i, (channels, encoder, frames, name) in enumerate(
        [(3, False, clip[0], "image"), (3, False, clip, "projector"), (9, False, clip, "interpolator")]
    ):
        run = import_released(write("x.ckpt", released_weights(channels, encoder)), tmp_path / str(i), frames)
        assert list(run.models) == [name]


class Bomb:
    """Leaves a folder behind if it is ever unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickle_bomb_is_not_executed(write, clip, tmp_path):
    target = tmp_path / "executed"
    path = write("bomb.ckpt", released_weights(6, True), hyper_parameters=Bomb(target), loops=[Bomb(target)])
    import_released(path, tmp_path / "run", clip)
    assert not target.exists()
    torch.save(Bomb(target), tmp_path / "bare.ckpt")
    with pytest.raises(SinfusionError):
        import_released(tmp_path / "bare.ckpt", tmp_path / "other", clip)
    assert not target.exists()
    torch.load(tmp_path / "bare.ckpt", weights_only=False)
    assert target.exists(), "the bomb does not work, so this test shows nothing"


def test_damaged_checkpoints_are_refused(write, clip, tmp_path):
    whole = write("model.ckpt", released_weights(6, True)).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.ckpt"
    for n in range(60):
        data = bytearray(whole)
        if n % 2:
            del data[int(rng.integers(len(data))) :]
        else:
            at = int(rng.integers(len(data) - 32))
            data[at : at + 32] = rng.bytes(32)
        path.write_bytes(data)
        try:
            import_released(path, tmp_path / f"run{n}", clip)
        except SinfusionError:
            assert not (tmp_path / f"run{n}").exists()


def replaced(weights, name, value):
    return {**weights, name: value}


GOOD = released_weights(6, True)


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        ({}, {}, "does not hold a network"),
        ({k: v for k, v in GOOD.items() if "layers.1.ds_conv" not in k}, {}, "another shape"),
        (replaced(GOOD, "model.extra.weight", torch.zeros(2)), {}, "does not hold a network"),
        (replaced(GOOD, "model.final_conv.bias", torch.tensor([1.0, math.nan, 1.0])), {}, "not finite"),
        (released_weights(12), {}, "12 input channels"),
        (released_weights(6), {}, "no frame encoder"),
        (GOOD, {"role": "projector"}, "6 input channels"),
        (GOOD, {"role": "dreamer"}, "role must be one of"),
        (released_weights(3), {"role": "image"}, "belongs to an image"),
        (GOOD, {"frames": None}, "needs the video or image"),
    ],
)
def test_what_is_no_released_model_is_refused_and_nothing_written(write, clip, tmp_path, weights, arguments, message):
    with pytest.raises(SinfusionError, match=message):
        import_released(write("x.ckpt", weights), tmp_path / "run", **{"frames": clip, **arguments})
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(SinfusionError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(SinfusionError, match="not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "text.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(SinfusionError, match="not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "zip.ckpt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(SinfusionError, match="no state_dict"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_schedule_that_is_neither_cosine_nor_linear_is_refused(write, clip, tmp_path):
    schedule = type(cosine_schedule())(np.linspace(1, 0.01, 51))
    with pytest.raises(SinfusionError, match="neither cosine nor linear"):
        import_released(write("x.ckpt", GOOD, schedule), tmp_path / "run", clip)


@pytest.mark.parametrize(
    ("weights", "schedule", "frames", "message"),
    [
        (GOOD, None, None, "has a predictor already"),
        (released_weights(3, depth=4), None, None, "has depth 4"),
        (released_weights(3), cosine_schedule(20), None, "has timesteps 20"),
        (released_weights(3), None, np.zeros((4, 16, 24, 3), np.uint8), "has other frames than these"),
    ],
)
def test_a_model_that_does_not_fit_the_run_is_refused_and_the_run_kept(
    write, clip, tmp_path, weights, schedule, frames, message
):
    run = import_released(write("first.ckpt", GOOD), tmp_path / "run", clip)
    with pytest.raises(SinfusionError, match=message):
        import_released(write("second.ckpt", weights, schedule), tmp_path / "run", frames)
    assert load(tmp_path / "run").models == run.models


def test_interpolated_frames_come_from_an_imported_interpolator(write, clip, tmp_path):
    run = import_released(write("x.ckpt", released_weights(INTERPOLATOR.in_channels)), tmp_path / "run", clip)
    outputs = sinfusion.upsample(run, 2, clip[:3], steps=2)
    assert np.array_equal(outputs[::2], clip[:3])


def test_an_imported_run_can_be_given_another_task_but_not_trained_further(write, clip, tmp_path):
    run = import_released(write("model.ckpt", released_weights(6, True)), tmp_path / "run", clip)
    with pytest.raises(SinfusionError, match=r"the predictor of .* was imported and cannot be trained further"):
        sinfusion.train(run, steps=2)
    run = sinfusion.train(run, steps=2, tasks="upsample", quiet=True)
    assert list(run.models) == ["predictor", "interpolator"] and run.has(INTERPOLATOR)
