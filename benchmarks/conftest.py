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
from sinfusion.ops.dispatch import chosen_backend
from sinfusion.precision import choose_device
from sinfusion.scene import render
from sinfusion.training.run_setup import plan_run
from sinfusion.training.trainer import Trainer

PATHS = {
    "--released": "checkout of the authors' sinfusion-code to compare with",
    "--released-vgpnn": "checkout of the authors' single_video_generation",
    "--released-nnfdiv": "checkout of the authors' nnf_diversity",
    "--clip": "video or folder of frames to measure on",
}


def pytest_addoption(parser):
    for option, what in PATHS.items():
        parser.addoption(option, type=Path, default=None, help=what)
    parser.addoption("--device", default="auto", help="auto, cpu or cuda: where to measure")
    parser.addoption("--quick", action="store_true", help="small images and networks, few rounds: a rehearsal")


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
        pytest.skip("takes a CPU hours: pass --quick for small images and networks")


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
def untrained(request, tmp_path, device, frame_size, network):
    """untrained(recipe, roles, ...): a run on --clip, or on a rendered scene, with weights as they begin."""
    path = request.config.getoption("--clip")

    def make(recipe, roles, graph=True, size=frame_size, network=network):
        frames = render(12, size) if path is None else read_media(path, size=size, log=lambda _: None).frames
        clip = Clip(frames, 20.0, "video", size)
        recipe = recipe.replace(filters=network.filters, depth=network.depth, dense_kernel=network.kernel)
        run = plan_run(tmp_path / f"{recipe.name}-{graph}", clip, recipe, roles)
        run.save(anew=True)
        run = run.to(str(device), graph=graph)
        for role in roles:
            Trainer(run, role, 1).save()
        return run

    return make


@pytest.fixture(autouse=True)
def _native_or_nothing(benchmark):
    """A benchmark of the reference would pass for one of the kernels."""
    with ops.backend("native"):
        benchmark.extra_info["backend"] = chosen_backend()
        yield


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_kept():
    """As a run does; it serves everything that is compared."""
    ops.keep_memory()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(machine(choose_device(config.getoption("--device"))))


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Results say what was measured and how to measure it again; the time of a whole benchmark says nothing."""
    given = [f"{option} PATH" for option in PATHS if config.getoption(option)]
    given += [f"--device {device}" for device in [config.getoption("--device")] if device != "auto"]
    output_json["options"] = " ".join([*given, *["--quick"] * config.getoption("--quick")])
    for entry in output_json["benchmarks"]:
        for key in set(entry) - {"name", "fullname", "extra_info"}:
            del entry[key]
