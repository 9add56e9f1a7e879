"""What tests of operators share: forced instruction sets, and the device's code built for the host."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DIGESTED = (
    "test_adam_ema.py", "test_ddpm_step.py", "test_patch_match.py", "test_philox.py", "test_sample_crops.py",
    "test_vote.py",
)  # fmt: skip
TYPES = {
    "p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32, "u": ctypes.c_uint64, "w": ctypes.c_uint32,
    "b": ctypes.c_bool, "f": ctypes.c_float,
}  # fmt: skip


class HostLibrary:
    """Stands in for the CPU library."""

    loaded = True

    def __init__(self, file: Path, function: str, arguments: str):
        self.function = getattr(ctypes.CDLL(str(file)), function)
        self.function.argtypes, self.function.restype = [TYPES[letter] for letter in arguments], None

    def call(self, _: str, *arguments: object) -> None:
        self.function(*(value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments))


@pytest.fixture(scope="session")
def device_code(tmp_path_factory):
    """device_code("vote", arguments): tests/cpp/vote_host.cpp, called with arguments of these TYPES.

    device_code("normal", arguments, "philox"): a function of tests/cpp/philox_host.cpp.
    """
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler, and there is no c++")
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs csrc/, and the package is tested without its sources")

    def build(function: str, arguments: str, page: str = "") -> HostLibrary:
        file = tmp_path_factory.mktemp("host") / f"{function}.so"
        source = ROOT / "tests" / "cpp" / f"{page or function}_host.cpp"
        options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, str(source), "-o", str(file)], check=True)
        return HostLibrary(file, function, arguments)

    return build


@pytest.fixture(scope="session")
def digest_when_forced():
    """digest_when_forced(isa, file): what digest() in a file of DIGESTED gives with an instruction set forced."""

    @functools.cache  # importing torch takes longer than all the digests
    def run(isa: str) -> dict[str, str]:
        code = (
            "import importlib.util, sys\n"
            "from sinfusion.ops._native import cpu\n"
            "for file in sys.argv[1:]:\n"
            "    spec = importlib.util.spec_from_file_location('digested', file)\n"
            "    module = importlib.util.module_from_spec(spec)\n"
            "    spec.loader.exec_module(module)\n"
            "    print(module.digest())\n"
            "print(cpu.isa())\n"
        )
        files = [str(Path(__file__).with_name(name)) for name in DIGESTED]
        environment = {**os.environ, "SINFUSION_ISA": isa}
        result = subprocess.run(
            [sys.executable, "-c", code, *files], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        *digests, used = result.stdout.split()
        order = ["plain", "avx2", "avx512"]
        assert order.index(used) <= order.index(isa)
        return dict(zip(DIGESTED, digests, strict=True))

    return lambda isa, file: run(isa)[Path(file).name]
