"""Compiling Triton kernels without a GPU: figures are those of the code, variants those that are launched."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import ahead_of_time
import compiled_kernels
import kernel_variants
import pytest
import torch

import sinfusion

pytestmark = pytest.mark.skipif(bool(ahead_of_time.why_not()), reason=ahead_of_time.why_not())

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def multiply(a, b, out, add, SIZE: tl.constexpr):
        row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
        product = tl.dot(tl.load(a + row * SIZE + column), tl.load(b + row * SIZE + column))
        if add is not None:
            product += tl.load(add + row * SIZE + column)
        tl.store(out + row * SIZE + column, product)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(activation, add, capability, **options):
    types = {"a": activation, "b": activation, "out": "*fp32", "add": add}
    return ahead_of_time.compile_variant(
        multiply, types, {"SIZE": 128}, {"num_warps": 4, "enable_fp_fusion": True} | options, capability
    )


@pytest.mark.parametrize(("capability", "name"), [(80, "mma.sync"), (90, "wgmma"), (100, "tcgen05")])
def test_the_instruction_that_multiplies_matrices_is_named(capability, name):
    usage = compiled("*bf16", None, capability)
    assert usage.tensor_cores == name
    assert usage.shared_bytes >= 128 * 128 * 2  # an operand at least


def test_spilled_registers_are_counted():
    free, bound = (compiled("*bf16", "*fp32", 80, num_warps=8, maxnreg=registers) for registers in (255, 64))
    assert free.spill_bytes == 0 and free.registers > 64
    assert bound.spill_bytes > 0 and bound.registers <= 64


def test_a_pointer_that_is_not_given_leaves_no_code():
    assert compiled("*bf16", None, 80).ptx.count("ld.global") < compiled("*bf16", "*fp32", 80).ptx.count("ld.global")


@pytest.mark.parametrize("activation", ["*bf16", "*fp32"])
@pytest.mark.parametrize("channels", [3, 9, 64, 128])
def test_the_variants_of_depthwise_norm_are_those_that_are_launched(channels, activation):
    from sinfusion.kernels import depthwise_norm as module

    dtype = {"*bf16": torch.bfloat16, "*fp32": torch.float32}[activation]
    skip_channels = channels // 2 if channels > 64 else 0
    x = torch.empty(2, channels - skip_channels, 5, 7, dtype=dtype)
    skip = torch.empty(2, skip_channels, 5, 7, dtype=dtype) if skip_channels else None
    given, du = module.Input(x, skip), torch.empty(2, channels, 5, 7, dtype=dtype)
    taps, bias, shift = torch.empty(49, channels), torch.empty(channels), torch.empty(2, channels)
    gain = offset = torch.empty(channels) if channels > 9 else None
    with ahead_of_time.recorded_launches() as launches:
        epilogue = module.Epilogue(bias, shift, gain, offset)
        _, saved = module.forward(given, taps, epilogue, 1e-5, True)
        module.norm_gradient(du, saved, gain)
        if channels <= 64:
            module.norm_gradient(du, saved, gain, du)
        module.input_gradient(du, taps, skip_channels, given, None if skip_channels else x)
        module.taps_gradient(given, du)
        if gain is not None:
            module.forward(given, taps, epilogue, 1e-5, False)
    variants = list(kernel_variants.depthwise_norm(channels, activation).values())
    assert all(launch in variants for launch in launches)
    assert all(variant in launches for variant in variants)


@pytest.mark.parametrize(("channels", "outputs", "wants_input"), [(6, 64, False), (128, 64, True), (64, 3, True)])
def test_the_variants_of_1x1_convolutions_are_those_that_are_launched(channels, outputs, wants_input):
    from sinfusion.kernels import dense, pointwise

    def image(number, dtype=torch.bfloat16):
        return torch.empty(1, number, 5, 7, dtype=dtype).to(memory_format=torch.channels_last)

    of_skip = channels // 2 if channels > 64 else 0
    given = pointwise.Input(image(channels - of_skip), image(of_skip) if of_skip else None)
    weight, bias = torch.empty(outputs, channels, 1, 1, dtype=torch.bfloat16), torch.empty(outputs)
    with ahead_of_time.recorded_launches() as launches:
        pointwise.forward(given, weight, bias)
        pointwise.backward(image(outputs), given, weight, wants_input)
    assert launches == list(kernel_variants.pointwise(channels, outputs, "*bf16", wants_input).values())
    if of_skip:
        project = torch.empty(outputs, 192, 3, 3, dtype=torch.bfloat16)
        shortcut = dense.Shortcut(given, weight, bias)
        with ahead_of_time.recorded_launches() as launches:
            dense.forward(image(192), project, bias, None, False, True, shortcut=shortcut)
            dense.input_gradient(image(outputs), project, image(192), torch.empty(192))
        variants = kernel_variants.dense(192, outputs, 3, "*bf16", "shortcut")
        through_gelu = kernel_variants.dense(192, outputs, 3, "*bf16", "residual")["gradient through GELU"]
        assert launches == [variants["forward"], through_gelu]


@pytest.fixture
def library():
    found = next(Path(sinfusion.__file__).parent.glob("_cuda.*.so"), None)
    if found is None:
        pytest.skip("there is no CUDA library")
    if shutil.which("c++filt") is None:
        pytest.skip("there is no c++filt to read names with")
    return found


def test_the_kernels_of_the_cuda_library_are_listed_for_each_architecture(library):
    rows = compiled_kernels.cuda_kernels(library)
    architectures = {row["architecture"] for row in rows}
    for name in ("vote.cu: vote_kernel<float>", "adam_ema.cu: adam_ema_kernel<true>", "philox.cu: draw_kernel<float>"):
        of_kernel = [row for row in rows if row["kernel"] == name]
        assert {row["architecture"] for row in of_kernel} == architectures and len(of_kernel) == len(architectures)
        assert all(0 < row["registers"] <= 255 for row in of_kernel)


def test_kernels_of_the_optimizer_keep_nothing_on_the_stack(library):
    rows = [row for row in compiled_kernels.cuda_kernels(library) if row["kernel"].startswith("adam_ema.cu")]
    assert len(rows) >= 2 and not any(row["stack_bytes"] for row in rows)


def test_kernels_for_hopper_spill_next_to_nothing(library):
    rows = [row for row in compiled_kernels.cuda_kernels(library) if "_sm90.cu" in row["kernel"]]
    if not rows:
        pytest.skip("the library was built without kernels for Hopper GPUs")
    names = {re.split("[:<]", row["kernel"])[1].strip() for row in rows}
    assert names >= {"convolve_kernel", "weight_gradient_kernel", "depthwise_kernel", "gradient_kernel"}
    assert all(row["architecture"] == "sm_90" and row["stack_bytes"] <= 16 for row in rows)


def test_the_table_is_printed_and_written(library, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compiled_kernels, "LAUNCHED", {kernel_variants.depthwise_norm: [(3, "*bf16")]})
    compiled_kernels.main(compiled_kernels.Settings(tmp_path / "table.json"))
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert f"Triton {triton.__version__}: registers" in printed
    for row in written["cuda"] + written["triton"]:
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{row['kernel']}  "))
        assert f" {row['registers']} " in line
    assert len(written["triton"]) == 5 * 3 and written["compilers"]["triton"] == triton.__version__
