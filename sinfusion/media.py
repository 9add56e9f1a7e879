"""Reading any video or picture into uint8 frames, and writing videos, pictures and contact sheets.

clip = read_media("fish.mp4")          # Clip: frames (T, H, W, 3) uint8, fps, kind
write_video("out.mp4", frames, fps=20)
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageOps, ImageSequence

from .errors import SinfusionError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".apng"}
DEFAULT_FPS = 20.0  # of frame folders, as in the released code
MOST_BYTES = 4 << 30  # of decoded frames


@dataclass(frozen=True)
class Clip:
    """Frames in memory. A picture is a clip of one frame and kind `image`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, sRGB
    fps: float
    kind: str  # "image" or "video"
    source_size: tuple[int, int]  # (height, width) before scaling

    def __repr__(self) -> str:
        return f"Clip({self.kind}, frames {self.frames.shape}, fps {self.fps:g})"


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

    start, stop, stride: frames to keep, counted as in a slice. size: exact (height, width). max_side: otherwise, a
    larger input is scaled down, antialiased, to this longer side; 0 or None keeps it. say: told about scaling.
    Transparency is laid over white; 16-bit, grey, palette and CMYK pictures become 8-bit sRGB; EXIF and video rotation
    are applied. Raises SinfusionError, with what is wrong, for anything that cannot be read whole.
    """
    first = start or 0
    if first < 0 or (stop is not None and stop <= first) or stride < 1:
        raise SinfusionError(
            f"frames {first} to {stop} by {stride} select nothing: use 0 <= start < stop, stride >= 1."
        )
    if size is not None and min(size) < 1:
        raise SinfusionError(f"size {size[1]}x{size[0]} must be at least 1x1.")
    path = Path(path)
    source = _open(path)
    kept: list[np.ndarray] = []
    original: tuple[int, int] | None = None
    target = size
    try:
        for index, frame in enumerate(islice(source.frames, first, stop)):
            if index % stride:
                continue
            if original is None:
                original = frame.shape[:2]
                target = size or _fitting(original, max_side)
                if target != original:
                    say(
                        f"scaled {original[1]}x{original[0]} to {target[1]}x{target[0]}"
                        + ("" if size else f" (longer side {max_side}; use --size or --max-side for another)")
                    )
            elif frame.shape[:2] != original:
                raise SinfusionError(
                    f"{path} has frames of different sizes: {original[1]}x{original[0]} and "
                    f"{frame.shape[1]}x{frame.shape[0]} (frame {first + index + 1})."
                )
            kept.append(_resize(frame, target))  # type: ignore[arg-type]  # set with the first frame
            if len(kept) * kept[0].nbytes > MOST_BYTES:
                raise SinfusionError(
                    f"{path} is too long ({len(kept)} frames fill 4 GB); use --stop, --stride or --size."
                )
    except _BROKEN as error:
        raise SinfusionError(
            f"{path} is damaged or truncated: {len(kept)} frame(s) could be read ({_short(error)})."
        ) from error
    if original is None:
        raise SinfusionError(f"{path} has no frames from {first} on.")
    kind = "image" if source.still and len(kept) == 1 else "video"
    return Clip(np.stack(kept), source.fps / stride, kind, original)


def read_video(path: str | Path, **options: Any) -> Clip:
    """`read_media`, for something that moves."""
    clip = read_media(path, **options)
    if len(clip.frames) < 2:
        raise SinfusionError(f"{path} has one frame only; a video has at least 2.")
    return clip


def read_image(path: str | Path, *, size: tuple[int, int] | None = None, max_side: int | None = 256) -> np.ndarray:
    """(H, W, 3) uint8: a picture, or the first frame of something animated."""
    return read_media(path, stop=1, size=size, max_side=max_side, say=lambda _: None).frames[0]


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True where the picture is light: there an edit may change. One larger than `size` is scaled down."""
    picture = read_image(path, max_side=max(size))
    if picture.shape[:2] != size:
        raise SinfusionError(f"the mask {path} is {picture.shape[1]}x{picture.shape[0]}, not {size[1]}x{size[0]}.")
    return picture.mean(2) > 127.5


