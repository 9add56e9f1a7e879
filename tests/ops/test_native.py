"""How native functions are called: addresses of tensors that live, on their device and its current stream."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.ops import native


class Recorder:
    """Stands in for a native module; its functions write down what they are called with."""

    def __init__(self, answer=0):
        self.calls, self.answer, self.watched = [], answer, []

    def __getattr__(self, function):
        def call(*arguments, **fields):
            alive = [reference() is not None for reference in self.watched]
            device = self.device() if "device" in self.__dict__ else None
            self.calls.append((function, arguments, list(fields), alive, device))
            return self.answer

        return call


@pytest.fixture
def library(monkeypatch):
    """A library whose module is a Recorder, in place of both."""
    fake = native.Library("_cpu")
    fake.module = Recorder()
    for name in ("cpu", "cuda"):
        monkeypatch.setattr(native, name, fake)
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
    library.module.device = lambda: current[0]
    return current


def test_a_temporary_lives_until_the_call_returns(library):
    x = torch.rand(4, 5).t().contiguous()
    library.module.watched.append(weakref.ref(x))
    fields = {"x": x}
    del x
    gc.collect()
    library.call("f", x=fields.pop("x"))
    assert library.module.calls[0][3] == [True]
    gc.collect()
    assert library.module.watched[0]() is None


def test_on_the_cpu_no_stream_is_passed(library):
    native.run("f", torch.empty(1), count=7)
    assert library.module.calls[0][:3] == ("f", (), ["count"])


def test_on_a_gpu_the_call_is_made_on_the_tensors_device_with_its_stream(library, gpu):
    native.run("f", OnGpu, count=7)
    assert library.module.calls == [("f", (1003,), ["count"], [], torch.device("cuda", 3))]
    assert gpu == [torch.device("cuda", 0)]


def test_an_error_of_a_launch_is_raised(library, gpu):
    library.module.answer = 700
    with pytest.raises(RuntimeError, match="CUDA error 700 in f"):
        native.run("f", OnGpu)


def test_a_library_that_is_not_there_says_so_when_it_is_called(monkeypatch):
    missing = native.Library("_no_such_library")
    monkeypatch.setattr(native, "cuda", missing)
    assert "install with: pip install ." in native.why_no_library(torch.device("cuda"))[0]
    with pytest.raises(SinfusionError, match=r"f is not available: sinfusion\._no_such_library is not there"):
        missing.call("f")
    assert native.why_no_library(torch.device("meta")) == ["no native library for meta"]


needs_the_library = pytest.mark.skipif(not native.cpu.loaded, reason="there is no library for the CPU")


def numbers(**changed):
    """The fields of uniform_bits."""
    fields = {"seeds": torch.tensor([5]), "batch": 1, "stream": 3, "step": 2, "step_address": None, "count": 4,
              "out": torch.zeros(1, 4, dtype=torch.int64)}  # fmt: skip
    return fields | changed


@needs_the_library
def test_fields_go_by_their_names_in_any_order():
    fields = numbers()
    native.cpu.uniform_bits(**dict(reversed(fields.items())))
    assert torch.equal(fields["out"], ops.uniform_bits([5], 3, 2, 4))


WRONG = {
    "stream is missing": {"stream": ...},
    "step_address is missing": {"step_address": ...},
    "'pixels'.* only 7 are fields": {"pixels": 1},
    "count has to be an integer": {"count": 4.0},
    "batch has to be an integer": {"batch": True},
    "stream has to be an integer in the field's range": {"stream": 2**32},
    "step has to be an integer in the field's range": {"step": -1},
    "seeds has to be a tensor or None": {"seeds": 140_000_000},
}


@needs_the_library
@pytest.mark.parametrize("prefix", ["", "prepare_"])
@pytest.mark.parametrize("sentence", WRONG)
def test_a_field_that_is_missing_unknown_or_of_the_wrong_kind_is_refused(sentence, prefix):
    fields = {name: value for name, value in numbers(**WRONG[sentence]).items() if value is not ...}
    with pytest.raises(TypeError, match=sentence):
        getattr(native.cpu, f"{prefix}uniform_bits")(**fields)
    assert not fields["out"].any()


@needs_the_library
def test_tensors_numbers_and_booleans_are_not_taken_for_each_other():
    fields = {"to": torch.ones(3), "value": torch.ones(3), "bf16": False, "count": 3}
    for name, value, wanted in (("bf16", 0, "True or False"), ("count", torch.tensor(3), "an integer")):
        with pytest.raises(TypeError, match=f"{name} has to be {wanted}"):
            native.cpu.add(**fields | {name: value})
    with pytest.raises(TypeError):
        native.cpu.add(torch.ones(3), torch.ones(3), False, 3)
    assert torch.equal(fields["to"], torch.ones(3))


@needs_the_library
def test_a_prepared_call_is_made_as_often_as_wanted():
    total, value = torch.ones(3), torch.full((3,), 2.0)
    call = native.cpu.prepare("add", to=total, value=value, bf16=False, count=3)
    assert torch.equal(total, torch.ones(3))
    call()
    call()
    assert torch.equal(total, torch.full((3,), 5.0))


def test_every_field_of_a_struct_is_read_by_its_name():
    """A field that the bindings forget would be 0."""
    csrc = Path(__file__).parents[2] / "csrc"
    if not csrc.is_dir():
        pytest.skip("needs csrc/, and the package is tested without its sources")
    bindings = "".join((csrc / folder / "fields.h").read_text() for folder in ("common", "cpu"))
    reader = r"(?:read_fields|read_common_fields)\(Fields& fields, (\w+)(?:<T>)?& a\) {(.*?)\n}"
    read = {
        struct: {"".join(names) for names in re.findall(r"READ\((\w+)\)|\ba\.(\w+)", body)}
        for struct, body in re.findall(reader, bindings, re.DOTALL)
    }
    structs = structs_of("".join(path.read_text() for path in csrc.rglob("*.h")))
    assert len(read) == 15
    for struct, fields in read.items():
        base, declared = structs[struct]
        if base and base not in read:
            declared = declared | structs[base][1]
        assert fields == declared, struct


def structs_of(source):
    """Base and names of the fields of each struct."""
    found = {}
    source = re.sub(r"//.*", "", source)
    for struct, base, body in re.findall(r"\bstruct (\w+)(?: : (\w+))? {\n(.*?)\n};", source, re.DOTALL):
        pieces = [piece for line in body.split(";") for piece in line.split(",") if piece.strip()]
        found[struct] = base, {re.split(r"[\s*]", piece.strip())[-1] for piece in pieces}
    return found


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


@needs_the_library
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
