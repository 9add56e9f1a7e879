"""How fast everything moves, how bright it is, and both in a few steps."""

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sinfusion.errors import SinfusionError
from sinfusion.patches import dynamics

# Motion --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 40), (17, 61), (64, 48)])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_speed_of_a_moving_texture_is_found(texture, step, size):
    speed = dynamics.motion(texture(5, size, step))
    assert speed.shape == (5, *size) and speed.dtype == np.float32
    assert (np.abs(speed - step) < 0.3).mean() > 0.95


def test_speed_is_of_each_place_and_each_time(texture):
    frames = texture(6, (32, 48), 2)
    frames[:, :, 24:] = frames[:1, :, 24:]
    frames[4:] = frames[3]
    speed = dynamics.motion(frames)
    assert np.median(speed[:3, :, 2:20]) == pytest.approx(2, abs=0.1) and np.median(speed[:3, :, 28:]) < 0.1
    assert speed[3:].max() < 0.1


def test_the_last_frame_moves_as_the_one_before(texture):
    speed = dynamics.motion(texture(4, (24, 40)))
    assert np.array_equal(speed[-1], speed[-2])


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (7, 60), (60, 7), (15, 300), (9, 3000), (12, 40)])
def test_sizes_that_opencv_refuses_or_dies_of_have_a_motion_too(texture, size):
    frames = texture(3, size) if min(size) > 1 else np.zeros((3, 1, 1, 3), np.uint8)
    speed = dynamics.motion(frames)
    assert speed.shape == (3, *size) and np.isfinite(speed).all()


def test_the_threads_of_opencv_are_as_many_as_before(texture):
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        dynamics.motion(texture(2, (16, 16)))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_one_frame_has_no_motion(texture):
    with pytest.raises(SinfusionError, match="at least 2 frames"):
        dynamics.motion(texture(1))


def test_without_opencv_the_error_says_how_to_install_it(texture, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SinfusionError, match=r"pip install opencv-python-headless, or give weights of RAFT"):
        dynamics.motion(texture(2))


# RAFT ----------------------------------------------------------------------------------------------------------------


class ShiftOfPadded(torch.nn.Module):
    """In the place of RAFT: checks what RAFT asks for, finds motion along a row by trying."""

    def __init__(self):
        super().__init__()
        self.unit = torch.nn.Parameter(torch.zeros(1))

    def forward(self, a, b):
        assert a.shape == b.shape and a.shape[:2] == (1, 3) and not self.training
        assert a.shape[2] % 8 == 0 and a.shape[3] % 8 == 0 and min(a.shape[2:]) >= 128
        assert -1 <= a.min() < a.max() <= 1
        middle = a[..., 2:10, 8:16]
        moved = min(range(4), key=lambda n: float((b[..., 2:10, 8 + n : 16 + n] - middle).abs().sum()))
        flow = torch.stack(
            (torch.full(a.shape[2:], float(moved)), torch.arange(a.shape[2])[:, None].expand(a.shape[2:]))
        )
        return [torch.full_like(flow, 99)[None], self.unit * flow[None]]


@pytest.fixture
def fake_raft(monkeypatch, tmp_path):
    """A torchvision with ShiftOfPadded as its raft_large; a file with weights for it."""
    home = types.ModuleType("torchvision.models.optical_flow")
    home.raft_large = lambda weights: ShiftOfPadded()
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, home.__name__, home)
    torch.save({"unit": torch.ones(1)}, tmp_path / "raft.pt")
    return tmp_path / "raft.pt"


@pytest.mark.parametrize("size", [(24, 40), (130, 140)])
def test_raft_gets_padded_frames_and_its_last_flow_is_cut_to_the_video(fake_raft, texture, size):
    speed = dynamics.motion(texture(4, size, 3), fake_raft)
    assert speed.shape == (4, *size) and speed.dtype == np.float32
    rows = np.broadcast_to(np.hypot(3, np.arange(size[0]))[:, None], size)
    np.testing.assert_allclose(speed, np.broadcast_to(rows, speed.shape), rtol=1e-6)


