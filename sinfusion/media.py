"""Reading any video or picture into uint8 frames, and writing videos, pictures and contact sheets.

clip = read_media("fish.mp4")          # Clip: frames (T, H, W, 3) uint8, fps, kind
write_video("out.mp4", frames, fps=20)
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .errors import SinfusionError

FRAME_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Named, because Pillow would hand other kinds to programs outside (EPS to Ghostscript), and FFmpeg open playlists.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATED_FORMATS = ("PNG", "WEBP", "GIF")
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe"
DEFAULT_FPS = 20.0  # of frame folders, as in the released code
MOST_BYTES = 4 << 30  # of frames in memory
H264 = "libx264"


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames in memory. A picture is a clip of one frame and kind `image`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, sRGB
    fps: float
    kind: str  # "image" or "video"
    source_size: tuple[int, int]  # (height, width) before scaling

    def __post_init__(self) -> None:
        shape, kind = np.shape(self.frames), getattr(self.frames, "dtype", type(self.frames))
        if len(shape) != 4 or shape[3] != 3 or 0 in shape or kind != np.uint8:
            raise SinfusionError(f"frames are (T, H, W, 3) uint8 and not empty, not {shape} {kind}.")
        _check_fps(self.fps)
        if self.kind not in ("image", "video"):
            raise SinfusionError(f"the kind of a clip is image or video, not {self.kind!r}.")

    def __repr__(self) -> str:
        return f"Clip({self.kind}, frames {self.frames.shape}, fps {self.fps:g}, source_size {self.source_size})"


def read_media(
    path: str | Path,
    *,
    start: int | None = None,
    stop: int | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    max_side: int | None = 256,
    say: Callable[[str], None] = print,
) -> Clip:
    """Read a video, an animation, a folder of frames or a picture.

    start, stop, stride: frames to keep, counted from 0 as in a slice; the clip plays as fast as before. size: exact
    (height, width). max_side: otherwise, a larger input is scaled down, antialiased, to this longer side; 0 or None
    keeps it. say: told about scaling. Transparency is laid over white; 16-bit, grey, palette and CMYK pictures become
    8-bit RGB (colour profiles are not applied); EXIF and video rotation are applied. fps is the mean where frames last
    differently, and 20 for folders and pictures. Raises SinfusionError, with what is wrong, for anything that cannot
    be read whole.
    """
    wanted = _range(start, stop, stride)
    if size is not None and not (len(size) == 2 and all(isinstance(n, Integral) and n > 0 for n in size)):
        raise SinfusionError(f"size must be a height and a width of at least 1, not {size}.")
    if max_side is not None and (not isinstance(max_side, Integral) or max_side < 0):
        raise SinfusionError(f"max_side must be at least 1, or 0 to keep the size, not {max_side}.")
    path = Path(path)
    kept: list[np.ndarray] = []
    original: tuple[int, int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = _open(path, wanted)
        for frame in _explained(path, source.frames):
            shape = frame.shape[:2]
            if original is None:
                original, target = shape, size or _fitting(shape, max_side)
                if target != original:
                    hint = "" if size else f" (longer side {max_side}; use --size or --max-side for another)"
                    say(f"scaled {_size(original)} to {_size(target)}{hint}")
            if shape != original:
                raise SinfusionError(f"{path} has frames of different sizes: {_size(original)} and {_size(shape)}.")
            if (len(kept) + 1) * target[0] * target[1] * 3 > MOST_BYTES:
                raise SinfusionError(
                    f"{path} does not fit in memory: {len(kept)} frames of {_size(target)} fill "
                    f"{MOST_BYTES / 2**30:g} GB; use --stop, --stride or a smaller --size."
                )
            kept.append(_resize(frame, target))
    if original is None:
        raise SinfusionError(f"{path} has no frames from {wanted.start} on.")
    kind = "image" if source.still and len(kept) == 1 else "video"
    return Clip(np.stack(kept), source.fps() / stride, kind, original)


def read_video(path: str | Path, **options: Any) -> Clip:
    """`read_media`, for something that moves."""
    clip = read_media(path, **options)
    if len(clip.frames) < 2:
        raise SinfusionError(f"{path} has one frame only; a video has at least 2.")
    return clip


def read_image(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    max_side: int | None = 256,
    say: Callable[[str], None] = print,
) -> np.ndarray:
    """(H, W, 3) uint8: a picture, or the first frame of something animated. See `read_media`."""
    clip = read_media(path, stop=1, size=size, max_side=max_side, say=lambda _: None)
    picture = clip.frames[0]
    if clip.source_size != picture.shape[:2]:
        say(f"scaled {Path(path).name} from {_size(clip.source_size)} to {_size(picture.shape)}")
    return picture


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True where the picture is light: there an edit may change. Scaled to `size` if of its shape."""
    picture = read_image(path, max_side=None)
    height, width = picture.shape[:2]
    scale = max(size) / max(height, width)
    if abs(height * scale - size[0]) > 1 or abs(width * scale - size[1]) > 1:
        raise SinfusionError(f"the mask {path} is {_size(picture.shape)}, which has not the shape of {_size(size)}.")
    return _resize(picture, size).mean(2) > 127.5


