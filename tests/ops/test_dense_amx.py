"""dense in AMX tiles, on machines with AMX and, by an emulator of its instructions, on those with AVX512-BF16 alone.

Run as a program, with the emulator's library, this file prints what both tests look at: an emulator handles signals, so
it gets a process of its own. The library that ships has AMX from a machine alone; what is emulated is built for this.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sinfusion import ops
from sinfusion.ops import native
from sinfusion.ops.native import cpu

ROOT = Path(__file__).parents[2]
KINDS = ("ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbf16ps")
# Rows, pairs and columns of a tile.
TILES = [(16, 16, 16), (3, 5, 7), (1, 16, 16), (16, 1, 1)]
# x (B, C, H, W), channels of skip, outputs, kernel, bias, then: gelu, residual or neither
CASES = [
    ((1, 3, 1, 1), 0, 3, 1, True, "gelu"),
    ((3, 3, 7, 7), 0, 192, 3, True, "gelu"),
    ((1, 6, 9, 1), 0, 3, 3, True, "residual"),
    ((1, 5, 1, 40), 0, 16, 3, False, "neither"),
    ((1, 64, 37, 53), 0, 48, 3, True, "gelu"),
    ((1, 21, 37, 53), 11, 16, 3, False, "residual"),
    ((1, 32, 13, 31), 32, 192, 3, True, "gelu"),
    ((3, 192, 7, 20), 0, 64, 3, True, "residual"),
    ((3, 48, 17, 20), 0, 96, 1, True, "gelu"),
    ((1, 64, 37, 53), 40, 64, 1, False, "neither"),
    ((1, 40, 70, 70), 3, 40, 3, True, "gelu"),
]


def flags():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return set(next((line.split() for line in lines if line.startswith("flags")), []))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not cpu.loaded:
        pytest.skip(cpu.why_not)
    if "avx512_bf16" not in flags():
        pytest.skip("needs AVX512-BF16, which the kernels use beside AMX, and this machine has none")
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler, and there is no g++")
    library = tmp_path_factory.mktemp("amx") / "emulator.so"
    source = ROOT / "tests" / "cpp" / "amx_emulator.cpp"
    options = ["-std=c++17", "-O3", "-mavx2", "-mfma", "-mamx-tile", "-mamx-bf16", "-shared", "-fPIC"]
    subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
    real = "amx_bf16" in flags()
    tiles = "" if real else str(built_for_tiles(library.parent))
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"  # imports from where pytest runs
    result = subprocess.run(
        [sys.executable, "-c", code, __file__, str(library), tiles],
        env={**os.environ, "SINFUSION_ISA": "amx"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(result.stdout) | {"real": real}


def built_for_tiles(folder):
    """A library of `dense` in AMX tiles, whatever the machine has."""
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs csrc/, and the package is tested without its sources")
    options = "-std=c++17 -O2 -fno-math-errno -pthread -shared -fPIC -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma"
    options += " -mprefer-vector-width=512 -mbmi2 -mprfchw -mavx512bf16 -mamx-tile -mamx-bf16"
    sources = [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("dense_bf16", "scratch", "threads")]
    sources.append(ROOT / "tests" / "cpp" / "dense_amx_host.cpp")
    subprocess.run(["g++", *options.split(), *map(str, sources), "-o", str(folder / "tiles.so")], check=True)
    return folder / "tiles.so"


def test_an_instruction_multiplies_as_the_manual_says(found):
    """On a machine with AMX: as the machine does."""
    assert len(found["tiles"]) == len(TILES)
    for same, error in found["tiles"]:
        assert same and error < 1e-6


def test_results_in_tiles_are_as_close_to_float64_as_the_reference(found):
    assert len(found["cases"]) == len(CASES)
    if found["real"]:
        assert found["isa"] == "amx"
    else:
        assert all(found["executed"].values()), found["executed"]
    for case, ours, reference, same in found["cases"]:
        assert same, f"{case}: results depend on the number of threads"
        for name, error in reference.items():
            assert ours[name] <= 2 * error + 1e-4, f"{case}, {name}: {ours[name]} against {error}"


def test_gradients_of_the_weight_are_the_same_where_the_input_needs_none(found):
    assert found["alone"]


def test_gelu_in_tiles_holds_far_from_zero(found):
    for name, error in found["gelu"].items():
        assert error < 2**-8, name


def tiles(emulator):
    """For each size of TILES: whether instructions give the same bits as the emulator's arithmetic; its error."""
    for rows, pairs, columns in TILES:
        a, b, c = torch.randn(16, 32).bfloat16(), torch.randn(16, 32).bfloat16(), torch.randn(16, 16)
        b[0, 0] = a[0, 0] = 1e-39  # a denormal is zero
        outputs = []
        for function in (emulator.product, emulator.product_by_instructions):
            value = c.clone()
            function(*(ctypes.c_void_p(v.data_ptr()) for v in (value, a, b)), rows, pairs, columns)
            outputs.append(value)
        left = a[:rows, : 2 * pairs].double()
        right = b[:pairs, : 2 * columns].reshape(pairs, columns, 2).transpose(1, 2).reshape(2 * pairs, columns).double()
        truth = c.double()
        truth[:rows, :columns] += left @ right
        yield torch.equal(*outputs), float((outputs[0] - truth).abs().max() / truth.abs().max())


