"""Patch projection of rollouts."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from sinfusion import extrapolate, generate, ops, retarget
from sinfusion.errors import SinfusionError
from sinfusion.generation import projection
from sinfusion.generation.projection import (
    FLUID,
    FLUID_MOST,
    FLUID_TOLERANCE,
    GAIN,
    RECURRING,
    RECURRING_SURPRISE,
    PatchProjection,
    fluidity,
    not_recurring,
)
from sinfusion.generation.video import next_frame
from sinfusion.metrics.nearest_neighbors import nnf, nnfdist
from sinfusion.pixels import to_unit
from sinfusion.scene import render

FRAMES = to_unit(torch.from_numpy(np.asarray(render(12, (24, 40))))).contiguous()  # (12, 3, 24, 40)
CLIP = FRAMES.movedim(1, -1).contiguous()


class Rollout:
    """A projection, begun, with the frames that it has made."""

    def __init__(self, weight=1.0, depth=3, frame_offset=1, frames=FRAMES[:4], clip=CLIP):
        self.project = PatchProjection(clip, weight, depth, frame_offset=frame_offset)
        frames = [frame if frame.ndim == 4 else frame[None] for frame in frames]  # of a batch, or of one sample
        self.previous = torch.cat(frames[::-1], 1)
        self.project.begin(self.previous)

    def __call__(self, image):
        projected = self.project(image, self.previous)
        self.previous = torch.cat((projected, self.previous[:, :-3]), 1)
        return projected


def noisy(image, deviation=0.1, seed=0):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + deviation * noise).clamp(-1, 1)


def error(image, other):
    return float((image - other).square().mean().sqrt())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_the_clip_holds_stays_as_it_is(depth):
    project = Rollout(depth=depth)
    for frame in FRAMES[4:9]:
        assert error(project(frame[None])[0], frame) < 0.01


def test_what_no_patch_of_the_clip_looks_like_is_drawn_to_what_it_holds():
    projected = Rollout()(noisy(FRAMES[4:5]))
    assert error(projected, FRAMES[4:5]) < 0.5 * error(noisy(FRAMES[4:5]), FRAMES[4:5])


def test_the_weight_lies_between_the_predicted_and_the_projected_frame():
    frame = noisy(FRAMES[4:5])
    whole, half = Rollout(1.0)(frame), Rollout(0.5)(frame)
    torch.testing.assert_close(half, (frame + whole) / 2)


def test_deeper_patches_go_on_as_the_frames_before_moved():
    """A ball that bounces: the frame alone does not say which way, the frames before it do."""
    places = [4, 8, 12, 16, 20, 24, 20, 16, 12, 8, 4]
    clip = torch.full((len(places), 12, 32, 3), -0.5)
    for frame, x in zip(clip, places, strict=True):
        frame[4:8, x - 2 : x + 2] = 0.5
    frames = clip.movedim(-1, 1)
    of_both_ways = (frames[2:3] + frames[4:5]) / 2  # from the middle, frame 3
    right = Rollout(frames=frames[2:4], clip=clip)(of_both_ways)
    left = Rollout(frames=frames[[4, 3]], clip=clip)(of_both_ways)
    assert error(right, frames[4:5]) < error(right, frames[2:3])
    assert error(left, frames[2:3]) < error(left, frames[4:5])


def test_a_sample_is_the_same_alone_and_in_a_batch():
    batch = torch.stack((FRAMES[3], FRAMES[7]))
    found = Rollout(frames=[batch] * 2)(noisy(batch))
    for i in range(2):
        alone = Rollout(frames=[batch[i : i + 1]] * 2)
        assert torch.equal(alone(noisy(batch)[i : i + 1])[0], found[i])


def test_it_forgets_the_rollout_before():
    rollout = Rollout()
    first = rollout(noisy(FRAMES[4:5]))
    rollout(FRAMES[9:10])
    rollout.previous = torch.cat([frame[None] for frame in FRAMES[:4].flip(0)], 1)
    rollout.project.begin(rollout.previous)
    assert torch.equal(rollout(noisy(FRAMES[4:5])), first)


@pytest.mark.parametrize("frame_offset", [-1, 2, -2, 3])
def test_a_rollout_at_another_offset_finds_frames_so_far_apart(frame_offset):
    numbers = list(range(12))[:: 1 if frame_offset > 0 else -1][:: abs(frame_offset)]
    rollout = Rollout(frame_offset=frame_offset, frames=FRAMES[numbers[:3]])
    assert error(rollout(FRAMES[numbers[3]][None])[0], FRAMES[numbers[3]]) < 0.01
    if abs(frame_offset) > 1:  # the last even frame is not followed by the first odd one
        assert rollout.project.scales[0].weight.isinf().any()
        found = rollout.project.scales[0].fields[0, 0, ..., 0].long()
        assert rollout.project.scales[0].weight[found].isfinite().all()


def test_short_clips_and_small_frames_get_smaller_patches():
    rollout = Rollout(frames=FRAMES[:1, :, :5, :6], clip=CLIP[:2, :5, :6].contiguous())
    assert rollout.project.scales[0].patch == (2, 5, 6)
    assert rollout(FRAMES[1:2, :, :5, :6]).shape == (1, 3, 5, 6)


def test_frames_of_another_size_find_patches_too():
    wide = torch.cat((FRAMES, FRAMES), 3)
    assert Rollout(frames=wide[:2])(wide[2:3]).shape == (1, 3, 24, 80)


def test_frames_too_small_for_a_patch_of_a_scale_do_without_it():
    clip = to_unit(torch.from_numpy(np.asarray(render(6, (64, 64))))).movedim(1, -1).contiguous()
    small = torch.nn.functional.interpolate(clip.movedim(-1, 1), (12, 12), mode="area")
    rollout = Rollout(frames=small[:3], clip=clip)
    assert len(rollout.project.scales) > rollout.project.levels == 1
    assert rollout(noisy(small[3:4])).shape == (1, 3, 12, 12)
    tiny = Rollout(frames=small[:3, :, :5, :5], clip=clip)
    assert torch.equal(tiny(small[3:4, :, :5, :5]), small[3:4, :, :5, :5])


def test_native_kernels_and_reference_agree():
    results = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            rollout = Rollout(0.7, 2, frames=FRAMES[2:3, :, :12, :16], clip=CLIP[:5, :12, :16].contiguous())
            results.append(rollout(noisy(FRAMES[3:4, :, :12, :16])))
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)


def rollout_of(run, **how):
    return generate(run, 6, start=0, seed=1, **how)


def test_a_run_is_projected_as_its_recipe_says_and_as_is_asked_for(video_run):
    without = dataclasses.replace(video_run, recipe=video_run.recipe.replace(projection_weight=0.0))
    assert video_run.recipe.projection_weight == 1
    assert not np.array_equal(rollout_of(video_run), rollout_of(without))
    assert np.array_equal(rollout_of(video_run, projection=0.0), rollout_of(without))
    assert np.array_equal(rollout_of(without, projection=1.0), rollout_of(video_run))
    with pytest.raises(SinfusionError, match="projection must be from 0 to 1, not"):
        rollout_of(video_run, projection=1.5)


def test_projected_rollouts_are_closer_to_the_clip(video_run):
    distances = [
        nnfdist(nnf(rollout_of(video_run, projection=weight)[0], video_run.frames)[1]) for weight in (0.0, 1.0)
    ]
    assert distances[1] < distances[0]


def test_continuations_and_retargeted_videos_are_projected_too(video_run):
    for weight in (0.0, 1.0):
        assert extrapolate(video_run, 2, 2, projection=weight)[0].shape == (16, *video_run.frames.shape[1:])
    assert not np.array_equal(*(extrapolate(video_run, 2, 2, projection=weight)[0] for weight in (0.0, 1.0)))
    assert not np.array_equal(*(retarget(video_run, (24, 16), projection=weight) for weight in (0.0, 1.0)))


def test_a_first_frame_from_noise_is_of_patches_of_the_clip_and_in_motion():
    project = PatchProjection(CLIP, 1.0)
    frames = project.first(noisy(FRAMES[5:6], 0.4), torch.tensor([3]))
    assert frames.shape == (1, 9, 24, 40)
    assert error(frames[:, :3], FRAMES[5:6]) < error(noisy(FRAMES[5:6], 0.4), FRAMES[5:6])
    assert not torch.equal(frames[:, :3], frames[:, 3:6])
    again = project.first(noisy(FRAMES[5:6], 0.4), torch.tensor([3]))
    assert torch.equal(frames, again)


def test_what_is_near_is_left_alone():
    frame = noisy(FRAMES[4:5], 0.02)
    near, far = (PatchProjection(CLIP, 1.0, tolerance=tolerance) for tolerance in (10.0, 0.0))
    found = []
    for project in (near, far):
        previous = torch.cat((FRAMES[3:4], FRAMES[2:3]), 1)
        project.begin(previous)
        found.append(project(frame, previous))
    assert error(found[0], frame) < 0.1 * error(found[1], frame)


def test_an_image_run_has_no_projection(image_run):
    with pytest.raises(SinfusionError, match="projection are for video runs"):
        generate(image_run, projection=0.5)
    with pytest.raises(SinfusionError, match="projection is for video runs"):
        retarget(image_run, (16, 24), projection=0.5)


def dots(count, frames, seed, size=(18, 32), side=2):
    """(T, H, W, 3): bright squares on dark ground, each of which goes its own way, around at the border."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 2, generator=generator) * torch.tensor(size)
    ways = torch.rand(count, 2, generator=generator) * 2 - 1
    clip = torch.full((frames, *size, 3), -0.5)
    for number, frame in enumerate(clip):
        for place in (places + number * ways).long():
            for row in range(side):
                for column in range(side):
                    frame[(place[0] + row) % size[0], (place[1] + column) % size[1]] = 0.5
    return clip


