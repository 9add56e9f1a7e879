"""A clip plays at one rate, whatever its file says of when each frame is shown."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import Clip, Source, read_masks, read_media, write_video
from sinfusion.media.timing import FrameTimes

MILLISECOND = Fraction(1, 1000)


@pytest.fixture(scope="module")
def moving(texture):
    """Twenty frames that tell each other apart after encoding."""
    return texture(20, (48, 64), step=3)


def encode(path, frames, times, codec="libx264", clock=MILLISECOND, rate=30, options=None):
    """A video whose frame i is shown at times[i] on a clock."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options={"crf": "6", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = clock
        for time, frame in zip(times, frames, strict=False):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = int(time), clock
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    return path


def order(clip, originals):
    """Which original each frame of a clip looks most like."""
    return [int(np.argmin([np.abs(f.astype(int) - o).mean() for o in originals])) for f in clip.frames]


def read(path, **options):
    """A clip, and what was said of its times."""
    said = []
    clip = read_media(path, log=said.append, **options)
    assert len(said) <= 1
    return clip, said[0] if said else ""


FILES = [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mov", "libx264")]


@pytest.mark.parametrize("name, codec", FILES)
def test_a_pause_neither_slows_the_rest_down_nor_fills_the_clip_with_stillness(tmp_path, moving, name, codec):
    times = [33 * i for i in range(10)] + [2300 + 33 * i for i in range(10)]
    clip, said = read(encode(tmp_path / name, moving, times, codec))
    assert order(clip, moving) == list(range(20))
    assert clip.fps == pytest.approx(1000 / 33, rel=0.01)
    assert said.startswith("its frames last differently: steady") and "1 pause of 2 s was cut to one frame" in said


@pytest.mark.parametrize("name, codec", FILES)
def test_frames_that_were_dropped_are_repeats_of_the_one_before(tmp_path, moving, name, codec):
    times = [40 * i for i in range(20) if i not in (5, 11, 12)]
    clip, said = read(encode(tmp_path / name, moving[[i for i in range(20) if i not in (5, 11, 12)]], times, codec))
    wanted = [*range(5), 4, *range(6, 11), 10, 10, *range(13, 20)]
    assert order(clip, moving) == wanted
    assert clip.fps == pytest.approx(25, rel=1e-3) and "17 became 20 (3 repeated)" in said


@pytest.mark.parametrize("name, codec", FILES)
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60), Fraction(12)])
def test_a_steady_clip_stays_as_it_is_though_its_times_are_rounded(tmp_path, moving, name, codec, rate):
    times = [round(1000 * i / rate) for i in range(20)]
    clip, said = read(encode(tmp_path / name, moving, times, codec, rate=rate))
    assert order(clip, moving) == list(range(20))
    assert clip.fps == pytest.approx(float(rate), rel=0.003) and said == ""


def test_the_rate_of_the_header_is_kept_where_the_times_agree(tmp_path, moving):
    rate = Fraction(30000, 1001)
    path = encode(tmp_path / "a.mp4", moving, range(20), clock=1 / rate, rate=rate)
    assert read_media(path).fps == float(rate)
    assert read_media(path, stride=3).fps == float(rate) / 3


def test_the_rate_of_the_header_is_not_believed_where_the_times_differ(tmp_path, moving):
    path = encode(tmp_path / "a.mp4", moving, [40 * i for i in range(20)], rate=30)  # says 25.4
    assert read_media(path).fps == pytest.approx(25, rel=1e-4)


def test_frames_that_are_stored_out_of_order_last_as_they_are_shown(tmp_path, moving):
    times = [40 * i for i in range(8)] + [40 * i for i in range(9, 21)]
    options = {"bf": "3", "x264-params": "b-adapt=0"}
    clip, _ = read(encode(tmp_path / "a.mp4", moving, times, options=options))
    assert order(clip, moving) == [*range(8), 7, *range(8, 20)]


@pytest.mark.parametrize("first", [-200, 10_000])
def test_it_does_not_matter_when_a_clip_begins(tmp_path, moving, first):
    clip, said = read(encode(tmp_path / "a.mkv", moving, [first + 40 * i for i in range(20)]))
    assert order(clip, moving) == list(range(20)) and clip.fps == pytest.approx(25, rel=0.003) and not said


