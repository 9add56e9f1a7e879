"""Open any file or folder that holds a video or an image: its frames as uint8, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..clip import FRAME_ENDINGS
from ..errors import SinfusionError
from ..names import in_frame_order, name_after, pasteable
from . import heif
from .animations import Animation, open_apng, open_gif, shown_seconds
from .display import over_white, still_pixels, tagged_pixels
from .interlacing import Note
from .refusals import is_raw_photo, missing, shorten, unreadable, without_frames
from .stills import Fit, open_image, pictures_note, tiff_pages, upright_size
from .timing import FrameTimes
from .video_file import HeifSequence, VideoFile

HEIF_ENDINGS = {".heic", ".heif", ".avif"}

Probe = Callable[[], tuple[tuple[int, int], int]]


@dataclass
class Opened:
    """An opened source of frames. Either its frames are read, once, or it is probed."""

    frames: Iterator[np.ndarray]  # (H, W, 3) uint8: the frames that were asked for
    probe: Probe  # (height, width) and the number of all frames
    times: Callable[[], FrameTimes] | None  # of the frames that were read; None: the source has no frame rate
    still: bool  # whether one frame of this kind of source is an image
    alone: bool  # whether it is an image: it has one frame only
    source_size: tuple[int, int] | None = None  # (height, width) of frames that were scaled before
    # (height, width) of the last frame with square pixels; None: as it is.
    shown_size: Callable[[], tuple[int, int]] | None = None
    whole_size: tuple[int, int] | None = None  # (height, width) of an image of which the decoder makes a smaller one
    notes: dict[str, None] = field(default_factory=dict)  # what was done to the frames so far, or could not be
    names: Sequence[str] = ()  # of the frames that were asked for, where each is a file
    has_sound: bool = False


def open_file(path: Path, wanted: range, fit: Fit) -> Opened:
    """Open a file or a folder to read the frames `wanted`; SinfusionError if it cannot be read.

    fit: what size, (height, width), frames of a size are scaled to afterwards; a decoder may do a part of that.
    """
    try:
        if path.is_dir():
            return _folder(path, wanted, fit)
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
        image, whole_size = open_image(path, fit)
    except SinfusionError:
        raise
    except Exception:  # Pillow's plugins raise all kinds
        return _heif(path, wanted) or _video(path, wanted)
    return _image(path, image, whole_size, wanted)


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
            f"{name} is damaged or truncated: {count} frame(s) read{shorten(error)}{_way_out(name, wanted, count)}"
        ) from error


def _way_out(name: str, wanted: range, count: int) -> str:
    """The end of a sentence on damage: how to read the `count` wanted frames before it, or to save those after it."""
    if count:
        return f"; --stop {wanted[count - 1] + 1} reads those before the damage."
    path = Path(name)
    if path.suffix.lower() in FRAME_ENDINGS | HEIF_ENDINGS:
        return "."
    repaired = f"{pasteable(path)} -c:v libx264 -crf 12 {pasteable(name_after(path) + '-repaired.mp4')}"
    before = f"it is before frame {wanted.start}" if wanted.start else "no frame is before the damage"
    return f"; {before}, what follows may be saved by: ffmpeg -i {repaired}"


def _with_probe_errors(path: Path, probe: Probe) -> Probe:
    """The probe; whatever decoders raise becomes a SinfusionError."""

    def checked() -> tuple[tuple[int, int], int]:
        try:
            return probe()
        except SinfusionError:
            raise
        except Exception as error:  # see `with_read_errors`
            raise SinfusionError(f"{path} is damaged or truncated{shorten(error)}.") from error

    return checked


# Folders -------------------------------------------------------------------------------------------------------------


def _folder(path: Path, wanted: range, fit: Fit) -> Opened:
    endings = FRAME_ENDINGS | HEIF_ENDINGS
    pictures = (p for p in path.iterdir() if p.suffix.lower() in endings and not p.name.startswith("."))
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
                frame, opened.whole_size = _frame_of(file, fit, opened.notes.setdefault)
            except SinfusionError:
                raise
            except Exception as error:  # see `with_read_errors`
                raise SinfusionError(f"{file} is damaged or not an image{shorten(error)}{others}") from error
            yield frame

    def probe() -> tuple[tuple[int, int], int]:
        first = (chosen or files)[0]
        if heif.brand(first):
            return heif.probe_still(first), len(files)
        image, whole_size = open_image(first, fit)
        with image:
            return whole_size or upright_size(image), len(files)

    names = [file.name for file in chosen]
    probe = _with_probe_errors(path, probe)
    opened = Opened(frames(), probe, times=None, still=True, alone=len(files) == 1, names=names)
    return opened


def _frame_of(file: Path, fit: Fit, note: Note) -> tuple[np.ndarray, tuple[int, int] | None]:
    """The image in a file of a folder, (H, W, 3) uint8, and its whole size if that is a part of it."""
    if heif.brand(file):
        return _heif_pixels(file, note), None
    image, whole_size = open_image(file, fit)
    with image:
        return still_pixels(image, note), whole_size


# Images and animations -----------------------------------------------------------------------------------------------


def _image(path: Path, image: Image.Image, whole_size: tuple[int, int] | None, wanted: range) -> Opened:
    try:
        count = getattr(image, "n_frames", 1)
        if image.format == "GIF" or (image.format == "PNG" and count > 1):
            with image:
                return _animation(path, open_gif(path) if image.format == "GIF" else open_apng(path), image, wanted)
        pages, note = tiff_pages(path) if image.format == "TIFF" and count > 1 else ([0], pictures_note(image))
    except Exception as error:  # see `with_read_errors`
        raise SinfusionError(f"{path} is damaged or truncated: 0 frame(s) read{shorten(error)}.") from error
    if image.format == "WEBP" and count > 1:
        return _webp_animation(path, image, count, wanted)
    notes: dict[str, None] = {note: None} if note else {}

    def frames() -> Iterator[np.ndarray]:
        with image:
            for page in pages[wanted.start : wanted.stop : wanted.step]:
                if len(pages) > 1:
                    image.seek(page)
                yield still_pixels(image, notes.setdefault)

    def probe() -> tuple[tuple[int, int], int]:
        with image:
            return whole_size or upright_size(image), len(pages)

    return Opened(
        frames(), _with_probe_errors(path, probe), times=None, still=True, alone=len(pages) == 1,
        whole_size=whole_size, notes=notes,
    )  # fmt: skip


def _animation(path: Path, animation: Animation, image: Image.Image, wanted: range) -> Opened:
    """A GIF, or a PNG that moves; of one frame it is an image."""
    animation.profile = image.info.get("icc_profile")
    count = len(animation.layers)
    notes: dict[str, None] = {}

    def probe() -> tuple[tuple[int, int], int]:
        return (animation.size[1], animation.size[0]), count

    def times() -> FrameTimes:
        return _times_of(
            [layer.seconds for layer in animation.layers[: wanted.stop]], wanted, gif=image.format == "GIF"
        )

    frames = (still_pixels(shown, notes.setdefault, upright=count == 1) for shown in animation.shown(wanted))
    known = times if count > 1 else None
    return Opened(frames, _with_probe_errors(path, probe), known, still=True, alone=count == 1, notes=notes)


def _webp_animation(path: Path, image: Image.Image, count: int, wanted: range) -> Opened:
    seconds: list[float] = []  # known when a frame is decoded
    notes: dict[str, None] = {}

    def frames() -> Iterator[np.ndarray]:
        with image:
            for index in range(min(count, wanted.stop)):
                image.seek(index)
                image.load()
                seconds.append(shown_seconds((image.info.get("duration") or 0) / 1000))
                if index in wanted:
                    yield still_pixels(image, notes.setdefault, upright=False)

    def probe() -> tuple[tuple[int, int], int]:
        return (image.height, image.width), count

    probe = _with_probe_errors(path, probe)
    return Opened(frames(), probe, lambda: _times_of(seconds, wanted), still=True, alone=False, notes=notes)


def _times_of(seconds: list[float], wanted: range, gif: bool = False) -> FrameTimes:
    """When the wanted frames are shown, of an animation whose frames last so long, from the first one on."""
    starts = [sum(seconds[:i]) for i in range(len(seconds))[wanted.start : wanted.stop : wanted.step]]
    last = seconds[-1] if wanted.step == 1 else None
    return FrameTimes(starts, rounding=0.01 if gif else 0.001, last=last)


def _heif(path: Path, wanted: range) -> Opened | None:
    """A HEIC or AVIF file: its image, or all frames if it says that it is a sequence first of all; None for others."""
    brand = heif.brand(path)
    if brand in heif.SEQUENCES:
        sequence = HeifSequence(path, wanted)
        if sequence.stream.frames > 1:
            return _of_video_file(sequence, still=True)
        sequence.container.close()
    if brand not in heif.STILLS | heif.SEQUENCES:
        return None
    notes: dict[str, None] = {}
    frames = (_heif_pixels(path, notes.setdefault) for _ in range(1)[wanted.start : wanted.stop])
    probe = _with_probe_errors(path, lambda: (heif.probe_still(path), 1))
    return Opened(frames, probe, times=None, still=True, alone=True, notes=notes)


def _heif_pixels(path: Path, note: Note) -> np.ndarray:
    """(H, W, 3) uint8: the image of a HEIC or AVIF file, upright."""
    still = heif.read_still(path)
    pixels = tagged_pixels(still.frame, still.profile, note)
    return still.upright(pixels if still.alpha is None else over_white(pixels, still.alpha, still.premultiplied))


# Videos --------------------------------------------------------------------------------------------------------------


def _video(path: Path, wanted: range) -> Opened:
    return _of_video_file(VideoFile(path, wanted), still=False)


def _of_video_file(video: VideoFile, still: bool) -> Opened:
    return Opened(
        video.frames(),
        _with_probe_errors(video.path, video.probe),
        video.frame_times,
        still=still,
        alone=False,
        shown_size=lambda: video.shown_size,
        notes=video.notes,
        has_sound=video.has_sound,
    )
