"""Write videos and images: under a temporary name first, so that a file is complete or does not exist."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from PIL import Image

from ..clip import FRAME_ENDINGS, Clip, Sound, as_frames, as_image, check_fps, format_size
from ..console import log as log_line
from ..errors import SinfusionError
from ..files import atomic_write, discard, make_folders, put, temporary_name
from ..names import OTHER_ENDINGS, as_path
from .sound import add_sound, why_not

H264 = "libx264"
WEBP_QUALITY = 90  # of 100
GIF_FPS = 50  # the most that browsers play: they show frames of 10 ms for 100


class VideoWriter:
    """Writes frames one by one: .mp4, .gif, .webp, or a folder of numbered PNGs for a path without such an ending.

    sound: of the clip that the frames run beside, for an MP4; it begins after `delay` seconds. log: told whether it
    could be kept. MP4 is H.264 in yuv420p, which browsers play; odd sizes are padded by one edge pixel. GIF and WebP
    play for ever and show repeated frames as one that lasts longer; of more than 50 frames a second a GIF keeps 50,
    which `log` is told. The file appears under its name when it is complete; after an error nothing is left. Raises
    SinfusionError for what cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        overwrite: bool = False,
        sound: Sound | None = None,
        delay: float = 0.0,
        log: Callable[[str], None] = log_line,
    ):
        self.path = as_path(path)
        self.sound, self.delay, self.log = sound, delay, log
        encoders: dict[str, Any] = {
            ".mp4": Mp4Encoder, ".gif": GifEncoder, ".webp": WebpEncoder, "": PngFolderEncoder,
        }  # fmt: skip
        ending = self.path.suffix.lower()
        if ending in OTHER_ENDINGS or ending == ".png" or self.path.name.lower() in encoders:
            raise SinfusionError(f"{path}: write .mp4, .gif, .webp, or a name without a suffix for a folder of PNGs.")
        check_fps(fps)
        self.fps = float(fps)
        refuse_existing(self.path, overwrite)
        self.overwrite = overwrite
        self.temporary = temporary_name(self.path)
        self._new_encoder = encoders.get(ending, PngFolderEncoder)
        self._encoder: Any = None
        self._shape: tuple[int, ...] = ()

    def write(self, frame: np.ndarray) -> None:
        """Add one frame: (H, W, 3) uint8, or what `as_image` accepts."""
        frame = as_image(frame, "a frame")
        with _writing(self.path):
            if self._encoder is None:
                make_folders(self.path.parent)
                discard(self.temporary)
                self._encoder, self._shape = self._new_encoder(self.temporary, self.fps, frame.shape), frame.shape
            if frame.shape != self._shape:
                raise SinfusionError(
                    f"{self.path}: all frames must have the same size, not {format_size(self._shape)} and "
                    f"{format_size(frame.shape)}."
                )
            self._encoder.write(frame)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is not None:
                with suppress(Exception):  # the first error is the one to report
                    self._encoder.close()
                return
            if self._encoder is None:
                raise SinfusionError(f"{self.path}: there are no frames to write.")
            with _writing(self.path):
                self._encoder.close()
                self._keep_sound()
                put(self.temporary, self.path, self.overwrite)
            if isinstance(self._encoder, GifEncoder) and self._encoder.dropped:
                self.log(
                    f"{self.path.name} plays at the right speed, without {self._encoder.dropped} of the frames: a GIF "
                    f"shows at most {GIF_FPS} a second, not {self.fps:g}"
                )
        finally:
            discard(self.temporary)

    def _keep_sound(self) -> None:
        """Add the sound to the file, or say why not: the pictures are whole in either case."""
        if self.sound is None:
            return
        name, why = Path(self.sound.path).name, why_not(self.sound, self.path)
        if not why:
            silent = self.temporary.with_name(f"{self.temporary.name}.silent")
            self.temporary.rename(silent)
            try:
                add_sound(silent, self.temporary, self.sound, self.delay)
            except Exception as error:  # PyAV raises all kinds on damage
                why = f"{type(error).__name__}: {error}".split("\n")[0][:120]
                discard(self.temporary)
                silent.rename(self.temporary)
            finally:
                discard(silent)
        self.log(f"the sound of {name} is left out: {why}" if why else f"with the sound of {name}")


