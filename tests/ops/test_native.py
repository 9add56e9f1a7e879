"""How native functions are called: addresses of tensors that live, on their device and its current stream."""

import contextlib
import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

from sinfusion.errors import SinfusionError
from sinfusion.ops import _native


class Recorder:
    """Stands in for a native module; its functions write down what they are called with."""

    def __init__(self, answer=0):
        self.calls, self.answer, self.watched = [], answer, []

    def __getattr__(self, function):
        def call(*arguments):
            alive = [reference() is not None for reference in self.watched]
            self.calls.append((function, arguments, alive, self.device() if "device" in self.__dict__ else None))
            return self.answer

        return call


@pytest.fixture
def library(monkeypatch):
    """A library whose module is a Recorder, in place of both."""
    fake = _native._Library("_cpu")
    fake._module = Recorder()
    for name in ("cpu", "cuda"):
        monkeypatch.setattr(_native, name, fake)
    return fake


class OnGpu:
    """A tensor as far as `run` looks at what it runs on."""

    device = torch.device("cuda", 3)


@pytest.fixture
def gpu(monkeypatch, library):
    """A GPU as far as `run` asks for it: the current device, and a current stream for each."""
    current = [torch.device("cuda", 0)]

    @contextlib.contextmanager
    def device(wanted):
        before = current[0]
        current[0] = wanted
        yield
        current[0] = before

    class Stream:
        def __init__(self, of):
            self.cuda_stream = 1000 + of.index

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    library._module.device = lambda: current[0]
    return current


def test_tensors_become_addresses_and_none_zero(library):
    x = torch.arange(3)
    library.call("f", x, None, 2.5, True)
    assert library._module.calls[0][:2] == ("f", (x.data_ptr(), 0, 2.5, True))


def test_a_temporary_lives_until_the_call_returns(library):
    x = torch.rand(4, 5).t().contiguous()
    library._module.watched.append(weakref.ref(x))
    arguments = [x]
    del x
    gc.collect()
    library.call("f", arguments.pop())
    assert library._module.calls[0][2] == [True]
    gc.collect()
    assert library._module.watched[0]() is None


def test_on_the_cpu_no_stream_is_passed(library):
    _native.run("f", torch.empty(1), 7)
    assert library._module.calls[0][:2] == ("f", (7,))


def test_on_a_gpu_the_call_is_made_on_the_tensors_device_with_its_stream_last(library, gpu):
    _native.run("f", OnGpu, 7)
    assert library._module.calls == [("f", (7, 1003), [], torch.device("cuda", 3))]
    assert gpu == [torch.device("cuda", 0)]


def test_an_error_of_a_launch_is_raised(library, gpu):
    library._module.answer = 700
    with pytest.raises(RuntimeError, match="CUDA error 700 in f"):
        _native.run("f", OnGpu)


def test_a_library_that_is_not_there_says_so_when_it_is_called(monkeypatch):
    missing = _native._Library("_no_such_library")
    monkeypatch.setattr(_native, "cuda", missing)
    assert "install with: pip install ." in _native.why_no_library(torch.device("cuda"))[0]
    with pytest.raises(SinfusionError, match=r"f is not available: sinfusion\._no_such_library is not there"):
        missing.call("f")
    assert _native.why_no_library(torch.device("meta")) == ["no native library for meta"]


def test_memory_that_is_kept_is_not_asked_for_again():
    """Page faults of tensors that are made and dropped over and over, in a process of its own."""
    code = (
        "import resource, sys, torch\n"
        "from sinfusion import ops\n"
        "if len(sys.argv) > 1: ops.keep_memory()\n"
        "def step(): [torch.ones(1_000_000) for _ in range(20)]\n"
        "for _ in range(3): step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, *words], env=environment, capture_output=True, check=True
            ).stdout
        )
        for words in ([], ["keep"])
    ]
    if faults[0] < 10_000:
        pytest.skip(f"this C library keeps memory by itself: {faults[0]} page faults")
    assert faults[1] < faults[0] / 10


@pytest.mark.skipif(not _native.cpu.loaded, reason="there is no library for the CPU")
@pytest.mark.parametrize("name", ["avx3", "emulated_amx", ""])
def test_an_instruction_set_that_there_is_not_is_refused_with_the_choices(name):
    code = (
        "import torch\n"
        "from sinfusion import ops\n"
        "from sinfusion.errors import SinfusionError\n"
        "for call in (lambda: ops.normal(torch.zeros(1, dtype=torch.int64), 0, 0, (4,)), ops.cpu_has_bf16):\n"
        "    try: call()\n"
        "    except SinfusionError as error: print(error)\n"
        "from sinfusion.cli import main\n"
        "raise SystemExit(main(['info']))\n"
    )
    environment = {**os.environ, "SINFUSION_ISA": name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    wanted = f"SINFUSION_ISA must be one of plain, avx2, avx512, avx512_bf16, amx, not '{name}'."
    assert result.stdout.splitlines() == [wanted] * 2
    assert result.returncode != 0 and wanted in result.stderr and "Traceback" not in result.stderr
