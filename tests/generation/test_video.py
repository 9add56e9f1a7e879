"""Generate, extrapolate, retarget: lengths, sizes, order, seeds, what stays untouched."""

import dataclasses

import numpy as np
import pytest
import torch

from sinfusion.errors import SinfusionError
from sinfusion.generation.reverse_process import ReverseProcess
from sinfusion.generation.upsampling import upsample
from sinfusion.generation.video import NextFrame, extrapolate, generate, next_frame, retarget, rollout, stream
from sinfusion.pixels import resize, to_unit


@pytest.fixture(params=["fp32", "bf16"])
def run(request, video_run):
    return video_run.to("cpu", request.param)


def close(a, b):
    """Equal but for rounding to bytes: a convolution of a larger batch may add in another order."""
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_samples_of_one_call_are_those_of_their_seeds_alone(run):
    together = generate(run, frames=4, count=3, seed=7)
    assert together.shape == (3, 4, 16, 24, 3) and together.dtype == np.uint8
    for i in range(3):
        assert close(generate(run, frames=4, seed=7 + i)[0], together[i])
    assert not close(together[0], together[1])


def test_a_seed_repeats_a_video_to_the_bit(run):
    assert np.array_equal(generate(run, frames=3, seed=2), generate(run, frames=3, seed=2))


def test_a_video_is_as_long_as_the_clip_unless_told(video_run):
    assert generate(video_run).shape == (1, *video_run.frames.shape)


@pytest.mark.parametrize("size", [(9, 31), (24, 16)])
def test_any_size_can_be_made(video_run, size):
    assert generate(video_run, frames=2, count=2, size=size).shape == (2, 2, *size, 3)


def test_a_video_starts_from_a_frame_an_image_or_noise(video_run, clip):
    assert np.array_equal(generate(video_run, frames=2, count=2, start=3)[:, 0], np.stack([clip[3]] * 2))
    assert np.array_equal(generate(video_run, frames=2, start=-1)[0, 0], clip[-1])
    assert np.array_equal(generate(video_run, frames=2, start=clip[0]), generate(video_run, frames=2, start=0))
    resized = generate(video_run, frames=2, start=clip[0], size=(20, 30))
    assert resized.shape == (1, 2, 20, 30, 3)
    shrunk = resized[0, 0].reshape(10, 2, 15, 2, 3).mean((1, 3))
    assert np.corrcoef(shrunk[::5, ::5].ravel(), clip[0][::8, ::8][:2, :3].ravel())[0, 1] > 0.8
    first = generate(video_run, frames=1, count=2)
    assert not np.array_equal(first[0], first[1])


class Recorded:
    """Stands for a ReverseProcess: remembers the conditions, and makes frames of the number of the frame."""

    def __init__(self, conditions):
        self.conditions, self.seen = conditions, []

    def __call__(self, seeds, frame_index, condition, *_):
        self.seen.append(condition[0, ::3, 0, 0].tolist())
        return torch.full_like(condition[:, :3], float(frame_index) / 10)


def test_a_rollout_carries_its_last_frames_and_the_first_repeats_itself():
    process, first = Recorded(3), torch.full((1, 3, 8, 8), -1.0)
    list(rollout(NextFrame(process), first, torch.tensor([0]), 5))
    wanted = [[-1, -1, -1], [0.1, -1, -1], [0.2, 0.1, -1], [0.3, 0.2, 0.1]]
    assert np.allclose(process.seen, wanted)


@pytest.mark.parametrize(
    ("make", "frames"),
    [
        (lambda run: generate(run, 2, start=5), (5, 4)),
        (lambda run: generate(run, 2, start=-1, size=(20, 30)), (11, 10)),
        (lambda run: generate(run, 2, start=5, frame_offset=-2), (5, 7)),
        (lambda run: generate(run, 2, start=0), (0, 0)),
        (lambda run: generate(run, 2, start=-1, frame_offset=-1), (11, 11)),
        (lambda run: generate(run, 2, start=run.frames[5]), (5, 5)),
        (lambda run: extrapolate(run, after=1), (11, 10)),
        (lambda run: extrapolate(run, before=1), (0, 1)),
    ],
    ids=["start", "size", "double speed backward", "first", "last backward", "image", "after", "before"],
)
def test_the_frames_before_the_first_are_the_clips_where_it_has_them(video_run, monkeypatch, make, frames):
    seen, advance = [], NextFrame.__call__

    def remember(self, previous, *arguments):
        seen.append(previous[0])
        return advance(self, previous, *arguments)

    monkeypatch.setattr(NextFrame, "__call__", remember)
    make(with_offsets(video_run, 3))
    size = tuple(seen[0].shape[1:])
    wanted = to_unit(torch.from_numpy(np.stack([resize(video_run.frames[i], size) for i in frames])))
    assert torch.equal(seen[0], wanted.flatten(0, 1))


