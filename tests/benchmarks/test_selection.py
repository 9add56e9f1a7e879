"""`pytest benchmarks`: what it collects by default and with --full; `pytest` alone collects none of it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def collected(*words):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *words]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "::" in line]


@pytest.fixture(scope="module")
def default():
    return collected("benchmarks", "--device", "cpu")


def test_the_folder_is_enough(default):
    files = {line.split("::")[0] for line in default}
    assert files == {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("bench_*.py")} and len(files) == 4


def test_full_adds_what_takes_long(default):
    full = collected("benchmarks", "--device", "cpu", "--full")
    assert set(default) < set(full)
    assert {"test_operator[sample_crops-4]", "test_released_training_in_lightning"} <= {
        line.split("::")[1] for line in set(full) - set(default)
    }


def test_the_tests_are_no_benchmarks(request):
    assert request.config.getini("testpaths") == ["tests"]
