"""patch_match: native code against the reference bit for bit; fields against brute force."""

import hashlib
import importlib
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.ops.patch_match import PatchMatch

# query, key, patch: odd sizes, one row, column or frame more than the patch, rows of patches of 1 to 92 values.
ROWS = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1)),
    ((5, 9, 11, 1), (3, 10, 8, 1), (1, 1, 1)),
    ((4, 8, 8, 3), (4, 8, 8, 3), (3, 7, 7)),
    ((3, 7, 7, 3), (5, 9, 12, 3), (3, 7, 7)),
    ((1, 13, 17, 3), (1, 11, 19, 3), (1, 5, 5)),
    ((2, 5, 19, 4), (3, 6, 15, 4), (2, 3, 4)),  # rows of exactly one vector
    ((2, 5, 19, 4), (2, 6, 15, 4), (1, 3, 11)),
    ((3, 6, 8, 9), (4, 5, 7, 9), (3, 3, 3)),
    ((1, 3, 40, 4), (2, 4, 33, 4), (1, 2, 16)),  # of exactly four
    ((1, 4, 27, 9), (2, 3, 21, 9), (1, 2, 9)),
    ((2, 3, 47, 4), (3, 4, 39, 4), (2, 2, 23)),
    ((2, 9, 10, 3), (2, 8, 13, 3), (1, 7, 7)),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(row, dtype=torch.float32):
    query, key, _ = row
    return noise(*query, seed=1, dtype=dtype), noise(*key, seed=2, dtype=dtype)


def extras(row):
    """A start that leads outside here and there; weights of which a third are infinite."""
    query, key, patch = row
    counts = [ops.places(torch.empty(shape), patch) for shape in (query, key)]
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(-9, 10, (*counts[0], 3), generator=generator).short()
    weight = 0.1 + torch.rand(counts[1], generator=generator)
    weight[torch.rand(counts[1], generator=generator) < 1 / 3] = torch.inf
    return {"start": start, "weight": weight}


def evaluate(backend, row, dtype=torch.float32, rounds=1, seed=5, device="cpu", **arguments):
    query, key = (video.to(device) for video in pair(row, dtype))
    arguments = {name: value.to(device) for name, value in arguments.items()}
    with ops.backend(backend):
        found = ops.patch_match(query, key, row[2], rounds, seed, **arguments)
    return [tensor.cpu() for tensor in found]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for row in ROWS:
        for arguments in ({}, extras(row)):
            for tensor in evaluate("native", row, rounds=3, **arguments):
                total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def windows(video, patch):
    """(places, values of a patch) float64."""
    unfolded = video.double().unfold(0, patch[0], 1).unfold(1, patch[1], 1).unfold(2, patch[2], 1)
    return unfolded.reshape(unfolded.shape[:3].numel(), -1)


def matches(offsets):
    own = torch.stack(torch.meshgrid(*(torch.arange(n) for n in offsets.shape[:3]), indexing="ij"), -1)
    return own + offsets


def recomputed(query, key, patch, offsets):
    """Sums of squared differences along a field in float64, as a flat tensor."""
    counts = ops.places(key, patch)
    t, y, x = matches(offsets).flatten(0, 2).unbind(-1)
    return (windows(query, patch) - windows(key, patch)[(t * counts[1] + y) * counts[2] + x]).square().sum(1)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_native_is_the_reference_bit_for_bit(row):
    assert same(evaluate("native", row), evaluate("reference", row))