@pytest.mark.parametrize("size", [(24, 40), (6, 5)])
def test_the_middles_of_patches_vote_and_at_the_border_all_of_them(size):
    clip = CLIP[:, : size[0], : size[1]].contiguous()
    frames = clip.movedim(-1, 1)
    rollout = Rollout(frames=noisy(frames[:3]), clip=clip)
    found, scale = rollout.project.scales[0].found()[0], rollout.project.scales[0]
    _, rows, columns = scale.patch
    top, left = (rows - 3) // 2, (columns - 3) // 2
    sums, votes = torch.zeros(2, 3, *size), torch.zeros(2, 1, *size)
    for y in range(size[0] - rows + 1):
        for x in range(size[1] - columns + 1):
            t, dy, dx = scale.fields[0, 0, y, x].tolist()
            patch = frames[t + 2, :, y + dy : y + dy + rows, x + dx : x + dx + columns]
            sums[0, :, y : y + rows, x : x + columns] += patch
            votes[0, :, y : y + rows, x : x + columns] += 1
            row, column = y + top, x + left
            sums[1, :, row : row + 3, column : column + 3] += patch[:, top : top + 3, left : left + 3]
            votes[1, :, row : row + 3, column : column + 3] += 1
    of_all, of_middles = sums / votes.clamp(min=1)
    torch.testing.assert_close(found, torch.where(votes[1] > 0, of_middles, of_all), rtol=1e-5, atol=1e-5)


