"""What a training step sees: a pure function of (seed, step), cut at one place, from the right frames."""

from collections import namedtuple

import pytest
import torch

from sinfusion import ops
from sinfusion.pixels import to_uint8, to_unit
from sinfusion.recipe import TINY
from sinfusion.roles import INTERPOLATOR, PREDICTOR, PROJECTOR
from sinfusion.training.batch import at_half_size, condition_frames, draw_places, mirrored, sample_seeds

COUNT, HEIGHT, WIDTH = 6, 12, 16
ONE = TINY.replace(motion_compensation=False, previous_frames=1)


@pytest.fixture
def coded():
    """Every pixel tells its frame (red), row (green) and column (blue)."""
    frame, row, column = torch.meshgrid(*(torch.arange(n) for n in (COUNT, HEIGHT, WIDTH)), indexing="ij")
    return torch.stack((frame, row, column), -1).to(torch.uint8)


def corners(images):
    """Frame, row and column of the top left pixel of each image (B, 3, h, w)."""
    return to_uint8(images)[:, 0, 0].tolist()


def draw(frames, conditions, crop, seed, step, samples, largest_offset=1, recipe=ONE):
    """Target, condition and frame offset of each sample, cut without any noise."""
    role = (PROJECTOR, PREDICTOR, INTERPOLATOR)[conditions]
    seeds, step = sample_seeds(seed, samples), torch.tensor(step)
    places, offset = draw_places(tuple(frames.shape[:3]), role, crop, seeds, step, largest_offset, recipe.every_triple)
    around = condition_frames(recipe, role, len(frames), places[:, 0], offset, seeds, step)
    coefficients = torch.tensor([1.0, 0, 0, 1, 0, 0] + [1.0, 0, 0, 0] * around.shape[1]).expand(len(seeds), -1)
    inputs, clean = ops.sample_crops(
        frames, places, around, coefficients, None, seeds, step, (1, 2), False, crop, torch.float32
    )
    assert torch.equal(inputs[:, -3:], clean)
    return Drawn(clean, inputs[:, :-3] if conditions else None, offset if conditions == 1 else None)


Drawn = namedtuple("Drawn", ("clean", "condition", "frame_offset"))


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("conditions", "largest"), [(0, 1), (1, 2), (2, 1)])
def test_a_step_is_a_function_of_seed_and_step_alone(coded, conditions, largest):
    def examples(seed, step):
        return draw(coded, conditions, (7, 9), seed, step, range(16), largest)

    first = examples(3, 50)
    examples(4, 51)
    torch.rand(5)  # the global generator plays no part
    assert same(first, examples(3, 50))
    assert not same(first, examples(3, 51))
    assert not same(first, examples(4, 50))


@pytest.mark.parametrize(("conditions", "largest"), [(0, 1), (1, 1), (2, 1)])
def test_samples_split_over_processes_are_the_whole_batch(coded, conditions, largest):
    whole = draw(coded, conditions, (7, 9), 0, 9, range(6), largest)
    parts = [draw(coded, conditions, (7, 9), 0, 9, samples, largest) for samples in (range(0, 2), range(2, 6))]
    for name in ("clean", "condition", "frame_offset"):
        if getattr(whole, name) is not None:
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_condition_and_target_are_cut_at_one_place_and_lie_the_frame_offset_apart(coded):
    offsets = (-2, -1, 1, 2)
    seen = set()
    for step in range(40):
        examples = draw(coded, 1, (7, 9), 0, step, range(8), 2)
        assert examples.clean.shape == examples.condition.shape == (8, 3, 7, 9)
        places = zip(corners(examples.clean), corners(examples.condition), examples.frame_offset.tolist(), strict=True)
        for (target, *place), (condition, *condition_place), offset in places:
            assert place == condition_place
            assert target - condition == offset
            assert 0 <= min(target, condition) and max(target, condition) < COUNT
            seen.add((condition, offset))
    possible = {(frame, k) for frame in range(COUNT) for k in offsets if 0 <= frame + k < COUNT}
    assert seen == possible  # every pair the clip has is learned from


