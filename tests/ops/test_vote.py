"""vote: native code against the reference, and both against what every pixel's suggestions say one by one."""

import hashlib
from itertools import product

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError

# value, places in the field, patch: odd sizes, single patches, patches of one pixel and wider than the field.
ROWS = [
    ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((2, 4, 5, 3), (3, 7, 18), (1, 1, 1)),
    ((3, 7, 7, 3), (1, 1, 1), (3, 7, 7)),
    ((4, 8, 9, 3), (2, 3, 40), (3, 7, 7)),
    ((1, 11, 13, 1), (1, 9, 5), (1, 4, 6)),
    ((5, 6, 9, 4), (2, 5, 1), (2, 3, 8)),
    ((3, 9, 20, 9), (4, 2, 3), (2, 2, 19)),
]


def inputs(row, dtype=torch.float32, ties=False, seed=0):
    """Values, a field that leads inside, weights."""
    shape, counts, patch = row
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator)
    value = (value.round() if ties else value).to(dtype)
    own = torch.stack(torch.meshgrid(*(torch.arange(n) for n in counts), indexing="ij"), -1)
    fits = [size - side + 1 for size, side in zip(shape, patch, strict=False)]
    match = torch.stack([torch.randint(0, n, counts, generator=generator) for n in fits], -1)
    return value, (match - own).short(), torch.rand(counts, generator=generator) + 0.1


def evaluate(backend, row, dtype=torch.float32, mean=False, weighted=False, middle=False, device="cpu", **of_inputs):
    value, offsets, weight = (tensor.to(device) for tensor in inputs(row, dtype, **of_inputs))
    with ops.backend(backend):
        part = middle_of(row) if middle else ()
        return ops.vote(value, offsets, row[2], mean, weight if weighted else None, part).cpu()