@pytest.mark.parametrize("row", ROWS[1:], ids=str)
def test_native_is_the_reference_with_start_and_weights(row):
    arguments = extras(row)
    assert same(evaluate("native", row, **arguments), evaluate("reference", row, **arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_floating_dtype_gives_the_field_of_its_values(dtype):
    found = evaluate("native", ROWS[4], dtype)
    assert found[1].dtype == torch.float32
    assert same(found, evaluate("reference", ROWS[4], dtype))
    query, key = (video.double() for video in pair(ROWS[4], dtype))
    assert torch.equal(found[0], ops.patch_match(query, key, ROWS[4][2], 1, 5)[0])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_layout_in_memory_does_not_matter(backend):
    row = ROWS[5]
    query, key = pair(row)
    arguments = extras(row)

    def scattered(tensor):  # the same values, last dimension first in memory and every second of them
        wide = torch.zeros(*reversed(tensor.shape), 2, dtype=tensor.dtype)
        wide[..., 0] = tensor.permute(*range(tensor.ndim - 1, -1, -1))
        return wide[..., 0].permute(*range(tensor.ndim - 1, -1, -1))

    def permuted(tensor):  # dense, which a plain clone() would keep
        return tensor.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)

    with ops.backend(backend):
        expected = ops.patch_match(query, key, row[2], 1, **arguments)
        start, weight = arguments["start"], scattered(arguments["weight"])
        assert not query.is_set_to(scattered(query)) and torch.equal(query, scattered(query))
        for given in (scattered(start), permuted(start)):
            found = ops.patch_match(scattered(query), permuted(key), row[2], 1, start=given, weight=weight)
            assert same(found, expected)
            assert torch.equal(given, start), "the start is left as it was"


def test_the_code_of_the_device_gives_the_same_field_on_the_host(use_device_code):
    """In an order that no device would take: nothing depends on it."""
    expected = digest()
    use_device_code("patch_match")
    assert digest() == expected


@pytest.mark.parametrize("row", [*(ROWS[i] for i in (5, 6, 8, 10)), ((4, 9, 10, 4), (5, 9, 12, 4), (3, 7, 7))], ids=str)
def test_a_warp_for_each_patch_finds_the_same_field_on_the_host(use_device_code, row):
    expected = [evaluate("native", row, rounds=3, **arguments) for arguments in ({}, extras(row))]
    use_device_code("patch_match_by_warps")
    found = [evaluate("native", row, rounds=3, **arguments) for arguments in ({}, extras(row))]
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


SEVERAL_STEPS = {"more than are remembered": (8, 4, 2, 1) * 9, "of strides in no order": (3, 1, 3, 1, 1, 2, 2, 3, 1)}


def with_several_steps(strides, patch, texture):
    query, key = (torch.from_numpy(texture(5, (18, 24), seed=seed)).float() for seed in (1, 2))
    return ops.patch_match(query, key, patch, rounds=1, seed=3, strides=strides)


@pytest.mark.parametrize("strides", SEVERAL_STEPS.values(), ids=SEVERAL_STEPS)
@pytest.mark.parametrize("patch", [(3, 7, 7), (1, 7, 7), (3, 5, 5)], ids=str)
def test_what_was_tried_is_not_tried_again_and_the_field_is_the_same(strides, patch, texture, use_device_code):
    found = with_several_steps(strides, patch, texture)
    with ops.backend("reference"):  # tries everything
        assert same(with_several_steps(strides, patch, texture), found)
    use_device_code("patch_match")
    assert same(with_several_steps(strides, patch, texture), found)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_gpu_finds_the_field_of_the_cpu(row, dtype):
    for arguments in ({}, extras(row)):
        expected = evaluate("native", row, dtype, rounds=3, **arguments)
        assert same(evaluate("native", row, dtype, rounds=3, device="cuda", **arguments), expected)


@pytest.mark.gpu
def test_the_gpu_finds_the_field_of_the_cpu_in_many_blocks_and_strides(texture):
    query, key = (torch.from_numpy(texture(9, (53, 71), seed=seed)).float() for seed in (1, 2))
    for strides in ([8, 4, 2, 1] * 3, [5, 1, 3]):
        options = {"rounds": 1, "seed": 11, "strides": strides}
        expected = ops.patch_match(query, key, **options)
        found = ops.patch_match(query.cuda(), key.cuda(), **options)
        assert same([tensor.cpu() for tensor in found], expected)


@pytest.mark.gpu
def test_devices_do_not_mix():
    video, start = torch.rand(1, 6, 6, 3), torch.zeros(1, 4, 4, 3, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="start is"):
        ops.patch_match(video.cuda(), video.cuda(), (1, 3, 3), start=start)
    with pytest.raises(RuntimeError, match="differ in channels or device"):
        ops.patch_match(video.cuda(), video, (1, 3, 3))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, -3])
