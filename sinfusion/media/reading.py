"""Reading any video or picture into uint8 frames."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from ..errors import SinfusionError
from .clip import FRAME_ENDINGS, Clip, size_words

# Named, because Pillow would hand other kinds to programs outside (EPS to Ghostscript), and FFmpeg open playlists.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
ANIMATED_FORMATS = ("PNG", "WEBP", "GIF")
VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe"
DEFAULT_FPS = 20.0  # of frame folders, as in the released code
MOST_BYTES = 4 << 30  # of frames in memory


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
                    say(f"scaled {size_words(original)} to {size_words(target)}{hint}")
            if shape != original:
                raise SinfusionError(
                    f"{path} has frames of different sizes: {size_words(original)} and {size_words(shape)}."
                )
            if (len(kept) + 1) * target[0] * target[1] * 3 > MOST_BYTES:
                raise SinfusionError(
                    f"{path} does not fit in memory: {len(kept)} frames of {size_words(target)} fill "
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
        say(f"scaled {Path(path).name} from {size_words(clip.source_size)} to {size_words(picture.shape)}")
    return picture


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True where the picture is light: there an edit may change. Scaled to `size` if of its shape."""
    return _light(read_media(path, stop=1, max_side=None), path, size)[0]


def read_masks(path: str | Path, size: tuple[int, int], count: int, which: slice = slice(None)) -> np.ndarray:
    """(count, H, W) bool as `read_mask`: of a picture for all, or of those frames of a video, `count` of them."""
    light = _light(read_media(path, max_side=None), path, size)
    if len(light) > 1:
        light = light[which]
        if len(light) != count:
            raise SinfusionError(f"the mask {path} has {len(light)} frame(s); it needs {count}, or is a picture.")
    return np.broadcast_to(light, (count, *size))


def _light(clip: Clip, path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W) bool: where frames are light, once brought to `size`."""
    height, width = clip.source_size
    scale = max(size) / max(height, width)
    if abs(height * scale - size[0]) > 1 or abs(width * scale - size[1]) > 1:
        raise SinfusionError(
            f"the mask {path} is {size_words((height, width))}, which has not the shape of {size_words(size)}."
        )
    return np.stack([_resize(frame, size).mean(2) > 127.5 for frame in clip.frames])


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
                    f"{path} has frames of different sizes: {first[0].name} is {size_words(first[1])}, "
                    f"{file.name} is {size_words(frame.shape)}."
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


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]
