"""sample_crops: native code against the reference, and both against crops and noise made one by one."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from sinfusion import ops
from sinfusion.pixels import to_unit

FRAMES = (6, 41, 57)
# Batch, size of the crops, size of the coarse_noise: odd, single rows, columns and pixels, whole frames, coarse_noise
# finer than the crop.
CASES = [
    (3, (1, 1), (1, 1)),
    (2, (1, 57), (2, 3)),
    (3, (41, 1), (4, 1)),
    (2, (5, 7), (9, 8)),
    (1, (16, 8), (2, 2)),
    (3, (37, 53), (4, 5)),
    (2, (41, 57), (1, 6)),
]


ROWS = ("places", "condition_frames", "coefficients", "coarse_noise", "seeds")  # arguments with a row for each sample
KINDS = [(0, False), (1, False), (2, False), (2, True), (3, True)]  # number of conditions, whether some are changes


def arguments(case, conditions=1, dtype=torch.float32, changes=False, **replaced):
    batch, size, coarse = case
    generator = torch.Generator().manual_seed(7 * size[0] + conditions)

    def pick(low, high):
        return torch.randint(low, high + 1, (batch,), generator=generator)

    frames = torch.randint(0, 256, (*FRAMES, 3), generator=generator).to(torch.uint8)
    places = torch.stack((pick(0, 5), pick(0, FRAMES[1] - size[0]), pick(0, FRAMES[2] - size[1])), 1)
    condition_frames = torch.randint(0, 6, (batch, conditions), generator=generator)
    given = {
        "frames": frames,
        "places": places,
        "condition_frames": condition_frames,
        "coefficients": torch.randn(batch, 6 + 4 * conditions, generator=generator),
        "coarse_noise": torch.randn(batch, 3 * conditions, *coarse, generator=generator) if conditions else None,
        "seeds": torch.tensor([2**40 + 7, 5, 2**61])[:batch],
        "step": torch.tensor(2**33 + 5),
        "streams": (3, 2**32 - 2),
        "changes": changes,
        "size": size,
        "dtype": dtype,
    }
    return {**given, **replaced}


def sampled(given, backend):
    with ops.backend(backend):
        return ops.sample_crops(**given)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride()
        assert torch.equal(one, other)


def no_white_noise(batch, conditions=1):
    coefficients = torch.randn(batch, 6 + 4 * conditions, generator=torch.Generator().manual_seed(1))
    coefficients[0, 7:8] = 0  # on the first condition of the first sample alone
    return coefficients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("conditions", "changes"), KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_is_the_reference_bit_for_bit(case, conditions, changes, dtype):
    for replaced in ({}, {"coarse_noise": None}, {"coefficients": no_white_noise(case[0], conditions)}):
        given = arguments(case, conditions, dtype, changes, **replaced)
        assert_same(sampled(given, "native"), sampled(given, "reference"))


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for case in CASES:
        for conditions, changes in KINDS:
            for dtype in (torch.float32, torch.bfloat16):
                for replaced in ({}, {"coarse_noise": None}, {"coefficients": no_white_noise(case[0], conditions)}):
                    for value in sampled(arguments(case, conditions, dtype, changes, **replaced), "native"):
                        total.update(value.float().numpy().tobytes())
    return total.hexdigest()


def test_the_code_of_the_device_gives_the_same_numbers_on_the_host(use_device_code):
    cases = [
        arguments(case, conditions, dtype, changes)
        for case in CASES
        for conditions, changes in KINDS
        for dtype in (torch.float32, torch.bfloat16)
    ]
    cases += [arguments(CASES[3], coarse_noise=None), arguments(CASES[3], 2, coefficients=no_white_noise(2, 2))]
    expected = [sampled(given, "native") for given in cases]
    use_device_code("sample_crops")
    for given, result in zip(cases, expected, strict=True):
        assert_same(sampled(given, "native"), result)


def one_by_one(given):
    """Input and target in float64, of slices and F.interpolate."""
    height, width = given["size"]
    n, step, (noise_stream, white_noise_stream) = given["condition_frames"].shape[1], given["step"], given["streams"]
    inputs, targets = [], []
    for b, (target, top, left) in enumerate(given["places"].tolist()):
        c, seed = given["coefficients"][b].double(), given["seeds"][b : b + 1]
        cut = to_unit(given["frames"][:, top : top + height, left : left + width]).double()
        noise = ops.normal(seed, noise_stream, step, (3, height, width))[0].double()
        prior_mean, condition = 0, cut.new_empty(0, height, width)
        if n:
            around = cut[given["condition_frames"][b]]
            if given["changes"]:
                around = torch.cat((around[:1], around[:-1] - around[1:]))
            of_values, of_white_noise, of_coarse_noise, of_conditions = c[6:].view(n, 4).t()[..., None, None, None]
            grain = ops.normal(seed, white_noise_stream, step, (n, 3, height, width))[0].double()
            condition = of_values * around + of_white_noise * grain
            if given["coarse_noise"] is not None:
                coarse_noise = given["coarse_noise"][b : b + 1].double()
                smooth = F.interpolate(coarse_noise, given["size"], mode="bilinear", align_corners=True)
                condition = condition + of_coarse_noise * smooth.unflatten(1, (n, 3))[0]
            prior_mean, condition = (of_conditions * condition).sum(0), condition.flatten(0, 1)
        inputs.append(torch.cat((condition, c[0] * cut[target] + c[1] * noise + c[2] * prior_mean)))
        targets.append(c[3] * cut[target] + c[4] * noise + c[5] * prior_mean)
    return torch.stack(inputs), torch.stack(targets)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("conditions", "changes"), KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_crops_with_noise_white_noise_and_coarse_noise(case, conditions, changes, backend):
    for replaced in ({}, {"coarse_noise": None}):
        given = arguments(case, conditions, changes=changes, **replaced)
        for found, exact in zip(sampled(given, backend), one_by_one(given), strict=True):
            torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_value_of_a_pixel_is_rounded_as_by_division(backend):
    frames = torch.arange(256).to(torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    clean = torch.tensor([[1.0, 0, 0, 1, 0, 0]])
    given = {**arguments((1, (16, 16), (1, 1)), 0), "frames": frames, "places": torch.zeros(1, 3, dtype=torch.int64)}
    found, target = sampled({**given, "coefficients": clean}, backend)
    exact = to_unit(frames)
    assert torch.equal(found, exact) and torch.equal(target, exact)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_sample_alone_is_the_same_as_in_a_batch(backend):
    given = arguments(CASES[5], 2)
    together = sampled(given, backend)
    for b in range(3):
        alone = {name: given[name][b : b + 1] for name in ROWS}
        for one, all_of_them in zip(sampled({**given, **alone}, backend), together, strict=True):
            assert torch.equal(one, all_of_them[b : b + 1])


def test_the_step_is_read_anew_each_time():
    given = arguments(CASES[3])
    first = sampled(given, "native")
    given["step"].add_(1)
    assert not torch.equal(sampled(given, "native")[0], first[0])


def test_results_are_channels_last_in_memory():
    for backend in ("native", "reference"):
        for result in sampled(arguments(CASES[3], 2), backend):
            assert result.is_contiguous(memory_format=torch.channels_last)


def test_layout_in_memory_does_not_matter():
    given = arguments(CASES[3], 2)
    expected = sampled(given, "native")
    for name in ROWS:
        given[name] = given[name].repeat_interleave(2, 0)[::2]
        assert not given[name].is_contiguous()
    assert_same(sampled(given, "native"), expected)


def test_results_do_not_depend_on_threads(set_threads):
    given = arguments(CASES[6], 2)
    set_threads(1)
    one = sampled(given, "native")
    set_threads(2)
    assert_same(sampled(given, "native"), one)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("conditions", "changes"), [(0, False), (2, True)])
def test_opcheck(conditions, changes, backend):
    given = arguments(CASES[3], conditions, changes=changes)
    given["streams"], given["size"] = list(given["streams"]), list(given["size"])
    with ops.backend(backend):
        torch.library.opcheck(torch.ops.sinfusion.sample_crops.default, tuple(given.values()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("conditions", "changes"), KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gpu_gives_the_numbers_of_the_cpu(case, conditions, changes, dtype):
    given = arguments(case, conditions, dtype, changes)
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    for backend in ("native", "reference"):
        for found, expected in zip(sampled(on_gpu, backend), sampled(given, "native"), strict=True):
            assert found.stride() == expected.stride()
            if backend == "native":
                assert torch.equal(found.cpu(), expected)
                continue
            slack = 2**-7 if expected.dtype == torch.bfloat16 else 1e-6  # the libms may differ in a last place
            torch.testing.assert_close(found.cpu(), expected, rtol=slack, atol=1e-6)
            assert (found.cpu() != expected).float().mean() < 1e-2


@pytest.mark.gpu
def test_the_noise_of_the_gpu_is_that_of_normal_bit_for_bit():
    given = arguments(CASES[5], 0, coefficients=torch.tensor([[0.0, 1, 0, 0, 1, 0]]).repeat(3, 1))
    given = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    noise = ops.normal(given["seeds"], given["streams"][0], given["step"], (3, *given["size"]), "cuda")
    assert all(torch.equal(result, noise) for result in sampled(given, "native"))


@pytest.mark.gpu
def test_one_graph_serves_every_step():
    given = arguments(CASES[5], 2, torch.bfloat16)
    given = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    ops.sample_crops(**given)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.sample_crops(**given)
    for step in (3, 9):
        given["step"].fill_(step)
        given["places"][:, 1].fill_(step % 4)
        graph.replay()
        assert_same(captured, ops.sample_crops(**given))


def places(*of_first):
    return torch.tensor([of_first, (2, 0, 0)])


WRONG = {
    "frames are \\(T, H, W, 3\\) uint8, contiguous, not .* torch.float32": {"frames": torch.zeros(*FRAMES, 3)},
    "frames are .* not \\(6, 41, 57\\)": {"frames": torch.zeros(FRAMES, dtype=torch.uint8)},
    "frames are .* not \\(3, 41, 57, 3\\)": {"frames": torch.zeros(6, 41, 57, 3, dtype=torch.uint8)[::2]},
    "places is \\(2, 3\\) torch.int64 on cpu, not \\(2, 4\\)": {"places": torch.zeros(2, 4, dtype=torch.int64)},
    "places is .* torch.int32": {"places": torch.zeros(2, 3, dtype=torch.int32)},
    "condition_frames is \\(2, 1\\) .* not \\(3, 1\\)": {"condition_frames": torch.zeros(3, 1, dtype=torch.int64)},
    "condition_frames is \\(2, 0\\) .* not \\(2,\\)": {
        "condition_frames": torch.zeros(2, dtype=torch.int64), "coarse_noise": None, "coefficients": torch.zeros(2, 6),
    },
    "coefficients is \\(2, 10\\) .* not \\(1, 10\\)": {"coefficients": torch.zeros(1, 10)},
    "coefficients is .* on meta": {"coefficients": torch.zeros(2, 10, device="meta")},
    "seeds is \\(2,\\) .* not \\(3,\\)": {"seeds": torch.zeros(3, dtype=torch.int64)},
    "step is \\(\\) .* not \\(1,\\)": {"step": torch.zeros(1, dtype=torch.int64)},
    "coarse_noise is \\(2, 3, 3, 3\\) .* not \\(2, 6, 3, 3\\)": {"coarse_noise": torch.zeros(2, 6, 3, 3)},
    "coarse_noise is .* not \\(2, 3, 0, 3\\)": {"coarse_noise": torch.zeros(2, 3, 0, 3)},
    "coarse_noise is .* torch.float64": {"coarse_noise": torch.zeros(2, 3, 3, 3).double()},
    "coarse_noise is for conditions": {
        "condition_frames": torch.zeros(2, 0, dtype=torch.int64), "coefficients": torch.zeros(2, 6),
    },
    "conditions are at most 3, not 4": {"condition_frames": torch.zeros(2, 4, dtype=torch.int64)},
    "size is two sides above 0 and within \\(41, 57\\), not \\(5, 58\\)": {"size": (5, 58)},
    "size is .* not \\(0, 7\\)": {"size": (0, 7)},
    "size is .* not \\(5,\\)": {"size": (5,)},
    "streams are two from 0 and below 2\\^32, not \\(1, 4294967296\\)": {"streams": (1, 2**32)},
    "streams are .* not \\(1,\\)": {"streams": (1,)},
    "dtype is float32 or bfloat16, not torch.float16": {"dtype": torch.float16},
    "places lead outside of frames \\(6, 41, 57, 3\\)": {"places": places(6, 0, 0)},
    "places lead outside": {"condition_frames": torch.tensor([[-1], [0]])},
    "places lead": {"condition_frames": torch.tensor([[0], [6]])},
    "lead outside of": {"places": places(1, 37, 0)},
    "outside of": {"places": places(1, 0, 51)},
    "outside": {"places": places(1, -1, 0)},
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words(sentence, backend):
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.sample_crops(**{**arguments(CASES[3]), **WRONG[sentence]})