def test_the_frames_before_the_last_one_change_the_next(video_run):
    assert not np.array_equal(generate(video_run, 2, start=5), generate(video_run, 2, start=video_run.frames[5]))


def with_offsets(run, largest):
    """The run as if its curriculum had reached offsets up to `largest`."""
    recipe = run.recipe.replace(offset_milestones=(0.0, 0.0), max_frame_offset=largest)
    return dataclasses.replace(run, recipe=recipe)


@pytest.mark.parametrize("frame_offset", [-1, 2, -3])
def test_frame_offsets_that_were_trained_change_the_video(video_run, frame_offset):
    run = with_offsets(video_run, 3)
    outputs = generate(run, frames=2, start=5, frame_offset=frame_offset)
    assert outputs.shape == (1, 2, 16, 24, 3)
    assert not np.array_equal(outputs, generate(run, frames=2, start=5))


@pytest.mark.parametrize("frame_offset", [0, 3, -9])
def test_frame_offsets_that_were_not_trained_are_refused(video_run, frame_offset):
    with pytest.raises(
        SinfusionError, match=f"frame offset {frame_offset} was not trained; this run knows -2, -1, 1, 2"
    ):
        generate(with_offsets(video_run, 2), frames=2, frame_offset=frame_offset)


def test_frames_are_made_as_they_are_asked_for(video_run, monkeypatch):
    outputs = []
    advance = NextFrame.__call__
    monkeypatch.setattr(NextFrame, "__call__", lambda *a, **k: outputs.append(1) or advance(*a, **k))
    frames = stream(video_run, 10**9, count=2, start=0)
    assert next(frames).shape == (2, 16, 24, 3) and len(outputs) == 0
    second = next(frames)
    assert len(outputs) == 1
    assert np.array_equal(second, generate(video_run, frames=2, count=2, start=0)[:, 1])


def test_the_projector_corrects_frames_only_if_the_recipe_says_so(video_run):
    on, off = (dataclasses.replace(video_run, recipe=video_run.recipe.replace(correction_timesteps=n)) for n in (3, 0))
    assert not np.array_equal(generate(on, frames=2, start=0), generate(off, frames=2, start=0))


@pytest.mark.parametrize(("before", "after"), [(0, 3), (2, 0), (2, 3)])
def test_extrapolation_goes_on_from_both_ends_and_marks_what_is_new(video_run, clip, before, after):
    outputs, is_new = extrapolate(video_run, after=after, before=before, seed=4)
    assert outputs.shape == (before + len(clip) + after, 16, 24, 3)
    assert is_new.dtype == bool and is_new.tolist() == [True] * before + [False] * len(clip) + [True] * after
    assert np.array_equal(outputs[~is_new], clip)
    if after:
        onward = generate(video_run, frames=after + 1, start=-1, seed=4)[0]
        assert np.array_equal(outputs[len(outputs) - after :], onward[1:])
    if before:  # played backward, so the frame nearest the clip is the first that was made
        # With noise of other frame indices than the frames after have.
        first, seeds = to_unit(torch.from_numpy(clip[:2])).flatten(0, 1)[None], torch.tensor([4])
        frames = rollout(next_frame(video_run, -1), first, seeds, before + 1, first_index=after)
        backward = np.stack([frame[0].numpy().copy() for frame in frames])
        assert np.array_equal(outputs[:before], backward[1:][::-1])


def test_extrapolation_by_nothing_is_refused(video_run):
    for arguments in ({}, {"after": -1, "before": 3}):
        with pytest.raises(SinfusionError, match="must be above 0"):
            extrapolate(video_run, **arguments)


@pytest.mark.parametrize("size", [(16, 40), (20, 12)])
def test_retargeting_gives_the_asked_size(video_run, image_run, clip, size):
    assert retarget(video_run, size, clip[:3]).shape == (3, *size, 3)
    assert retarget(image_run, size).shape == (*size, 3)


def test_retargeting_keeps_more_of_the_input_the_smaller_its_strength(video_run, clip):
    errors = []
    for strength in (0.05, 0.4, 1.0):
        outputs = retarget(video_run, (16, 24), clip[:1], strength).astype(float)
        errors.append(np.sqrt(np.mean((outputs - clip[:1]) ** 2)))
    assert errors[0] < errors[1] < errors[2] and errors[0] < 15