def test_a_coarser_scale_serves_what_recurs_there_alone():
    assert not_recurring(dots(1, 48, 0, side=5), 3) < RECURRING < not_recurring(dots(20, 48, 0), 3) < math.inf
    assert not_recurring(dots(1, 8, 0, side=5), 3) == math.inf  # too short to tell
    assert not_recurring(dots(1, 1, 0, side=5).expand(48, -1, -1, -1), 3) == math.inf  # nothing moves
    alone, crowd = (torch.nn.functional.interpolate(dots(*how).movedim(-1, 1), scale_factor=2).movedim(1, -1)
                    for how in ((1, 48, 0, (18, 32), 5), (20, 48, 0)))  # fmt: skip
    assert len(PatchProjection(alone.contiguous(), 1.0).scales) == 2
    assert len(PatchProjection(crowd.contiguous(), 1.0).scales) == 1


def waves(count, size=(36, 64), seed=0):
    """(count, *size, 3): sums of waves, each of which goes its own way, so that nothing comes back."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*map(np.arange, (count, *size)), indexing="ij")
    video = np.zeros((count, *size))
    for _ in range(12):
        ky, kx, speed, phase = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(-0.1, 0.1), rng.uniform(0, 6)
        video += np.sin(ky * y + kx * x + speed * t + phase) / 12
    return torch.from_numpy(video).float()[..., None].expand(-1, -1, -1, 3).contiguous()


def test_what_flows_is_tolerated_and_things_that_move_are_not():
    things, flow = dots(1, 48, 0, (36, 64), 5), waves(48)
    assert 0 <= fluidity(things, 3) < FLUID < fluidity(flow, 3) < math.inf
    assert fluidity(waves(8), 3) == fluidity(waves(1).expand(48, -1, -1, -1), 3) == 0  # too short; nothing moves
    assert PatchProjection(things, 1.0, tolerance=0.1).scales[0].tolerance == pytest.approx(0.1)
    assert PatchProjection(flow, 1.0, tolerance=0.1).scales[0].tolerance == pytest.approx(0.1 + FLUID_MOST)
    assert PatchProjection(flow, 1.0).scales[0].tolerance == 0  # a restyled clip's


def test_the_tolerance_grows_with_fluidity(monkeypatch):
    def tolerance(value, depth=3):
        monkeypatch.setattr(projection, "fluidity", lambda clip, depth: value)
        return float(PatchProjection(CLIP, 1.0, depth, tolerance=0.1, sigma_data=0.5).scales[0].tolerance)

    assert tolerance(0.0) == tolerance(FLUID) == pytest.approx(0.1)
    assert tolerance(FLUID + 0.2) == pytest.approx(0.1 + 0.2 * FLUID_TOLERANCE * 0.5)
    assert tolerance(FLUID + 9, depth=1) == pytest.approx(0.1 + FLUID_MOST * 0.5)


def test_coarser_scales_tolerate_less_as_less_changes_there():
    clip = to_unit(torch.from_numpy(np.asarray(render(12, (72, 128))))).movedim(1, -1).contiguous()
    finest, coarser = PatchProjection(clip, 1.0, tolerance=0.1).scales[:2]
    assert finest.tolerance == pytest.approx(0.1)
    assert 0 < coarser.tolerance < 0.9 * finest.tolerance


def test_projected_rollouts_move_more_the_more_so_the_better_the_clip_recurs(video_run, monkeypatch):
    def multiples(share, **how):
        monkeypatch.setattr(projection, "not_recurring", lambda clip, depth: share)
        return next_frame(video_run, **how).predict.multiples

    spare = RECURRING - 0.2
    most = 1 + RECURRING_SURPRISE * spare, GAIN
    assert multiples(math.inf) == pytest.approx((1, GAIN))
    assert multiples(0.2) == pytest.approx(most)
    assert multiples(math.inf, projection=0.5) == pytest.approx((1, (1 + GAIN) / 2))
    assert multiples(0.2, projection=0.5) == pytest.approx([(1 + value) / 2 for value in most])
    assert multiples(0.2, projection=0.0) == multiples(0.2, sigma_start=0.1) == (1, 1)  # a target tells what happens