@pytest.mark.parametrize("previous_frames", [2, 3])
def test_frames_before_the_last_one_lie_further_offsets_back_or_repeat_it_where_there_are_none(coded, previous_frames):
    seen = set()
    recipe = TINY.replace(previous_frames=previous_frames, condition_dropout=0.0)
    for step in range(40):
        examples = draw(coded, 1, (7, 9), 0, step, range(8), 2, recipe=recipe)
        cuts = [corners(part) for part in (examples.clean, *examples.condition.split(3, 1))]
        for (target, *place), *older, offset in zip(*cuts, examples.frame_offset.tolist(), strict=True):
            assert all(condition[1:] == place for condition in older)
            frames, wanted = [condition[0] for condition in older], [target - offset]
            while len(wanted) < previous_frames:
                before = wanted[-1] - offset
                wanted.append(before if 0 <= before < COUNT else wanted[-1])
            assert frames == wanted
            seen.add((target, offset))
    possible = {(target, k) for target in range(COUNT) for k in (-2, -1, 1, 2) if 0 <= target - k < COUNT}
    assert seen == possible  # the clip's first transitions, too


def test_a_share_of_the_samples_lacks_the_second_frame_and_twice_that_the_third():
    recipe, seeds, step = TINY.replace(previous_frames=3, condition_dropout=0.2), sample_seeds(0, range(4000)), 5
    target, offset = torch.full((4000,), 50), torch.ones(4000, dtype=torch.int64)
    frames = condition_frames(recipe, PREDICTOR, 100, target, offset, seeds, torch.tensor(step))
    assert (frames[:, 0] == 49).all()
    assert {tuple(row) for row in frames.tolist()} == {(49, 48, 47), (49, 48, 48), (49, 49, 49)}
    for i, share in ((1, 0.2), (2, 0.4)):
        assert (frames[:, i] == frames[:, i - 1]).double().mean().item() == pytest.approx(share, abs=0.04)


def test_every_place_a_crop_fits_is_drawn_and_no_other(coded):
    places = {
        tuple(corner[1:])
        for step in range(60)
        for corner in corners(draw(coded, 0, (HEIGHT - 2, WIDTH - 3), 1, step, range(8)).clean)
    }
    assert places == {(row, column) for row in range(3) for column in range(4)}


def test_a_crop_is_a_part_of_the_frame(coded):
    clean = draw(coded, 0, (7, 9), 0, 0, range(1)).clean
    frame, row, column = corners(clean)[0]
    assert torch.equal(clean[0], to_unit(coded[frame, row : row + 7, column : column + 9]))


@pytest.mark.parametrize(
    ("every_triple", "count", "middles"),
    [(True, 6, {1, 2, 3, 4}), (False, 6, {1, 3}), (False, 5, {1, 3}), (False, 3, {1}), (True, 3, {1})],
)
def test_the_middle_frame_is_learned_from_those_around_it(coded, every_triple, count, middles):
    seen = set()
    for step in range(30):
        examples = draw(coded[:count], 2, (7, 9), 0, step, range(4), recipe=ONE.replace(every_triple=every_triple))
        before, after = examples.condition[:, :3], examples.condition[:, 3:]
        for (target, *place), first, last in zip(corners(examples.clean), corners(before), corners(after), strict=True):
            assert (first, last) == ([target - 1, *place], [target + 1, *place])
            seen.add(target)
    assert seen == middles


def test_an_unconditional_model_learns_from_all_frames(coded):
    targets = {corner[0] for step in range(20) for corner in corners(draw(coded, 0, (7, 9), 0, step, range(4)).clean)}
    assert targets == set(range(COUNT))


def test_bytes_survive_the_unit_range_and_values_outside_it_are_clamped():
    every = torch.arange(256, dtype=torch.uint8)[:, None, None].expand(256, 2, 3)
    assert torch.equal(to_uint8(to_unit(every[None]))[0], every)
    assert to_unit(every).min() == -1 and to_unit(every).max() == 1
    assert to_uint8(torch.tensor([-3.0, 0.0, 3.0])[:, None, None]).flatten().tolist() == [0, 128, 255]


def test_frames_at_half_the_size_are_mirrored_until_they_fill_a_frame():
    frames = torch.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3).to(torch.uint8)
    half = mirrored(at_half_size(frames), (5, 7))
    assert half.shape == frames.shape and half.dtype == torch.uint8
    assert torch.equal(half[:, 0, 0], frames[:, :2, :2].float().mean((1, 2)).round().to(torch.uint8))
    assert torch.equal(half[:, :, 4:], half[:, :, 1:4].flip(2)) and torch.equal(half[:, 3:], half[:, 1:3].flip(1))
