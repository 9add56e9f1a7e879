"""Patch projection of rollouts."""

import numpy as np
import pytest
import torch

from sinfusion import ops
from sinfusion.generation.projection import PatchProjection
from sinfusion.pixels import to_unit
from sinfusion.scene import render

FRAMES = to_unit(torch.from_numpy(np.asarray(render(12, (24, 40))))).contiguous()  # (12, 3, 24, 40)
CLIP = FRAMES.movedim(1, -1).contiguous()


def begun(weight=1.0, depth=3, frame_offset=1, frames=FRAMES[:4]):
    projection = PatchProjection(CLIP, weight, depth, frame_offset)
    projection.begin([frame[None] for frame in frames])
    return projection


def noisy(image, deviation=0.1, seed=0):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + deviation * noise).clamp(-1, 1)


def error(image, other):
    return float((image - other).square().mean().sqrt())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_the_clip_holds_stays_as_it_is(depth):
    projection = begun(depth=depth)
    for frame in FRAMES[4:9]:
        assert error(projection(frame[None])[0], frame) < 0.01


def test_what_no_patch_of_the_clip_looks_like_is_drawn_to_what_it_holds():
    projected = begun()(noisy(FRAMES[4:5]))
    assert error(projected, FRAMES[4:5]) < 0.5 * error(noisy(FRAMES[4:5]), FRAMES[4:5])


def test_the_weight_lies_between_the_predicted_and_the_projected_frame():
    frame = noisy(FRAMES[4:5])
    whole, half = begun(1.0)(frame), begun(0.5)(frame)
    torch.testing.assert_close(half, (frame + whole) / 2)


def test_deeper_patches_go_on_as_the_frames_before_moved():
    """A ball that bounces: the frame alone does not say which way, the frames before it do."""
    places = [4, 8, 12, 16, 20, 24, 20, 16, 12, 8, 4]
    clip = torch.full((len(places), 12, 32, 3), -0.5)
    for frame, x in zip(clip, places, strict=True):
        frame[4:8, x - 2 : x + 2] = 0.5
    frames = clip.movedim(-1, 1)
    blurred = (frames[2:3] + frames[4:5]) / 2  # of both ways from the middle
    right, left = [], []
    for before, found in ((frames[2:4], right), (frames[[4, 3]], left)):
        projection = PatchProjection(clip, 1.0, 3)
        projection.begin([frame[None] for frame in before])
        found.append(projection(blurred))
    ahead, behind = error(right[0], frames[4:5]), error(right[0], frames[2:3])
    assert ahead < behind
    ahead, behind = error(left[0], frames[2:3]), error(left[0], frames[4:5])
    assert ahead < behind


def test_a_sample_is_the_same_alone_and_in_a_batch():
    projection = PatchProjection(CLIP, 1.0)
    batch = torch.cat((FRAMES[3:4], FRAMES[7:8]))
    projection.begin([batch])
    found = projection(noisy(batch))
    for i in range(2):
        projection.begin([batch[i : i + 1]])
        assert torch.equal(projection(noisy(batch)[i : i + 1])[0], found[i])


def test_it_forgets_the_rollout_before():
    projection = begun()
    first = projection(noisy(FRAMES[4:5]))
    projection.begin([frame[None] for frame in FRAMES[:4]])
    assert torch.equal(projection(noisy(FRAMES[4:5])), first)


@pytest.mark.parametrize("frame_offset", [-1, 2, -2, 3])
def test_a_rollout_at_another_offset_finds_frames_so_far_apart(frame_offset):
    numbers = list(range(12))[:: 1 if frame_offset > 0 else -1][:: abs(frame_offset)]
    projection = begun(frame_offset=frame_offset, frames=FRAMES[numbers[:3]])
    assert error(projection(FRAMES[numbers[3]][None])[0], FRAMES[numbers[3]]) < 0.01
    if abs(frame_offset) > 1:  # the last even frame is not followed by the first odd one
        order = projection.fields[0, 0, ..., 0].long()
        assert projection.places[order].isfinite().all()


def test_short_clips_and_small_frames_get_smaller_patches():
    small = CLIP[:2, :5, :6].contiguous()
    projection = PatchProjection(small, 1.0, 3)
    projection.begin([small[:1].movedim(-1, 1)])
    assert (projection.depth, projection.side) == (2, 5)
    assert projection(small[1:].movedim(-1, 1)).shape == (1, 3, 5, 6)


def test_frames_of_another_size_find_patches_too():
    wide = torch.cat((FRAMES[3:5], FRAMES[3:5]), 3)
    projection = PatchProjection(CLIP, 1.0, 1)
    projection.begin([wide[:1]])
    assert projection(wide[1:]).shape == (1, 3, 24, 80)


def test_native_kernels_and_reference_agree():
    results = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            projection = PatchProjection(CLIP[:5, :12, :16].contiguous(), 0.7, 2)
            projection.begin([FRAMES[2:3, :, :12, :16]])
            results.append(projection(noisy(FRAMES[3:4, :, :12, :16])))
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)