@dataclass
class _Source:
    frames: Iterator[np.ndarray]
    fps: float
    still: bool  # a picture format: one frame makes it an image


_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
           av.error.FFmpegError, Image.DecompressionBombError, RuntimeError, AttributeError,
           ZeroDivisionError, NotImplementedError)  # fmt: skip  # what Pillow's and FFmpeg's decoders raise on damage


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:120]


def _open(path: Path) -> _Source:
    try:
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise SinfusionError(f"{path} does not exist; give a video, a picture or a folder of frames.")
        if path.stat().st_size == 0:
            raise SinfusionError(f"{path} is empty.")
        path.open("rb").close()
    except OSError as error:
        raise SinfusionError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise SinfusionError(f"{path} is too large a picture: {error}") from error
    except _BROKEN:
        return _video(path)
    return _picture(path, picture)


def _folder(path: Path) -> _Source:
    files = [p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    if not files:
        raise SinfusionError(f"{path} holds no pictures (PNG, JPG, WebP, BMP, TIFF).")
    files.sort(key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])

    def frames() -> Iterator[np.ndarray]:
        for file in files:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    with Image.open(file) as picture:
                        yield _rgb(ImageOps.exif_transpose(picture))
                except _BROKEN as error:
                    raise SinfusionError(f"{file} is damaged or not a picture ({_short(error)}).") from error

    return _Source(frames(), DEFAULT_FPS, True)


def _picture(path: Path, picture: Image.Image) -> _Source:
    count = getattr(picture, "n_frames", 1)
    animated = count > 1 and picture.format in ("GIF", "WEBP", "PNG")

    def frames() -> Iterator[np.ndarray]:
        with warnings.catch_warnings(), picture:
            warnings.simplefilter("ignore")
            if animated:
                for frame in ImageSequence.Iterator(picture):
                    yield _rgb(frame)
            else:
                yield _rgb(ImageOps.exif_transpose(picture))

    return _Source(frames(), _animation_fps(path, count) if animated else DEFAULT_FPS, True)


def _animation_fps(path: Path, count: int) -> float:
    """Frames per second from the mean frame duration."""
    try:
        with Image.open(path) as picture:
            durations = []
            for frame in ImageSequence.Iterator(picture):
                frame.load()
                durations.append(frame.info.get("duration") or 100)
    except _BROKEN as error:
        raise SinfusionError(f"{path} is damaged or truncated ({_short(error)}).") from error
    return 1000 * count / sum(durations)


