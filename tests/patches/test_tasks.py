"""Generation, retargeting and analogies by patches; what all tasks have in common, and what they refuse."""

import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sinfusion import patches
from sinfusion.metrics import nnf, nnfdist, psnr
from sinfusion.patches import dynamics, tasks

RED, BLUE = np.array([1, 0.3, 0.1]), np.array([0.1, 0.3, 1])


@pytest.fixture(scope="module")
def outputs(video):
    """Two new videos."""
    return patches.generate(video, count=2, seed=3)


def difference(a, b):
    return np.abs(a.astype(int) - b).mean()


def error(a, b):
    """Of the patches of `a`, to those of `b`."""
    return nnfdist(nnf(a, b)[1])


def within(outputs, original):
    """Whether each channel of `made` stays between the darkest and the brightest of the original."""
    axes = tuple(range(original.ndim - 1))
    over = tuple(range(outputs.ndim - 1))
    return (outputs.min(over) >= original.min(axes)).all() and (outputs.max(over) <= original.max(axes)).all()


def redness(part):
    """Share of pixels that are more red than blue."""
    return (part[..., 0] > part[..., 2]).mean()


# New ones ------------------------------------------------------------------------------------------------------------


def test_new_videos_are_half_as_long_and_as_many_as_asked_for(outputs):
    assert outputs.shape == (2, 7, 24, 40, 3) and outputs.dtype == np.uint8


@pytest.mark.parametrize(
    "wanted, shape",
    [
        ({"frames": 5}, (5, 24, 40)),
        ({"frames": 15, "size": (10, 33)}, (15, 10, 33)),
        ({"scale": 0.5}, (7, 12, 20)),
        ({"frames": 3, "scale": 1.3}, (3, 31, 52)),
        ({"size": (7, 7)}, (7, 7, 7)),
    ],
)
def test_new_videos_have_the_length_and_size_that_is_asked_for(video, wanted, shape):
    outputs = patches.generate(video, **wanted)
    assert outputs.shape == (1, *shape, 3) and within(outputs, video)


@pytest.mark.parametrize("length, shortest", [(1, 1), (2, 2), (3, 3), (4, 3), (8, 4)])
def test_the_half_of_a_short_video_is_not_shorter_than_a_patch(video, length, shortest):
    assert patches.generate(video[:length]).shape == (1, shortest, 24, 40, 3)


def test_a_sample_depends_on_its_own_seed_and_not_on_how_many_there_are(video, outputs):
    assert np.array_equal(patches.generate(video, seed=3)[0], outputs[0])
    assert np.array_equal(patches.generate(video, seed=4)[0], outputs[1])


def test_samples_of_a_video_too_small_for_two_levels_have_seeds_of_their_own_too(fine):
    tiny = fine(3, (15, 20))
    both = patches.generate(tiny, frames=3, count=2, noise=1)
    assert np.array_equal(both[1], patches.generate(tiny, frames=3, seed=1, noise=1)[0])
    assert within(both, tiny) and error(both[0], tiny) < 2


def test_the_number_of_threads_does_not_matter(video, outputs):
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert np.array_equal(patches.generate(video, seed=3)[0], outputs[0])
    finally:
        torch.set_num_threads(threads)


def test_other_seeds_give_visibly_other_videos(outputs):
    assert difference(*outputs) > 15


def test_without_noise_the_input_comes_back_and_with_it_something_else(video):
    still, moved = (patches.generate(video, frames=13, noise=noise)[0] for noise in (0, 5))
    assert psnr(still, video) > 40 and difference(moved, video) > 15


def test_every_colour_comes_from_the_input(video, outputs):
    for channel in range(3):
        assert np.isin(outputs[..., channel], video[..., channel]).all()


def test_new_videos_look_like_the_input_and_move_as_fast(video, outputs, fine):
    other = fine(7, seed=1)
    for sample in outputs:
        assert error(sample, video) < 0.5 * error(other, video)
        assert np.median(dynamics.motion(sample)) == pytest.approx(1, abs=0.1)


@pytest.fixture
def engine(monkeypatch):
    """What the engine is called with: a dict of its arguments."""
    begun, engine = {}, tasks.coarse_to_fine

    def spy(shapes, level_at, first, effort, *rest):
        begun.update(shapes=shapes, level_at=level_at, first=first, effort=effort)
        return engine(shapes, level_at, first, effort, *rest)

    monkeypatch.setattr(tasks, "coarse_to_fine", spy)
    return begun


