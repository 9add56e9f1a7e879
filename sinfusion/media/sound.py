"""The sound of a clip, beside a video that was made of it and still runs along its time line.

sound = read_media("fish.mp4").sound                  # which part of the file is the clip's; None: it has no sound
write_video("wide.mp4", frames, fps=25, sound=sound)  # copied as it is stored, where MP4 can hold it; else AAC
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..clip import Sound

# What players of MP4 expect in it; other codecs (PCM, Vorbis and so on) become AAC.
COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
LOCAL = {"protocol_whitelist": "file"}  # options of FFmpeg: it opens nothing else that a file may name
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
PREROLL = 2  # packets before the first that is heard: decoders begin with them, players leave them out


def has_sound(path: Path) -> bool:
    """Whether a file has sound in it."""
    try:
        with av.open(str(path.absolute()), options=LOCAL, metadata_errors="ignore") as container:
            return bool(container.streams.audio)
    except Exception:  # FFmpeg's errors, and what PyAV raises on headers that make no sense
        return False


def beside(sound: Sound | None, seconds: float, log: Callable[[str], None]) -> Sound | None:
    """The sound, if frames that play for so many seconds still run beside it; else None, and that is logged."""
    if sound is None or abs(seconds - sound.seconds) <= 0.05 + 0.01 * sound.seconds:
        return sound
    lengths = f"the result plays for {seconds:.3g} s, the clip for {sound.seconds:.3g} s"
    log(f"the sound of {Path(sound.path).name} is left out: {lengths}")
    return None


def why_not(sound: Sound, path: Path) -> str:
    """Why the video `path` cannot have a sound; empty if it can."""
    source = Path(sound.path)
    if path.suffix.lower() != ".mp4":
        return "a GIF has none" if path.suffix.lower() == ".gif" else "a folder of images has none"
    if not sound.in_step:
        return "pauses or jumps in the time of the clip were cut"
    if not source.is_file():
        return "the file is not there any more"
    return "" if source.stat().st_size == sound.bytes else "the file has changed since"


def add_sound(video: Path, target: Path, sound: Sound, delay: float = 0.0) -> None:
    """Write the MP4 `video` with a sound to `target`. delay: seconds after which the sound begins.

    The video is copied as it is, and so is the sound where MP4 can hold its codec. Raises what FFmpeg raises.
    """
    with (
        av.open(str(video.absolute()), format="mp4") as silent,
        av.open(sound.path, options=LOCAL, metadata_errors="ignore") as source,
        av.open(str(target.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        pictures, heard = silent.streams.video[0], source.streams.best("audio")
        assert heard is not None
        stream = out.add_stream_from_template(pictures)
        codec = heard.codec.canonical_name
        inside = (
            codec == "mp3" and max(sound.start, delay) > 0.05
        )  # its frames refer to others, and FFmpeg loses the time
        packets = _copied if codec in COPIED and not inside else _encoded
        streams = [_packets(silent, pictures, stream), packets(source, heard, out, sound, delay)]
        for packet in heapq.merge(*streams, key=lambda packet: float(packet.dts * packet.time_base)):
            out.mux(packet)


def _packets(container: Any, stream: Any, target: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.dts is not None:
            packet.stream = target
            yield packet


def _copied(source: Any, stream: Any, out: Any, sound: Sound, delay: float) -> Iterator[Any]:
    """The packets of the sound as they are stored."""
    target = out.add_stream_from_template(stream)
    return _shifted(source, stream, target, sound, delay)


def _shifted(source: Any, stream: Any, target: Any, sound: Sound, delay: float) -> Iterator[Any]:
    before: list[Any] = []  # the last ones before it begins
    preroll = PREROLL if delay == 0 else 0
    shift = round((delay - sound.start) / stream.time_base)
    for packet in source.demux(stream):
        if packet.pts is None:
            continue
        begins = packet.pts * stream.time_base
        if begins >= sound.stop:
            break
        packet.dts = packet.pts = packet.pts + shift
        packet.stream = target
        if begins < sound.start:
            before.append(packet)
            del before[: len(before) - preroll]
            continue
        yield from before
        before.clear()
        yield packet


def _encoded(source: Any, stream: Any, out: Any, sound: Sound, delay: float) -> Iterator[Any]:
    """The packets of the sound as AAC."""
    rate = stream.rate if stream.rate in AAC_RATES else 48000
    layout = "mono" if stream.codec_context.channels == 1 else "stereo"
    return _aac(source, stream, out.add_stream("aac", rate=rate, layout=layout), sound, delay)


def _aac(source: Any, stream: Any, target: Any, sound: Sound, delay: float) -> Iterator[Any]:
    rate, layout = target.rate, target.layout.name
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    at: int | None = None  # samples after the beginning of the part
    for frame in source.decode(stream):
        if at is None:
            at = round(((frame.time or 0.0) - sound.start) * rate)
        for part in resampler.resample(frame):
            samples, first = part.to_ndarray().astype(np.float32, copy=False), at
            at += samples.shape[1]
            kept = samples[:, max(0, -first) : max(0, round(sound.seconds * rate) - first)]
            if kept.shape[1]:
                piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(kept), format="fltp", layout=layout)
                piece.sample_rate, piece.time_base = rate, Fraction(1, rate)
                piece.pts = max(0, first) + round(delay * rate)
                yield from target.encode(piece)
        if at >= sound.seconds * rate:
            break
    yield from target.encode()