def _rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of any Pillow mode."""
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(picture, dtype=np.float64)
        values = values * (255 / 65535) if picture.mode != "F" or values.max(initial=0) > 1 else values * 255
        return np.repeat(np.clip(np.round(values), 0, 255).astype(np.uint8)[..., None], 3, 2)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return np.asarray(picture.convert("RGB"))


def _video(path: Path) -> _Source:
    try:
        container = av.open(str(path), options={"protocol_whitelist": "file"})
    except _BROKEN as error:
        raise SinfusionError(f"{path} is not a video or picture that can be read ({_short(error)}).") from error
    if not container.streams.video:
        container.close()
        raise SinfusionError(f"{path} has no video in it.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_FPS

    def frames() -> Iterator[np.ndarray]:
        decoded = 0
        with container:
            for frame in container.decode(stream):
                picture = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4  # degrees, counter-clockwise
                yield np.ascontiguousarray(np.rot90(picture, turns))
                decoded += 1
        promised = stream.frames
        if promised and decoded < promised * 0.9 - 2:
            raise SinfusionError(f"{path} is truncated: {decoded} of {promised} frames could be read.")

    return _Source(frames(), float(rate), False)


def _fitting(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """(height, width) scaled down so that the longer side is at most max_side."""
    longer = max(size)
    if not max_side or longer <= max_side:
        return size
    return max(1, round(size[0] * max_side / longer)), max(1, round(size[1] * max_side / longer))


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[:2] == tuple(size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))


class VideoWriter:
    """Writes frames as they come: .mp4/.mov/.webm/.mkv, .gif, or a folder of PNGs for a path without a suffix.

    MP4 is H.264 in yuv420p, which browsers play; odd sizes are padded by one edge pixel. The file appears under its
    name when it is whole; after an error nothing is left.
    """

    def __init__(self, path: str | Path, fps: float, overwrite: bool = False):
        self.path, self.fps = Path(path), fps
        if self.path.suffix.lower() not in ("", ".mp4", ".mov", ".mkv", ".gif"):
            raise SinfusionError(f"{path}: write .mp4, .mov, .mkv, .gif, or a name without a suffix for a PNG folder.")
        refuse_existing(self.path, overwrite)
        self.temporary = self.path.with_name(f".{os.getpid()}-{self.path.name}")
        self.count = 0
        self._container: Any = None
        self._stream: Any = None
        self._gif: list[Image.Image] = []
        with _disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.suffix:
                self.temporary.mkdir()

    def write(self, frame: np.ndarray) -> None:
        """Add one (H, W, 3) uint8 frame."""
        with _disk(self.path):
            if not self.path.suffix:
                Image.fromarray(frame).save(self.temporary / f"{self.count + 1:05d}.png")
            elif self.path.suffix.lower() == ".gif":
                self._gif.append(Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG))
            else:
                self._encode(frame)
        self.count += 1

    def _encode(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        if self._container is None:
            form = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}[self.path.suffix.lower()]
            options = {"movflags": "+faststart"} if form != "matroska" else {}
            self._container = av.open(str(self.temporary), "w", format=form, options=options)
            try:
                self._stream = self._container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1000))
            except (ValueError, av.error.FFmpegError):
                raise SinfusionError(
                    "this PyAV has no H.264 encoder (libx264); install PyAV from its wheels."
                ) from None
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "12", "preset": "medium"}
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None and self.count == 0:
                raise SinfusionError(f"{self.path}: there are no frames to write.")
            with _disk(self.path):
                if self._container is not None:
                    if kind is None:
                        self._container.mux(self._stream.encode())
                    self._container.close()
                if kind is None:
                    if self._gif:
                        first, *rest = self._gif
                        first.save(self.temporary, "GIF", save_all=True, append_images=rest, loop=0,
                                   duration=max(20, round(1000 / self.fps)), disposal=2)  # fmt: skip
                    if self.path.is_dir():
                        shutil.rmtree(self.path)
                    os.replace(self.temporary, self.path)
        finally:
            if self.temporary.is_dir():
                shutil.rmtree(self.temporary, ignore_errors=True)
            else:
                self.temporary.unlink(missing_ok=True)


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: float, overwrite: bool = False) -> None:
    """Write (H, W, 3) uint8 frames, an array or as they come; see `VideoWriter` for the formats."""
    with VideoWriter(path, fps, overwrite) as writer:
        for frame in frames:
            writer.write(frame)


def write_image(path: str | Path, image: np.ndarray, overwrite: bool = False) -> None:
    """Write one (H, W, 3) uint8 picture in the format of the suffix."""
    path = Path(path)
    refuse_existing(path, overwrite)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            Image.fromarray(image).save(temporary, Image.registered_extensions().get(path.suffix.lower(), "PNG"))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """SinfusionError if an output exists and may not be overwritten."""
    if path.exists() and not overwrite:
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another name.")


class _disk:
    """Turns a full disk and other failures to write into sentences."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, OSError | av.error.FFmpegError):
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise SinfusionError(f"disk full while writing {self.path}; nothing half-written was left.") from error
            raise SinfusionError(f"{self.path} cannot be written: {_short(error)}.") from error


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray,
    columns: int | None = None,
    max_frames: int = 24,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """(H, W, 3) uint8: evenly picked frames in a grid, small ones enlarged so that they can be looked at."""
    picks = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int))
    columns = columns or min(6, max(1, int(np.ceil(np.sqrt(len(picks) * 1.2)))))
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
