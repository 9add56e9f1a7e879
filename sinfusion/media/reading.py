"""Open any file or folder that holds a video or an image: its frames as uint8, one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from ..clip import FRAME_ENDINGS, format_size, from_pillow
from ..errors import SinfusionError
from . import heif
from .animations import Animation, open_apng, open_gif, shown_seconds
from .stills import Fit, open_image, pictures_note, tiff_pages, upright_size

# Only these, because FFmpeg would open playlists.
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe"
UNKNOWN_FPS = 20.0  # of videos whose file does not say
HEIF_ENDINGS = {".heic", ".heif", ".avif"}
COVER = Disposition.attached_pic | Disposition.timed_thumbnails  # of sound or of chapters


@dataclass
class Opened:
    """An opened source of frames. Either its frames are read, once, or it is probed."""

    frames: Iterator[np.ndarray]  # (H, W, 3) uint8: the frames that were asked for
    probe: Callable[[], tuple[tuple[int, int], int]]  # (height, width) and the number of all frames
    fps: Callable[[], float] | None  # of all frames, known after reading; None: the source has no frame rate
    still: bool  # whether one frame of this kind of source is an image
    alone: bool  # whether it is an image: it has one frame only
    source_size: tuple[int, int] | None = None  # (height, width) of frames that were scaled before
    whole_size: tuple[int, int] | None = None  # (height, width) of an image of which the decoder makes a smaller one
    notes: dict[str, None] = field(default_factory=dict)  # what was done to the frames so far, or could not be


def open_file(path: Path, wanted: range, fit: Fit) -> Opened:
    """Open a file or a folder to read the frames `wanted`; SinfusionError if it cannot be read.

    fit: what size, (height, width), frames of a size are scaled to afterwards; a decoder may do a part of that.
    """
    try:
        if path.is_dir():
            return _folder(path, wanted, fit)
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
        image, whole_size = open_image(path, fit)
    except SinfusionError:
        raise
    except Exception:  # Pillow's plugins raise all kinds
        return _heif(path, wanted) or _video(path, wanted)
    return _image(path, image, whole_size, wanted)


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


def _folder(path: Path, wanted: range, fit: Fit) -> Opened:
    endings = FRAME_ENDINGS | HEIF_ENDINGS
    files = [p for p in path.iterdir() if p.suffix.lower() in endings and not p.name.startswith(".")]
    if not files:
        raise SinfusionError(f"{path} holds no images (PNG, JPG, WebP, BMP, TIFF, HEIC, AVIF).")
    files.sort(key=lambda p: (_natural_order(p.name), p.name))

    def frames() -> Iterator[np.ndarray]:
        first: tuple[Path, tuple[int, ...]] | None = None
        for file in files[wanted.start : wanted.stop : wanted.step]:
            if not file.is_file():  # a pipe would block
                raise SinfusionError(f"{file} is not a file.")
            try:
                frame, opened.whole_size = _frame_of(file, fit)
            except SinfusionError:
                raise
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
        if heif.brand(files[0]):
            return heif.probe_still(files[0]), len(files)
        image, whole_size = open_image(files[0], fit)
        with image:
            return whole_size or upright_size(image), len(files)

    opened = Opened(frames(), _with_probe_errors(path, probe), fps=None, still=True, alone=len(files) == 1)
    return opened


def _natural_order(name: str) -> list[str | int]:
    """A key that sorts 2.png before 10.png: the text and the numbers of a name in turn."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _frame_of(file: Path, fit: Fit) -> tuple[np.ndarray, tuple[int, int] | None]:
    """The image in a file of a folder, (H, W, 3) uint8, and its whole size if that is a part of it."""
    if heif.brand(file):
        return _heif_pixels(file), None
    image, whole_size = open_image(file, fit)
    with image:
        return from_pillow(ImageOps.exif_transpose(image)), whole_size


