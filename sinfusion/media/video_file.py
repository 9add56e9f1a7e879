"""Files that FFmpeg decodes: which stream is the video, its frames, and when they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from ..errors import SinfusionError
from . import heif
from .display import Display, decoded, display_matrix, over_white, turned
from .interlacing import is_field, progressive
from .refusals import unreadable, without_video
from .timing import UNKNOWN_FPS, FrameTimes

# Only these, because FFmpeg would open playlists.
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe"
COVER = Disposition.attached_pic | Disposition.timed_thumbnails  # of sound or of chapters


class VideoFile:
    """A video file, of which either `frames` or `probe` is called, once. SinfusionError if it cannot be opened."""

    def __init__(self, path: Path, wanted: range):
        self.path, self.wanted = path, wanted
        try:
            self.container = self._open()
        except Exception as error:  # FFmpegError, and what PyAV raises on headers that make no sense
            raise SinfusionError(unreadable(path)) from error
        streams = self.container.streams
        self.has_sound = bool(streams.audio)
        stream = self._shown_stream()
        if stream is None:
            cover = any(stream.disposition & COVER for stream in streams.video)
            sound = self.has_sound and not streams.video
            self.container.close()
            raise SinfusionError(without_video(path, sound, cover))
        stream.thread_type = "AUTO"
        if "av1" in stream.codec_context.name:  # its threads may wait for each other for ever where the file is damaged
            stream.thread_count = 1
        self.stream, self.avi = stream, self.container.format.name == "avi"
        self.notes: dict[str, None] = {}
        self.display = Display(stream, self.notes.setdefault)
        self.shown_size = (0, 0)  # (height, width) of the last frame with square pixels
        rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
        self.rates = [float(rate) / wanted.step for rate in rates if rate]  # of the wanted frames, by the header
        # FFmpeg begins some AVIs with a frame and an empty one, which shows the first for two ticks and means nothing.
        self.first_lasts_two = False
        self.rounding = float(stream.time_base or 0)  # of the times, in seconds
        self.rate = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        self.times: list[float] = []  # of the frames so far, in seconds
        self.shown: list[float | None] = []  # the same of the wanted frames; None: the file does not say

    def _open(self) -> Any:
        # An absolute path: FFmpeg takes "name:" for a protocol.
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
        return av.open(str(self.path.absolute()), options=options, metadata_errors="ignore")

    def _shown_stream(self) -> Any:
        """The video stream that players show: the default one, else the largest; never a cover picture."""
        streams = [s for s in self.container.streams.video if s.codec_context is not None and not s.disposition & COVER]
        return max(streams, key=_stream_rank, default=None)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        note = self.notes.setdefault
        return progressive(decoded(self.container, self.stream, note), self.stream.codec_context.name, note)

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        return self.display.pixels(frame)

    def frames(self) -> Iterator[np.ndarray]:
        """The wanted frames, (H, W, 3) uint8; SinfusionError where the file is shorter than its header says."""
        count, end = 0, 0.0
        with self.container:
            expected = _header_seconds(self.container, self.stream, self.rate)
            for frame in islice(self._decoded(), self.wanted.stop):
                if frame.time is not None:
                    self.times.append(frame.time)
                    if len(self.times) == 2 and self.avi:
                        self.first_lasts_two = round((self.times[1] - self.times[0]) / self.rounding) == 2
                    lasts = (frame.duration or 0) * float(frame.time_base or 0)
                    # The length of a Matroska file counts from 0 even if its first frame comes later.
                    end = frame.time - min(self.times[0], 0) + max(1 / self.rate, lasts)
                if count in self.wanted:
                    self.shown.append(frame.time)
                    self.shown_size = self.display.shown_size(frame)
                    yield self._pixels(frame)
                count += 1
        missing = expected - end
        if self.times and count < self.wanted.stop and missing > max(3 / self.rate, 0.05 * expected):
            here = f"--stop {count} reads them" if count > self.wanted.start else f"none from {self.wanted.start} on"
            raise SinfusionError(
                f"{self.path} is truncated: {count} frame(s) read, {end:.2f} of {expected:.2f} seconds; {here}."
            )
        # Of few missing frames a header may be wrong; by the index of an MP4 and its length, they are not there.
        if self.times and count < min(self.wanted.stop, self.stream.frames) and missing > 0.9 / self.rate:
            self.notes.setdefault(f"the file ends early: {count} of {self.stream.frames} frames are in it")

    def frame_times(self) -> FrameTimes:
        """When the wanted frames are shown; known after reading."""
        shown = list(self.shown)
        if self.avi and None not in shown:
            shown = [*sorted(time or 0.0 for time in shown)]  # AVI has times of packets, whose order is another
        if self.first_lasts_two and self.wanted.start == 0 and shown[:1] == [0.0]:
            shown[0] = self.rounding
        return FrameTimes(shown, self.rates, self.rounding)

    def probe(self) -> tuple[tuple[int, int], int]:
        """(height, width) of the first frame, and the number of packets."""
        size, count, fields = None, 0, 1
        with self.container:
            try:
                for packet in self.container.demux(self.stream):
                    count += packet.size > 0
                    if size is None and (frame := next(iter(packet.decode()), None)) is not None:
                        size = self.display.shown_size(frame)
                        fields = 2 if is_field(frame, self.stream.codec_context.name) else 1
            except av.error.FFmpegError:  # told where it is reached
                if size is None:
                    raise
        if size is None:
            raise SinfusionError(f"{self.path} has no frames that this FFmpeg decodes.")
        return size, count // fields


def _stream_rank(stream: Any) -> tuple[bool, bool, int]:
    """What a stream is preferred for; a dependent one is a layer of another."""
    dispositions = stream.disposition
    pixels = stream.codec_context.width * stream.codec_context.height
    return not dispositions & Disposition.dependent, bool(dispositions & Disposition.default), pixels


def _header_seconds(container: Any, stream: Any, rate: float) -> float:
    """The length of the video by the header of its file; 0 if it does not say."""
    if container.format.name == "avi":  # of a truncated file FFmpeg shortens the duration, but not the count
        return float(stream.frames / rate)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


class HeifSequence(VideoFile):
    """The frames of an animated AVIF or a HEIC sequence, with their transparency, which is a stream of its own."""

    def _shown_stream(self) -> Any:
        streams = [s for s in self.container.streams.video if s.codec_context is not None]
        best = max(streams, key=_frames_and_size, default=None)
        alphas = (s.index for s in streams if s is not best and _frames_and_size(s) == _frames_and_size(best)
                  and (s.codec_context.pix_fmt or "").startswith("gray"))  # fmt: skip
        self.alpha_index = next(alphas, None)
        return best

    def _decoded(self) -> Iterator[av.VideoFrame]:
        self.stream.codec_context.thread_count = 1  # see `heif`
        self.alpha: np.ndarray | None = None
        with ExitStack() as opened:
            alphas: Iterator[av.VideoFrame] = iter(())
            if self.alpha_index is not None:
                container = opened.enter_context(self._open())
                container.streams[self.alpha_index].codec_context.thread_count = 1
                alphas = container.decode(container.streams[self.alpha_index])
            for frame in self.container.decode(self.stream):
                if frame.colorspace == heif.UNSPECIFIED:
                    frame.colorspace = heif.BT601
                alpha = next(alphas, None)
                self.alpha = None if alpha is None else heif.first_plane(alpha)
                yield frame

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        pixels = self.display.pixels(frame)
        return pixels if self.alpha is None else over_white(pixels, turned(self.alpha, display_matrix(frame)))


def _frames_and_size(stream: Any) -> tuple[int, int]:
    return stream.frames, stream.codec_context.width * stream.codec_context.height