@dataclass
class _Source:
    frames: Iterator[np.ndarray]  # the wanted ones, (H, W, 3) uint8
    fps: Callable[[], float]  # of all frames; asked after reading
    still: bool  # a kind of file in which one frame is an image


def _open(path: Path, wanted: range) -> _Source:
    try:
        if path.is_dir():
            return _folder(path, wanted)
        if not path.exists():
            raise SinfusionError(f"{path} does not exist; give a video, a picture or a folder of frames.")
        if not path.is_file():  # a pipe would block
            raise SinfusionError(f"{path} is neither a file nor a folder.")
        if path.stat().st_size == 0:
            raise SinfusionError(f"{path} is empty.")
        path.open("rb").close()
    except OSError as error:
        raise SinfusionError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        picture = Image.open(path, formats=PICTURE_FORMATS)
    except Image.DecompressionBombError as error:
        raise SinfusionError(f"{path} is too large a picture ({_short(error)}).") from error
    except Exception:  # Pillow's plugins let out anything at all
        return _video(path, wanted)
    return _picture(picture, wanted)


def _explained(path: Path, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames; what decoders raise becomes one sentence."""
    count = 0
    try:
        for frame in frames:
            yield frame
            count += 1
    except SinfusionError:
        raise
    except Exception as error:  # on damage Pillow raises struct.error, SyntaxError, TypeError and more
        raise SinfusionError(f"{path} is damaged or truncated: {count} frame(s) read ({_short(error)}).") from error


def _folder(path: Path, wanted: range) -> _Source:
    files = [p for p in path.iterdir() if p.suffix.lower() in FRAME_ENDINGS and not p.name.startswith(".")]
    if not files:
        raise SinfusionError(f"{path} holds no pictures (PNG, JPG, WebP, BMP, TIFF).")
    files.sort(key=lambda p: (_natural(p.name), p.name))

    def frames() -> Iterator[np.ndarray]:
        first: tuple[Path, tuple[int, ...]] | None = None
        for file in files[wanted.start : wanted.stop : wanted.step]:
            if not file.is_file():  # a pipe would block
                raise SinfusionError(f"{file} is not a file.")
            try:
                with Image.open(file, formats=PICTURE_FORMATS) as picture:
                    frame = _rgb(ImageOps.exif_transpose(picture))
            except Exception as error:  # see _explained
                raise SinfusionError(f"{file} is damaged or not a picture ({_short(error)}).") from error
            first = first or (file, frame.shape)
            if frame.shape != first[1]:
                raise SinfusionError(
                    f"{path} has frames of different sizes: {first[0].name} is {_size(first[1])}, "
                    f"{file.name} is {_size(frame.shape)}."
                )
            yield frame

    return _Source(frames(), lambda: DEFAULT_FPS, still=True)


def _natural(name: str) -> list[str | int]:
    """Sorts 2.png before 10.png: text and numbers take turns."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _picture(picture: Image.Image, wanted: range) -> _Source:
    seconds: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        with picture:
            count = getattr(picture, "n_frames", 1) if picture.format in ANIMATED_FORMATS else 1
            # An APNG may begin with a still, for programs that do not animate.
            before = 1 if count > 1 and picture.info.get("default_image") else 0
            for index in range(min(count - before, wanted.stop)):
                picture.seek(before + index)
                picture.load()
                seconds.append((picture.info.get("duration") or 100) / 1000)
                if index in wanted:
                    yield _rgb(picture if count > 1 else ImageOps.exif_transpose(picture))

    return _Source(frames(), lambda: DEFAULT_FPS if len(seconds) == 1 else len(seconds) / sum(seconds), still=True)


def _rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of any Pillow mode."""
    if picture.mode == "F" or picture.mode.startswith("I"):  # floats have no agreed white: 1, 255 or 65535
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        peak = values.max(initial=0)
        white = 65535 if picture.mode != "F" or peak > 255 else 255 if peak > 1 else 1
        grey = np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white_layer = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white_layer, layer).convert("RGB"))
    return np.asarray(picture.convert("RGB"))


def _video(path: Path, wanted: range) -> _Source:
    # An absolute path: FFmpeg takes "name:" for a protocol.
    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path.absolute()), options=options, metadata_errors="ignore")
    except Exception as error:  # FFmpegError, and what PyAV raises on headers that make no sense
        raise SinfusionError(f"{path} is not a video or picture that can be read ({_short(error)}).") from error
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        container.close()
        raise SinfusionError(f"{path} has no video in it that this FFmpeg decodes.")
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
    times: list[float] = []  # seconds

    def frames() -> Iterator[np.ndarray]:
        count, end = 0, 0.0
        with container:
            promised = _promised_seconds(container, stream, rate)
            for frame in islice(container.decode(stream), wanted.stop):
                if frame.time is not None:
                    times.append(frame.time)
                    lasts = (frame.duration or 0) * float(frame.time_base or 0)
                    # Matroska counts its length from 0 also where its first frame comes later.
                    end = frame.time - min(times[0], 0) + max(1 / rate, lasts)
                if count in wanted:
                    yield _turned(_decoded(frame), frame.rotation)
                count += 1
        if times and count < wanted.stop and promised - end > max(3 / rate, 0.05 * promised):
            raise SinfusionError(f"{path} is truncated: {count} frame(s) read, {end:.2f} of {promised:.2f} seconds.")

    def fps() -> float:
        """What the header says, unless the frames' times say otherwise (Matroska of variable rate)."""
        span = times[-1] - times[0] if times else 0.0
        measured = (len(times) - 1) / span if span > 0 else rate
        return rate if abs(measured / rate - 1) < 0.05 else measured

    return _Source(frames(), fps, still=False)


def _decoded(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8. Straight from yuv420p FFmpeg would repeat each chroma sample, and round downwards."""
    whole_chroma = {"yuv420p": "yuv444p", "yuvj420p": "yuvj444p"}.get(frame.format.name)
    if whole_chroma:
        frame = frame.reformat(format=whole_chroma, interpolation="BICUBIC")
    return frame.to_ndarray(format="rgb24")


def _promised_seconds(container: Any, stream: Any, rate: float) -> float:
    """How long the file says its video is; 0 if it does not."""
    if container.format.name == "avi":  # FFmpeg shortens the duration to what is there, and leaves the count
        return stream.frames / rate
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Turned counter-clockwise to the nearest quarter."""
    return np.ascontiguousarray(np.rot90(picture, round(degrees / 90) % 4))


def _range(start: int | None, stop: int | None, stride: int) -> range:
    first, last = 0 if start is None else start, sys.maxsize if stop is None else stop
    for name, value, least in (("start", first, 0), ("stop", last, 1), ("stride", stride, 1)):
        if not isinstance(value, Integral) or value < least:
            raise SinfusionError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    if last <= first:
        raise SinfusionError(f"frames {first} to {last} are none: stop must be above start.")
    return range(first, last, stride)


def _fitting(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """(height, width) scaled down so that the longer side is at most max_side."""
    longer = max(size)
    if not max_side or longer <= max_side:
        return size
    return max(1, round(size[0] * max_side / longer)), max(1, round(size[1] * max_side / longer))


def _resize(frame: np.ndarray, size: Sequence[int]) -> np.ndarray:
    if frame.shape[:2] == tuple(size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]


def _check_fps(fps: float) -> None:
    if not isinstance(fps, Real) or not 0 < fps < 1e6:
        raise SinfusionError(f"fps must be above 0, not {fps!r}.")


def _check_picture(picture: np.ndarray) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise SinfusionError(f"a picture is (H, W, 3) uint8, not {picture.shape} {picture.dtype}.")


class VideoWriter:
    """Writes frames as they come: .mp4, .gif, or a folder of numbered PNGs for a path without a suffix.

    MP4 is H.264 in yuv420p, which browsers play; odd sizes are padded by one edge pixel. A GIF shows repeated frames as
    one that lasts longer. The result appears under its name when it is whole; after an error nothing is left. Raises
    SinfusionError for what cannot be written.
    """

    def __init__(self, path: str | Path, fps: float, overwrite: bool = False):
        self.path = Path(path)
        encoders: dict[str, Any] = {".mp4": _Mp4, ".gif": _Gif, "": _Folder}
        if self.path.suffix.lower() not in encoders:
            raise SinfusionError(f"{path}: write .mp4, .gif, or a name without a suffix for a folder of PNGs.")
        _check_fps(fps)
        self.fps = float(fps)
        refuse_existing(self.path, overwrite)
        self.temporary = self.path.with_name(f".{os.getpid()}-{self.path.name}")
        self._new_encoder = encoders[self.path.suffix.lower()]
        self._encoder: Any = None
        self._shape: tuple[int, ...] = ()

    def write(self, frame: np.ndarray) -> None:
        """Add one (H, W, 3) uint8 frame."""
        _check_picture(frame)
        with _writing(self.path):
            if self._encoder is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._encoder, self._shape = self._new_encoder(self.temporary, self.fps, frame.shape), frame.shape
            if frame.shape != self._shape:
                raise SinfusionError(f"{self.path}: frames of {_size(self._shape)} and {_size(frame.shape)} mixed.")
            self._encoder.write(frame)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is not None:
                with suppress(Exception):  # the first error is the one to tell
                    self._encoder.close()
                return
            if self._encoder is None:
                raise SinfusionError(f"{self.path}: there are no frames to write.")
            with _writing(self.path):
                self._encoder.close()
                _move(self.temporary, self.path)
        finally:
            _remove(self.temporary)


class _Mp4:
    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]):
        self.container = av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
        try:
            stream: Any = self.container.add_stream(H264, rate=Fraction(fps).limit_denominator(1001))
        except (ValueError, av.error.FFmpegError) as error:
            self.container.close()
            raise SinfusionError(f"this PyAV has no H.264 encoder ({H264}); install PyAV from its wheels.") from error
        self.stream = stream
        stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
        stream.pix_fmt = "yuv420p"
        # Players guess the colours of a file that does not name them. chromaloc=1: chroma lies between the pixels.
        colours = "colorprim=bt709:transfer=bt709:colormatrix=bt709:chromaloc=1"
        stream.options = {"crf": "12", "x264-params": colours}

    def write(self, frame: np.ndarray) -> None:
        padded = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
        self.container.mux(self.stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))

    def close(self) -> None:
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