def gelu_errors():
    """Of a convolution that passes its input on, relative where that is above 1e-3."""
    x = torch.linspace(-20, 20, 4001).bfloat16()
    x = torch.cat((x, torch.tensor([1e30, -1e30, 1e-30, -1e-30, 0.0]).bfloat16()))[None, None, None]
    truth, found = x.double().requires_grad_(), x.clone().requires_grad_()
    exact = torch.nn.functional.gelu(truth)
    exact.sum().backward()
    out = ops.dense(found, torch.ones(1, 1, 1, 1), gelu=True)
    out.sum().backward()
    pairs = {"value": (out.detach(), exact.detach()), "gradient": (found.grad, truth.grad)}
    return {name: float(((a - b) / b.abs().clamp(min=1e-3)).abs().max()) for name, (a, b) in pairs.items()}


def gradients(dense, needed):
    """Of weight and bias, where the input needs a gradient or none."""
    given, grad = dense.operands(CASES[1])
    weight, bias = given["weight"].requires_grad_(), given["bias"].requires_grad_()
    ops.dense(given["x"].bfloat16().requires_grad_(needed), weight, bias, gelu=True).backward(grad.bfloat16())
    return weight.grad, bias.grad


def beside(name):
    """A file of this folder as a module."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), Path(__file__).with_name(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiles_in_place_of_the_library(file):
    """The CPU library, with `dense` of `built_for_tiles`."""
    library = beside("conftest.py").HostLibrary(file, ROOT / "tests" / "cpp" / "dense_amx_host.cpp")
    call = library.call

    def call_in_as_many_threads(name, **fields):
        library.library.allow_threads(torch.get_num_threads())
        call(name, **fields)

    library.call = call_in_as_many_threads
    return library


def main(library, tiles_library):
    emulator = ctypes.CDLL(library)
    emulator.executed.restype = ctypes.c_uint64
    isa = cpu.isa()  # asks Linux for tiles
    if tiles_library:
        assert emulator.install() == 0
        native.cpu = tiles_in_place_of_the_library(tiles_library)
    dense = beside("test_dense.py")
    found = {"isa": isa, "tiles": list(tiles(emulator)), "cases": []}
    for case in CASES:
        torch.set_num_threads(1)  # PyTorch's own bf16 gradients may hang in more threads than there are cores
        truth = dense.evaluate(case, torch.float64)
        with ops.backend("reference"):
            reference = dense.distances(dense.evaluate(case, torch.bfloat16), truth)
        with ops.backend("native"):
            outputs = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                outputs.append(dense.evaluate(case, torch.bfloat16))
        same = all(torch.equal(outputs[0][name], other[name]) for other in outputs[1:] for name in other)
        found["cases"].append((case, dense.distances(outputs[0], truth), reference, same))
    with ops.backend("native"):
        found["gelu"] = gelu_errors()
        found["alone"] = all(map(torch.equal, gradients(dense, True), gradients(dense, False)))
    found["executed"] = {kind: emulator.executed(n) for n, kind in enumerate(KINDS)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[2:])
