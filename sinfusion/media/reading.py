"""Open any file or folder that holds a video or an image: its frames as uint8, one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ..clip import FRAME_ENDINGS, format_size
from ..errors import SinfusionError
from .display import Display, decoded, is_field, progressive, still_pixels
from .timing import UNKNOWN_FPS, FrameTimes

# Only these, because Pillow would start other programs (Ghostscript for EPS), and FFmpeg would open playlists.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATED_FORMATS = ("PNG", "WEBP", "GIF")
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe"


@dataclass
class Opened:
    """An opened source of frames. Either its frames are read, once, or it is probed."""

    frames: Iterator[np.ndarray]  # (H, W, 3) uint8: the frames that were asked for
    probe: Callable[[], tuple[tuple[int, int], int]]  # (height, width) and the number of all frames
    times: Callable[[], FrameTimes] | None  # of the frames that were read; None: the source has no frame rate
    still: bool  # whether one frame of this kind of source is an image
    alone: bool  # whether it is an image: it has one frame only
    source_size: tuple[int, int] | None = None  # (height, width) of frames that were scaled before
    # (height, width) of the last frame with square pixels; None: as it is.
    shown_size: Callable[[], tuple[int, int]] | None = None
    notes: dict[str, None] = field(default_factory=dict)  # what was done to the frames so far, or could not be
    has_sound: bool = False


def open_file(path: Path, wanted: range) -> Opened:
    """Open a file or a folder to read the frames `wanted`; SinfusionError if it cannot be read."""
    try:
        if path.is_dir():
            return _folder(path, wanted)
        if not path.exists():
            raise SinfusionError(f"{path} does not exist; give a video, an image or a folder of frames.")
        if not path.is_file():  # a pipe would block
            raise SinfusionError(f"{path} is neither a file nor a folder.")
        if path.stat().st_size == 0:
            raise SinfusionError(f"{path} is empty.")
        path.open("rb").close()
    except OSError as error:
        raise SinfusionError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        image = Image.open(path, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise SinfusionError(f"{path} is too large an image ({_shorten(error)}).") from error
    except Exception:  # Pillow's plugins raise all kinds
        return _video(path, wanted)
    return _image(path, image, wanted)


def with_read_errors(name: str, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames; whatever decoders raise becomes a SinfusionError."""
    count = 0
    try:
        for frame in frames:
            yield frame
            count += 1
    except SinfusionError:
        raise
    except Exception as error:  # on damage Pillow raises struct.error, SyntaxError, TypeError and more
        raise SinfusionError(f"{name} is damaged or truncated: {count} frame(s) read ({_shorten(error)}).") from error


def _folder(path: Path, wanted: range) -> Opened:
    files = [p for p in path.iterdir() if p.suffix.lower() in FRAME_ENDINGS and not p.name.startswith(".")]
    if not files:
        raise SinfusionError(f"{path} holds no images (PNG, JPG, WebP, BMP, TIFF).")
    files.sort(key=lambda p: (_natural_order(p.name), p.name))

    notes: dict[str, None] = {}

    def frames() -> Iterator[np.ndarray]:
        first: tuple[Path, tuple[int, ...]] | None = None
        for file in files[wanted.start : wanted.stop : wanted.step]:
            if not file.is_file():  # a pipe would block
                raise SinfusionError(f"{file} is not a file.")
            try:
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    frame = still_pixels(image, notes.setdefault)
            except Exception as error:  # see `with_read_errors`
                raise SinfusionError(f"{file} is damaged or not an image ({_shorten(error)}).") from error
            first = first or (file, frame.shape)
            if frame.shape != first[1]:
                raise SinfusionError(
                    f"{path} has frames of different sizes: {first[0].name} is {format_size(first[1])}, "
                    f"{file.name} is {format_size(frame.shape)}."
                )
            yield frame

    def probe() -> tuple[tuple[int, int], int]:
        return _upright_size(Image.open(files[0], formats=IMAGE_FORMATS)), len(files)

    return Opened(frames(), _with_probe_errors(path, probe), times=None, still=True, alone=len(files) == 1, notes=notes)


def _natural_order(name: str) -> list[str | int]:
    """A key that sorts 2.png before 10.png: the text and the numbers of a name in turn."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _image(path: Path, image: Image.Image, wanted: range) -> Opened:
    seconds: list[float] = []
    notes: dict[str, None] = {}
    try:
        count = getattr(image, "n_frames", 1) if image.format in ANIMATED_FORMATS else 1
    except Exception as error:  # see `with_read_errors`
        raise SinfusionError(f"{path} is damaged or truncated: 0 frame(s) read ({_shorten(error)}).") from error
    # An APNG may begin with a still image, for programs that show no animations.
    skipped = 1 if count > 1 and image.info.get("default_image") else 0
    moves = count - skipped > 1

    def frames() -> Iterator[np.ndarray]:
        with image:
            for index in range(min(count - skipped, wanted.stop)):
                image.seek(skipped + index)
                image.load()
                seconds.append((image.info.get("duration") or 100) / 1000)
                if index in wanted:
                    yield still_pixels(image, notes.setdefault, upright=count == 1)

    def probe() -> tuple[tuple[int, int], int]:
        size = (image.height, image.width) if count > 1 else _upright_size(image)
        return size, count - skipped

    def times() -> FrameTimes:
        shown = [sum(seconds[:i]) for i in range(len(seconds))[wanted.start : wanted.stop : wanted.step]]
        last = seconds[-1] if wanted.step == 1 else None
        return FrameTimes(shown, rounding=0.01 if image.format == "GIF" else 0.001, last=last)

    known = times if moves else None
    return Opened(frames(), _with_probe_errors(path, probe), known, still=True, alone=not moves, notes=notes)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the rotation that EXIF asks for."""
    with image:
        sideways = image.getexif().get(0x0112, 1) > 4  # orientations 5 to 8
        return (image.width, image.height) if sideways else (image.height, image.width)


