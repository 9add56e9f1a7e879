"""What every benchmark needs: the device and its facts, a size, the released code, no reference runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from clock import measured_limits
from floors import Network
from machine import machine

from sinfusion import ops
from sinfusion.media import Clip, read_media
from sinfusion.precision import choose_device
from sinfusion.scene import render
from sinfusion.trainer import Trainer
from sinfusion.training import _new_run


def pytest_addoption(parser):
    parser.addoption(
        "--released", type=Path, default=None, help="checkout of the authors' sinfusion-code to compare with"
    )
    for option, checkout in (("vgpnn", "single_video_generation"), ("nnfdiv", "nnf_diversity")):
        parser.addoption(f"--released-{option}", type=Path, default=None, help=f"checkout of the authors' {checkout}")
    parser.addoption("--clip", type=Path, default=None, help="video or folder of frames to measure on")
    parser.addoption("--device", default="auto", help="auto, cpu or cuda: where to measure")
    parser.addoption("--quick", action="store_true", help="small pictures and networks, few rounds: a rehearsal")


@pytest.fixture(scope="session")
def device(request):
    return choose_device(request.config.getoption("--device"))


@pytest.fixture
def cpu_only(device):
    if device.type != "cpu":
        pytest.skip("measures the CPU: pass --device cpu")


@pytest.fixture(scope="session")
def quick(request):
    return request.config.getoption("--quick")


@pytest.fixture
def not_for_hours(device, quick):
    if device.type == "cpu" and not quick:
        pytest.skip("takes a CPU hours: pass --quick for small pictures and networks")


@pytest.fixture(scope="session")
def frame_size(quick):
    """Height and width of frames."""
    return (20, 32) if quick else (144, 256)


@pytest.fixture(scope="session")
def crop_size(frame_size):
    """Of the crops that `paper` and `fast` train on: 136x243."""
    return tuple(int(0.95 * side) for side in frame_size)


@pytest.fixture(scope="session")
def network(quick):
    """The Predictor's, which in a rehearsal is small."""
    return Network(6, 8, 4) if quick else Network(6)


@pytest.fixture(scope="session")
def rounds(quick):
    return 1 if quick else 9


@pytest.fixture(scope="session")
def limits(device, quick):
    return measured_limits(device, quick)


@pytest.fixture
def checkout(request):
    """The folder given as --released, first on the path (its code needs einops)."""
    path = request.config.getoption("--released")
    if path is None:
        pytest.skip("compares with the released code: pass --released PATH to a checkout of it")
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))


@pytest.fixture
def released(checkout):
    """The authors' NextNet class."""
    return importlib.import_module("models.nextnet").NextNet


@pytest.fixture
def untrained(request, tmp_path, device, frame_size, network, quick):
    """untrained(recipe, roles, graph=True): a run on --clip, or on a rendered scene, with weights as they begin."""
    path = request.config.getoption("--clip")
    frames = render(12, frame_size) if path is None else read_media(path, size=frame_size, say=lambda _: None).frames
    clip = Clip(frames, 20.0, "video", frame_size)

    def make(recipe, roles, graph=True):
        recipe = recipe.replace(filters=network.filters, depth=network.depth)
        run = _new_run("clip", clip, tmp_path / f"{recipe.name}-{graph}", recipe, roles, None, 0, True, 0)
        run = run.to(str(device), graph=graph)
        for role in roles:
            Trainer(run, role, 1).save()
        return run

    return make


@pytest.fixture(autouse=True)
def _native_or_nothing():
    """A benchmark of the reference would pass for one of the kernels."""
    with ops.backend("native"):
        yield


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(machine())