def test_a_recording_whose_rate_changes_plays_at_one_rate(tmp_path, moving):
    times = np.cumsum([0] + [40] * 12 + [20] * 7)  # 25 frames a second, then 50
    clip, said = read(encode(tmp_path / "a.mp4", moving, times))
    assert order(clip, moving) == [*range(13), 14, 16, 18, 19]
    assert clip.fps == pytest.approx(25) and "3 left out" in said


def test_a_range_counts_the_frames_of_the_file(tmp_path, moving):
    times = [40 * i for i in range(8)] + [40 * i for i in range(9, 21)]
    path = encode(tmp_path / "a.mp4", moving, times)
    assert order(read(path, start=2, stop=8)[0], moving) == list(range(2, 8))
    assert order(read(path, start=6, stop=12)[0], moving) == [6, 7, 7, 8, 9, 10, 11]
    thinned = read(path, start=9, stop=19, stride=2)[0]
    assert order(thinned, moving) == [9, 11, 13, 15, 17] and thinned.fps == pytest.approx(12.5)


def test_a_rate_that_was_asked_for_is_that_of_the_clip(tmp_path, moving):
    path = encode(tmp_path / "a.mp4", moving, [40 * i for i in range(20)], rate=25)
    for fps, wanted in ((12.5, list(range(0, 20, 2))), (25, list(range(20))), (50, sorted(2 * list(range(20))))):
        clip, said = read(path, fps=fps)
        assert clip.fps == fps and order(clip, moving) == wanted
        assert ("25 frames a second resampled to" in said) == (fps != 25)
    third = read(path, fps=10)[0]
    assert np.abs(np.array(order(third, moving)) - 2.5 * np.arange(8)).max() <= 0.5


def test_a_rate_that_does_not_fit_in_memory_is_refused(tmp_path, moving):
    path = encode(tmp_path / "a.mp4", moving, [40 * i for i in range(20)])
    with pytest.raises(SinfusionError, match=r"20 frames at 25 a second are .* at 900000, which do not fit in memory"):
        read_media(path, fps=900_000)


def test_a_clip_in_memory_is_resampled_from_its_own_rate(moving):
    clip = Source(Clip(moving, 30, "video", (48, 64)), fps=15).read(log=lambda _: None)
    assert clip.fps == 15 and np.array_equal(clip.frames, moving[::2])


# Animations ----------------------------------------------------------------------------------------------------------


def animate(path, frames, durations):
    images = [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_last_frame_of_an_animation_may_be_held(tmp_path, moving, name):
    clip, said = read(animate(tmp_path / name, moving[:8], [40] * 7 + [2000]))
    assert len(clip.frames) == 8 and clip.fps == pytest.approx(25) and "1 pause of 2 s" in said


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_frames_of_an_animation_that_last_longer_are_repeated(tmp_path, moving, name):
    clip, said = read(animate(tmp_path / name, moving[:6], [100, 100, 300, 100, 100, 200]))
    assert clip.fps == pytest.approx(10) and "6 became 9 (3 repeated)" in said
    same = [np.array_equal(a, b) for a, b in zip(clip.frames[:-1], clip.frames[1:], strict=True)]
    assert same == [False, False, True, True, False, False, False, True]


def test_a_slow_animation_has_no_pauses(tmp_path, moving):
    clip, said = read(animate(tmp_path / "a.gif", moving[:4], [2000] * 4))
    assert len(clip.frames) == 4 and clip.fps == pytest.approx(0.5) and not said


def test_the_rounding_of_a_gif_is_no_change_of_rate(tmp_path, moving):
    write_video(tmp_path / "a.gif", moving, fps=30)  # 30, 40, 30 ms
    clip, said = read(tmp_path / "a.gif")
    assert len(clip.frames) == 20 and clip.fps == pytest.approx(30, rel=0.01) and not said


def test_masks_are_resampled_as_the_clip_is(tmp_path, moving):
    times = [40 * i for i in range(20) if i != 5]
    kept = moving[[i for i in range(20) if i != 5]]
    clip = read_media(encode(tmp_path / "a.mp4", kept, times), log=lambda _: None)
    masks = np.uint8(255 * (kept > 127)).max(-1, keepdims=True).repeat(3, -1)
    path = encode(tmp_path / "mask.mp4", masks, times)
    assert read_masks(path, (48, 64), len(clip.frames), log=lambda _: None).shape == (20, 48, 64)
    assert read_masks(path, (48, 64), 10, fps=12.5, log=lambda _: None).shape == (10, 48, 64)


# Times alone ---------------------------------------------------------------------------------------------------------


def steady(seconds, fps=None, **known):
    found = FrameTimes([*seconds], **known).steady(fps)
    return found.fps, list(range(len(seconds))) if found.order is None else found.order.tolist()


def test_phones_that_waver_are_left_alone():
    durations = 1 / np.random.default_rng(0).uniform(29.5, 30.3, 3000)
    fps, shown = steady(np.cumsum(durations), rates=[29.9])
    assert shown == list(range(3000)) and fps == pytest.approx(29.9, rel=0.005)


def test_times_that_jitter_about_a_steady_clock_are_left_alone():
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, 300)
    fps, shown = steady((np.arange(300) + jitter) / 30)
    assert shown == list(range(300)) and fps == pytest.approx(30, rel=0.01)