def _with_probe_errors(
    path: Path, probe: Callable[[], tuple[tuple[int, int], int]]
) -> Callable[[], tuple[tuple[int, int], int]]:
    """The probe; whatever decoders raise becomes a SinfusionError."""

    def checked() -> tuple[tuple[int, int], int]:
        try:
            return probe()
        except SinfusionError:
            raise
        except Exception as error:  # see `with_read_errors`
            raise SinfusionError(f"{path} is damaged or truncated ({_shorten(error)}).") from error

    return checked


def _video(path: Path, wanted: range) -> Opened:
    video = _VideoFile(path, wanted)
    return Opened(
        video.frames(),
        _with_probe_errors(path, video.probe),
        video.frame_times,
        still=False,
        alone=False,
        shown_size=lambda: video.shown_size,
        notes=video.notes,
        has_sound=video.has_sound,
    )


class _VideoFile:
    """A video file that FFmpeg decodes, of which either `frames` or `probe` is called, once."""

    def __init__(self, path: Path, wanted: range):
        self.path, self.wanted = path, wanted
        # An absolute path: FFmpeg takes "name:" for a protocol.
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
        try:
            self.container = av.open(str(path.absolute()), options=options, metadata_errors="ignore")
        except Exception as error:  # FFmpegError, and what PyAV raises on headers that make no sense
            raise SinfusionError(f"{path} is not a video or image that can be read ({_shorten(error)}).") from error
        stream = next(iter(self.container.streams.video), None)
        if stream is None or stream.codec_context is None:
            self.container.close()
            raise SinfusionError(f"{path} has no video in it that this FFmpeg decodes.")
        stream.thread_type = "AUTO"
        self.stream = stream
        self.notes: dict[str, None] = {}
        self.display = Display(stream, self.notes.setdefault)
        self.shown_size = (0, 0)  # (height, width) of the last frame with square pixels
        rates = (stream.average_rate, stream.base_rate, stream.guessed_rate)
        self.rates = [float(rate) / wanted.step for rate in rates if rate]  # of the wanted frames, by the header
        # FFmpeg begins some AVIs with a frame and an empty one, which shows the first for two ticks and means nothing.
        self.first_lasts_two = False
        self.has_sound = bool(self.container.streams.audio)
        self.rounding = float(stream.time_base or 0)  # of the times, in seconds
        self.rate = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        self.times: list[float] = []  # of the frames so far, in seconds
        self.shown: list[float | None] = []  # the same of the wanted frames; None: the file does not say

    def frames(self) -> Iterator[np.ndarray]:
        """The wanted frames, (H, W, 3) uint8; SinfusionError where the file is shorter than its header says."""
        count, end = 0, 0.0
        with self.container:
            expected = _header_seconds(self.container, self.stream, self.rate)
            note = self.notes.setdefault
            shown = progressive(decoded(self.container, self.stream, note), self.stream.codec_context.name, note)
            for frame in islice(shown, self.wanted.stop):
                if frame.time is not None:
                    self.times.append(frame.time)
                    if len(self.times) == 2 and self.container.format.name == "avi":
                        self.first_lasts_two = round((self.times[1] - self.times[0]) / self.rounding) == 2
                    lasts = (frame.duration or 0) * float(frame.time_base or 0)
                    # The length of a Matroska file counts from 0 even if its first frame comes later.
                    end = frame.time - min(self.times[0], 0) + max(1 / self.rate, lasts)
                if count in self.wanted:
                    self.shown.append(frame.time)
                    self.shown_size = self.display.shown_size(frame)
                    yield self.display.pixels(frame)
                count += 1
        missing = expected - end
        if self.times and count < self.wanted.stop and missing > max(3 / self.rate, 0.05 * expected):
            raise SinfusionError(
                f"{self.path} is truncated: {count} frame(s) read, {end:.2f} of {expected:.2f} seconds."
            )

    def frame_times(self) -> FrameTimes:
        """When the wanted frames are shown; known after reading."""
        shown = list(self.shown)
        if self.first_lasts_two and self.wanted.start == 0 and shown[:1] == [0.0]:
            shown[0] = self.rounding
        return FrameTimes(shown, self.rates, self.rounding)

    def probe(self) -> tuple[tuple[int, int], int]:
        """(height, width) of the first frame, and the number of packets."""
        size, count, fields = None, 0, 1
        with self.container:
            for packet in self.container.demux(self.stream):
                count += packet.size > 0
                if size is None and (frame := next(iter(packet.decode()), None)) is not None:
                    size = self.display.shown_size(frame)
                    fields = 2 if is_field(frame, self.stream.codec_context.name) else 1
        if size is None:
            raise SinfusionError(f"{self.path} has no frames that this FFmpeg decodes.")
        return size, count // fields


def _header_seconds(container: Any, stream: Any, rate: float) -> float:
    """The length of the video by the header of its file; 0 if it does not say."""
    if container.format.name == "avi":  # of a truncated file FFmpeg shortens the duration, but not the count
        return stream.frames / rate
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _shorten(error: BaseException) -> str:
    """Type and first line of an error, for the message of another."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]