def test_raft_weights_that_are_missing_or_of_something_else_are_named(fake_raft, texture, tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name, said in (
        ("missing.pt", "cannot be read: No such file"),
        ("", "cannot be read: Is a directory"),
        ("other.pt", "does not hold the weights"),
        ("list.pt", "does not hold the weights"),
        ("text.pt", "does not hold the weights"),
    ):
        with pytest.raises(SinfusionError, match=f"{name} {said}"):
            dynamics.motion(texture(2), tmp_path / name)


def test_the_raft_of_torchvision_takes_its_own_weights_alone(texture, tmp_path):
    flow = pytest.importorskip("torchvision.models.optical_flow", exc_type=(ImportError, RuntimeError))
    torch.save(flow.raft_large(weights=None).state_dict(), tmp_path / "raft.pt")
    speed = dynamics.motion(texture(2, (24, 40)), tmp_path / "raft.pt")
    assert speed.shape == (2, 24, 40) and np.isfinite(speed).all()
    torch.save(flow.raft_small(weights=None).state_dict(), tmp_path / "small.pt")
    with pytest.raises(SinfusionError, match="does not hold the weights of torchvision's raft_large"):
        dynamics.motion(texture(2, (24, 40)), tmp_path / "small.pt")


def test_without_torchvision_the_error_says_how_to_install_it(texture, tmp_path, monkeypatch):
    for name in ("torchvision", "torchvision.models", "torchvision.models.optical_flow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SinfusionError, match="pip install torchvision"):
        dynamics.motion(texture(2), tmp_path / "raft.pt")


def test_a_torchvision_of_another_pytorch_is_as_good_as_none(texture, tmp_path, monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    for name in ("torchvision", "torchvision.models", "torchvision.models.optical_flow"):
        monkeypatch.setitem(sys.modules, name, Broken(name))
    with pytest.raises(SinfusionError, match="the torchvision of this PyTorch"):
        dynamics.motion(texture(2), tmp_path / "raft.pt")


# Brightness and steps ------------------------------------------------------------------------------------------------


def test_brightness_is_that_of_the_eye_from_0_to_1():
    colours = np.array([[(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)]], np.uint8)
    np.testing.assert_allclose(dynamics.brightness(colours[None]), [[[0, 1, 0.299, 0.587, 0.114]]], atol=1e-6)
    assert dynamics.brightness(colours[None]).dtype == np.float32


VALUES = arrays.arrays(np.float32, st.tuples(*[st.integers(1, 5)] * 3), elements=st.floats(0, 50, width=32))


@settings(deadline=None)
@given(VALUES, st.integers(1, 6))
def test_steps_are_few_from_0_to_1_and_as_ordered_as_the_values(values, steps):
    outputs = dynamics.quantise(values, steps)
    assert outputs.shape == values.shape and outputs.dtype == torch.float32
    assert outputs.min() >= 0 and outputs.max() <= 1 and len(outputs.unique()) <= steps
    assert (outputs.flatten()[np.argsort(values.ravel(), kind="stable")].diff() >= 0).all()


def test_values_in_clusters_get_a_step_each_evenly_spread_from_0_to_1():
    clusters = np.repeat(np.float32([0, 1, 2, 10, 40]), 20)
    noisy = clusters + np.random.default_rng(0).uniform(-0.1, 0.1, 100).astype(np.float32)
    outputs = dynamics.quantise(noisy.reshape(4, 5, 5), 5).flatten()
    assert torch.equal(outputs, torch.arange(5).repeat_interleave(20) / 4)


def test_clusters_of_unequal_sizes_get_a_step_each():
    clusters = np.repeat(np.float32([0, 8, 20]), [55, 25, 20])
    noisy = clusters + np.random.default_rng(0).uniform(-0.1, 0.1, 100).astype(np.float32)
    outputs = dynamics.quantise(noisy.reshape(4, 5, 5), 3).flatten()
    assert torch.equal(outputs, torch.tensor([0, 0.5, 1]).repeat_interleave(torch.tensor([55, 25, 20])))


@pytest.mark.parametrize("share", [1, 3, 40])
def test_something_small_before_an_even_background_has_a_step_of_its_own(share):
    values = np.zeros((1, 20, 20), np.float32)
    values.flat[:share] = 0.7
    assert torch.equal(dynamics.quantise(values, 5), torch.from_numpy(values > 0).float())


def test_a_video_twice_as_fast_has_the_same_steps():
    values = np.random.default_rng(0).gamma(1.0, size=(3, 8, 8)).astype(np.float32)
    assert torch.equal(dynamics.quantise(values, 5), dynamics.quantise(2 * values, 5))
    assert len(dynamics.quantise(values, 5).unique()) == 5


def test_what_is_the_same_everywhere_is_one_step():
    assert not dynamics.quantise(np.full((2, 3, 4), 7, np.float32), 5).any()


def test_of_many_values_a_sample_finds_the_steps():
    values = np.tile(np.float32([0, 1, 2, 10, 40]), 80_000).reshape(4, 1000, 100)
    assert dynamics.quantise(values, 5).unique().tolist() == [0, 0.25, 0.5, 0.75, 1]
