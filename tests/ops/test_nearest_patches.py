"""nearest_patches: native code against the reference bit for bit; both against brute force in float64."""

import hashlib

import pytest
import torch

from sinfusion import ops
from sinfusion.ops.nearest_patches import NearestPatches

# query, key, patch, k: odd and even channels, fewer pixels than a vector, one patch alone, k = M, more than a tile.
ROWS = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1), 1),
    ((2, 7, 9, 3), (3, 8, 21, 3), (1, 3, 3), 7),
    ((1, 4, 5, 1), (1, 4, 40, 1), (1, 3, 3), 76),
    ((2, 5, 19, 6), (3, 6, 15, 6), (2, 3, 4), 20),
    ((1, 11, 13, 5), (2, 20, 70, 5), (1, 3, 3), 64),
    ((3, 7, 7, 3), (5, 9, 12, 3), (3, 7, 7), 18),
]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def videos(row, levels=None, dtype=torch.float32):
    """Noise; or, of a few levels, many ties."""
    query, key = noise(*row[0], seed=1, dtype=dtype), noise(*row[1], seed=2, dtype=dtype)
    return (query, key) if levels is None else ((query * levels).round(), (key * levels).round())


def evaluate(backend, row, levels=None, dtype=torch.float32):
    with ops.backend(backend):
        return ops.nearest_patches(*videos(row, levels, dtype), *row[2:])


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for row in ROWS:
        for levels in (None, 0.5):
            for tensor in evaluate("native", row, levels):
                total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def windows(video, patch):
    unfolded = video.double().unfold(0, patch[0], 1).unfold(1, patch[1], 1).unfold(2, patch[2], 1)
    return unfolded.reshape(unfolded.shape[:3].numel(), -1)


@pytest.mark.parametrize("levels", [None, 0.5], ids=["noise", "ties"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_native_is_the_reference_bit_for_bit(row, levels):
    assert same(evaluate("native", row, levels), evaluate("reference", row, levels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_floating_dtype_serves(dtype):
    found = evaluate("native", ROWS[1], dtype=dtype)
    assert found[1].dtype == torch.float32
    assert same(found, evaluate("reference", ROWS[1], dtype=dtype))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("row", ROWS[1:], ids=str)
def test_they_are_the_nearest_of_all(row, backend):
    query, key = videos(row)
    index, distance = evaluate(backend, row)
    exact = torch.cdist(windows(query, row[2]), windows(key, row[2])).square()
    assert (distance.diff() >= 0).all()
    assert all(len(set(numbers.tolist())) == row[3] for numbers in index), "each once"
    torch.testing.assert_close(distance.double(), exact.gather(1, index.long()), rtol=0.01, atol=0.01)
    torch.testing.assert_close(distance.double(), exact.sort(1).values[:, : row[3]], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_of_patches_as_near_the_first_come_first(backend):
    with ops.backend(backend):
        index, distance = ops.nearest_patches(torch.zeros(1, 3, 4, 3), torch.zeros(9, 12, 33, 3), (1, 3, 3), 40)
    assert not distance.any() and (index == torch.arange(40)).all()


def test_a_patch_of_the_key_finds_itself():
    key = noise(3, 9, 20, 3)
    index, distance = ops.nearest_patches(key, key, (1, 3, 3), 3)
    assert (index[:, 0] == torch.arange(3 * 7 * 18)).all() and not distance[:, 0].any() and (distance[:, 1] > 0).all()


def test_layout_in_memory_does_not_matter():
    row = ROWS[3]
    query, key = videos(row)
    scattered = query.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    expected = ops.nearest_patches(query, key, *row[2:])
    assert same(ops.nearest_patches(scattered, key.flip(2).flip(2), *row[2:]), expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck(backend):
    with ops.backend(backend):
        args = NearestPatches(*videos(ROWS[1]), list(ROWS[1][2]), ROWS[1][3])
        torch.library.opcheck(torch.ops.sinfusion.nearest_patches.default, tuple(args))


WRONG = {
    "query is \\(T, H, W, C\\), not": {"query": torch.ones(8, 8, 3)},
    "smaller than the patch": {"key": torch.ones(1, 2, 8, 3)},
    "differ in channels": {"key": torch.ones(1, 8, 8, 4)},
    "patch is three sizes above 0": {"patch": (3, 3)},
    "k is from 1 to the 36 patches of key, not 37": {"k": 37},
    "k is from 1 to the 36 patches of key, not 0": {"k": 0},
    "query and key are finite": {"query": torch.full((1, 8, 8, 3), torch.nan)},
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words(sentence, backend):
    arguments = {"query": torch.ones(1, 8, 8, 3), "key": torch.ones(1, 8, 8, 3), "k": 3, **WRONG[sentence]}
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.nearest_patches(**arguments)


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    for row in ROWS:
        query, key = videos(row, 0.5)
        found = ops.nearest_patches(query.cuda(), key.cuda(), *row[2:])
        assert same([tensor.cpu() for tensor in found], evaluate("native", row, 0.5))