class _Gif:
    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]):
        self.path, self.fps = path, fps
        self.pictures: list[Image.Image] = []

    def write(self, frame: np.ndarray) -> None:
        self.pictures.append(Image.fromarray(frame).quantize(256, kmeans=1))

    def close(self) -> None:
        moments = [10 * round(100 * i / self.fps) for i in range(len(self.pictures) + 1)]  # ms; GIF counts 10 ms
        durations = [max(20, b - a) for a, b in pairwise(moments)]  # browsers slow below 20
        self.pictures[0].save(
            self.path, "GIF", save_all=True, append_images=self.pictures[1:], loop=0, duration=durations
        )


class _Folder:
    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]):
        self.path, self.count = path, 0
        path.mkdir()

    def write(self, frame: np.ndarray) -> None:
        self.count += 1
        Image.fromarray(frame).save(self.path / f"{self.count:05d}.png")

    def close(self) -> None:
        pass


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: float, overwrite: bool = False) -> None:
    """Write (H, W, 3) uint8 frames, an array or as they come; see `VideoWriter` for the formats."""
    with VideoWriter(path, fps, overwrite) as writer:
        for frame in frames:
            writer.write(frame)


def write_image(path: str | Path, image: np.ndarray, overwrite: bool = False) -> None:
    """Write one (H, W, 3) uint8 picture in the format of the suffix: .png, .jpg, .webp, .bmp or .tiff."""
    path = Path(path)
    if path.suffix.lower() not in FRAME_ENDINGS:
        raise SinfusionError(f"{path}: write .png, .jpg, .webp, .bmp or .tiff.")
    _check_picture(image)
    refuse_existing(path, overwrite)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(temporary, quality=95)
            _move(temporary, path)
    finally:
        _remove(temporary)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """SinfusionError if an output exists and may not be overwritten, or is a folder of more than our frames."""
    if path.exists() and not overwrite:
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another name.")
    if path.is_dir() and not all(re.fullmatch(r"\d{5,}\.png", p.name) for p in path.iterdir()):
        raise SinfusionError(f"{path} is a folder with other files in it; choose another name.")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a full disk and other failures to write into sentences."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SinfusionError(
                f"the disk is full: {path} was not written, and nothing half-written was left."
            ) from error
        raise SinfusionError(f"{path} cannot be written: {error.strerror or error}.") from error