def test_the_noise_is_as_strong_as_asked_for_and_the_same_in_all_frames(video, engine):
    patches.generate(video, frames=13, noise=0)
    without = engine["first"]
    patches.generate(video, frames=13, noise=3)
    noise = engine["first"] - without
    assert noise.std().item() == pytest.approx(3, rel=0.15) and noise.mean().abs() < 0.5
    assert (noise - noise[0]).abs().max() < 1e-5


def test_an_image_gives_new_images(video):
    image = video[0]
    outputs = patches.generate(image, count=3)
    assert outputs.shape == (3, 24, 40, 3) and outputs.dtype == np.uint8 and within(outputs, image)
    assert min(difference(outputs[a], outputs[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 10
    assert patches.generate(image, scale=0.5).shape == (1, 12, 20, 3)


def test_a_video_of_one_frame_gives_videos_of_one_frame_like_the_images(video):
    assert np.array_equal(patches.generate(video[:1])[:, 0], patches.generate(video[0]))


# Other sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames, old, new", [(7, (24, 40), (24, 72)), (1, (60, 80), (60, 150)), (1, (60, 80), (90, 60))]
)
def test_a_texture_keeps_its_scale_at_another_size(fine, frames, old, new):
    video = fine(frames, old)
    outputs = patches.retarget(video, new)
    stretched = np.stack([Image.fromarray(frame).resize(new[::-1], Image.Resampling.BICUBIC) for frame in video])
    assert outputs.shape == stretched.shape == (frames, *new, 3) and outputs.dtype == np.uint8
    assert within(outputs, video) and error(outputs, video) < 0.7 * error(stretched, video)


def test_an_image_is_retargeted_as_a_video_of_one_frame(video):
    outputs = patches.retarget(video[0], (30, 60))
    assert outputs.shape == (30, 60, 3) and np.array_equal(outputs, patches.retarget(video[:1], (30, 60))[0])


@pytest.mark.parametrize("frames", [7, 20])
def test_motions_keep_their_speed_at_another_length(video, frames):
    outputs = patches.retarget(video, frames=frames)
    assert outputs.shape == (frames, 24, 40, 3)
    assert np.median(dynamics.motion(outputs)) == pytest.approx(1, abs=0.1)


def test_what_is_to_stay_as_it_is_stays(video):
    assert psnr(patches.retarget(video), video) > 40
    assert psnr(patches.retarget(video[0], (24, 40)), video[0]) > 40


def test_things_stay_where_they_are_relative_to_the_frame(fine):
    image = (fine(1, (24, 48), seed=4)[0] * np.where(np.arange(48)[:, None] < 24, RED, BLUE)).astype(np.uint8)
    outputs = patches.retarget(image, (24, 80))
    assert redness(outputs[:, :34]) > 0.95 and redness(outputs[:, 46:]) < 0.05


def test_retargeting_is_a_function_of_its_seed(video):
    one, again, other = (patches.retarget(video[0], (30, 60), seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


# Analogies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(fine):
    """A video (9, 32, 48, 3): one half, the upper or the left one, moves, the other is still; each in a colour."""

    def make(moving, still, upper, seed=0):
        where = np.zeros((32, 48, 1), bool)
        where[(slice(16),) if upper else (slice(None), slice(24))] = True
        return np.where(where, fine(9, (32, 48), 2, seed) * moving, fine(1, (32, 48), 1, seed + 1) * still).astype(
            np.uint8
        )

    return make


@pytest.fixture(scope="module")
def lava(halves):
    return halves(RED, BLUE, upper=True, seed=5)


def test_an_analogy_has_the_shape_of_the_content_and_colours_of_the_style(video, lava):
    outputs = patches.analogy(video, lava)
    assert outputs.shape == video.shape and outputs.dtype == np.uint8
    for channel in range(3):
        assert np.isin(outputs[..., channel], lava[..., channel]).all()
    assert error(outputs, lava) < 0.3 * error(video, lava)


def test_what_moves_in_the_content_gets_what_moves_in_the_style(halves, lava):
    outputs = patches.analogy(halves(np.ones(3), np.ones(3), upper=False), lava)
    assert redness(outputs[:, :, :22]) > 0.65 and redness(outputs[:, :, 26:]) < 0.35


def test_a_sketch_is_bright_where_there_is_to_be_motion(lava):
    sketch = np.zeros((9, 32, 48, 3), np.uint8)
    sketch[:, :, 24:] = 255
    outputs = patches.analogy(sketch, lava, sketch=True)
    assert redness(outputs[:, :, :22]) < 0.35 and redness(outputs[:, :, 26:]) > 0.65


def test_images_are_compared_by_brightness(fine):
    content, style = np.zeros((32, 48, 3), np.uint8), fine(1, (32, 48))[0] // 3
    content[:, :24] = 200
    style[:16] += 150
    style = (style * np.where(np.arange(32)[:, None, None] < 16, RED, BLUE)).astype(np.uint8)
    outputs = patches.analogy(content, style)
    assert outputs.shape == content.shape and within(outputs, style)
    assert redness(outputs[:, :22]) > 0.8 and redness(outputs[:, 26:]) < 0.2


@pytest.mark.parametrize(
    "content, style", [((2, 24, 40), (9, 7, 7)), ((5, 7, 7), (2, 30, 20)), ((3, 9, 60), (4, 60, 9))]
)
def test_content_and_style_may_be_small_and_of_other_shapes(texture, content, style):
    outputs = patches.analogy(texture(content[0], content[1:]), texture(style[0], style[1:]))
    assert outputs.shape == (*content, 3)


def test_the_coarser_levels_of_an_analogy_are_guided(texture, engine):
    patches.analogy(texture(3, (40, 60)), texture(3, (40, 60), 2))
    guided = [engine["level_at"](n).guides is not None for n in range(len(engine["shapes"]))]
    assert guided == [True] * 6 + [False] * 2  # 0.7 of them
    assert engine["first"] is None and engine["effort"].completeness == 1


def test_an_analogy_is_the_same_for_a_seed(video, lava):
    one, again, other = (patches.analogy(video[:4], lava, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_an_analogy_of_a_video_and_an_image_is_refused(video, refusal):
    for content, style in ((video, video[0]), (video[0], video), (video[:1], video), (video, video[:1])):
        for sketch in (False, True):
            assert "not one of each" in refusal(patches.analogy, content, style, sketch)


def test_videos_need_opencv_and_images_do_not(video, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install opencv-python-headless" in refusal(patches.analogy, video, video)
    assert patches.analogy(video[0], video[1]).shape == (24, 40, 3)


def test_a_file_of_weights_that_is_none_is_refused_before_any_work(video, tmp_path, refusal):
    pytest.importorskip("torchvision.models.optical_flow", exc_type=(ImportError, RuntimeError))
    (tmp_path / "raft.pth").write_text("no weights")
    progress = []
    said = refusal(patches.analogy, video, video, raft=tmp_path / "raft.pth", on_progress=progress.append)
    assert "raft.pth does not hold the weights of torchvision's raft_large" in said and not progress


def test_raft_without_torchvision_is_refused(video, tmp_path, monkeypatch, refusal):
    for name in ("torchvision", "torchvision.models", "torchvision.models.optical_flow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install torchvision" in refusal(patches.analogy, video, video, raft=tmp_path / "raft.pth")


# All tasks -----------------------------------------------------------------------------------------------------------


def every_task(video, mask, **options):
    yield patches.generate(video, count=3, **options)
    yield patches.retarget(video, (30, 30), **options)
    yield patches.analogy(video, video[::-1], **options)
    yield patches.inpaint(video, mask, **options)


@pytest.mark.parametrize("length", [1, 5])
def test_progress_grows_from_above_0_to_1(video, hole, length):
    progress = []
    for _ in every_task(video[:length], hole, on_progress=progress.append):
        shares = [0, *(step.done for step in progress)]
        assert min(np.diff(shares)) > 0 and shares[-1] == 1 == progress[-1].total
        progress.clear()


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives_but_for_rounding(video, hole):
    for there, here in zip(every_task(video, hole, device="cuda"), every_task(video, hole), strict=True):
        assert there.shape == here.shape and there.dtype == np.uint8
        assert abs(there.mean((0, 1, 2)) - here.mean((0, 1, 2))).max() < 20
    assert np.array_equal(there[:, ~hole], video[:, ~hole])


@settings(deadline=None, max_examples=20)
@given(shape=st.tuples(st.integers(1, 5), st.integers(5, 18), st.integers(5, 18)), brightness=st.integers(0, 255))
def test_small_videos_make_small_videos_or_are_refused_in_a_sentence(refusal, shape, brightness):
    even = np.full((*shape, 3), brightness, np.uint8)
    mask = np.arange(shape[1] * shape[2]).reshape(shape[1:]) == 0
    for call, inputs in ((patches.generate, ()), (patches.retarget, ((9, 11),)), (patches.analogy, (even,))):
        if min(shape[1:]) < 7:
            assert "at least" in refusal(call, even, *inputs)
        else:
            assert (call(even, *inputs) == brightness).all()
    said = "at least" if min(shape[1:]) < 7 else "too little" if shape[1:] == (7, 7) else None
    if said:
        assert said in refusal(patches.inpaint, even, mask)
    else:
        assert (patches.inpaint(even, mask) == brightness).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.full((5, 20, 20, 3), 200.0, np.float32),
        np.zeros((5, 20, 20, 3), np.uint16),
        np.zeros((5, 20, 20, 7), np.uint8),
        np.zeros((0, 20, 20, 3), np.uint8),
        "fish.mp4",
        None,
    ],
    ids=["float beyond 1", "uint16", "seven channels", "empty", "path", "none"],
)
def test_what_is_no_video_and_no_image_is_refused(video, hole, bad, refusal):
    for call, inputs in (
        (patches.generate, (bad,)),
        (patches.retarget, (bad, (24, 40))),
        (patches.analogy, (bad, video)),
        (patches.analogy, (video, bad)),
        (patches.inpaint, (bad, hole)),
    ):
        said = refusal(call, *inputs)
        assert re.match(r"the (input|content|style) (must be|are)", said)
        assert re.search(r"\(T, H, W, 3\)|uint8|from 0 to 1", said)


def test_requests_that_cannot_be_met_are_refused_with_what_was_wrong(video, refusal):
    generate, retarget, image = patches.generate, patches.retarget, video[0]
    for said, call, request in (
        ("the input is 13 frame(s) of 40x6; at least 3 frame(s) of 7x7", generate, {"video": video[:, :6]}),
        ("the input is 1 frame(s) of 6x24; at least 1 frame(s) of 7x7", retarget, {"video": image[:, :6]}),
        (
            "the input is 3 frame(s) of 40000x7; at most 32767",
            generate,
            {"video": np.zeros((3, 7, 40000, 3), np.uint8)},
        ),
        ("asked for is 2 frame(s) of 40x24; at least 3 frame(s)", generate, {"video": video, "frames": 2}),
        ("asked for is 0 frame(s)", retarget, {"video": video, "frames": 0}),
        ("asked for is -1 frame(s)", generate, {"video": video, "frames": -1}),
        ("asked for is 40000 frame(s) of 40x24; at most 32767", generate, {"video": video, "frames": 40000}),
        ("asked for is 7 frame(s) of 40x6; at least", generate, {"video": video, "size": (6, 40)}),
        ("asked for is 13 frame(s) of 32768x24; at most 32767", retarget, {"video": video, "size": (24, 32768)}),
        ("and 2147483647 pixels", retarget, {"video": video, "size": (30000, 30000)}),
        ("asked for is 7 frame(s) of 4x2", generate, {"video": video, "scale": 0.1}),
        ("scale must be above 0 and at most 100, not 0", generate, {"video": video, "scale": 0}),
        ("scale must be above 0 and at most 100, not nan", generate, {"video": video, "scale": float("nan")}),
        ("scale must be above 0 and at most 100, not 101", generate, {"video": video, "scale": 101}),
        ("size and scale both", generate, {"video": video, "size": (24, 40), "scale": 2}),
        ("noise must be from 0 to 1000, not -1", generate, {"video": video, "noise": -1}),
        ("noise must be from 0 to 1000, not nan", generate, {"video": video, "noise": float("nan")}),
        ("noise must be from 0 to 1000, not 1e+39", generate, {"video": video, "noise": 1e39}),
        ("count must be at least 1, not 0", generate, {"video": video, "count": 0}),
        ("an image has no length", generate, {"video": image, "frames": 5}),
        ("an image has no length", retarget, {"video": image, "frames": 5}),
    ):
        assert said in refusal(call, **request)
