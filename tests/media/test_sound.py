"""The sound of a clip beside a video that was made of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from sinfusion.media import Source, beside, has_sound, read_media, write_video

SECONDS, FPS = 2, 10


def encode(path, codec, rate=48000, video="mpeg4", silent=False):
    """Two seconds of moving squares; their sound is 400 Hz, then 600, 800 and 1000 Hz for half a second each."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream(video, rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = 48, 32, "yuv420p"
        heard = None if silent else out.add_stream(codec, rate=rate, layout="mono")
        for i in range(SECONDS * FPS):
            image = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * i, np.uint8), format="rgb24")
            image.pts, image.time_base = i, Fraction(1, FPS)
            out.mux(pictures.encode(image))
        out.mux(pictures.encode())
        if heard is None:
            return path
        times = np.arange(SECONDS * rate) / rate
        wave = np.float32(0.5 * np.sin(2 * np.pi * (400 + 200 * np.floor(2 * times)) * times))
        resampler = av.AudioResampler(format=heard.format.name, layout="mono", rate=rate)
        for first in range(0, len(wave), 1024):
            part = av.AudioFrame.from_ndarray(wave[None, first : first + 1024].copy(), format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = rate, first, Fraction(1, rate)
            for piece in resampler.resample(part):
                out.mux(heard.encode(piece))
        out.mux(heard.encode())
    return path


def tones(path):
    """The codec of the sound of a file; and its pitch in each tenth of a second: Hz, 0 for silence."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48000)
        wave = np.zeros(10 * 48000, np.float32)
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                at = round(frame.time * 48000)
                wave[at : at + part.samples] = part.to_ndarray()[0, : max(0, len(wave) - at)]
        name = stream.codec.canonical_name
    found = []
    for tenth in wave.reshape(-1, 4800)[:, 960:3840]:
        spectrum = np.abs(np.fft.rfft(tenth * np.hanning(len(tenth)), 48000))
        found.append(int(round(int(spectrum.argmax()), -2)) if np.abs(tenth).max() > 0.05 else 0)
    return name, found


WHOLE = [400] * 5 + [600] * 5 + [800] * 5 + [1000] * 5


def written(tmp_path, sound, frames=20, **options):
    said = []
    write_video(tmp_path / "out.mp4", np.zeros((frames, 32, 48, 3), np.uint8), fps=FPS, sound=sound, log=said.append,
                **options)  # fmt: skip
    return said


@pytest.mark.parametrize(
    "name, codec, kept, video",
    [("a.mp4", "aac", "aac", "mpeg4"), ("a.ts", "aac", "aac", "libx264"), ("d.mkv", "libmp3lame", "mp3", "mpeg4"),
     ("a.mkv", "ac3", "ac3", "mpeg4"), ("a.webm", "libopus", "opus", "libvpx"), ("b.mkv", "pcm_s16le", "aac", "mpeg4"),
     ("c.mkv", "flac", "flac", "mpeg4")],
)  # fmt: skip
@pytest.mark.parametrize("start, stop", [(0, 20), (7, 14)])
def test_a_sound_stays_beside_its_frames(tmp_path, name, codec, kept, video, start, stop):
    sound = read_media(encode(tmp_path / name, codec, video=video), start=start, stop=stop).sound
    assert sound.seconds == pytest.approx((stop - start) / FPS)
    assert written(tmp_path, sound, stop - start) == [f"with the sound of {name}"]
    codec, heard = tones(tmp_path / "out.mp4")
    assert codec == ("aac" if kept == "mp3" and start else kept)  # MP3 cannot be cut by packets
    assert heard[: stop - start] == WHOLE[start:stop] and not any(heard[stop - start + 1 :])
    back = read_media(tmp_path / "out.mp4")
    assert len(back.frames) == stop - start and back.fps == FPS and back.sound.start == 0


def test_a_sound_that_is_copied_is_the_same_to_the_bit(tmp_path):
    encode(tmp_path / "a.mp4", "aac")
    written(tmp_path, read_media(tmp_path / "a.mp4").sound)

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == packets(tmp_path / "a.mp4")


def test_a_sound_may_begin_later(tmp_path):
    sound = read_media(encode(tmp_path / "a.mp4", "aac"), stop=10).sound
    written(tmp_path, sound, 20, delay=0.5)
    heard = tones(tmp_path / "out.mp4")[1]
    assert heard[:4] == [0] * 4 and heard[5:15] == WHOLE[:10] and not any(heard[16:])


def test_what_has_no_sound_has_none(tmp_path):
    assert not has_sound(encode(tmp_path / "a.mp4", "aac", silent=True)) and not has_sound(tmp_path / "nothing.mp4")
    assert read_media(tmp_path / "a.mp4").sound is None
    assert has_sound(encode(tmp_path / "b.mp4", "aac"))


def test_what_cannot_be_kept_is_said_and_the_video_is_whole(tmp_path):
    sound = read_media(encode(tmp_path / "a.mp4", "aac")).sound
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing that plays")
    for other, why in (
        (replace(sound, in_step=False), "pauses or jumps"), (replace(sound, bytes=1), "has changed"),
        (replace(sound, path=str(tmp_path / "gone.mp4")), "not there any more"),
        (replace(sound, path=str(broken), bytes=broken.stat().st_size), "InvalidDataError"),
    ):  # fmt: skip
        (said,) = written(tmp_path, other, overwrite=True)
        assert "is left out: " in said and why in said
        assert len(read_media(tmp_path / "out.mp4").frames) == 20
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "broken.mp4", "out.mp4"}
    said = []
    write_video(tmp_path / "a.gif", np.zeros((2, 32, 48, 3), np.uint8), fps=10, sound=sound, log=said.append)
    write_video(tmp_path / "a", np.zeros((2, 32, 48, 3), np.uint8), fps=10, sound=sound, log=said.append)
    assert [line.rpartition(": ")[2] for line in said] == ["a GIF has none", "a folder of images has none"]


def test_frames_that_play_at_another_speed_have_no_sound(tmp_path):
    sound, said = read_media(encode(tmp_path / "a.mp4", "aac")).sound, []
    assert beside(sound, 2.0, said.append) is sound and beside(None, 5, said.append) is None and not said
    assert beside(sound, 4.0, said.append) is None
    assert said == ["the sound of a.mp4 is left out: the result plays for 4 s, the clip for 2 s"]


def test_a_clip_in_memory_keeps_the_sound_of_its_part(tmp_path):
    clip = read_media(encode(tmp_path / "a.mp4", "aac"), start=5)
    part = Source(clip, start=5, stop=10).read(log=lambda _: None).sound
    assert (part.start, part.stop) == (pytest.approx(1.0), pytest.approx(1.5))
    assert read_media(tmp_path / "a.mp4", stride=2, fps=5).sound.seconds == pytest.approx(2)