def _move(temporary: Path, path: Path) -> None:
    """Give a finished file or folder its name."""
    if path.exists() and (path.is_dir() or temporary.is_dir()):  # a folder is not renamed over something
        old = temporary.with_name(f"{temporary.name}-old")
        os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    else:
        os.replace(temporary, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray,
    columns: int | None = None,
    max_frames: int = 24,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """(H, W, 3) uint8: evenly picked frames in a grid, small ones enlarged so that they can be looked at."""
    picks = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int))
    columns = min(len(picks), columns or min(6, int(np.ceil(np.sqrt(len(picks) * 1.2)))))
    shown = [enlarged(frames[i]) for i in picks]
    height, width = shown[0].shape[:2]
    gap, rows = 4, -(-len(shown) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for n, (index, frame) in enumerate(zip(picks, shown, strict=True)):
        top, left = gap + n // columns * (height + gap), gap + n % columns * (width + gap)
        sheet[top : top + height, left : left + width] = _labelled(frame, labels[index]) if labels else frame
    return sheet


def enlarged(frame: np.ndarray, least: int = 144) -> np.ndarray:
    """A frame enlarged by a whole factor until its longer side is at least `least` pixels."""
    factor = max(1, -(-least // max(frame.shape[:2])))
    return frame.repeat(factor, 0).repeat(factor, 1)


def _labelled(frame: np.ndarray, text: str) -> np.ndarray:
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    box = draw.textbbox((3, 2), text)
    draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(0, 0, 0))
    draw.text((3, 2), text, fill=(255, 255, 255))
    return np.asarray(picture)


def side_by_side(left: np.ndarray, right: np.ndarray, labels: tuple[str, str] | None = None) -> np.ndarray:
    """(T, H, 2 W + gap, 3) uint8: two videos beside each other; the shorter one starts over."""
    pair = []
    for which, video in enumerate((left, right)):
        shown = [enlarged(video[t % len(video)], 256) for t in range(max(len(left), len(right)))]
        pair.append(np.stack([_labelled(frame, labels[which]) for frame in shown] if labels else shown))
    gap = np.full((*pair[0].shape[:2], 4, 3), 255, np.uint8)
    return np.concatenate((pair[0], gap, pair[1]), 2)


def mark_new(frames: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """A copy with an orange border around the new frames."""
    marked = frames.copy()
    width = max(1, min(frames.shape[1:3]) // 48)
    for frame in (frame for frame, new in zip(marked, is_new, strict=True) if new):
        for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            frame[edge] = (255, 140, 0)
    return marked
