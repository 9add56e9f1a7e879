"""A source of frames: any file, folder or value that holds some, which frames of it, and at what size.

source = Source("fish.mp4", start=10, max_side=128)       # checked, nothing read yet
info = source.probe()                                     # SourceInfo: size and number of frames, before scaling
clip = source.read()                                      # Clip: frames (T, H, W, 3) uint8, fps, kind
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ..clip import Clip, Sound, as_frames, check_fps, format_size
from ..console import log as log_line
from ..errors import SettingError, SinfusionError
from ..names import as_path
from ..pixels import fit_longer_side, is_light, resize
from .reading import Opened, open_file, with_read_errors
from .timing import FrameTimes

LONGER_SIDE = 256  # pixels that larger sources are scaled down to by default
DEFAULT_FPS = 20.0  # of frames without a frame rate, as in the released code
MAX_BYTES = 4 << 30  # of frames in memory
BLOCK_BYTES = 64 << 20  # above what C libraries keep for later when it is freed


@dataclass(frozen=True)
class SourceInfo:
    """What a source holds."""

    size: tuple[int, int]  # (height, width) before scaling
    frames: int  # number that will be used; counted by the packets of a video, so that it can be off for odd files
    kind: str  # "image" or "video"


@dataclass(frozen=True)
class Source:
    """Where frames come from, which frames are used, and at what size.

    Raises SinfusionError for settings that cannot be met; where only the source itself can tell, when it is opened.
    """

    # A video, an animation, a folder of frames or an image; a Clip; or whatever `clip.as_pixels` accepts.
    value: Any
    # Frames to use, as in a slice of those that the source has; the clip plays as fast as before. Not for an image.
    start: int | None = None
    stop: int | None = None
    stride: int | None = None
    # Exact (height, width) of the frames; or the longer side that larger frames are scaled down to, 0 for any.
    size: tuple[int, int] | None = None
    max_side: int | None = None
    # Frames per second that a clip with a rate is resampled to, or that a folder of frames, or an array, has. None: the
    # clip's own, that of the median where its frames last differently (see `timing`), and 20 without a rate.
    fps: float | None = None

    def __post_init__(self) -> None:
        self._range()
        size, side = self.size, self.max_side
        if size is not None and not (
            isinstance(size, Sequence) and len(size) == 2 and all(isinstance(n, Integral) and n > 0 for n in size)
        ):
            raise SinfusionError(f"size must be a height and a width of at least 1, not {size!r:.40}.")
        if side is not None and (not isinstance(side, Integral) or side < 0):
            raise SinfusionError(f"max_side must be at least 1, or 0 to keep the size, not {side!r:.40}.")
        if size is not None and side is not None:
            raise SinfusionError("size and max_side both say how large frames are; give one of them.")
        if self.fps is not None:
            check_fps(self.fps)

    @property
    def name(self) -> str:
        """What errors call it: the path, or "the frames"."""
        return str(as_path(self.value)) if self._is_path else "the frames"

    def probe(self) -> SourceInfo:
        """Size, number and kind of the frames, without decoding them all."""
        opened, wanted = self._open(), self._range()
        size, count = opened.probe()
        kept = len(range(count)[wanted.start : wanted.stop : wanted.step])
        return SourceInfo(opened.source_size or size, max(1, kept), "image" if opened.still and kept == 1 else "video")

    def target(self, native: tuple[int, int]) -> tuple[int, int] | None:
        """(height, width) that frames of the size `native` are scaled to; None if the source does not say."""
        if self.size is not None:
            return self.size[0], self.size[1]
        return None if self.max_side is None else fit_longer_side(native, self.max_side)

    def read(self, longest: int = LONGER_SIDE, log: Callable[[str], None] = log_line) -> Clip:
        """Read the frames.

        longest: the `max_side` of a source with neither that nor a size. log: called with a line on scaling, and one
        on each thing below that was done to the frames, or that a file asks for and was not done.

        Frames are scaled antialiased, once. Of a video whose pixels are not square the stored height is kept and the
        width scaled; densities of stills that differ are not applied. Transparency is composited over white; 16-bit,
        grey, palette and CMYK images become 8-bit RGB. The orientation of EXIF and the display matrix of a video are
        applied, mirrored ones too. Interlaced frames are deinterlaced, one frame for each. Animations are put together
        as browsers do, HEIC and AVIF are read whole, of several video streams the one that players show.

        Colours become sRGB, whose codes are those of BT.709: from the ICC profile of a still, else PNG's cICP or gAMA
        and cHRM; from the primaries and transfer curve of a video. HDR is tone-mapped with 203 nits as white. The
        primaries of BT.601 are taken for those of BT.709. A video that does not name its matrix is BT.709 if it is
        1280 pixels wide or more than 576 high, else BT.601.

        Frames that last differently, or another rate than `fps`, are resampled as `FrameTimes.steady` says. Raises
        SinfusionError for anything that cannot be read completely.
        """
        opened, wanted = self._open(longest), self._range()
        side = longest if self.max_side is None else self.max_side
        frames, original = _read(opened, wanted, self.name, self.size, side, log)
        fps, kind = (self.fps or DEFAULT_FPS) / wanted.step, "image" if opened.still and len(frames) == 1 else "video"
        sound = None
        if opened.times is not None and kind == "video":
            times = opened.times()
            steady = times.steady(self.fps, MAX_BYTES // frames[0].nbytes)
            if steady.note:
                log(steady.note)
            frames, fps = frames if steady.order is None else frames[steady.order], steady.fps
            sound = self._sound(opened, times, len(frames) / fps, steady.keeps_time)
        return Clip(frames, fps, kind, opened.source_size or original, sound)

    def _sound(self, opened: Opened, times: FrameTimes, seconds: float, in_step: bool) -> Sound | None:
        """The sound of frames that play for so many seconds; None where there is none."""
        first = times.seconds[0]
        if isinstance(self.value, Clip) and self.value.sound is not None and first is not None:
            before = self.value.sound
            start = before.start + first
            return replace(before, start=start, stop=start + seconds, in_step=before.in_step and in_step)
        if not opened.has_sound:
            return None
        path = os.path.abspath(self.value)
        known = first is not None
        return Sound(path, first or 0.0, (first or 0.0) + seconds, os.path.getsize(path), in_step and known)

    @property
    def _is_path(self) -> bool:
        return isinstance(self.value, str | os.PathLike)

    def _range(self) -> range:
        first, last = 0 if self.start is None else self.start, sys.maxsize if self.stop is None else self.stop
        step = 1 if self.stride is None else self.stride
        for name, value, least in (("start", first, 0), ("stop", last, 1), ("stride", step, 1)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise SinfusionError(f"{name} must be a whole number of at least {least}, not {value!r:.40}.")
        if last <= first:
            raise SinfusionError(f"frames {first} to {last} are none: stop must be above start.")
        return range(first, last, step)

    def _open(self, longest: int = LONGER_SIDE) -> Opened:
        """Open the source; SinfusionError for settings that do not apply to its kind."""
        side = longest if self.max_side is None else self.max_side
        fit = partial(_fitted, size=self.size, longest=side)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = self._range()
            opened = open_file(as_path(self.value), wanted, fit) if self._is_path else _in_memory(self.value, wanted)
        if opened.alone:
            for name in ("start", "stop", "stride", "fps"):
                if getattr(self, name) is not None:
                    raise SinfusionError(f"{self.name}: {name} is for videos, this is an image; leave out {name}.")
        return opened


def _in_memory(value: Any, wanted: range) -> Opened:
    """Open frames that are in memory already."""
    frames = as_frames(value)
    chosen = frames[wanted.start : wanted.stop : wanted.step]
    clip = value if isinstance(value, Clip) else None
    moving = clip is not None and clip.kind == "video"
    return Opened(
        frames=iter(chosen),
        probe=lambda: (frames.shape[1:3], len(frames)),
        times=None if clip is None or not moving else lambda: _even_times(len(chosen), clip.fps, wanted),
        still=not moving,
        alone=len(frames) == 1 and not moving,
        source_size=None if clip is None else clip.source_size,
    )


def _even_times(count: int, fps: float, wanted: range) -> FrameTimes:
    return FrameTimes([wanted[i] / fps for i in range(count)], [fps / wanted.step])


def _fitted(native: tuple[int, int], size: tuple[int, int] | None, longest: int) -> tuple[int, int]:
    """(height, width) that frames of the size `native` are scaled to."""
    return (size[0], size[1]) if size else fit_longer_side(native, longest)


def _read(
    opened: Opened,
    wanted: range,
    name: str,
    size: tuple[int, int] | None,
    longest: int,
    log: Callable[[str], None],
) -> tuple[np.ndarray, tuple[int, int]]:
    """(T, H, W, 3) uint8, scaled; and (height, width) before that."""
    kept = _Frames()
    original: tuple[int, int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frame in with_read_errors(name, opened.frames, wanted):
            shape = opened.shown_size() if opened.shown_size else frame.shape[:2]
            if original is None:
                original, whole = shape, opened.whole_size or shape
                target = _fitted(whole, size, longest)
                if target != whole:
                    hint = "" if size else f" (longer side {longest}; use --size or --max-side for another)"
                    log(f"scaled {format_size(whole)} to {format_size(target)}{hint}")
            if shape != original and not size:
                raise _changing_size(opened, name, len(kept), original, shape)
            if (len(kept) + 1) * target[0] * target[1] * 3 > MAX_BYTES:
                raise SinfusionError(
                    f"{name} does not fit in memory: {len(kept)} frames of {format_size(target)} fill "
                    f"{MAX_BYTES / 2**30:g} GB; use --stop, --stride or a smaller --size."
                )
            kept.append(resize(frame, target))
    for line in opened.notes:
        log(line)
    if original is None:
        where = f"from {wanted.start} on" if wanted.start else "that can be decoded: it is damaged, or holds none"
        raise SinfusionError(f"{name} has no frames {where}.")
    return kept.joined(), whole


class _Frames:
    """Frames in blocks as they come, which become one array without ever being in memory twice."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []  # (n, H, W, 3) uint8 each, all but the last one full
        self.free = 0  # frames that the last one has room for

    def __len__(self) -> int:
        return sum(map(len, self.blocks)) - self.free

    def append(self, frame: np.ndarray) -> None:
        """Copy a frame, (H, W, 3) uint8."""
        if not self.free:
            self.free = max(1, BLOCK_BYTES // frame.nbytes)
            self.blocks.append(np.empty((self.free, *frame.shape), np.uint8))
        self.blocks[-1][-self.free] = frame
        self.free -= 1

    def joined(self) -> np.ndarray:
        """(T, H, W, 3) uint8; the blocks are gone."""
        if len(self.blocks) == 1:
            return self.blocks.pop()[: -self.free or None]  # what was never written takes no memory
        frames = np.empty((len(self), *self.blocks[0].shape[1:]), np.uint8)
        self.blocks.reverse()
        at = 0
        while self.blocks:
            block = self.blocks.pop()[: len(frames) - at]
            frames[at : at + len(block)] = block
            at += len(block)
        return frames


def _changing_size(
    opened: Opened, name: str, count: int, before: tuple[int, int], now: tuple[int, int]
) -> SinfusionError:
    """The (height, width) of the frames changes after `count` of them, and nothing says to what."""
    first, other = (f"{opened.names[i]} is " for i in (0, count)) if opened.names else ("", "")
    return SettingError(
        f"{name} has frames of different sizes: {first}{format_size(before)}, {other}{format_size(now)}; scale all to "
        f"one with {{size}}, such as {format_size(before)}."
    )


def read_media(
    path: str | Path,
    *,
    start: int | None = None,
    stop: int | None = None,
    stride: int | None = None,
    size: tuple[int, int] | None = None,
    max_side: int | None = LONGER_SIDE,
    fps: float | None = None,
    log: Callable[[str], None] = log_line,
) -> Clip:
    """Read a video, an animation, a folder of frames or an image; the arguments are those of `Source`.

    max_side: ignored if a size is given; 0 or None keeps the size of the file.
    """
    return Source(path, start, stop, stride, size, None if size else max_side or 0, fps).read(log=log)


def read_video(path: str | Path, **options: Any) -> Clip:
    """Read a video of at least two frames; see `read_media`."""
    clip = read_media(path, **options)
    if len(clip.frames) < 2:
        raise SinfusionError(f"{path} has one frame only; a video has at least 2.")
    return clip


def read_image(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    max_side: int | None = LONGER_SIDE,
    log: Callable[[str], None] = log_line,
) -> np.ndarray:
    """Read an image, or the first frame of a video: (H, W, 3) uint8. See `read_media`."""
    source = Source(path, size=size, max_side=None if size else max_side or 0)
    side = source.max_side or 0
    opened = open_file(as_path(path), range(1), partial(_fitted, size=size, longest=side))
    frames, original = _read(opened, range(1), source.name, size, side, lambda _: None)
    for line in opened.notes:
        log(line)
    if original != frames.shape[1:3]:
        log(f"scaled {Path(path).name} from {format_size(original)} to {format_size(frames.shape[1:3])}")
    return frames[0]


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask from an image: (H, W) bool, True where the image is light.

    It is scaled to `size`, (height, width); SinfusionError if its aspect ratio is another.
    """
    return _masks_of(read_image(path, max_side=None)[None], path, size)[0]


def read_masks(
    path: str | Path,
    size: tuple[int, int],
    count: int,
    which: slice = slice(None),
    fps: float | None = None,
    log: Callable[[str], None] = log_line,
) -> np.ndarray:
    """Read a mask for each of `count` frames: (count, H, W) bool. See `read_mask`.

    path: an image, for all frames; or a video, of which `which` selects `count` frames, at `fps` as `Source` takes it.
    """
    source = Source(path, max_side=0)
    frames = source.probe().frames
    several = frames > 1
    if several and (which.start or 0) >= frames:
        raise SinfusionError(f"the mask {path} has 0 frame(s); give a mask of {count}, or an image.")
    if several:
        source = Source(path, which.start, which.stop, which.step, max_side=0, fps=fps)
    masks = _masks_of(source.read(log=log).frames, path, size)
    if several and len(masks) != count:
        raise SinfusionError(f"the mask {path} has {len(masks)} frame(s); give a mask of {count}, or an image.")
    return np.broadcast_to(masks, (count, *size))


def _masks_of(frames: np.ndarray, path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W) bool: where frames (T, H, W, 3) are light, after they are scaled to `size`."""
    height, width = frames.shape[1:3]
    scale = max(size) / max(height, width)
    if abs(height * scale - size[0]) > 1 or abs(width * scale - size[1]) > 1:
        raise SinfusionError(
            f"the mask {path} is {format_size((height, width))}; it must have the aspect ratio of {format_size(size)}."
        )
    return np.stack([is_light(resize(frame, size)) for frame in frames])