def middle_of(row):
    """Half of a patch's sides, rounded up; so there are odd and even numbers of pixels beside it."""
    return [-(-side // 2) for side in row[2]]


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for row, dtype, how in product(ROWS, (torch.float32, torch.bfloat16), WAYS):
        total.update(evaluate("native", row, dtype, **how).float().numpy().tobytes())
    return total.hexdigest()


WAYS = [
    {}, {"ties": True}, {"mean": True}, {"mean": True, "weighted": True},
    {"mean": True, "weighted": True, "middle": True},
]  # fmt: skip


def suggestions(row, dtype, part=None, **of_inputs):
    """For each pixel of the output all (value (C) float64, weight) that patches over it suggest.

    part: of a patch, slices; None: all of it.
    """
    value, offsets, weight = inputs(row, dtype, **of_inputs)
    size = [count + side - 1 for count, side in zip(row[1], row[2], strict=True)]
    found = {pixel: [] for pixel in product(*map(range, size))}
    for place in product(*map(range, row[1])):
        for within in product(
            *(range(side)[inside] for side, inside in zip(row[2], part or [slice(None)] * 3, strict=True))
        ):
            pixel = tuple(p + w for p, w in zip(place, within, strict=True))
            source = tuple(p + int(o) for p, o in zip(pixel, offsets[place], strict=True))
            found[pixel].append((value[source].double(), float(weight[place])))
    return found


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("row", [ROWS[1], ROWS[2], ROWS[4]], ids=str)
def test_every_pixel_is_the_lower_median_of_what_is_suggested(row, backend):
    for ties in (False, True):
        out = evaluate(backend, row, ties=ties)
        for pixel, suggested in suggestions(row, torch.float32, ties=ties).items():
            ordered = torch.stack([value for value, _ in suggested]).sort(0).values
            assert torch.equal(out[pixel].double(), ordered[(len(suggested) - 1) // 2])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_every_pixel_is_the_mean_of_what_is_suggested(weighted, backend):
    row = ROWS[4]
    out = evaluate(backend, row, mean=True, weighted=weighted)
    for pixel, suggested in suggestions(row, torch.float32).items():
        weights = torch.tensor([weight if weighted else 1.0 for _, weight in suggested], dtype=torch.float64)[:, None]
        exact = (torch.stack([value for value, _ in suggested]) * weights).sum(0) / weights.sum()
        torch.testing.assert_close(out[pixel].double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize(
    ("row", "middle"),
    [
        (((2, 12, 13, 3), (1, 6, 7), (1, 7, 7)), (1, 3, 3)),
        (((2, 12, 13, 3), (1, 6, 7), (1, 7, 7)), (1, 7, 2)),
        (((4, 8, 9, 3), (2, 3, 40), (3, 7, 7)), (2, 4, 1)),
        (((4, 8, 9, 3), (1, 1, 1), (3, 7, 7)), (1, 3, 3)),
    ],
    ids=str,
)
def test_middles_of_patches_vote_for_what_they_cover_and_all_of_a_patch_elsewhere(row, middle, weighted, backend):
    value, offsets, weight = inputs(row)
    with ops.backend(backend):
        out = ops.vote(value, offsets, row[2], True, weight if weighted else None, middle)
    first = [(side - part) // 2 for side, part in zip(row[2], middle, strict=True)]
    part = [slice(begin, begin + size) for begin, size in zip(first, middle, strict=True)]
    whole, middles = suggestions(row, torch.float32), suggestions(row, torch.float32, part)
    assert any(middles.values()) and not all(middles.values())
    for pixel, suggested in whole.items():
        suggested = middles[pixel] or suggested
        weights = torch.tensor([weight if weighted else 1.0 for _, weight in suggested], dtype=torch.float64)[:, None]
        exact = (torch.stack([value for value, _ in suggested]) * weights).sum(0) / weights.sum()
        torch.testing.assert_close(out[pixel].double(), exact, rtol=1e-5, atol=1e-6)


def test_on_a_device_offsets_that_lead_outside_end_at_the_border(device_code):
    value, offsets, _ = inputs(ROWS[4])
    far = offsets + torch.tensor([0, 100, -100], dtype=torch.int16)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in ROWS[4][1]), indexing="ij"), -1)
    most = torch.tensor([size - side for size, side in zip(value.shape[:3], ROWS[4][2], strict=True)])
    inside = ((places + far).clamp(torch.zeros(3, dtype=torch.int64), most) - places).short()
    _, height, width, channels = value.shape
    found = []
    for field in (far, inside):
        out = torch.empty(1, 12, 10, channels)
        device_code("vote").call(
            "vote",
            value=value, frames=1, height=height, width=width, bf16=False, channels=channels, patch=ROWS[4][2],
            middle=ROWS[4][2], count=ROWS[4][1], field=field.contiguous(), mean=True, weight=None, out=out,
        )  # fmt: skip
        found.append(out)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_native_median_is_the_reference_bit_for_bit(row, ties, dtype):
    assert torch.equal(evaluate("native", row, dtype, ties=ties), evaluate("reference", row, dtype, ties=ties))


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_native_mean_is_as_close_to_float64_as_the_reference(row, weighted):
    truth = evaluate("reference", row, torch.float64, mean=True, weighted=weighted)
    for dtype, slack in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8)):
        exact = truth
        if dtype == torch.bfloat16:  # the same numbers, rounded before
            value, offsets, weight = inputs(row, dtype)
            exact = ops.vote(value.double(), offsets, row[2], True, weight if weighted else None)
        found = evaluate("native", row, dtype, mean=True, weighted=weighted).double()
        assert ((found - exact).abs() <= slack * (1 + exact.abs())).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_served_by_the_reference(dtype):
    assert torch.equal(evaluate("auto", ROWS[3], dtype), evaluate("reference", ROWS[3], dtype))
    with pytest.raises(SinfusionError, match=f"value is {dtype}, not float32 or bfloat16"):
        evaluate("native", ROWS[3], dtype)


def test_an_even_number_of_suggestions_gives_the_lower_of_the_two_in_the_middle():
    value = torch.tensor([1.0, 3.0, 2.0, 4.0]).view(1, 1, 4, 1)
    field = torch.zeros(1, 1, 3, 3, dtype=torch.int16)
    field[0, 0, 1, 2] = 1
    # Pixel 1: 3 of patch 0, 2 of patch 1. Pixel 2: 4 of patch 1, 2 of patch 2.
    for backend in ("native", "reference"):
        with ops.backend(backend):
            assert ops.vote(value, field, (1, 1, 2)).flatten().tolist() == [1, 2, 2, 4]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_values_of_either_sign_and_any_size_are_in_order(backend):
    values = torch.tensor([-3e38, -1.0, -1e-45, 0.0, 1e-45, 1e-3, 1.0, 3e38])
    for shift in range(8):
        rolled = values.roll(shift)
        field = torch.arange(8).view(1, 1, 8, 1) * torch.tensor([0, 0, -1])  # all to pixel 0
        field[0, 0, :, 2] += torch.arange(8).roll(3)
        with ops.backend(backend):
            out = ops.vote(rolled.view(1, 1, 8, 1), field.short()[:, :, :7], (1, 1, 1))
            assert torch.equal(out.flatten(), rolled[torch.arange(8).roll(3)][:7])
        # A column of eight patches one pixel high, all over the same pixel: its median is the fourth.
        tall = rolled.view(1, 8, 1, 1).expand(1, 8, 1, 1)
        every = torch.cat((tall, tall), 1)
        offsets = torch.zeros(1, 8, 1, 3, dtype=torch.int16)
        with ops.backend(backend):
            assert ops.vote(every, offsets, (1, 8, 1))[0, 7, 0, 0] == rolled[7]
            offsets[0, :, 0, 1] = (torch.arange(8).flip(0) - torch.arange(8)).short()
            suggested = every[0, 7 + offsets[0, :, 0, 1].long(), 0, 0]
            assert ops.vote(every, offsets, (1, 8, 1))[0, 7, 0, 0] == suggested.sort().values[3]


def test_a_field_of_zeros_gives_the_video_back():
    value = torch.randn(4, 9, 11, 3, generator=torch.Generator().manual_seed(0))
    field = torch.zeros(2, 3, 5, 3, dtype=torch.int16)
    assert torch.equal(ops.vote(value, field), value)
    torch.testing.assert_close(ops.vote(value, field, mean=True), value)


def test_layout_in_memory_does_not_matter():
    row = ROWS[5]
    value, offsets, weight = inputs(row)
    backwards = [tensor.permute(*range(tensor.ndim)[::-1]).contiguous() for tensor in (value, offsets, weight)]
    scattered = [tensor.permute(*range(tensor.ndim)[::-1]) for tensor in backwards]
    assert not any(tensor.is_contiguous() for tensor in scattered)
    for mean in (False, True):
        expected = ops.vote(value, offsets, row[2], mean, weight if mean else None)
        assert torch.equal(ops.vote(*scattered[:2], row[2], mean, scattered[2] if mean else None), expected)


def test_the_code_of_the_device_gives_the_same_video_on_the_host(use_device_code):
    expected = digest()
    use_device_code("vote")
    assert digest() == expected


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_gpu_gives_the_video_of_the_cpu(row, dtype):
    for how in WAYS:
        assert torch.equal(evaluate("native", row, dtype, device="cuda", **how), evaluate("native", row, dtype, **how))


@pytest.mark.gpu
def test_devices_do_not_mix():
    value, offsets, weight = inputs(ROWS[3])
    with pytest.raises(RuntimeError, match="offsets are"):
        ops.vote(value.cuda(), offsets)
    with pytest.raises(RuntimeError, match="weight is"):
        ops.vote(value.cuda(), offsets.cuda(), mean=True, weight=weight)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck(backend):
    row = ROWS[4]
    value, offsets, weight = inputs(row)
    with ops.backend(backend):
        for mean, of_patches, middle in ((False, None, []), (True, None, []), (True, weight, [1, 2, 3])):
            args = (value, offsets, list(row[2]), mean, of_patches, middle)
            torch.library.opcheck(torch.ops.sinfusion.vote.default, args)


def field(*shape, dtype=torch.int16, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


OUTSIDE = field(1, 6, 6, 3)
OUTSIDE[0, 5, 2, 1] = 1
BEFORE = field(1, 6, 6, 3)
BEFORE[0, 2, 0, 2] = -1
OTHER_FRAME = field(1, 6, 6, 3)
OTHER_FRAME[0, 0, 0, 0] = 1

WRONG = {
    "value is \\(T, H, W, C\\), not": {"value": torch.ones(8, 8, 3)},
    "value is floating, not torch.uint8": {"value": torch.ones(1, 8, 8, 3, dtype=torch.uint8)},
    "value is finite": {"value": torch.full((1, 8, 8, 3), torch.nan)},
    "value is finite$": {"value": torch.full((1, 8, 8, 3), torch.inf)},
    "offsets are .* not \\(6, 6, 3\\)": {"offsets": field(6, 6, 3)},
    "offsets are .* not \\(1, 6, 6, 2\\)": {"offsets": field(1, 6, 6, 2)},
    "offsets are .* not \\(0, 6, 6, 3\\)": {"offsets": field(0, 6, 6, 3)},
    "offsets are .* torch.int32": {"offsets": field(1, 6, 6, 3, dtype=torch.int32)},
    "offsets are .* on cpu, not .* on meta": {"offsets": field(1, 6, 6, 3, device="meta")},
    "the offsets lead outside of value": {"offsets": OUTSIDE},
    "lead outside of value": {"offsets": BEFORE},
    "lead outside": {"offsets": OTHER_FRAME},
    "outside of value": {"value": torch.ones(1, 7, 8, 3)},
    "outside of value \\(1, 8, 2, 3\\)": {"value": torch.ones(1, 8, 2, 3)},
    "patch is three sizes above 0": {"patch": (1, 3)},
    "a weight is for the mean": {"weight": torch.ones(1, 6, 6)},
    "a middle, \\(1, 1, 1\\), is for the mean": {"middle": (1, 1, 1)},
    "a middle, .* no larger than the patch": {"mean": True, "middle": (1, 1, 5)},
    "patch is three sizes above 0, not \\(1, 0, 1\\)": {"mean": True, "middle": (1, 0, 1)},
    "weight is \\(1, 6, 6\\) torch.float32 .* not \\(1, 8, 8\\)": {"mean": True, "weight": torch.ones(1, 8, 8)},
    "weight is .* torch.float64": {"mean": True, "weight": torch.ones(1, 6, 6, dtype=torch.float64)},
    "weight is .* on cpu, not .* on meta": {"mean": True, "weight": torch.ones(1, 6, 6, device="meta")},
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words(sentence, backend):
    arguments = {"value": torch.ones(1, 8, 8, 3), "offsets": field(1, 6, 6, 3), "patch": (1, 3, 3), **WRONG[sentence]}
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.vote(**arguments)