def test_an_image_run_generates_diverse_images_and_nothing_else(image_run):
    outputs = generate(image_run, count=3, size=(20, 28), seed=1)
    assert outputs.shape == (3, 20, 28, 3) and outputs.dtype == np.uint8
    assert close(outputs[2], generate(image_run, size=(20, 28), seed=3)[0]) and not close(outputs[0], outputs[1])
    for call in (lambda: generate(image_run, frames=3), lambda: generate(image_run, frame_offset=2),
                 lambda: generate(image_run, start=0), lambda: extrapolate(image_run, 1),
                 lambda: upsample(image_run)):  # fmt: skip
        with pytest.raises(SinfusionError, match="image run"):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "at least 1 frame"), ({"count": 0}, "count must be at least 1"),
        ({"size": (4, 24)}, "24x4 is too small"), ({"start": 12}, "start frame 12 does not exist"),
        ({"start": np.zeros((2, 16, 24, 3))}, "start image"), ({"steps": 0}, "at least 1 step"),
    ],
)  # fmt: skip
def test_impossible_videos_are_refused(video_run, arguments, message):
    with pytest.raises(SinfusionError, match=message):
        generate(video_run, **{"frames": 2, **arguments})


def test_hidden_frames_are_those_that_a_video_from_noise_would_begin_with(video_run):
    def outputs(hidden, frames, **start):
        recipe = video_run.recipe.replace(burn_in_frames=hidden, projection_weight=0.0)
        return generate(dataclasses.replace(video_run, recipe=recipe), frames, **start)

    assert np.array_equal(outputs(2, 3), outputs(0, 5)[:, 2:])
    assert np.array_equal(outputs(2, 3, start=0), outputs(0, 3, start=0))  # a given first frame is shown


@pytest.fixture
def drawn(video_run, monkeypatch):
    """drawn(make, **settings): the keys of all noise that make(run) draws, of a run whose recipe has the settings."""
    keys = []

    def loop(process, x, prior_mean, seeds, counters, *rest):
        noisy = process.coefficients[:, 6] != 0
        keys.extend((process.stream, seed, counter) for seed in seeds.tolist() for counter in counters[noisy].tolist())
        return x.clamp_(-1, 1)

    monkeypatch.setattr(ReverseProcess, "_loop", loop)

    def keys_of(make, **settings):
        keys.clear()
        recipe = video_run.recipe.replace(correction_timesteps=3, sampler="ddpm", burn_in_frames=2, **settings)
        run = dataclasses.replace(video_run, recipe=recipe, graph=False)
        make(run)
        assert keys
        return list(keys)

    return keys_of


@pytest.mark.parametrize(
    "make",
    [
        lambda run: generate(run, 4, 2, seed=3),
        lambda run: generate(run, 4, 2, start=0, frame_offset=-1),
        lambda run: extrapolate(run, after=3, before=4),
        lambda run: upsample(run, 4, run.frames[:4]),
        lambda run: retarget(run, (18, 30), run.frames[:4]),
    ],
    ids=["generate", "backward", "extrapolate", "upsample", "retarget"],
)
def test_no_noise_is_drawn_twice(drawn, make):
    keys = drawn(make)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("steps", [4095, 4096, 9000])
def test_noise_is_never_drawn_twice_however_many_evaluations_a_frame_takes(drawn, steps):
    keys = drawn(lambda run: generate(run, 3, steps=steps))
    assert len(keys) > 2 * steps and len(set(keys)) == len(keys)
    assert all(0 <= counter < 2**63 for _, _, counter in keys)


def test_noise_is_that_of_a_seed_a_frame_index_and_a_step_as_runs_have_always_drawn_it(drawn):
    keys = drawn(lambda run: generate(run, 2, start=0, seed=9), sampling_steps=3)
    assert keys[:3] == [(17, 9, 4096 + 4095), (17, 9, 4096), (17, 9, 4096 + 1)]


@pytest.mark.parametrize(
    ("make", "total"),
    [
        (lambda run, seen: generate(run, 3, 2, start=0, on_progress=seen), 3),
        (lambda run, seen: extrapolate(run, after=2, before=1, on_progress=seen), 3),
        (lambda run, seen: upsample(run, 4, run.frames[:3], on_progress=seen), 6),
        (lambda run, seen: retarget(run, (18, 30), run.frames[:2], on_progress=seen), 2),
    ],
    ids=["generate", "extrapolate", "upsample", "retarget"],
)
def test_progress_is_told_after_each_new_frame_with_the_frame(video_run, make, total):
    seen = []
    make(video_run, seen.append)
    assert [(progress.done, progress.total, progress.unit) for progress in seen] == [
        (done, total, "frame") for done in range(1, total + 1)
    ]
    assert all(progress.image.dtype == np.uint8 and progress.image.ndim == 3 for progress in seen)
