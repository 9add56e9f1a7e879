"""What every benchmark needs: the machine's facts, a checkout of the released code, no reference runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from machine import machine

from sinfusion import ops


def pytest_addoption(parser):
    parser.addoption(
        "--released", type=Path, default=None, help="checkout of the authors' sinfusion-code to compare with"
    )
    for option, checkout in (("vgpnn", "single_video_generation"), ("nnfdiv", "nnf_diversity")):
        parser.addoption(f"--released-{option}", type=Path, default=None, help=f"checkout of the authors' {checkout}")
    parser.addoption("--clip", type=Path, default=None, help="video or folder of frames to measure on")


@pytest.fixture
def released(request):
    """The authors' NextNet class, from --released PATH (needs einops)."""
    path = request.config.getoption("--released")
    if path is None:
        pytest.skip("compares with the released code: pass --released PATH to a checkout of it")
    sys.path.insert(0, str(path))
    try:
        return importlib.import_module("models.nextnet").NextNet
    finally:
        sys.path.remove(str(path))


@pytest.fixture(autouse=True)
def _native_or_nothing():
    """A benchmark of the reference would pass for one of the kernels."""
    with ops.backend("native"):
        yield


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(machine())
