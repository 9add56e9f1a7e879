"""What tests of operators share: forced instruction sets, and the device's code built for the host."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from sinfusion.ops import native

ROOT = Path(__file__).parents[2]
TYPES = {
    "int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "uint64_t": ctypes.c_uint64, "uint32_t": ctypes.c_uint32,
    "bool": ctypes.c_bool, "float": ctypes.c_float,
}  # fmt: skip


def parameters(source: Path, function: str) -> dict[str, type]:
    """Names and types of what an extern "C" function of a C++ source takes."""
    declared = re.search(rf'extern "C" void {function}\((.*?)\) {{', source.read_text(), re.DOTALL).group(1)
    pairs = (re.fullmatch(r"(.*?)(\w+)", one.strip(), re.DOTALL).groups() for one in declared.split(","))
    return {name: ctypes.c_void_p if "*" in kind else TYPES[kind.split()[-1]] for kind, name in pairs}


class HostLibrary:
    """Stands in for the CPU library: functions of a file in tests/cpp, whose parameters are named as the fields."""

    loaded = True

    def __init__(self, file: Path, source: Path):
        self.library, self.source = ctypes.CDLL(str(file)), source

    def call(self, name: str, **fields: object) -> None:
        names = parameters(self.source, name)
        given: dict[str, object] = {}
        for field, value in fields.items():
            if isinstance(value, list | tuple):  # sizes
                stem = field.removesuffix("_size")
                given.update(zip((f"{stem}_frames", f"{stem}_height", f"{stem}_width"), value, strict=True))
            else:
                given[field] = value.data_ptr() if isinstance(value, torch.Tensor) else value
        assert given.keys() == names.keys()
        function = getattr(self.library, name)
        function.argtypes, function.restype = list(names.values()), None
        function(*(given[name] for name in names))


@pytest.fixture(scope="session")
def device_code(tmp_path_factory):
    """device_code("vote"): the functions of tests/cpp/vote_host.cpp."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler, and there is no c++")
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs csrc/, and the package is tested without its sources")

    @functools.cache
    def build(page: str) -> HostLibrary:
        file = tmp_path_factory.mktemp("host") / f"{page}.so"
        source = ROOT / "tests" / "cpp" / f"{page}_host.cpp"
        options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, str(source), "-o", str(file)], check=True)
        return HostLibrary(file, source)

    return build


@pytest.fixture
def use_device_code(device_code, monkeypatch):
    """use_device_code("vote") puts that in place of the CPU library until the test ends."""
    return lambda page: monkeypatch.setattr(native, "cpu", device_code(page))


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def at_once():
    """at_once(work): runs work(0), work(1) and work(2) in threads, and waits for them."""

    def run(work):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run
