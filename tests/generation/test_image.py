"""Edits: what may change changes, what may not stays to the bit; tiles."""

import numpy as np
import pytest
import torch

from sinfusion.diffusion.samplers import resampled
from sinfusion.errors import SinfusionError
from sinfusion.generation import seam
from sinfusion.generation.image import JUMPS, edit
from sinfusion.generation.reverse_process import reverse_process
from sinfusion.generation.seam import Seam
from sinfusion.generation.video import generate
from sinfusion.pixels import to_uint8, to_unit
from sinfusion.roles import IMAGE


@pytest.fixture
def image(clip):
    return clip[0][:, ::-1].copy()  # mirrored, so not the one that was trained on


@pytest.fixture
def mask():
    mask = np.zeros((16, 24), bool)
    mask[4:12, 5:20] = True
    return mask


def test_inpainting_changes_the_mask_and_keeps_the_rest_to_the_bit(image_run, image, mask):
    outputs = edit(image_run, image, mask, strength=1.0, count=2)
    assert outputs.shape == (2, 16, 24, 3) and outputs.dtype == np.uint8
    assert np.array_equal(outputs[:, ~mask], np.stack([image[~mask]] * 2))
    assert (outputs[0][mask] != image[mask]).mean() > 0.9
    assert not np.array_equal(outputs[0], outputs[1])


def test_a_mask_of_bytes_means_the_same(image_run, image, mask):
    assert np.array_equal(edit(image_run, image, mask.astype(np.uint8) * 255), edit(image_run, image, mask))


def test_an_empty_mask_keeps_everything(image_run, image, mask):
    assert np.array_equal(edit(image_run, image, np.zeros_like(mask))[0], image)


def test_edits_stay_nearer_to_the_image_the_smaller_the_strength(image_run, image):
    errors = []
    for strength in (0.05, 0.4, 1.0):
        errors.append(np.sqrt(np.mean((edit(image_run, image, strength=strength)[0].astype(float) - image) ** 2)))
    assert errors[0] < errors[1] < errors[2] and errors[0] < 15


def test_outpainting_keeps_the_image_in_the_middle_and_makes_what_lies_around(image_run, image):
    outputs = edit(image_run, image, strength=1.0, canvas=(21, 40))
    assert outputs.shape == (1, 21, 40, 3)
    assert np.array_equal(outputs[0, 2:18, 8:32], image)
    assert outputs[0, :, :8].std() > 5


def test_outpainting_and_inpainting_go_together(image_run, image, mask):
    outputs = edit(image_run, image, mask, strength=1.0, canvas=(20, 30))[0, 2:18, 3:27]
    assert np.array_equal(outputs[~mask], image[~mask])
    assert (outputs[mask] != image[mask]).mean() > 0.9


# Jumps ---------------------------------------------------------------------------------------------------------------


def test_without_jumps_a_hole_is_filled_as_without_resampling(image_run, image, mask, monkeypatch):
    monkeypatch.setattr(seam, "TIMES", 0)  # drawn to no patches
    process = reverse_process(image_run, IMAGE, steps=3, strength=1.0)
    assert process.resampling(0) is process
    assert process.resampling(2).steps == resampled(process.steps, 2)
    known, given = torch.from_numpy(~mask)[None, None], to_unit(torch.from_numpy(image))[None]
    bridged = process.guided(Seam(known[0, 0]))
    plain = to_uint8(bridged(torch.tensor([4]), 0, None, given, None, known, given))[0].numpy()
    output = edit(image_run, image, mask, strength=1.0, seed=4, steps=3, jumps=0)[0]
    assert np.array_equal(output[mask], plain[mask])


def test_jumps_make_a_hole_anew_and_keep_the_rest_to_the_bit(image_run, image, mask):
    outputs = [edit(image_run, image, mask, strength=1.0, jumps=jumps)[0] for jumps in (0, 2, JUMPS, None)]
    assert all(np.array_equal(output[~mask], image[~mask]) for output in outputs)
    assert not np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[2], outputs[3])


def test_where_nothing_is_kept_there_are_no_jumps(image_run, image, mask):
    assert np.array_equal(edit(image_run, image), edit(image_run, image, jumps=0))
    with pytest.raises(SinfusionError, match="jumps is for what is kept; give mask or canvas"):
        edit(image_run, image, np.ones_like(mask), jumps=2)


def test_a_sketch_of_another_size_is_welcome(image_run):
    sketch = np.zeros((10, 33, 3), np.uint8)
    sketch[:, 16:] = (200, 40, 40)
    assert edit(image_run, sketch, strength=0.7).shape == (1, 10, 33, 3)


def test_an_edit_is_repeatable_alone_and_in_a_batch(image_run, image):
    together = edit(image_run, image, count=3, seed=5)
    assert np.array_equal(edit(image_run, image, count=3, seed=5), together)
    alone = edit(image_run, image, seed=7)[0]
    assert np.abs(alone.astype(int) - together[2].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones((3, 4), bool)}, r"the mask is \(3, 4\), the image \(16, 24\)"),
        ({"image": np.zeros((2, 16, 24, 3), np.uint8)}, "one image"),
        ({"image": np.full((16, 24, 3), 2.0)}, "float64"),
        ({"image": np.zeros((5, 24, 3), np.uint8)}, "too small"),
        ({"canvas": (10, 40)}, "canvas 40x10 is smaller"),
        ({"count": 0}, "count"),
        ({"strength": 0.0}, "strength"),
        ({"steps": 0}, "at least 1 step"),
        ({"canvas": (20, 30), "jumps": -1}, "jumps must be from 0 to 100, not -1"),
        ({"canvas": (20, 30), "jumps": 1.5}, "jumps must be from 0 to 100, not 1.5"),
    ],
)
def test_impossible_edits_are_refused(image_run, image, change, message):
    with pytest.raises(SinfusionError, match=message):
        edit(image_run, **{"image": image, **change})


def test_a_video_run_cannot_edit(video_run, image):
    with pytest.raises(SinfusionError, match="video run"):
        edit(video_run, image)


# Tiles ---------------------------------------------------------------------------------------------------------------


def test_the_network_sees_a_tile_as_if_its_copies_lay_around(image_run):
    """So a tile whose noise is rolled is rolled itself."""
    process = reverse_process(image_run, IMAGE, wraps=(True, True))
    inputs = torch.randn(2, 3, 16, 24, dtype=process.network.dtype).to(memory_format=torch.channels_last)
    rolled = inputs.roll((5, -7), (2, 3)).contiguous(memory_format=torch.channels_last)
    shift = process.shifts[:1]
    output, of_rolled = (process._evaluate(x, shift) for x in (inputs, rolled))
    assert output.shape == inputs.shape
    assert torch.allclose(of_rolled, output.roll((5, -7), (2, 3)), atol=2e-2)
    plain = process.network.evaluate(inputs, shift)
    assert not torch.allclose(plain, output, atol=2e-2)  # it sees the borders


@pytest.mark.parametrize("tile", ["x", "y", "x,y"])
def test_images_are_made_as_tiles(image_run, tile):
    images = generate(image_run, count=2, size=(20, 28), tile=tile)
    assert images.shape == (2, 20, 28, 3)
    assert not np.array_equal(images, generate(image_run, count=2, size=(20, 28)))


def test_tiles_are_for_images(image_run, video_run):
    with pytest.raises(SinfusionError, match="tile must be x, y or x,y, not 'z'"):
        generate(image_run, tile="z")
    with pytest.raises(SinfusionError, match="is a video run: tile is for image runs"):
        generate(video_run, frames=2, tile="x")
