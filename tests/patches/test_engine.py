"""The engine: levels from coarse to fine, passes, weights, what is known and what must appear."""

import numpy as np
import pytest
import torch

from sinfusion import ops
from sinfusion.patches.engine import HUGE, LARGE, Effort, Level, carry_field, coarse_to_fine
from sinfusion.patches.pyramid import resample

PATCH = (3, 7, 7)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def original(texture):
    """(7, 20, 30, 3) in [-1, 1]."""
    return torch.from_numpy(texture(7, (20, 30)).copy()).float() / 127.5 - 1


def distance(a, b):
    """Mean over patches of `a` to their nearest in `b`."""
    return ops.patch_match(a, b, PATCH if len(a) > 1 else (1, 7, 7), rounds=8)[1].mean().item()


def two_levels(original):
    shapes = [(5, 14, 21), (7, 20, 30)]
    return shapes, lambda n: Level(resample(original, shapes[n]), shapes[n])


# Effort --------------------------------------------------------------------------------------------------------------


def test_a_level_gets_all_passes_a_large_one_a_single_one_a_huge_one_smaller_patches_too():
    effort = Effort(passes=4, coarsest_passes=2)
    for pixels, patch, passes in (
        (100 * 100 * 100, (3, 7, 7), 4),
        (LARGE, (3, 7, 7), 4),
        (LARGE + 1, (3, 7, 7), 1),
        (HUGE, (3, 7, 7), 1),
        (HUGE + 1, (3, 5, 5), 1),
    ):
        assert effort.patch_and_passes((1, 1, pixels), coarsest=False) == (patch, passes)
    assert effort.patch_and_passes((10, 10, 10), coarsest=True) == ((3, 7, 7), 2)


def test_patches_that_are_small_already_stay_as_they_are_on_huge_levels():
    assert Effort((1, 3, 5)).patch_and_passes((1, 1, HUGE + 1), False)[0] == (1, 3, 5)


@pytest.fixture
def searches(monkeypatch):
    """All arguments of every search that is made."""
    outputs, search = [], ops.patch_match
    monkeypatch.setattr(ops, "patch_match", lambda *arguments: outputs.append(arguments) or search(*arguments))
    return outputs


def test_there_are_as_many_searches_as_the_effort_says(original, searches):
    shapes, level_at = two_levels(original)
    effort = Effort(passes=3, coarsest_passes=2, first_rounds=6, rounds=1)
    coarse_to_fine(shapes, level_at, resample(original, shapes[0]), effort)
    done = [(rounds, tuple(query.shape[:3])) for query, _, _, rounds, *_ in searches]
    assert done == [(6, shapes[0]), (1, shapes[0])] + [(1, shapes[1])] * 3


def test_the_first_pass_of_a_level_compares_with_a_blurred_original_and_the_others_with_the_original(
    original, searches
):
    shapes, level_at = two_levels(original)
    coarse_to_fine(shapes, level_at, resample(original, shapes[0]), Effort(passes=3, coarsest_passes=2))
    coarse, fine = level_at(0).source, level_at(1).source
    wanted = [coarse, coarse, resample(coarse, shapes[1]), fine, fine]
    assert all(torch.equal(key, other) for (_, key, *_), other in zip(searches, wanted, strict=True))


def test_no_two_searches_of_one_seed_or_of_neighbouring_ones_draw_the_same_words(original, searches):
    shapes, level_at = two_levels(original)
    effort = Effort(passes=3, coarsest_passes=2, first_rounds=1, rounds=1, completeness=1.0)
    for seed in (0, 1, 2, 2**32 - 1):
        coarse_to_fine(shapes, level_at, resample(original, shapes[0]), effort, seed)
    keys = [seed for _, _, _, _, seed, *_ in searches]
    assert len(keys) == 4 * 2 * 5 and len(set(keys)) == len(keys) and all(0 <= key < 2**63 for key in keys)


