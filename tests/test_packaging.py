"""What is installed, and that the clone uses native code as the install does."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sinfusion
from sinfusion import ops

ROOT = Path(__file__).parent.parent


def test_native_code_is_loaded_here():
    from sinfusion.ops.native import cpu

    assert cpu.loaded, cpu.why_not


def test_running_inside_the_clone_uses_native_code():
    result = subprocess.run(
        [sys.executable, "-m", "sinfusion", "info"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = next(line for line in result.stdout.splitlines() if line.startswith("C++"))
    assert line.split()[-1] == "kernels" and "is not there" not in line
    assert len(result.stdout.splitlines()) <= 10


def test_kernels_are_a_subpackage_and_import_no_triton():
    code = "import sys, sinfusion.kernels; assert 'triton' not in sys.modules; assert 'kernels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_import_is_instant_and_brings_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, sinfusion; assert 'torch' not in sys.modules"], check=True)


def test_public_names_resolve():
    for name in sinfusion.__all__:
        assert callable(getattr(sinfusion, name))
    with pytest.raises(AttributeError, match="no attribute"):
        sinfusion.nonsense  # noqa: B018


def test_version_has_a_changelog_entry():
    assert f"## {sinfusion.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc, which is Linux's")
def test_the_library_loads_without_an_openmp_runtime():
    code = (
        "import sys, types\n"
        "torch = sys.modules['torch'] = types.ModuleType('torch')\n"
        "torch.Tensor, torch.device, torch.get_num_threads = object, object, lambda: 1\n"
        "sys.modules['sinfusion.ops'] = ops = types.ModuleType('sinfusion.ops')\n"
        f"ops.__path__ = [{str(Path(ops.__file__).parent)!r}]\n"
        "from sinfusion.ops.native import cpu, openmp_runtimes\n"
        "print(cpu.why_not or 'loaded', *openmp_runtimes())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "loaded"


def test_a_missing_library_is_explained_and_the_reference_serves():
    code = (
        "import sys; sys.modules['sinfusion._cpu'] = None\n"
        "import torch\n"
        "from sinfusion import ops\n"
        "ops.depthwise_norm(torch.ones(1, 4, 5, 5), torch.ones(4, 1, 7, 7), torch.ones(4))\n"
        "print(ops.status()['cpu'])\n"
        "from sinfusion.ops.native import cpu\n"
        "try: cpu.isa()\n"
        "except Exception as e: print(type(e).__name__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install" in result.stdout and "SinfusionError" in result.stdout


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="there is no aarch64-linux-gnu-g++")
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs csrc/, and the package is tested without its sources")
def test_the_cpu_kernels_compile_for_arm_without_a_warning(tmp_path):
    others = ("bindings.cpp", "dense_bf16.cpp")  # the latter for x86 alone
    sources = sorted(file for file in (ROOT / "csrc" / "cpu").glob("*.cpp") if file.name not in others)
    options = "-std=c++17 -O1 -fPIC -shared -pthread -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas"
    options += " -DSINFUSION_ISA_NAMESPACE=plain -DSINFUSION_LANES=4 -Wl,--no-undefined"
    command = ["aarch64-linux-gnu-g++", *options.split(), *sources, "-o", tmp_path / "kernels.so"]
    subprocess.run(command, check=True)


@pytest.mark.skipif(importlib.util.find_spec("sinfusion._cuda") is None, reason="built without nvcc")
def test_the_cuda_library_loads_without_a_gpu():
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", "import torch, sinfusion._cuda"], env=env, check=True)


def test_bf16_choice_follows_the_hardware():
    from sinfusion.precision import choose_dtype

    expected = torch.bfloat16 if ops.cpu_has_bf16() else torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == expected