def test_a_seed_gives_the_same_field_again_and_another_seed_another(seed):
    row = ROWS[1]
    first = evaluate("native", row, seed=seed)
    assert same(first, evaluate("native", row, seed=seed))
    assert same(first, evaluate("reference", row, seed=seed))
    assert not torch.equal(first[0], evaluate("native", row, seed=seed + 1)[0])


@pytest.mark.parametrize("row", [row for row in ROWS if row[2] != (1, 1, 1)], ids=str)
@pytest.mark.parametrize("far", [0, 1e6], ids=["near", "far from zero"])
def test_distances_are_those_along_the_field(row, far):
    query, key = (video + far for video in pair(row, torch.float64))
    offsets, distances = ops.patch_match(query, key, row[2], 1)
    found, exact = distances.flatten().double().sqrt(), recomputed(query, key, row[2], offsets).sqrt()
    values = row[2][0] * row[2][1] * row[2][2] * query.shape[3]
    step = float(torch.cat((query.flatten(), key.flatten())).aminmax().max - min(query.min(), key.min()))
    step /= min(2**15 - 1, int(((2**31 - 1) / values) ** 0.5))
    # Each value is rounded by half a step at most, each difference by one: by the triangle inequality their norms.
    assert ((found - exact).abs() <= step * values**0.5 + 1e-6 * exact).all()
    assert torch.allclose(found, exact, rtol=0.01, atol=1e-3)


def test_offsets_always_lead_inside():
    for row in ROWS:
        for arguments in ({}, extras(row)):
            for rounds in (0, 2):
                at = matches(evaluate("native", row, rounds=rounds, **arguments)[0])
                counts = torch.tensor(ops.places(torch.empty(row[1]), row[2]))
                assert (at >= 0).all() and (at < counts).all()


def test_a_video_started_at_itself_stays(texture):
    video = torch.from_numpy(texture(5, (14, 19))).float()
    start = torch.zeros(3, 8, 13, 3, dtype=torch.int16)
    offsets, distances = ops.patch_match(video, video, start=start)
    assert not offsets.any() and not distances.any()


def test_a_video_that_slides_is_found_where_it_was(texture):
    """Neighbours tell each other: a single good place spreads over the field."""
    video = noise(1, 40, 60, 3)
    offsets, distances = ops.patch_match(video[:, 3:, 5:], video, (1, 7, 7), rounds=10)
    assert not distances.any()
    assert (offsets == torch.tensor([0, 3, 5])).all()


@pytest.mark.parametrize("kind", ["texture", "noise"])
@pytest.mark.parametrize("patch", [(3, 5, 5), (1, 7, 7)], ids=str)
def test_the_mean_distance_is_close_to_that_of_the_exact_field(kind, patch, texture):
    if kind == "texture":
        query, key = (torch.from_numpy(texture(5, (20, 28), seed=seed)).float() for seed in (1, 2))
    else:
        query, key = noise(4, 16, 24, 3, seed=1), noise(4, 16, 24, 3, seed=2)
    exact = torch.cdist(windows(query, patch), windows(key, patch)).amin(1).square().mean()
    mean = ops.patch_match(query, key, patch, rounds=10)[1].double().mean()
    assert 0.999 < mean / exact < 1.03


def test_more_rounds_bring_every_patch_closer_or_leave_it(texture):
    query, key = (torch.from_numpy(texture(5, (20, 28), seed=seed)).float() for seed in (1, 2))
    distances = [ops.patch_match(query, key, rounds=rounds)[1] for rounds in (0, 1, 3, 9)]
    for before, after in pairwise(distances):
        assert (after <= before).all()
    assert distances[1].mean() < 0.5 * distances[0].mean()


def test_a_round_more_is_a_round_from_there(texture):
    """A field is all that a step knows: distances are those of its offsets."""
    row = ROWS[4]
    field, distances = evaluate("native", row, rounds=2)
    again = evaluate("native", row, rounds=0, start=field)
    assert same(again, (field, distances))


def test_infinite_weights_are_never_chosen():
    row = ROWS[4]
    weight = extras(row)["weight"]
    field, distances = evaluate("native", row, rounds=4, weight=weight)
    assert weight[matches(field).unbind(-1)].isfinite().all() and distances.isfinite().all()


