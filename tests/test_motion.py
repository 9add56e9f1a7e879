"""Motion compensation: what moves is found, what does not stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinfusion.motion import compensated, half_motion
from sinfusion.pixels import to_unit


def images(frames):
    return to_unit(torch.from_numpy(np.ascontiguousarray(frames)))


@pytest.mark.parametrize("step", [1, 2, 6])
def test_the_motion_of_a_texture_that_slides_is_found(texture, step):
    first, second = images(texture(2, (48, 80), step=step)).split(1)
    motion = half_motion(first, second)[0, :, 12:-12, 16:-16]
    ahead = torch.roll(second, 3, 3)  # it slides three pixels farther to the right
    farther = half_motion(first, ahead)[0, :, 12:-12, 16:-16]
    assert (motion.flatten(1).std(1) < 0.15).all()
    torch.testing.assert_close((farther - motion).mean((1, 2)), torch.tensor([1.5, 0.0]), rtol=0, atol=0.1)


def test_what_does_not_move_stays_as_it_is(clip):
    still = images(clip[:1])
    assert half_motion(still, still).abs().max() == 0
    torch.testing.assert_close(compensated(still, still), torch.cat((still, still), 1), rtol=0, atol=1e-4)


def test_a_thing_that_moves_before_a_still_ground_does_not_drag_it_along(texture):
    ground, thing = images(texture(1, (40, 64))), images(texture(1, (12, 12), seed=1)).flip(1)
    first, between, second = ground.clone(), ground.clone(), ground.clone()
    for image, left in ((first, 20), (between, 22), (second, 24)):
        image[:, :, 14:26, left : left + 12] = thing
    motion = half_motion(first, second)
    assert motion[:, :, :, :12].abs().max() < 0.1 and motion[:, :, :8].abs().max() < 0.1
    torch.testing.assert_close(motion[0, :, 17:23, 25:31].mean((1, 2)), torch.tensor([2.0, 0.0]), rtol=0, atol=0.1)
    between_both = compensated(first, second).unflatten(1, (2, 3)).mean(1)
    error, of_blend = ((image - between).square().mean() for image in (between_both, (first + second) / 2))
    assert error < of_blend / 2


def test_backward_in_time_is_the_opposite_motion(clip):
    frames = images(clip)
    forward, backward = half_motion(frames[:-1], frames[1:]), half_motion(frames[1:], frames[:-1])
    torch.testing.assert_close(forward, -backward, rtol=0, atol=1e-3)


def test_frames_are_the_same_alone_and_in_a_batch(texture):
    frames = images(texture(40, (17, 26), step=1))
    together = compensated(frames[:-1], frames[1:])
    alone = [compensated(frames[i : i + 1], frames[i + 1 : i + 2]) for i in (0, 20, 38)]
    torch.testing.assert_close(together[[0, 20, 38]], torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (8, 33), (31, 9)])
def test_frames_of_any_size(texture, size):
    first, second = images(texture(2, size, step=1)).split(1)
    outputs = compensated(first, second)
    assert outputs.shape == (1, 6, *size) and outputs.isfinite().all() and outputs.abs().max() <= 1


def test_black_frames_do_not_divide_by_zero():
    black = torch.full((1, 3, 16, 16), -1.0)
    assert torch.equal(compensated(black, black), torch.full((1, 6, 16, 16), -1.0))
    assert compensated(black, -black).isfinite().all()
