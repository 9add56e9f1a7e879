"""Open any file or folder that holds a video or an image: its frames as uint8, one by one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from ..clip import FRAME_ENDINGS, from_pillow
from ..errors import SinfusionError
from ..names import in_frame_order, name_after, pasteable
from .refusals import is_raw_photo, missing, unreadable, without_frames, without_video

# Only these, because Pillow would start other programs (Ghostscript for EPS), and FFmpeg would open playlists.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATED_FORMATS = ("PNG", "WEBP", "GIF")
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe"
UNKNOWN_FPS = 20.0  # of videos whose file does not say


@dataclass
class Opened:
    """An opened source of frames. Either its frames are read, once, or it is probed."""

    frames: Iterator[np.ndarray]  # (H, W, 3) uint8: the frames that were asked for
    probe: Callable[[], tuple[tuple[int, int], int]]  # (height, width) and the number of all frames
    fps: Callable[[], float] | None  # of all frames, known after reading; None: the source has no frame rate
    still: bool  # whether one frame of this kind of source is an image
    alone: bool  # whether it is an image: it has one frame only
    source_size: tuple[int, int] | None = None  # (height, width) of frames that were scaled before
    names: Sequence[str] = ()  # of the frames that were asked for, where each is a file


def open_file(path: Path, wanted: range) -> Opened:
    """Open a file or a folder to read the frames `wanted`; SinfusionError if it cannot be read."""
    try:
        if path.is_dir():
            return _folder(path, wanted)
        if not path.exists():
            raise SinfusionError(missing(path))
        if not path.is_file():  # a pipe would block
            raise SinfusionError(f"{path} is neither a file nor a folder.")
        if path.stat().st_size == 0:
            raise SinfusionError(f"{path} is empty.")
        if is_raw_photo(path):
            raise SinfusionError(unreadable(path))
        path.open("rb").close()
    except OSError as error:
        raise SinfusionError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        image = Image.open(path, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise SinfusionError(f"{path} is too large an image{_shorten(error)}.") from error
    except Exception:  # Pillow's plugins raise all kinds
        return _video(path, wanted)
    return _image(path, image, wanted)


def with_read_errors(name: str, frames: Iterator[np.ndarray], wanted: range) -> Iterator[np.ndarray]:
    """The frames `wanted`; whatever decoders raise becomes a SinfusionError that says which frames can be read."""
    count = 0
    try:
        for frame in frames:
            yield frame
            count += 1
    except SinfusionError:
        raise
    except Exception as error:  # on damage Pillow raises struct.error, SyntaxError, TypeError and more
        raise SinfusionError(
            f"{name} is damaged or truncated: {count} frame(s) read{_shorten(error)}{_way_out(name, wanted, count)}"
        ) from error


def _way_out(name: str, wanted: range, count: int) -> str:
    """The end of a sentence on damage: how to read the `count` wanted frames before it, or to save those after it."""
    if count:
        return f"; --stop {wanted[count - 1] + 1} reads those before the damage."
    path = Path(name)
    if path.suffix.lower() in FRAME_ENDINGS:
        return "."
    repaired = f"{pasteable(path)} -c:v libx264 -crf 12 {pasteable(name_after(path) + '-repaired.mp4')}"
    before = f"it is before frame {wanted.start}" if wanted.start else "no frame is before the damage"
    return f"; {before}, what follows may be saved by: ffmpeg -i {repaired}"


def _folder(path: Path, wanted: range) -> Opened:
    pictures = (p for p in path.iterdir() if p.suffix.lower() in FRAME_ENDINGS and not p.name.startswith("."))
    files = [path / name for name in in_frame_order(p.name for p in pictures if not p.is_dir())]
    if not files:
        raise SinfusionError(without_frames(path))
    chosen = files[wanted.start : wanted.stop : wanted.step]

    def frames() -> Iterator[np.ndarray]:
        for count, file in enumerate(chosen):
            before = (
                f"; --stop {wanted[count - 1] + 1} reads those before it" if count else "; choose a --start after it"
            )
            others = f"{before}, or remove the file."
            if not file.is_file():  # a pipe would block
                raise SinfusionError(f"{file} is {'a broken link' if file.is_symlink() else 'not a file'}{others}")
            try:
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    frame = from_pillow(ImageOps.exif_transpose(image))
            except Exception as error:  # see `with_read_errors`
                raise SinfusionError(f"{file} is damaged or not an image{_shorten(error)}{others}") from error
            yield frame

    def probe() -> tuple[tuple[int, int], int]:
        return _upright_size(Image.open((chosen or files)[0], formats=IMAGE_FORMATS)), len(files)

    return Opened(
        frames(), _with_probe_errors(path, probe), fps=None, still=True, alone=len(files) == 1,
        names=[file.name for file in chosen],
    )  # fmt: skip


def _image(path: Path, image: Image.Image, wanted: range) -> Opened:
    seconds: list[float] = []
    try:
        count = getattr(image, "n_frames", 1) if image.format in ANIMATED_FORMATS else 1
    except Exception:  # see `with_read_errors`; the damage is told where it is reached
        count, image = sys.maxsize, Image.open(path, formats=IMAGE_FORMATS)
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
                    yield from_pillow(image if count > 1 else ImageOps.exif_transpose(image))

    def probe() -> tuple[tuple[int, int], int]:
        size = (image.height, image.width) if count > 1 else _upright_size(image)
        return size, (_readable_frames(image) if count == sys.maxsize else count) - skipped

    def fps() -> float:
        return UNKNOWN_FPS if len(seconds) == 1 else len(seconds) / sum(seconds)

    return Opened(frames(), _with_probe_errors(path, probe), fps if moves else None, still=True, alone=not moves)


def _readable_frames(image: Image.Image) -> int:
    """The number of frames before the damage; raises what Pillow does if there are none."""
    for index in range(sys.maxsize):
        try:
            image.seek(index)
            image.load()
        except Exception:  # see `with_read_errors`
            if index == 0:
                raise
            break
    return index


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
            raise SinfusionError(f"{path} is damaged or truncated{_shorten(error)}.") from error

    return checked


def _video(path: Path, wanted: range) -> Opened:
    video = _VideoFile(path, wanted)
    return Opened(video.frames(), _with_probe_errors(path, video.probe), video.fps, still=False, alone=False)


class _VideoFile:
    """A video file that FFmpeg decodes, of which either `frames` or `probe` is called, once."""

    def __init__(self, path: Path, wanted: range):
        self.path, self.wanted = path, wanted
        # An absolute path: FFmpeg takes "name:" for a protocol.
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
        try:
            self.container = av.open(str(path.absolute()), options=options, metadata_errors="ignore")
        except Exception as error:  # FFmpegError, and what PyAV raises on headers that make no sense
            raise SinfusionError(unreadable(path)) from error
        stream = next(iter(self.container.streams.video), None)
        if stream is None or stream.codec_context is None:
            sound = stream is None and len(self.container.streams.audio) > 0
            self.container.close()
            raise SinfusionError(without_video(path, sound))
        stream.thread_type = "AUTO"
        self.stream = stream
        self.rate = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        self.times: list[float] = []  # of the frames so far, in seconds

    def frames(self) -> Iterator[np.ndarray]:
        """The wanted frames, (H, W, 3) uint8; SinfusionError where the file is shorter than its header says."""
        count, end = 0, 0.0
        with self.container:
            expected = _header_seconds(self.container, self.stream, self.rate)
            for frame in islice(self.container.decode(self.stream), self.wanted.stop):
                if frame.time is not None:
                    self.times.append(frame.time)
                    lasts = (frame.duration or 0) * float(frame.time_base or 0)
                    # The length of a Matroska file counts from 0 even if its first frame comes later.
                    end = frame.time - min(self.times[0], 0) + max(1 / self.rate, lasts)
                if count in self.wanted:
                    yield _rotate(_decode(frame), frame.rotation)
                count += 1
        missing = expected - end
        if self.times and count < self.wanted.stop and missing > max(3 / self.rate, 0.05 * expected):
            here = f"--stop {count} reads them" if count > self.wanted.start else f"none from {self.wanted.start} on"
            raise SinfusionError(
                f"{self.path} is truncated: {count} frame(s) read, {end:.2f} of {expected:.2f} seconds; {here}."
            )

    def fps(self) -> float:
        """The rate of the header, unless the times of the frames differ (Matroska with a variable rate)."""
        span = self.times[-1] - self.times[0] if self.times else 0.0
        measured = (len(self.times) - 1) / span if span > 0 else self.rate
        return self.rate if abs(measured / self.rate - 1) < 0.05 else measured

    def probe(self) -> tuple[tuple[int, int], int]:
        """(height, width) of the first frame, and the number of packets."""
        size, count = None, 0
        with self.container:
            try:
                for packet in self.container.demux(self.stream):
                    count += packet.size > 0
                    if size is None and (frame := next(iter(packet.decode()), None)) is not None:
                        size = _rotate(np.empty((frame.height, frame.width)), frame.rotation).shape
            except av.error.FFmpegError:  # told where it is reached
                if size is None:
                    raise
        if size is None:
            raise SinfusionError(f"{self.path} has no frames that this FFmpeg decodes.")
        return (size[0], size[1]), count


def _decode(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8. By way of yuv444p: directly, FFmpeg would repeat each chroma sample, and round down."""
    whole_chroma = {"yuv420p": "yuv444p", "yuvj420p": "yuvj444p"}.get(frame.format.name)
    if whole_chroma:
        frame = frame.reformat(format=whole_chroma, interpolation="BICUBIC")
    return frame.to_ndarray(format="rgb24")


def _header_seconds(container: Any, stream: Any, rate: float) -> float:
    """The length of the video by the header of its file; 0 if it does not say."""
    if container.format.name == "avi":  # of a truncated file FFmpeg shortens the duration, but not the count
        return stream.frames / rate
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotated counter-clockwise, to the nearest multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(image, round(degrees / 90) % 4))


def _shorten(error: BaseException) -> str:
    """What an error says, in brackets, for the message of another; nothing where it says no more than a number."""
    text = str(error).split("\n")[0]
    if isinstance(error, av.error.FFmpegError):
        text = error.strerror or "" if not re.search(r"returned -?\d", text) else ""
    return f" ({text:.120})" if text else ""