def test_film_that_is_shown_for_two_and_three_fields_in_turn_is_film():
    for count in (40, 41):
        fps, shown = steady(np.cumsum([0] + [2 / 59.94, 3 / 59.94] * 20)[:count])
        assert shown == list(range(count)) and fps == pytest.approx(23.976, rel=0.01)


def test_times_that_are_missing_or_repeat_lie_between_their_neighbours():
    assert steady([None, None, 0.2, 0.3, 0.3, 0.5, None, 0.7, 0.8, 0.8]) == (pytest.approx(10), list(range(10)))
    assert steady([0, 0, 0.2, 0.2, 0.4, 0.4]) == (pytest.approx(10), list(range(6)))
    assert steady([None] * 5, rates=[24.0]) == (24, list(range(5)))
    assert steady([1.0] * 5) == (20, list(range(5)))


def test_where_time_goes_back_it_goes_on():
    found = FrameTimes([0.1 * i for i in range(10)] + [0.1 * i for i in range(5)]).steady()
    assert found.order is None and found.fps == pytest.approx(10) and not found.keeps_time
    assert steady([5, 4, 3, 2, 1])[1] == list(range(5))


def test_one_frame_and_two_frames_have_a_rate():
    assert steady([3.0], rates=[24.0]) == (24, [0]) and steady([3.0]) == (20, [0])
    assert steady([3.0, 3.04]) == (pytest.approx(25), [0, 1])


def test_up_to_five_medians_are_repeated_and_more_is_a_pause():
    for gap, shown in ((4.9, [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 7]), (5.2, list(range(8)))):
        assert steady([*range(4), *(3 + gap + np.arange(4))])[1] == shown


@pytest.mark.parametrize("seed", range(20))
def test_every_step_shows_the_frame_that_is_nearest_or_still_there(seed):
    rng = np.random.default_rng(seed)
    seconds = np.cumsum(rng.choice([0.02, 0.04, 0.04, 0.04, 0.06, 0.1], 60))
    found = FrameTimes(list(seconds)).steady(fps=rng.uniform(5, 60))
    times, median = seconds - seconds[0], 0.04
    clock = np.arange(len(found.order)) / found.fps
    assert len(clock) == pytest.approx((times[-1] + median) * found.fps, abs=1)
    for step, frame in zip(clock, found.order, strict=True):
        until = times[frame + 1] if frame + 1 < len(times) else np.inf
        assert times[frame] - 0.5 / found.fps - 1e-6 <= step <= until + 0.5 / found.fps + 1e-6
    assert (np.diff(found.order) >= 0).all()


def test_a_clock_that_ticks_once_a_frame_shows_what_was_dropped(tmp_path, moving):
    assert steady([0, 1, 2, 4, 5, 6], rounding=1)[1] == [0, 1, 2, 2, 3, 4, 5]
    kept = [i for i in range(20) if i != 9]
    clip, said = read(encode(tmp_path / "a.avi", moving[kept], kept, "mpeg4", Fraction(1, 20), 20))
    assert len(clip.frames) == 20 and clip.fps == 20 and "19 became 20 (1 repeated)" in said


def test_frames_of_an_avi_are_in_their_order_though_its_times_are_those_of_packets(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=10)  # with B-frames, which AVI has no times for
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * level, np.uint8), format="rgb24")
            frame.pts = level
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    said = []
    clip = read_media(tmp_path / "a.avi", log=said.append)
    assert (said, clip.fps, len(clip.frames)) == ([], 10, 8)
    assert np.allclose(clip.frames.mean((1, 2, 3)), 20 * np.arange(8), atol=4)
