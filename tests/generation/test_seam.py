"""Where what is made meets what is kept: brightness goes over, objects stay, what is kept stays to the bit."""

import numpy as np
import pytest
import torch

from sinfusion import ops
from sinfusion.generation import seam
from sinfusion.generation.extension import extend
from sinfusion.generation.image import edit
from sinfusion.generation.seam import INTO, LEAST_SIGMA, NEAR, OBJECT, Seam, SeamPatches

KNOWN = torch.zeros(40, 60, dtype=torch.bool)
KNOWN[8:32, 20:40] = True  # a canvas around it
HOLE = ~KNOWN


def step(known, made, kept=0.0):
    """(1, 3, H, W): one brightness where it is made, another where it is kept."""
    return torch.where(known, torch.tensor(kept), torch.tensor(made)).expand(1, 3, -1, -1)


@pytest.mark.parametrize("known", [KNOWN, HOLE])
def test_a_step_in_brightness_is_bridged(known):
    image = step(known, 0.05)
    bridged = Seam(known).bridged(image)
    assert torch.equal(bridged[..., known], image[..., known])
    rows = bridged[0, 0, 20]
    inside, outside = (20, 19) if known is KNOWN else (19, 20)  # columns beside the seam
    assert float((rows[inside] - rows[outside]).abs()) < 0.15 * 0.05
    from_seam = rows[8:20].flip(0) if known is KNOWN else rows[20:30]
    assert (from_seam.diff() > 0).all()  # back to what was made, pixel by pixel
    assert float(from_seam.diff().max()) < 1.5 * 0.05 / INTO  # without a step


def test_where_both_agree_and_where_an_object_is_cut_off_nothing_changes():
    texture = 0.3 * torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    met = Seam(KNOWN)
    beside = (met.seam * met.made)[0, 0] > 0
    assert float((met.bridged(texture) - texture)[..., beside].abs().mean()) < 0.3 * float(texture.std())
    image = step(KNOWN, 5 * OBJECT)
    assert torch.allclose(Seam(KNOWN).bridged(image), image, atol=1e-6)


@pytest.mark.parametrize("known", [torch.zeros(12, 17, dtype=torch.bool), torch.ones(12, 17, dtype=torch.bool)])
def test_without_a_seam_nothing_changes(known):
    image = torch.rand(2, 3, 12, 17) * 2 - 1
    assert torch.equal(Seam(known).bridged(image), image)


def test_thin_and_scattered_masks_are_bridged_too():
    scattered = torch.rand(16, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    image = step(scattered, 0.1)
    bridged = Seam(scattered).bridged(image)
    assert torch.equal(bridged[..., scattered], image[..., scattered])
    assert bridged.isfinite().all() and float(bridged[..., ~scattered].abs().mean()) < 0.05


def stripes(height=40, width=60, frames=3):
    """(T, H, W, 3) in [-1, 1]: slanted lines that move by a pixel a frame."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = torch.stack([((columns + rows // 2 + t) % 6 < 3).float() - 0.5 for t in range(frames)])
    return clip[..., None].expand(-1, -1, -1, 3).contiguous()


@pytest.mark.parametrize("known", [KNOWN, HOLE])
def test_lines_go_on_across_a_seam_and_only_there(known):
    clip = stripes()
    whole = clip[1].movedim(-1, 0)[None]
    image = torch.where(known, whole, whole.roll(2, 3))  # what is made is shifted against what is kept
    drawn = SeamPatches(known, clip)
    drawn.begin(image)
    found = drawn(image)
    assert torch.equal(found[..., ~drawn.near], image[..., ~drawn.near]) and not (drawn.near & known).any()
    error = [float((of - whole)[..., drawn.near].square().mean()) for of in (image, found)]
    assert error[1] < 0.7 * error[0]  # nearer to the lines that go on
    patches = [ops.patch_match(of[0].movedim(0, -1)[None], clip, (1, 5, 5))[1].mean() for of in (image, found)]
    assert patches[1] < 0.8 * patches[0]  # the rest is where it ends, three pixels away


def test_what_is_drawn_reaches_three_pixels_from_what_is_kept():
    near = SeamPatches(KNOWN, stripes()).near
    assert (
        NEAR == 3 and near[20, 17:20].all() and not near[20, 16] and not near[20, 20:40].any() and near[20, 40:43].all()
    )


def test_drawn_samples_are_the_same_alone_and_in_a_batch_and_small_clips_do():
    images = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(3)) * 2 - 1
    known = torch.zeros(12, 14, dtype=torch.bool)
    known[4:9, 5:9] = True
    for clip in (stripes(12, 14, 1), stripes(4, 3, 2)):
        together = SeamPatches(known, clip)
        together.begin(images)
        batch = together(images)
        alone = SeamPatches(known, clip)
        alone.begin(images[1:])
        assert torch.equal(alone(images[1:]), batch[1:])


def test_a_sample_is_the_same_alone_and_in_a_batch():
    images = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(2)) * 2 - 1
    met = Seam(KNOWN)
    assert torch.equal(met.bridged(images)[1:2], met.bridged(images[1:2]))


def test_the_denoiser_has_the_last_word():
    image, met = step(KNOWN, 0.05), Seam(KNOWN)
    assert met(image, 0.9 * LEAST_SIGMA, 7) is image
    assert torch.equal(met(image, LEAST_SIGMA, 0), met.bridged(image))


def test_edits_and_extended_videos_are_bridged(image_run, video_run, clip, monkeypatch):
    mask = np.zeros((16, 24), bool)
    mask[:, 12:] = True

    def results():
        return edit(image_run, clip[0], mask, steps=4)[0], extend(video_run, (20, 34), clip[:6])[-1]

    bridged = results()
    monkeypatch.setattr(seam, "OBJECT", 1e-9)  # everything is one
    for result, plain in zip(bridged, results(), strict=True):
        assert not np.array_equal(result, plain)