def test_weights_multiply_distances(texture):
    query, key = (torch.from_numpy(texture(5, (20, 28), seed=seed)).float() for seed in (1, 2))
    patch = (3, 5, 5)
    weight = torch.rand(ops.places(key, patch), generator=torch.Generator().manual_seed(0)) + 0.5
    field, distances = ops.patch_match(query, key, patch, weight=weight)
    factor = weight[matches(field).unbind(-1)].flatten()
    along = (recomputed(query, key, patch, field) * factor).float()
    torch.testing.assert_close(distances.flatten(), along, rtol=0.01, atol=1e-3)
    exact = torch.cdist(windows(query, patch), windows(key, patch)).square() * weight.flatten()
    assert distances.mean() < 1.1 * exact.amin(1).mean()  # neighbours' weights tell a patch nothing


def test_videos_of_one_value_are_alike_everywhere():
    offsets, distances = ops.patch_match(torch.full((1, 8, 8, 3), 0.3), torch.full((1, 9, 9, 3), 0.3), (1, 3, 3))
    assert not distances.any() and offsets.shape == (1, 6, 6, 3)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck(backend):
    row = ROWS[4]
    query, key = pair(row)
    arguments = extras(row)
    with ops.backend(backend):
        for start, weight in ((None, None), (arguments["start"], arguments["weight"])):
            args = PatchMatch(query, key, [1, 5, 5], 1, seed=3, start=start, weight=weight, strides=[2, 1])
            torch.library.opcheck(torch.ops.sinfusion.patch_match.default, tuple(args))