# Fields --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun, now", [((4, 10, 12), (7, 15, 24)), ((3, 9, 9), (3, 9, 20)), ((7, 15, 24), (4, 10, 12))]
)
def test_a_field_carried_to_another_size_leads_to_the_same_places_relative_to_it(begun, now):
    """Of a field that leads each place to that of a key half as high and twice as long, at the same share of it."""
    patch = (2, 3, 3)

    def relative(query, key):
        axes = [torch.arange(n) for n in query]
        own = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        return (own + 0.5) * torch.tensor([k / q for q, k in zip(query, key, strict=True)]) - 0.5 - own

    def key_of(query):
        return 2 * query[0], -(-query[1] // 2), query[2]

    key_then, key_now = key_of(begun), key_of(now)
    field = relative(begun, key_then).round().short(), key_then
    videos = (torch.zeros(*(n + side - 1 for n, side in zip(shape, patch, strict=True)), 1) for shape in (now, key_now))
    carried = carry_field(*field, *videos, patch)
    assert carried.shape == (*now, 3) and carried.dtype == torch.int16
    apart = (carried - relative(now, key_now)).abs()
    assert (apart <= 1 + torch.tensor([k / t for k, t in zip(key_now, key_then, strict=True)])).all()


def test_a_field_within_a_level_is_carried_as_it_is():
    field = torch.randint(-3, 3, (4, 5, 6, 3)).short()
    video = torch.zeros(4, 5, 6, 1)
    assert carry_field(field, (4, 5, 6), video, video, (1, 1, 1)) is field


# What is made --------------------------------------------------------------------------------------------------------


def test_a_query_that_is_the_original_gives_the_original(original):
    shapes, level_at = two_levels(original)
    outputs = coarse_to_fine(shapes, level_at, resample(original, shapes[0]), Effort())
    assert (outputs - original).abs().mean() < 0.01


def test_the_output_has_the_last_shape_and_only_colours_of_the_original(original):
    shapes = [(5, 20, 15), (9, 26, 20)]
    noise = torch.randn(*shapes[0], 3)
    outputs = coarse_to_fine(shapes, lambda n: Level(original, shapes[n]), noise, Effort(passes=2))
    assert outputs.shape == (9, 26, 20, 3)
    for channel in range(3):
        assert torch.isin(outputs[..., channel], original[..., channel]).all()
    shuffled = original.flatten(0, 2)[torch.randperm(7 * 20 * 30)].view_as(original)
    assert distance(outputs, original) < 0.2 * distance(shuffled, original)


def test_the_same_seed_gives_the_same_to_the_bit_and_another_one_does_not(original):
    shapes, level_at = two_levels(original)
    first = torch.randn(*shapes[0], 3)
    one, again, other = (coarse_to_fine(shapes, level_at, first, Effort(first_rounds=1), seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_the_original_and_the_query_are_left_as_they_are(original):
    before, first = original.clone(), torch.randn(7, 20, 30, 3)
    query = first.clone()
    coarse_to_fine([(7, 20, 30)], lambda _: Level(original, (7, 20, 30)), first, Effort())
    assert torch.equal(original, before) and torch.equal(first, query)


def test_progress_is_the_share_of_the_pixels_of_all_passes(original):
    progress = []
    shapes, level_at = two_levels(original)
    coarse_to_fine(
        shapes,
        level_at,
        resample(original, shapes[0]),
        Effort(passes=3, coarsest_passes=2),
        on_progress=progress.append,
    )
    coarse, fine = 5 * 14 * 21, 7 * 20 * 30
    whole = 2 * coarse + 3 * fine
    done = np.cumsum([coarse] * 2 + [fine] * 3) / whole
    assert [(step.done, step.total, step.unit) for step in progress] == [(share, 1, "share") for share in done]


# Guides --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [True, False], ids=["with a query", "guides alone"])
def test_guides_say_which_part_of_the_original_goes_where(begun):
    value = 0.3 * torch.rand(1, 20, 32, 3) - 0.15
    value[:, :, 16:, 0] += 0.8
    of_original = torch.zeros(1, 20, 32, 1)
    of_original[:, :, 16:] = 1
    wanted = torch.zeros(1, 24, 24, 1)
    wanted[:, 12:] = 1
    first = torch.zeros(1, 24, 24, 3) if begun else None
    level = Level(value, (1, 24, 24), (wanted, of_original))
    outputs = coarse_to_fine([(1, 24, 24)], lambda _: level, first, Effort((1, 5, 5)))
    assert outputs[:, :10, :, 0].max() < 0.2 and outputs[:, 14:, :, 0].min() > 0.5


# Weights and what is known -------------------------------------------------------------------------------------------


def test_patches_with_an_infinite_pixel_are_never_used(original):
    value = original.clone()
    value[2:5, 5:12, 8:20] = 1.5  # brighter than all else
    shape = (7, 20, 30)
    weight = torch.where(value[..., 0] == 1.5, torch.inf, 1.0)
    free = coarse_to_fine([shape], lambda _: Level(value, shape), value, Effort())
    kept = coarse_to_fine([shape], lambda _: Level(value, shape, None, weight), value, Effort())
    assert free.max() == 1.5 and kept.max() <= 1
    elsewhere = (value[..., 0] < 1.5)[..., None]
    assert ((kept - value) * elsewhere).abs().mean() < 0.1


def test_they_are_not_used_where_completeness_weighs_too(original):
    value = original.clone()
    value[2:5, 5:12, 8:20] = 1.5
    shape = (7, 20, 30)
    weight = torch.where(value[..., 0] == 1.5, torch.inf, 1.0)
    outputs = coarse_to_fine(
        [shape], lambda _: Level(value, shape, None, weight), value, Effort(passes=2, completeness=0.1)
    )
    assert outputs.max() <= 1


def test_what_is_known_stays_on_every_level_and_in_every_search(original, searches):
    shapes, level_at = two_levels(original)
    new = torch.zeros(7, 20, 30, dtype=torch.bool)
    new[:, 5:15, 10:20] = True

    def level(n):
        here = resample(new[..., None].float(), shapes[n])[..., 0] > 0.01
        return Level(level_at(n).source, shapes[n], None, None, ~here, torch.full((*shapes[n], 3), 9.0 + n))

    outputs = coarse_to_fine(shapes, level, torch.zeros(*shapes[0], 3), Effort(passes=2))
    for n, (query, *_) in zip((0, 1, 1), searches, strict=True):
        assert (query[level(n).known_mask] == 9 + n).all()
    assert (outputs[~new] == 10).all() and outputs[new].max() <= 1


def test_completeness_makes_all_of_the_original_appear():
    value = 0.2 * torch.randn(1, 24, 60, 3).clamp(-2, 2)
    value[:, :, 30:, 0] += 0.5
    shape = (1, 24, 60)
    first = torch.cat((value[:, :, :30], value[:, :, :30].flip(2)), 2)  # only the left half, twice
    plain, complete = (
        coarse_to_fine(
            [shape],
            lambda _: Level(value, shape),
            first,
            Effort((1, 7, 7), coarsest_passes=6, completeness=completeness),
        )
        for completeness in (None, 0.01)
    )
    assert distance(value, complete) < 0.4 * distance(value, plain)
    assert distance(complete, value) < 2 * distance(plain, value)  # and nothing else appears


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_one_turn_of_what_repeats_stays_as_it_is_across_its_ends(axes):
    """Every patch of it, those across its ends among them, is in the original, which has two turns."""
    turn = torch.rand(4, 12, 10, 3) * 2 - 1
    original = turn.repeat(*(2 if axis in axes else 1 for axis in range(3)), 1)
    wraps = tuple(axis in axes for axis in range(3))
    effort = Effort((2, 3, 3), first_rounds=40)
    output = coarse_to_fine([(4, 12, 10)], lambda _: Level(original, (4, 12, 10)), turn, effort, wraps=wraps)
    assert (output - turn).abs().amax(-1).gt(1e-6).float().mean() < 0.01