def _image(path: Path, image: Image.Image, whole_size: tuple[int, int] | None, wanted: range) -> Opened:
    try:
        count = getattr(image, "n_frames", 1)
        if image.format == "GIF" or (image.format == "PNG" and count > 1):
            with image:
                return _animation(path, open_gif(path) if image.format == "GIF" else open_apng(path), image, wanted)
        pages, note = tiff_pages(path) if image.format == "TIFF" and count > 1 else ([0], pictures_note(image))
    except Exception as error:  # see `with_read_errors`
        raise SinfusionError(f"{path} is damaged or truncated: 0 frame(s) read ({_shorten(error)}).") from error
    if image.format == "WEBP" and count > 1:
        return _webp_animation(path, image, count, wanted)

    def frames() -> Iterator[np.ndarray]:
        with image:
            for page in pages[wanted.start : wanted.stop : wanted.step]:
                if len(pages) > 1:
                    image.seek(page)
                yield from_pillow(ImageOps.exif_transpose(image))

    def probe() -> tuple[tuple[int, int], int]:
        with image:
            return whole_size or upright_size(image), len(pages)

    return Opened(
        frames(),
        _with_probe_errors(path, probe),
        fps=None,
        still=True,
        alone=len(pages) == 1,
        whole_size=whole_size,
        notes={note: None} if note else {},
    )


def _animation(path: Path, animation: Animation, image: Image.Image, wanted: range) -> Opened:
    """A GIF, or a PNG that moves; of one frame it is an image."""
    animation.profile = image.info.get("icc_profile")
    count, upright = len(animation.layers), ImageOps.exif_transpose if len(animation.layers) == 1 else (lambda i: i)

    def probe() -> tuple[tuple[int, int], int]:
        return (animation.size[1], animation.size[0]), count

    return Opened(
        (from_pillow(upright(shown)) for shown in animation.shown(wanted)),
        _with_probe_errors(path, probe),
        fps=(lambda: _mean_rate([layer.seconds for layer in animation.layers[: wanted.stop]])) if count > 1 else None,
        still=True,
        alone=count == 1,
    )


def _webp_animation(path: Path, image: Image.Image, count: int, wanted: range) -> Opened:
    seconds: list[float] = []  # known when a frame is decoded

    def frames() -> Iterator[np.ndarray]:
        with image:
            for index in range(min(count, wanted.stop)):
                image.seek(index)
                image.load()
                seconds.append(shown_seconds((image.info.get("duration") or 0) / 1000))
                if index in wanted:
                    yield from_pillow(image)

    def probe() -> tuple[tuple[int, int], int]:
        return (image.height, image.width), count

    rate = partial(_mean_rate, seconds)
    return Opened(frames(), _with_probe_errors(path, probe), rate, still=True, alone=False)


def _mean_rate(seconds: list[float]) -> float:
    return UNKNOWN_FPS if len(seconds) == 1 else len(seconds) / sum(seconds)


def _heif(path: Path, wanted: range) -> Opened | None:
    """A HEIC or AVIF file: its image, or all frames if it says that it is a sequence first of all; None for others."""
    brand = heif.brand(path)
    if brand in heif.SEQUENCES:
        sequence = _Sequence(path, wanted)
        if sequence.stream.frames > 1:
            probe = _with_probe_errors(path, sequence.probe)
            return Opened(sequence.frames(), probe, sequence.fps, still=True, alone=False)
        sequence.container.close()
    if brand not in heif.STILLS | heif.SEQUENCES:
        return None
    frames = (_heif_pixels(path) for _ in range(1)[wanted.start : wanted.stop])
    probe = _with_probe_errors(path, lambda: (heif.probe_still(path), 1))
    return Opened(frames, probe, fps=None, still=True, alone=True)


