"""What is taken for images, videos and masks: everything whose meaning is plain; the rest in one sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

import sinfusion
from sinfusion.clip import Clip, as_frames, as_image, as_mask, as_pixels
from sinfusion.errors import SinfusionError


def same(value, expected):
    outputs = as_pixels(value)
    return outputs.dtype == np.uint8 and np.array_equal(outputs, expected)


def test_uint8_frames_are_taken_without_a_copy(clip):
    assert as_pixels(clip) is clip or np.shares_memory(as_pixels(clip), clip)
    assert np.shares_memory(as_frames(clip[0]), clip) and as_frames(clip[0]).shape == (1, 16, 24, 3)


def test_a_clip_is_its_frames_and_of_an_image_the_one(clip):
    assert same(Clip(clip, 20, "video", (16, 24)), clip)
    assert same(Clip(clip[:1], 20, "image", (16, 24)), clip[0])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_other_whole_numbers_in_the_range_of_uint8_are_taken(clip, dtype):
    values = (clip // 2).astype(dtype)
    assert same(values, clip // 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_go_from_0_to_1(clip, dtype):
    assert same((clip / 255).astype(dtype), clip)


def test_bool_is_black_and_white():
    board = np.indices((8, 9)).sum(0) % 2 == 1
    assert same(board, np.repeat(board[..., None] * 255, 3, 2))


def test_grey_images_and_videos_are_taken_with_and_without_a_channel(clip):
    grey = clip[..., 0]
    expected = np.repeat(grey[..., None], 3, 3)
    assert same(grey, expected) and same(grey[..., None], expected) and same(grey[:, None], expected)
    assert same(grey[0], expected[0]) and same(grey[0][..., None], expected[0])
    assert np.array_equal(as_frames(grey[:1]), expected[:1])


def test_transparency_is_laid_over_white(clip):
    alpha = np.full((*clip.shape[:3], 1), 255, np.uint8)
    alpha[:, :, :12] = 0
    outputs = as_pixels(np.concatenate((clip, alpha), -1))
    assert (outputs[:, :, :12] == 255).all() and np.array_equal(outputs[:, :, 12:], clip[:, :, 12:])


def test_tensors_are_taken_with_channels_last_or_first(clip):
    tensor = torch.from_numpy(clip)
    assert same(tensor, clip) and same(tensor.movedim(-1, 1), clip)
    assert same(tensor[0], clip[0]) and same(tensor[0].movedim(-1, 0), clip[0])
    assert same((tensor / 255).requires_grad_(), clip)
    assert np.abs(as_pixels((tensor / 255).bfloat16()).astype(int) - clip).max() <= 1
    assert same(clip.transpose(0, 3, 1, 2), clip)  # of arrays too, where nothing else can be meant


def test_pillow_images_of_any_mode_are_taken(clip):
    image = Image.fromarray(clip[0])
    assert same(image, clip[0])
    grey = image.convert("L")
    assert same(grey, np.repeat(np.asarray(grey)[..., None], 3, 2))
    image.getexif()[0x0112] = 6  # to be turned
    assert as_pixels(image).shape == (24, 16, 3)


def test_a_list_of_images_is_a_video(clip):
    assert same(list(clip), clip) and same(tuple(clip), clip)
    mixed = [clip[0], torch.from_numpy(clip[1]), Image.fromarray(clip[2]), clip[3] / 255]
    assert same(mixed, clip[:4])
    assert as_image([clip[0]]).shape == (16, 24, 3)


FRAMES = np.zeros((3, 16, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not NoneType"), (7, "not int"), ("fish.mp4", "not str"), (b"GIF89a", "not bytes"), ({}, "not dict"),
        (iter(FRAMES), "uint8"), (object(), "not object"), ([], "empty list"), ([1, 2], "not list"),
        ([[1, 2], [3, 4]], "number 0 of the frames"), (["a.png"], "number 0 of the frames .* not str"),
        ([FRAMES[0], FRAMES[0, :9]], r"number 0 is 24x16, number 1 24x9"), ([FRAMES, FRAMES], "not 3 frames"),
        (FRAMES[:0], "uint8"), (FRAMES[None], r"\(1, 3, 16, 24, 3\)"), (np.zeros(5), r"\(5,\) float64"),
        (FRAMES[..., :2], "channels"), (FRAMES.transpose(3, 1, 2, 0)[..., 0], "which axis has the channels"),
        (FRAMES.astype(np.uint16), "uint16.*divide by 257"), (FRAMES - 1.0, "from -1 to -1"),
        (FRAMES + 255.0, "floats from 0 to 1.*from 255 to 255"), (FRAMES + np.nan, "from nan to nan"),
        (FRAMES + np.int32(256), "0 to 255.*256"), (FRAMES.astype(np.int64) - 1, "from -1 to -1"),
        (FRAMES * 1j, "complex"), (FRAMES.astype(object), "object"), (FRAMES.astype(str), "0 to 255"),
        (torch.zeros(4, 3, 16, 3), "which axis has the channels"), (torch.zeros(4, 16, 24), "which axis"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_or_no_image_is_refused_in_one_sentence(value, words):
    with pytest.raises(SinfusionError, match=words) as refusal:
        as_pixels(value)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


def test_one_image_is_not_several():
    with pytest.raises(SinfusionError, match=r"the start image must be one image.* not 3 frames"):
        as_image(FRAMES, "the start image")


def test_an_animated_pillow_image_is_refused(tmp_path, clip):
    sinfusion.write_video(tmp_path / "a.gif", clip, fps=10)
    with pytest.raises(SinfusionError, match="give its file"):
        as_pixels(Image.open(tmp_path / "a.gif"))


def test_masks_are_bool_or_0_and_1_or_where_it_is_light(clip):
    mask = np.indices((16, 24)).sum(0) % 3 == 0
    grey = np.where(mask, 200, 90).astype(np.uint8)
    for value in (mask, mask.astype(np.uint8), mask.astype(np.int64), torch.from_numpy(mask), mask.astype(float), grey,
                  np.repeat(grey[..., None], 3, 2), Image.fromarray(grey), Image.fromarray(mask)):  # fmt: skip
        outputs = as_mask(value)
        assert outputs.dtype == bool and np.array_equal(outputs, mask)
    assert np.array_equal(as_mask(np.stack([grey, grey])), np.stack([mask, mask]))
    assert np.array_equal(as_mask([mask, mask]), np.stack([mask, mask]))
    assert not as_mask(np.zeros((16, 24, 3), np.uint8)).any() and as_mask(np.zeros((16, 24, 3), np.uint8)).ndim == 2
    with pytest.raises(SinfusionError, match="the mask must be"):
        as_mask("mask.png")


# Every public function takes them -------------------------------------------------------------------------------------


def test_generate_starts_from_any_kind_of_image(video_run, clip):
    expected = sinfusion.generate(video_run, 2, start=clip[3])
    for start in (Image.fromarray(clip[3]), torch.from_numpy(clip[3]).movedim(-1, 0), clip[3] / 255, [clip[3]]):
        assert np.array_equal(sinfusion.generate(video_run, 2, start=start), expected)
    with pytest.raises(SinfusionError, match="start image"):
        sinfusion.generate(video_run, 2, start="first.png")


def test_upsample_and_retarget_take_any_kind_of_frames(video_run, image_run, clip):
    few = clip[:3]
    kinds = (list(few), torch.from_numpy(few).movedim(-1, 1), few / 255, Clip(few, 20, "video", (16, 24)))
    expected = sinfusion.upsample(video_run, 2, few), sinfusion.retarget(video_run, (16, 30), few)
    for frames in kinds:
        assert np.array_equal(sinfusion.upsample(video_run, 2, frames), expected[0])
        assert np.array_equal(sinfusion.retarget(video_run, (16, 30), frames), expected[1])
    image = sinfusion.retarget(image_run, (16, 30), Image.fromarray(clip[0]))
    assert np.array_equal(image, sinfusion.retarget(image_run, (16, 30), clip[0]))
    with pytest.raises(SinfusionError, match="one image"):
        sinfusion.retarget(image_run, (16, 30), clip)


def test_edit_takes_any_kind_of_image_and_mask(image_run, clip):
    mask = np.zeros((16, 24), bool)
    mask[4:9, 5:12] = True
    expected = sinfusion.edit(image_run, clip[1], mask)
    image, light = Image.fromarray(clip[1]), Image.fromarray(mask.astype(np.uint8) * 255)
    assert np.array_equal(sinfusion.edit(image_run, image, light), expected)
    assert np.array_equal(sinfusion.edit(image_run, torch.from_numpy(clip[1] / 255), torch.from_numpy(mask)), expected)
    with pytest.raises(SinfusionError, match="edited image"):
        sinfusion.edit(image_run, "sketch.png")


def test_the_patch_engine_takes_any_kind_of_frames_and_masks(clip):
    video = Clip(clip[:5], 20, "video", (16, 24))
    assert np.array_equal(sinfusion.patches.generate(video), sinfusion.patches.generate(clip[:5]))
    image = Image.fromarray(clip[0])
    assert sinfusion.patches.retarget(image, (16, 30)).shape == (16, 30, 3)
    mask = np.zeros((16, 24), np.uint8)
    mask[5:9, 9:14] = 255
    expected = sinfusion.patches.inpaint(clip[0], mask > 0)
    assert np.array_equal(sinfusion.patches.inpaint(image, Image.fromarray(mask)), expected)
    with pytest.raises(SinfusionError, match="the content"):
        sinfusion.patches.analogy("a.mp4", clip)


def test_evaluate_and_metrics_take_any_kind_of_frames(clip):
    rows = sinfusion.evaluate(clip, [clip[::-1]])
    assert sinfusion.evaluate(list(clip), [torch.from_numpy(clip[::-1].copy()).movedim(-1, 1)]) == rows
    assert sinfusion.metrics.psnr(Image.fromarray(clip[0]), clip[1] / 255) == sinfusion.metrics.psnr(clip[0], clip[1])


def test_videos_are_written_of_any_kind_of_frames(clip, tmp_path):
    for name, frames in (("a", Clip(clip, 20, "video", (16, 24))), ("b", torch.from_numpy(clip)), ("c", clip / 255),
                         ("d", (Image.fromarray(frame) for frame in clip))):  # fmt: skip
        sinfusion.write_video(tmp_path / name, frames, fps=20)
        assert np.array_equal(sinfusion.read_video(tmp_path / name).frames, clip)