def video(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


WRONG = {
    "query is \\(T, H, W, C\\), not": {"query": video(8, 8, 3)},
    "key is \\(T, H, W, C\\), not": {"key": video(1, 1, 8, 8, 3)},
    "query is floating, not torch.uint8": {"query": video(1, 8, 8, 3, dtype=torch.uint8)},
    "key is floating, not torch.int64": {"key": video(1, 8, 8, 3, dtype=torch.int64)},
    "smaller than the patch \\(1, 3, 3\\)": {"key": video(1, 2, 8, 3)},
    "differ in channels": {"key": video(1, 8, 8, 4)},
    "or device": {"key": video(1, 8, 8, 3, device="meta")},
    "have no channels": {"query": video(1, 8, 8, 0), "key": video(1, 8, 8, 0)},
    "each side is below": {"query": torch.ones(1).expand(1, 8, 2**15, 3)},
    "patch is three sizes above 0, not \\(3, 3\\)": {"patch": (3, 3)},
    "patch is three sizes above 0, not \\(1, 0, 3\\)": {"patch": (1, 0, 3)},
    "start is \\(1, 6, 6, 3\\) torch.int16 .* not \\(1, 6, 6, 2\\)": {
        "start": torch.zeros(1, 6, 6, 2, dtype=torch.int16)
    },
    "start is .* not .* torch.int32": {"start": torch.zeros(1, 6, 6, 3, dtype=torch.int32)},
    "start is .* on cpu, not .* on meta": {"start": torch.zeros(1, 6, 6, 3, dtype=torch.int16, device="meta")},
    "weight is \\(1, 6, 6\\) torch.float32 .* not \\(1, 8, 8\\)": {"weight": video(1, 8, 8)},
    "weight is .* not .* torch.float64": {"weight": video(1, 6, 6, dtype=torch.float64)},
    "weight is .* on cpu, not .* on meta": {"weight": video(1, 6, 6, device="meta")},
    "weight is above 0": {"weight": torch.zeros(1, 6, 6)},
    "weight is above 0 ": {"weight": torch.full((1, 6, 6), torch.nan)},
    "value_range is \\(low, high\\)": {"value_range": (1.0, -1.0)},
    "value_range is": {"value_range": (0.0,)},
    "value_range is .* finite": {"value_range": (0.0, torch.inf)},
    "query and key are finite": {"query": video(1, 8, 8, 3).index_fill(1, torch.tensor(3), torch.nan)},
    "query and key are finite$": {"key": video(1, 8, 8, 3).index_fill(1, torch.tensor(3), torch.nan)},
    "key are finite": {"key": video(1, 8, 8, 3).index_fill(1, torch.tensor(3), -torch.inf)},
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words(sentence, backend):
    arguments = {"query": video(1, 8, 8, 3), "key": video(1, 8, 8, 3), "patch": (1, 3, 3), **WRONG[sentence]}
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.patch_match(**arguments)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_range_that_is_given_is_that_which_would_be_found_and_cuts_off_what_lies_beyond(backend):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(frames, 9, 10, 3, generator=generator) for frames in (2, 3))
    low = float(min(query.min(), key.min()))
    high = float(max(query.max(), key.max()))
    with ops.backend(backend):
        field, distance = ops.patch_match(query, key, (1, 3, 3))
        same, same_distance = ops.patch_match(query, key, (1, 3, 3), value_range=(low, high))
        cut, _ = ops.patch_match(query, key, (1, 3, 3), value_range=(low / 2, high / 2))
        clamped = (video.clamp(low / 2, high / 2) for video in (query, key))
        wanted, _ = ops.patch_match(*clamped, (1, 3, 3), value_range=(low / 2, high / 2))
    assert torch.equal(field, same) and torch.equal(distance, same_distance)
    assert torch.equal(cut, wanted) and not torch.equal(cut, field)


def test_strides_are_above_zero():
    with pytest.raises(RuntimeError, match="strides are above 0"):
        ops.patch_match(video(1, 4, 4, 3), video(1, 4, 4, 3), (1, 3, 3), strides=(1, 0))


def test_forcing_native_where_there_is_no_library_says_why(monkeypatch):
    class Missing:
        loaded, why_not = False, "there is no library here"

    monkeypatch.setattr(importlib.import_module("sinfusion.ops.native"), "cpu", Missing())
    with ops.backend("native"), pytest.raises(SinfusionError, match="no library here"):
        ops.patch_match(video(1, 8, 8, 3), video(1, 8, 8, 3), (1, 3, 3))
    assert ops.patch_match(video(1, 8, 8, 3), video(1, 8, 8, 3), (1, 3, 3), rounds=1)[0].shape == (1, 6, 6, 3)


def test_memory_grows_with_the_video_and_not_with_its_patches():
    """Patches and votes of a video of 4 MB; its patches, materialised, would be 152 MB."""
    code = (
        "import resource, torch\n"
        "from sinfusion import ops\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "def work(*shape):\n"
        "    value = torch.rand(*shape, 3)\n"
        "    offsets, _ = ops.patch_match(value, value.flip(0), rounds=1)\n"
        "    ops.vote(value, offsets), ops.vote(value, offsets, mean=True)\n"
        "work(4, 8, 8)\n"
        "before = peak()\n"
        "work(16, 64, 112)\n"
        "print(peak() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 30  # MB; a third of it is float copies of the two videos


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("row", [ROWS[1], ROWS[3], ROWS[7]], ids=str)
def test_a_key_in_steps_gives_the_field_of_the_key_itself(row, backend):
    query, key = pair(row)
    steps = ops.key_in_steps(key, row[2], (-2.0, 2.0))
    assert steps.dtype == torch.int16 and steps.shape == key.shape
    elsewhere = torch.empty(*steps.shape[::-1], dtype=torch.int16).permute(3, 2, 1, 0).copy_(steps)
    with ops.backend(backend):
        wanted = ops.patch_match(query, key, row[2], 2, 5, value_range=(-2.0, 2.0))
        for given in (steps, steps.clone(), elsewhere):  # as it was made; with nothing behind its end; in another order
            found = ops.patch_match(query, given, row[2], 2, 5, value_range=(-2.0, 2.0))
            assert all(map(torch.equal, found, wanted))
        with pytest.raises(RuntimeError, match="a key in steps needs the value_range that it was made with"):
            ops.patch_match(query, steps, row[2], 2, 5)
        with pytest.raises(RuntimeError, match="query is floating, not"):
            ops.patch_match(steps, steps, row[2], 2, 5, value_range=(-2.0, 2.0))
