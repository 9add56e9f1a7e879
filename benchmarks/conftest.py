"""What every benchmark needs: options, the device, a scale, runs, the authors' code; and the summary of ratios.

pytest benchmarks                     # the comparisons that matter, in at most five minutes on two cores
pytest benchmarks --full              # all of them
pytest benchmarks --released PATH     # the authors' code, too
"""

from __future__ import annotations

import importlib
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import clock
import floors
import load
import pytest
import torch
from machine import describe, machine
from rows import rows
from runs import new_run

from sinfusion import ops
from sinfusion.media import read_media
from sinfusion.precision import choose_device
from sinfusion.scene import render
from sinfusion.training.trainer import Trainer

PATHS = {
    "--released": "checkout of the authors' sinfusion-code to compare with",
    "--released-vgpnn": "checkout of the authors' single_video_generation",
    "--released-nnfdiv": "checkout of the authors' nnf_diversity",
    "--clip": "video or folder of frames to measure on",
}
RESULTS = pytest.StashKey[list[tuple[str, dict]]]()
SHARES = pytest.StashKey[list[float]]()  # of the cores, before and after each benchmark
LOAD = pytest.StashKey[float | None]()  # at the start


def pytest_addoption(parser):
    for option, what in PATHS.items():
        parser.addoption(option, type=Path, default=None, help=what)
    parser.addoption("--device", default="auto", help="auto, cpu or cuda: where to measure")
    parser.addoption("--quick", action="store_true", help="small images and networks, few rounds: a rehearsal")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.option.benchmark_quiet = True  # its table shows how long a whole benchmark takes
    config.stash[RESULTS], config.stash[SHARES], config.stash[LOAD] = [], [], load.load_average()


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


class Scale(NamedTuple):
    """How large everything is; small in a rehearsal."""

    quick: bool

    @property
    def frame(self):
        """Height and width of frames."""
        return (20, 32) if self.quick else (144, 256)

    @property
    def crop(self):
        """Of the crops that `paper` and `fast` train on: 136x243."""
        return tuple(int(0.95 * side) for side in self.frame)

    @property
    def network(self):
        """The released Predictor's."""
        return floors.Network(6, 8, 4) if self.quick else floors.Network(6)

    @property
    def tiny(self):
        """Frames and network of `tiny`."""
        return ((20, 32), floors.Network(6, 8, 4, 1)) if self.quick else ((36, 64), floors.Network(6, 32, 12, 1))

    @property
    def rounds(self):
        return 1 if self.quick else 9


@pytest.fixture(scope="session")
def scale(request):
    return Scale(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def device(request):
    return choose_device(request.config.getoption("--device"))


@pytest.fixture
def cpu_only(device):
    if device.type != "cpu":
        pytest.skip("measures the CPU: pass --device cpu")


@pytest.fixture
def not_for_hours(device, scale):
    if device.type == "cpu" and not scale.quick:
        pytest.skip("takes a CPU hours: pass --quick for small images and networks")


@pytest.fixture(scope="session")
def limits(device, scale):
    return clock.measured_limits(device, scale.quick)


@pytest.fixture
def measure(benchmark, device, scale, limits):
    """measure(functions, works, ...): seconds of each function, medians of rounds in turns, which become the result.

    works: what is least to be done, for the floor; rounds: 9, or fewer; other arguments become part of the result.
    """

    def measured(functions, works=(), rounds=9, capture=True, **facts):
        rounds = min(rounds, scale.rounds)
        seconds = benchmark.pedantic(clock.medians, (functions, device, rounds), {"capture": capture})
        floor = floors.total_seconds(works, limits)
        benchmark.extra_info.update(seconds=seconds, floor_seconds=floor, limits=limits._asdict(), **facts)
        return seconds

    return measured


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
def released(request):
    """The authors' NextNet class; None without --released."""
    if request.config.getoption("--released") is None:
        return None
    request.getfixturevalue("checkout")
    return importlib.import_module("models.nextnet").NextNet


@pytest.fixture
def untrained(request, tmp_path, device, scale):
    """untrained(recipe, roles, ...): a run on --clip, or on a rendered scene, with weights as they begin."""
    path = request.config.getoption("--clip")

    def make(recipe, roles, graph=True, size=scale.frame, network=scale.network):
        frames = render(12, size) if path is None else read_media(path, size=size, log=lambda _: None).frames
        recipe = recipe.replace(filters=network.filters, depth=network.depth, dense_kernel=network.kernel)
        run = new_run(frames, tmp_path / f"{recipe.name}-{graph}", recipe, roles).to(str(device), graph=graph)
        for role in roles:
            Trainer(run, role, 1).save()
        return run

    return make


@pytest.fixture(autouse=True)
def _native_code_is_forced(benchmark):
    """A benchmark of the reference would pass for one of the kernels."""
    with ops.backend("native"):
        benchmark.extra_info["backend"] = "native"
        yield


@pytest.fixture(autouse=True)
def _load_is_probed(request, scale):
    """Before and after each benchmark."""
    shares, threads = request.config.stash[SHARES], torch.get_num_threads()
    seconds = 0.01 if scale.quick else load.PROBE_SECONDS
    shares.append(load.cores_share(threads, seconds))
    yield
    shares.append(load.cores_share(threads, seconds))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.passed:
        item.config.stash[RESULTS].append((item.function.__name__, dict(item.funcargs["benchmark"].extra_info)))
    return report


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_kept():
    """As a run does; it serves everything that is compared."""
    ops.keep_memory()


def pytest_terminal_summary(terminalreporter, config):
    """The machine, every ratio, what was not measured, and whether other work was in the way."""
    if not config.stash[RESULTS]:
        return
    terminalreporter.section("ratios")
    terminalreporter.write_line(describe(machine(choose_device(config.getoption("--device")))))
    for what, figure in rows(config.stash[RESULTS]):
        terminalreporter.write_line(f"{what}:\n    {figure}")
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])]
    for reason in dict.fromkeys(reasons):
        terminalreporter.write_line(f"not measured, {reasons.count(reason)}: {reason}")
    if config.getoption("--quick"):
        terminalreporter.write_line("A rehearsal (--quick): these figures prove nothing.")
    terminalreporter.write_line(load.sentence(config.stash[SHARES], torch.get_num_threads(), config.stash[LOAD]))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(machine(choose_device(config.getoption("--device"))))


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Results say what was measured and how to measure it again; the time of a whole benchmark says nothing."""
    given = [f"{option} PATH" for option in PATHS if config.getoption(option)]
    given += [f"--device {device}" for device in [config.getoption("--device")] if device != "auto"]
    given += [option for option in ("--full", "--quick") if config.getoption(option)]
    given += [f"-k '{config.getoption('keyword')}'"] * bool(config.getoption("keyword"))
    output_json["options"] = " ".join(given)
    output_json["cores_share"] = statistics.median(config.stash[SHARES])
    for key in ("commit_info", "datetime", "version"):
        output_json.pop(key, None)
    for entry in output_json["benchmarks"]:
        for key in set(entry) - {"name", "fullname", "extra_info"}:
            del entry[key]
