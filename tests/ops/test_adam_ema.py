"""adam_ema: native code is the reference bit for bit, and both make the steps of torch.optim.Adam."""

import hashlib
import math

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.ops.adam_ema import AdamEma

COUNTS = [0, 1, 7, 16, 61, 4096 + 3]
CHANGED = ("value", "exp_avg", "exp_avg_sq", "average", "copy")


def inputs(count, dtype=torch.float32, offset=0, only="", copy=True, weight=0.1, device="cpu", seed=0):
    """Arguments by name, of sizes that differ by many powers of two.

    They, or `only` one, lie `offset` numbers away from an address aligned to 16 bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    powers = torch.tensor([2.0**power for power in range(-30, 31)])

    def values(name, spread, dtype=dtype):
        which = torch.randint(30 - spread, 31 + spread, (count,), generator=generator)
        away = offset if only in ("", name) else 0
        whole = torch.zeros(count + away, dtype=dtype, device=device)
        whole[away:] = torch.randn(count, generator=generator) * powers[which]
        return whole[away:]

    return {
        "value": values("value", 3),
        "exp_avg": values("exp_avg", 10),
        "exp_avg_sq": values("exp_avg_sq", 20).abs_(),
        "average": values("average", 3),
        "copy": values("copy", 3, torch.bfloat16) if copy else None,
        "gradient": values("gradient", 10),
        "coefficients": torch.tensor([2e-3, 1.7, weight]).to(device, dtype),
    }


WAYS = [{}, {"offset": 1}, {"copy": False}, {"weight": 0.7}, {"weight": 1.0, "offset": 3}]
WAYS += [{"offset": 2, "only": name} for name in (*CHANGED, "gradient")]


def evaluate(backend, count, betas=(0.9, 0.999), eps=1e-8, **of_inputs):
    """Every changed tensor by name, on the CPU."""
    arguments = inputs(count, **of_inputs)
    with ops.backend(backend):
        ops.adam_ema(**arguments, betas=betas, eps=eps)
    return {name: arguments[name].cpu() for name in CHANGED if arguments[name] is not None}


def same(found, expected):
    return all(torch.equal(found[name], expected[name]) for name in expected) and found.keys() == expected.keys()


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for count in (*COUNTS, 100_003):  # the last on many threads
        for way in WAYS:
            for tensor in evaluate("native", count, **way).values():
                total.update(tensor.float().numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_native_code_is_the_reference_bit_for_bit(count, way):
    for betas, eps in (((0.9, 0.999), 1e-8), ((0.3, 0.0), 0.0), ((0.0, 0.5), 1e-3)):
        assert same(evaluate("native", count, betas, eps, **way), evaluate("reference", count, betas, eps, **way))


def test_a_million_numbers_are_the_reference_bit_for_bit():
    assert same(evaluate("native", 1_000_003), evaluate("reference", 1_000_003))


@pytest.mark.parametrize("count", COUNTS[1:])
def test_native_code_is_close_to_float64(count):
    truth, found = evaluate("reference", count, dtype=torch.float64), evaluate("native", count)
    for name in CHANGED[:4]:
        torch.testing.assert_close(
            found[name].double(), truth[name], rtol=2e-6, atol=0 if name == "exp_avg_sq" else 1e-5
        )


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_many_steps_are_those_of_torch_adam_and_lerp(backend):
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(1003, generator=generator))
    adam = torch.optim.Adam([parameter], lr=0.0, betas=(0.9, 0.99), eps=1e-7)
    value, average = parameter.detach().clone(), parameter.detach().clone()
    expected = average.clone()
    exp_avg, exp_avg_sq = torch.zeros(1003), torch.zeros(1003)
    copy = torch.zeros(1003, dtype=torch.bfloat16)
    for step in range(1, 51):
        rate, weight = 0.01 / math.sqrt(step), 1 - (1 - 1 / step) ** 7
        gradient = torch.randn(1003, generator=generator) + 0.3 * parameter.detach()
        adam.param_groups[0]["lr"], parameter.grad = rate, gradient.clone()
        adam.step()
        expected.lerp_(parameter.detach(), weight)
        coefficients = torch.tensor([rate / (1 - 0.9**step), 1 / math.sqrt(1 - 0.99**step), weight])
        with ops.backend(backend):
            ops.adam_ema(value, exp_avg, exp_avg_sq, average, copy, gradient, coefficients, (0.9, 0.99), 1e-7)
        if step == 1:
            assert torch.equal(average, value)
    state = adam.state[parameter]
    for found, theirs in ((value, parameter.detach()), (average, expected), (exp_avg, state["exp_avg"]),
                          (exp_avg_sq, state["exp_avg_sq"])):  # fmt: skip
        assert float((found - theirs).norm() / theirs.norm()) < 1e-6
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy, value.bfloat16())


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_average_of_weight_1_is_the_value_whatever_it_was(backend):
    for old in (1e-30, -3e4, 1e30):
        arguments = inputs(1003, weight=1.0)
        arguments["average"].fill_(old)
        with ops.backend(backend):
            ops.adam_ema(**arguments)
        assert torch.equal(arguments["average"], arguments["value"])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_average_of_weight_0_stays(backend):
    assert torch.equal(evaluate(backend, 1003, weight=0.0)["average"], inputs(1003)["average"])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_gradient_that_is_no_number_spreads_to_its_own_weight_alone(backend):
    arguments, finite = inputs(37), evaluate(backend, 37)
    places = torch.tensor([0, 15, 16, 36])
    arguments["gradient"][places] = torch.tensor([math.nan, math.nan, math.inf, -math.inf])
    with ops.backend(backend):
        ops.adam_ema(**arguments)
    others = torch.ones(37, dtype=torch.bool)
    others[places] = False
    for name in ("value", "average", "copy"):
        assert arguments[name][places].isnan().all()
        assert torch.equal(arguments[name][others], finite[name][others])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_without_gradient_and_state_the_average_and_the_copy_alone_change(backend):
    arguments = inputs(1003)
    for name in ("exp_avg", "exp_avg_sq", "gradient"):
        arguments[name].zero_()
    before = {name: arguments[name].clone() for name in CHANGED}
    with ops.backend(backend):
        ops.adam_ema(**arguments)
    for name in ("value", "exp_avg", "exp_avg_sq"):
        assert torch.equal(arguments[name], before[name])
    moved = before["average"] + 0.1 * (before["value"] - before["average"])
    torch.testing.assert_close(arguments["average"], moved)
    assert torch.equal(arguments["copy"], before["value"].bfloat16())


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_copies_are_rounded_to_the_nearest_and_ties_to_even(backend):
    step = 2**-7  # between bf16 numbers from 1 to 2
    value = torch.tensor([1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step, -1 - step / 2, 3.4e38, -0.0, 1e-45] * 5)
    expected = torch.tensor([1, 1 + 2 * step, 1 + step, -1, math.inf, -0.0, 0] * 5).bfloat16()
    arguments = inputs(35)
    for name in ("exp_avg", "exp_avg_sq", "gradient"):
        arguments[name].zero_()
    arguments["value"].copy_(value)
    with ops.backend(backend):
        ops.adam_ema(**arguments)
    assert torch.equal(arguments["copy"].view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nothing_is_written_beside_the_tensors(backend):
    whole = {name: torch.full((70,), 5.0, dtype=torch.bfloat16 if name == "copy" else None) for name in CHANGED}
    arguments = inputs(35) | {name: tensor[16:51] for name, tensor in whole.items()}
    arguments["coefficients"][0] = 2
    with ops.backend(backend):
        ops.adam_ema(**arguments)
    for name, tensor in whole.items():
        assert (tensor[:16] == 5).all() and (tensor[51:] == 5).all()
        assert (tensor[16:51] != 5).any(), name


def test_what_autograd_kept_of_a_changed_tensor_is_known_to_be_stale():
    for name in CHANGED:
        arguments, scale = inputs(5), torch.ones(5, requires_grad=True)
        versions = {other: arguments[other]._version for other in CHANGED}
        product = scale * arguments[name]
        with ops.backend("native"):
            ops.adam_ema(**arguments)
        assert all(arguments[other]._version > versions[other] for other in CHANGED)
        assert arguments["gradient"]._version == inputs(5)["gradient"]._version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_served_by_the_reference(dtype):
    assert same(evaluate("auto", 7, dtype=dtype), evaluate("reference", 7, dtype=dtype))
    with pytest.raises(SinfusionError, match=f"value is {dtype}, not float32"):
        evaluate("native", 7, dtype=dtype)


def test_the_code_of_the_device_gives_the_same_numbers_on_the_host(use_device_code):
    expected = digest()
    use_device_code("adam_ema")
    assert digest() == expected


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("count", [*COUNTS, 1_000_003])
def test_the_gpu_gives_the_numbers_of_the_cpu(count, way):
    assert same(evaluate("native", count, **way, device="cuda"), evaluate("native", count, **way))


@pytest.mark.gpu
def test_on_a_gpu_a_graph_replays_with_coefficients_that_have_changed():
    arguments = inputs(1003, device="cuda")
    expected = {name: tensor.clone() for name, tensor in arguments.items()}
    rows = torch.tensor([[1e-3, 2.0, 1.0], [5e-4, 1.5, 0.3], [2e-4, 1.1, 0.6]], device="cuda")
    with ops.backend("native"):
        ops.adam_ema(**inputs(1003, device="cuda"))  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.adam_ema(**arguments)
        for row in rows:
            arguments["coefficients"].copy_(row)
            graph.replay()
            ops.adam_ema(**{**expected, "coefficients": row})
    assert all(torch.equal(arguments[name], expected[name]) for name in CHANGED)


@pytest.mark.gpu
def test_devices_do_not_mix():
    for name in (*CHANGED[1:], "gradient", "coefficients"):
        with pytest.raises(RuntimeError, match=f"{name} is .* on cuda:0, not .* on cpu"):
            ops.adam_ema(**{**inputs(7, device="cuda"), name: inputs(7)[name]})


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("copy", [True, False], ids=["copy", "no copy"])
def test_opcheck(copy, backend):
    with ops.backend(backend):
        torch.library.opcheck(
            torch.ops.sinfusion.adam_ema.default, tuple(AdamEma(**inputs(9, copy=copy), betas=[0.9, 0.999]))
        )


WRONG = {
    "value is \\(N,\\), not \\(2, 4\\)": {"value": torch.zeros(2, 4)},
    "value is floating, not torch.int64": {"value": torch.zeros(8, dtype=torch.int64)},
    "value is contiguous": {"value": torch.zeros(16)[::2]},
    "exp_avg is \\(8,\\) .* not \\(9,\\)": {"exp_avg": torch.zeros(9)},
    "exp_avg_sq is .* torch.float32 .* torch.float64": {"exp_avg_sq": torch.zeros(8, dtype=torch.float64)},
    "average is .* on cpu, not .* on meta": {"average": torch.zeros(8, device="meta")},
    "average is contiguous": {"average": torch.zeros(16)[::2]},
    "copy is .* torch.bfloat16 .* torch.float32": {"copy": torch.zeros(8)},
    "copy is \\(8,\\)": {"copy": torch.zeros(7, dtype=torch.bfloat16)},
    "gradient is .* not \\(8, 1\\)": {"gradient": torch.zeros(8, 1)},
    "gradient is contiguous": {"gradient": torch.zeros(1).expand(8)},
    "coefficients is \\(3,\\) .* not \\(4,\\)": {"coefficients": torch.zeros(4)},
    "coefficients is .* torch.float64": {"coefficients": torch.zeros(3, dtype=torch.float64)},
    "coefficients is contiguous": {"coefficients": torch.zeros(6)[::2]},
    "beta1 is at least 0 and below 1, not 1": {"betas": (1.0, 0.999)},
    "beta2 is at least 0 and below 1, not -0.1": {"betas": (0.9, -0.1)},
    "eps is at least 0, not -1": {"eps": -1.0},
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words_and_changes_nothing(sentence, backend):
    arguments = {**inputs(8), **WRONG[sentence]}
    before = {name: arguments[name].clone() for name in CHANGED}
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.adam_ema(**arguments)
    assert all(torch.equal(arguments[n], before[n]) for n in CHANGED if arguments[n].device.type == "cpu")