class Mp4Encoder:
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
        # Players guess the colour space of a file that does not name it. chromaloc=1: chroma lies between the pixels.
        colours = "colorprim=bt709:transfer=bt709:colormatrix=bt709:chromaloc=1"
        stream.options = {"crf": "12", "x264-params": colours}

    def write(self, frame: np.ndarray) -> None:
        padded = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        image = av.VideoFrame.from_ndarray(padded, format="rgb24")
        self.container.mux(self.stream.encode(image.reformat(format="yuv420p", dst_colorspace="ITU709")))

    def close(self) -> None:
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


class GifEncoder:
    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]):
        self.path, self.fps, self.count = path, fps, 0
        self.images: list[Image.Image] = []

    def write(self, frame: np.ndarray) -> None:
        if self.count >= int(len(self.images) * max(1, self.fps / GIF_FPS) + 0.5):
            self.images.append(Image.fromarray(frame).quantize(256, kmeans=1))
        self.count += 1

    @property
    def dropped(self) -> int:
        """Frames that no GIF can show."""
        return self.count - len(self.images)

    def close(self) -> None:
        rate = min(self.fps, GIF_FPS)
        times = [10 * round(100 * i / rate) for i in range(len(self.images))]  # ms; a GIF counts in 10 ms
        times.append(max(times[-1] + 20, 10 * round(100 * self.count / self.fps)))
        durations = [b - a for a, b in pairwise(times)]
        self.images[0].save(self.path, "GIF", save_all=True, append_images=self.images[1:], loop=0, duration=durations)


class WebpEncoder:
    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]):
        self.path, self.fps = path, fps
        self.images: list[Image.Image] = []

    def write(self, frame: np.ndarray) -> None:
        self.images.append(Image.fromarray(frame))

    def close(self) -> None:
        times = [round(1000 * i / self.fps) for i in range(len(self.images) + 1)]  # ms
        durations = [max(1, b - a) for a, b in pairwise(times)]
        self.images[0].save(self.path, "WEBP", save_all=True, append_images=self.images[1:], loop=0,
                            duration=durations, quality=WEBP_QUALITY)  # fmt: skip


class PngFolderEncoder:
    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]):
        self.path, self.count = path, 0
        path.mkdir()

    def write(self, frame: np.ndarray) -> None:
        self.count += 1
        Image.fromarray(frame).save(self.path / f"{self.count:05d}.png")

    def close(self) -> None:
        pass


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: float,
    overwrite: bool = False,
    sound: Sound | None = None,
    delay: float = 0.0,
    log: Callable[[str], None] = log_line,
) -> None:
    """Write frames, an iterable of (H, W, 3) uint8 or what `as_frames` accepts; see `VideoWriter` for the formats."""
    with VideoWriter(path, fps, overwrite, sound, delay, log) as writer:
        for frame in as_frames(frames) if hasattr(frames, "__array__") or isinstance(frames, Clip) else frames:
            writer.write(frame)


def write_image(path: str | Path, image: np.ndarray, overwrite: bool = False) -> None:
    """Write one (H, W, 3) uint8 image in the format of the suffix: .png, .jpg, .webp, .bmp or .tiff."""
    path = as_path(path)
    if path.suffix.lower() not in FRAME_ENDINGS:
        raise SinfusionError(f"{path}: write .png, .jpg, .webp, .bmp or .tiff.")
    image = as_image(image)
    refuse_existing(path, overwrite)
    with _writing(path):
        make_folders(path.parent)
        with atomic_write(path, overwrite) as temporary:
            Image.fromarray(image).save(temporary, quality=95)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """SinfusionError if an output exists and may not be overwritten, or is a folder with other files than frames."""
    if path.exists() and not overwrite:
        raise SinfusionError(f"{path} exists; pass --overwrite or choose another name.")
    if path.is_dir() and not all(re.fullmatch(r"\d{5,}\.png", p.name) for p in path.iterdir()):
        raise SinfusionError(f"{path} is a folder with other files in it; choose another name.")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a full disk and other failures to write into SinfusionErrors."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SinfusionError(
                f"the disk is full: {path} was not written, and nothing incomplete was left behind."
            ) from error
        raise SinfusionError(f"{path} cannot be written: {error.strerror or error}.") from error