def _heif_pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8: the image of a HEIC or AVIF file, upright."""
    still = heif.read_still(path)
    return still.upright(_over_white(_decode(still.frame), still.alpha, still.premultiplied, still.profile))


def _over_white(
    pixels: np.ndarray, alpha: np.ndarray | None, premultiplied: bool = False, profile: bytes | None = None
) -> np.ndarray:
    """(H, W, 3) uint8 with an alpha (H, W) of its own, over white."""
    if premultiplied and alpha is not None:
        return np.minimum(pixels, alpha[..., None]) + (255 - alpha)[..., None]
    image = Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
    if profile:
        image.info["icc_profile"] = profile
    return from_pillow(image)


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
    return Opened(video.frames(), _with_probe_errors(path, video.probe), video.fps, still=False, alone=False)


class _VideoFile:
    """A video file that FFmpeg decodes, of which either `frames` or `probe` is called, once."""

    def __init__(self, path: Path, wanted: range):
        self.path, self.wanted = path, wanted
        try:
            self.container = self._open()
        except Exception as error:  # FFmpegError, and what PyAV raises on headers that make no sense
            raise SinfusionError(f"{path} is not a video or image that can be read ({_shorten(error)}).") from error
        stream = self._shown_stream()
        if stream is None:
            cover = any(stream.disposition & COVER for stream in self.container.streams.video)
            self.container.close()
            what = (
                "has no video in it, only a cover picture" if cover else "has no video in it that this FFmpeg decodes"
            )
            raise SinfusionError(f"{path} {what}.")
        stream.thread_type = "AUTO"
        self.stream = stream
        self.rate = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        self.times: list[float] = []  # of the frames so far, in seconds

    def _open(self) -> Any:
        # An absolute path: FFmpeg takes "name:" for a protocol.
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
        return av.open(str(self.path.absolute()), options=options, metadata_errors="ignore")

    def _shown_stream(self) -> Any:
        """The video stream that players show: the default one, else the largest; never a cover picture."""
        streams = [s for s in self.container.streams.video if s.codec_context is not None and not s.disposition & COVER]
        return max(streams, key=_stream_rank, default=None)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        yield from self.container.decode(self.stream)

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        return _rotate(_decode(frame), frame.rotation)

    def frames(self) -> Iterator[np.ndarray]:
        """The wanted frames, (H, W, 3) uint8; SinfusionError where the file is shorter than its header says."""
        count, end = 0, 0.0
        with self.container:
            expected = _header_seconds(self.container, self.stream, self.rate)
            for frame in islice(self._decoded(), self.wanted.stop):
                if frame.time is not None:
                    self.times.append(frame.time)
                    lasts = (frame.duration or 0) * float(frame.time_base or 0)
                    # The length of a Matroska file counts from 0 even if its first frame comes later.
                    end = frame.time - min(self.times[0], 0) + max(1 / self.rate, lasts)
                if count in self.wanted:
                    yield self._pixels(frame)
                count += 1
        missing = expected - end
        if self.times and count < self.wanted.stop and missing > max(3 / self.rate, 0.05 * expected):
            raise SinfusionError(
                f"{self.path} is truncated: {count} frame(s) read, {end:.2f} of {expected:.2f} seconds."
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
            for packet in self.container.demux(self.stream):
                count += packet.size > 0
                if size is None and (frame := next(iter(packet.decode()), None)) is not None:
                    size = _rotate(np.empty((frame.height, frame.width)), frame.rotation).shape
        if size is None:
            raise SinfusionError(f"{self.path} has no frames that this FFmpeg decodes.")
        return (size[0], size[1]), count


def _stream_rank(stream: Any) -> tuple[bool, bool, int]:
    """What a stream is preferred for; a dependent one is a layer of another."""
    dispositions = stream.disposition
    pixels = stream.codec_context.width * stream.codec_context.height
    return not dispositions & Disposition.dependent, bool(dispositions & Disposition.default), pixels


class _Sequence(_VideoFile):
    """The frames of an animated AVIF or a HEIC sequence, with their transparency, which is a stream of its own."""

    def _shown_stream(self) -> Any:
        streams = [s for s in self.container.streams.video if s.codec_context is not None]
        best = max(streams, key=lambda s: (s.frames, s.codec_context.width * s.codec_context.height), default=None)
        size = best and (best.frames, best.codec_context.width, best.codec_context.height)
        self.alpha_index = next(
            (
                s.index
                for s in streams
                if s is not best
                and (s.frames, s.codec_context.width, s.codec_context.height) == size
                and (s.codec_context.pix_fmt or "").startswith("gray")
            ),
            None,
        )
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
            for frame in super()._decoded():
                if frame.colorspace == heif.UNSPECIFIED:
                    frame.colorspace = heif.BT601
                alpha = next(alphas, None)
                self.alpha = None if alpha is None else heif.first_plane(alpha)
                yield frame

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        return _rotate(_over_white(_decode(frame), self.alpha), frame.rotation)


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
    """Type and first line of an error, for the message of another."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]
