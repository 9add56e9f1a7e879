"""What happens to each kind of file: docs/formats.md, measured on files that are written here and whose truth is known.

python benchmarks/formats.py            # the table; exit code 1 where docs/formats.md says something else
python benchmarks/formats.py --write    # writes it

A row that needs an encoder or a program that is not here is not run, and keeps what the document has.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from av.stream import Disposition
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import read_media
from sinfusion.pixels import resize

os.environ.setdefault("SVT_LOG", "1")  # errors alone
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
BEGIN, END = "<!-- benchmarks/formats.py -->", "<!-- end of benchmarks/formats.py -->"
NOT_RUN = "not run: "

# Eight flat colours; a dark block that moves along the seam of their two rows, 8 pixels a frame.
PATCHES = np.array([[(200, 40, 40), (40, 180, 60), (50, 70, 200), (210, 190, 50)],
                    [(60, 190, 200), (190, 60, 180), (128, 128, 128), (235, 225, 215)]], np.uint8)  # fmt: skip
BLOCK = (24, 20, 30)


def chart(block_at: Sequence[int] = range(0, 64, 8)) -> np.ndarray:
    """(T, 48, 64, 3) uint8: the block begins at these columns."""
    frames = PATCHES.repeat(24, 0).repeat(16, 1)[None].repeat(len(block_at), 0)
    for frame, left in zip(frames, block_at, strict=True):
        frame[20:28, left : left + 8] = BLOCK
    return frames


FRAMES = chart()
HALF = np.where(np.arange(64) < 32, 255, 128).astype(np.uint8)[None, :, None]  # transparency of the right half
MIXED = np.round(255 + (FRAMES - 255.0) * (HALF / 255)).astype(np.uint8)
RGBA = np.concatenate([FRAMES, np.broadcast_to(HALF, (*FRAMES.shape[:3], 1))], -1)


@dataclass(frozen=True)
class File:
    """A file that was written, and what it shows."""

    path: Path
    frames: np.ndarray = field(default_factory=lambda: FRAMES)  # (T, H, W, 3) uint8
    fps: float | None = 25
    options: dict[str, Any] = field(default_factory=dict)  # of read_media


class NotHere(Exception):
    """An encoder or a program is missing."""


@dataclass(frozen=True)
class Row:
    group: str
    what: str
    write: Callable[[Path], File]  # in an empty folder


@dataclass(frozen=True)
class Outcome:
    """What happened; `error` in levels of 255, where colours were compared."""

    before: str
    error: float | None = None
    after: str = ""

    def text(self, change: float = 0) -> str:
        return self.before + ("" if self.error is None else _colours(self.error + change)) + self.after

    def agrees(self, written: str) -> bool:
        """Whether a document says the same, but for a level or two that encoders differ in."""
        return written in {self.text(change) for change in (-2, 0, 2)}


ROWS: list[Row] = []


def row(group: str, what: str) -> Callable[[Callable[[Path], File]], Callable[[Path], File]]:
    def add(write: Callable[[Path], File]) -> Callable[[Path], File]:
        ROWS.append(Row(group, what, write))
        return write

    return add


# Measuring -----------------------------------------------------------------------------------------------------------


def run(one: Row) -> Outcome:
    """What happens to the file of a row; raises NotHere where it cannot be written."""
    with tempfile.TemporaryDirectory() as name:
        folder, said = Path(name), []
        file = one.write(folder)
        shorten = partial(_shortened, folder=folder)
        try:
            clip = read_media(file.path, log=said.append, **file.options)
        except SinfusionError as refusal:
            return Outcome(f"refused: “{shorten(str(refusal))}”")
    count, height, width = clip.frames.shape[:3]
    shown = f"{count} frame{'s' * (count > 1)}, {width}x{height}"
    if clip.kind == "video":
        shown += f", {round(clip.fps, 1):g} fps"
        if file.fps and abs(clip.fps / file.fps - 1) > 0.01:
            shown += f" (WRONG: the file plays at {file.fps:g})"
    error = None
    if clip.frames.shape != file.frames.shape:
        there, tall, wide = file.frames.shape[:3]
        shown += f" (WRONG: the file shows {there} of {wide}x{tall})"
    else:
        error = largest_error(clip.frames, file.frames)
    return Outcome(shown, error, "".join(f"; said: “{shorten(line)}”" for line in said))


def _shortened(text: str, folder: Path) -> str:
    """A sentence without the folder, and without the words of FFmpeg and Pillow, which differ between versions."""
    return re.sub(r" read \(.*\)([;.])", r" read\1", text.replace(f"{folder}/", ""))


def largest_error(frames: np.ndarray, truth: np.ndarray) -> float:
    """In levels: of the medians of the pixels that lie in one flat colour, in any frame and channel."""
    return max(
        np.abs(np.median(frame[inside], 0) - colour).max()
        for frame, shown in zip(frames, truth, strict=True)
        for colour, inside in flat(shown)
    )


def flat(frame: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The colours of a frame, and which pixels have such a colour on all sides, (H, W) bool."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(frame, ((2, 2), (2, 2), (0, 0)), "edge"), (5, 5), (0, 1))
    inner = (np.ptp(around, (-1, -2)) <= 1).all(-1)
    for colour in np.unique(frame[inner], axis=0):
        yield colour.astype(int), inner & (frame == colour).all(-1)


def _colours(error: float) -> str:
    return next((f"; colours within {n} levels" for n in (4, 10) if error <= n), "; colours OFF BY MORE THAN 10 LEVELS")


# Writing files -------------------------------------------------------------------------------------------------------

UNKNOWN = {"colorspace": 2, "color_primaries": 2, "color_trc": 2, "color_range": 1}  # of H.273 and FFmpeg
BT709 = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
MATRICES = {1: "ITU709", 9: "BT2020"}
GOOD = {"crf": "4", "preset": "ultrafast", "x265-params": "log-level=none"}
VPX = {"crf": "4", "b": "4M", "deadline": "realtime", "cpu-used": "5"}
FINE = {"qmin": "1", "qmax": "2", "b": "8M"}


def add_stream(out: Any, codec: str, rate: int = 25, **options: Any) -> Any:
    """A stream of an encoder; NotHere if PyAV has none."""
    try:
        return out.add_stream(codec, rate=rate, **options)
    except (ValueError, av.error.FFmpegError):
        raise NotHere(f"PyAV has no {codec}") from None


def encode(
    path: Path,
    codec: str = "ffv1",
    pix_fmt: str = "yuv444p",
    options: dict[str, str] | None = None,
    frames: np.ndarray = FRAMES,
    times: Sequence[int] | None = None,  # in 25ths of a second
    matrix: str = "",
    aspect: Fraction | None = None,
    **tags: int,
) -> Path:
    """Frames (T, H, W, 3 or 4), uint8 or uint16, as a video with these tags; in their matrix, else BT.601."""
    given = {**UNKNOWN, **tags}
    form = "rgba" if frames.shape[3] == 4 else "rgb24" if frames.dtype == np.uint8 else "rgb48le"
    with av.open(str(path), "w") as out:
        stream = add_stream(out, codec)
        stream.height, stream.width, stream.pix_fmt, stream.options = *frames.shape[1:3], pix_fmt, options or {}
        for name, value in given.items():
            setattr(stream.codec_context, name, value)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for time, frame in zip(times or range(len(frames)), frames, strict=False):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=form)
            to = {} if pix_fmt.startswith(("rgb", "argb")) else {"dst_color_range": given["color_range"]}
            if to:
                to["dst_colorspace"] = matrix or MATRICES.get(given["colorspace"], "ITU601")
            image = image.reformat(format=pix_fmt, **to)
            image.pts, image.time_base = time, Fraction(1, 25)
            for name, value in given.items():
                setattr(image, name, value)
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    return path


def pictures(path: Path, frames: np.ndarray = FRAMES, **options: Any) -> Path:
    """An animation, or a still of one frame, by Pillow."""
    Image.init()
    kind = Image.EXTENSION.get(path.suffix, "")
    if kind not in Image.SAVE:
        raise NotHere(f"Pillow does not write {kind or path.suffix}")
    first, *others = (Image.fromarray(frame) for frame in frames)
    more = {"save_all": True, "append_images": others} if others else {}
    first.save(path, **more, **options)
    return path


def program(*words: Any) -> None:
    """Run a program; NotHere if it is missing."""
    if not shutil.which(words[0]):
        raise NotHere(f"needs {words[0]}")
    if subprocess.run([str(word) for word in words], capture_output=True).returncode:
        raise NotHere(f"needs {words[0]} with this encoder")


def png(path: Path, pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> Path:
    """(H, W, 3) uint8 or uint16, with chunks before the pixels."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(pixels.dtype.newbyteorder(">")).tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2, 0, 0, 0)
    parts = (b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


# Containers and codecs -----------------------------------------------------------------------------------------------

PRORES = {"profile": "hq"}
FULL = {"color_range": 2}
CODED: list[tuple[str, str, str, str, dict[str, str], dict[str, int]]] = [
    ("MP4, H.264", "a.mp4", "libx264", "yuv420p", GOOD, {}),
    ("MP4, HEVC", "a.mp4", "libx265", "yuv420p", GOOD, {}),
    ("MP4, AV1", "a.mp4", "libsvtav1", "yuv420p", {"crf": "4", "preset": "10"}, {}),
    ("MP4, VP9", "a.mp4", "libvpx-vp9", "yuv420p", VPX, {}),
    ("MP4, MPEG-4", "a.mp4", "mpeg4", "yuv420p", FINE, {}),
    ("MOV, H.264", "a.mov", "libx264", "yuv420p", GOOD, {}),
    ("MOV, ProRes 422 HQ", "a.mov", "prores_ks", "yuv422p10le", PRORES, {}),
    ("MOV, MJPEG", "a.mov", "mjpeg", "yuv420p", FINE, FULL),
    ("MOV, Animation (qtrle)", "a.mov", "qtrle", "rgb24", {}, {}),
    ("MOV, PNG", "a.mov", "png", "rgb24", {}, {}),
    ("MKV, H.264", "a.mkv", "libx264", "yuv420p", GOOD, {}),
    ("MKV, HEVC of 10 bits", "a.mkv", "libx265", "yuv420p10le", GOOD, {}),
    ("MKV, FFV1", "a.mkv", "ffv1", "yuv444p", {}, {}),
    ("WebM, VP8", "a.webm", "libvpx", "yuv420p", VPX, {}),
    ("WebM, VP9", "a.webm", "libvpx-vp9", "yuv420p", VPX, {}),
    ("WebM, AV1", "a.webm", "libsvtav1", "yuv420p", {"crf": "4", "preset": "10"}, {}),
    ("AVI, MPEG-4", "a.avi", "mpeg4", "yuv420p", FINE, {}),
    ("AVI, MJPEG", "a.avi", "mjpeg", "yuv420p", FINE, FULL),
    ("MPEG-TS, H.264", "a.ts", "libx264", "yuv420p", GOOD, {}),
    ("MPEG-TS, MPEG-2", "a.ts", "mpeg2video", "yuv420p", FINE, {}),
    ("MPEG-PS, MPEG-2", "a.mpg", "mpeg2video", "yuv420p", FINE, {}),
    ("FLV, H.264", "a.flv", "libx264", "yuv420p", GOOD, {}),
    ("OGG, VP8", "a.ogv", "libvpx", "yuv420p", VPX, {}),
    ("WMV, WMV 8", "a.wmv", "wmv2", "yuv420p", FINE, {}),
]


def _coded(folder: Path, name: str, how: Sequence[Any], tags: dict[str, int]) -> File:
    return File(encode(folder / name, *how, **tags))


for what, name, *how, tags in CODED:
    row("Videos", what)(partial(_coded, name=name, how=how, tags=tags))


@row("Videos", "OGG, Theora")
def _(folder: Path) -> File:
    encode(folder / "a.mkv", pix_fmt="yuv420p")
    program("ffmpeg", "-i", folder / "a.mkv", "-c:v", "libtheora", "-q:v", 10, folder / "a.ogv")
    return File(folder / "a.ogv")


# Pictures ------------------------------------------------------------------------------------------------------------

LOSSLESS = {".webp": {"lossless": True}, ".jpg": {"quality": 97, "subsampling": 0}, ".avif": {"quality": 97}}


def _still(folder: Path, ending: str) -> File:
    return File(pictures(folder / f"a{ending}", FRAMES[:1], **LOSSLESS.get(ending, {})), FRAMES[:1])


STILLS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WebP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tiff",
    "AVIF": ".avif",
}
for what, ending in STILLS.items():
    row("Pictures", what)(partial(_still, ending=ending))


@row("Pictures", "HEIC")
def _(folder: Path) -> File:
    program("heif-enc", "-L", pictures(folder / "a.png", FRAMES[:1]), "-o", folder / "a.heic")
    return File(folder / "a.heic", FRAMES[:1])


@row("Pictures", "PNG of 16 bits")
def _(folder: Path) -> File:
    return File(png(folder / "a.png", FRAMES[0].astype(np.uint16) * 257), FRAMES[:1])


@row("Pictures", "PNG, transparent")
def _(folder: Path) -> File:
    return File(pictures(folder / "a.png", RGBA[:1]), MIXED[:1])


@row("Pictures", "JPEG, CMYK without a profile")
def _(folder: Path) -> File:
    Image.fromarray(FRAMES[0]).convert("CMYK").save(folder / "a.jpg", quality=97, subsampling=0)
    return File(folder / "a.jpg", FRAMES[:1])


@row("Pictures", "JPEG, turned by its EXIF orientation")
def _(folder: Path) -> File:
    exif = Image.Exif()
    exif[0x0112] = 6
    return File(pictures(folder / "a.jpg", FRAMES[:1], exif=exif, **LOSSLESS[".jpg"]), np.rot90(FRAMES[:1], -1, (1, 2)))


@row("Pictures", "TIFF of eight pages of one size")
def _(folder: Path) -> File:
    return File(pictures(folder / "a.tiff"), fps=20)


@row("Pictures", "TIFF of two pages of different sizes")
def _(folder: Path) -> File:
    first, other = Image.fromarray(FRAMES[0]), Image.fromarray(FRAMES[1, :32])
    first.save(folder / "a.tiff", save_all=True, append_images=[other])
    return File(folder / "a.tiff", FRAMES[:1])


# Animations and folders ----------------------------------------------------------------------------------------------


def _animated(folder: Path, ending: str) -> File:
    return File(pictures(folder / f"a{ending}", duration=100, **LOSSLESS.get(ending, {})), fps=10)


for ending, name in ((".gif", "GIF"), (".webp", "WebP"), (".png", "PNG (APNG)"), (".avif", "AVIF")):
    row("Animations and folders", f"animated {name}")(partial(_animated, ending=ending))


@row("Animations and folders", "GIF whose frames are cleared to the background")
def _(folder: Path) -> File:
    alone = (FRAMES == BLOCK).all(-1, keepdims=True)
    frames = np.concatenate([FRAMES * alone, np.uint8(255) * alone], -1)
    pictures(folder / "a.gif", frames, duration=100, disposal=2)
    return File(folder / "a.gif", np.where(alone, FRAMES, np.uint8(255)), 10)


@row("Animations and folders", "GIF whose frames last 10 ms")
def _(folder: Path) -> File:
    return File(pictures(folder / "a.gif", duration=10), fps=10)


@row("Animations and folders", "folder of PNGs")
def _(folder: Path) -> File:
    return File(_folder(folder / "frames"), fps=20)


@row("Animations and folders", "folder of PNGs, with --fps 12")
def _(folder: Path) -> File:
    return File(_folder(folder / "frames"), fps=12, options={"fps": 12})


@row("Animations and folders", "folder of JPEGs and PNGs, numbered without zeros")
def _(folder: Path) -> File:
    _folder(folder / "frames", names=[f"{n + 6}.{'png' if n % 2 else 'jpg'}" for n in range(8)])
    return File(folder / "frames", fps=20)


def _folder(path: Path, frames: Sequence[np.ndarray] = FRAMES, names: Sequence[str] = ()) -> Path:
    path.mkdir(parents=True)
    for index, frame in enumerate(frames):
        name = path / (names[index] if names else f"{index:03}.png")
        pictures(name, frame[None], **LOSSLESS.get(name.suffix, {}))
    return path


# Colours and transparency --------------------------------------------------------------------------------------------

TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
TO_P3 = np.array([[0.8225, 0.1774, 0.0000], [0.0332, 0.9669, 0.0000], [0.0171, 0.0724, 0.9108]])


def wide(matrix: np.ndarray, curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The chart in another gamut and curve, (8, 48, 64, 3) uint16."""
    code = FRAMES / 255
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return np.round(np.clip(curve(light @ matrix.T), 0, 1) * 65535).astype(np.uint16)


def srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def pq(light: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, with 203 nits as white."""
    power = (np.maximum(light, 0) * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, of a screen of 1000 nits, with 203 nits as white."""
    light = 0.203 * np.maximum(light, 1e-9)
    scene = light * (light @ [0.2627, 0.6780, 0.0593])[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, (3 * scene) ** 0.5, high)


def p3_profile() -> bytes:
    """An ICC profile of Display P3."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    colours = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
               b"bXYZ": (0.1571, 0.06657, 0.78407), b"wtpt": (0.96419, 1, 0.82489)}  # fmt: skip
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    name = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", 20, 28) + "Display P3".encode("utf-16-be")
    tags = {b"desc": name, b"cprt": name} | {tag: b"XYZ \0\0\0\0" + fixed(*xyz) for tag, xyz in colours.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL" + bytes(24) + fixed(0.96419, 1, 0.82489)
    return head + b"none" + bytes(44) + table + body


BT2020 = {"colorspace": 9, "color_primaries": 9}
TAGGED: list[tuple[str, str, dict[str, Any]]] = [
    ("video, BT.709 tags", "a.mp4", {"codec": "libx264", "options": GOOD, **BT709}),
    ("video, full range", "a.mp4", {"codec": "libx264", "options": GOOD, **BT709, **FULL}),
    ("video, HDR: PQ, BT.2020", "a.mkv", {"frames": wide(TO_BT2020, pq), **BT2020, "color_trc": 16}),
    ("video, HDR: HLG, BT.2020", "a.mkv", {"frames": wide(TO_BT2020, hlg), **BT2020, "color_trc": 18}),
    ("video, BT.2020 without HDR", "a.mkv", {"frames": wide(TO_BT2020, srgb), **BT2020, "color_trc": 14}),
    ("video, Display P3", "a.mkv", {"frames": wide(TO_P3, srgb), **BT709, "color_primaries": 12}),
]


def _tagged(folder: Path, name: str, how: dict[str, Any]) -> File:
    return File(encode(folder / name, pix_fmt="yuv420p10le" if "frames" in how else "yuv420p", **how))


for what, name, tagged in TAGGED:
    row("Colours and transparency", what)(partial(_tagged, name=name, how=tagged))


@row("Colours and transparency", "HD video without tags (BT.709 is meant)")
def _(folder: Path) -> File:
    large = FRAMES[:2].repeat(15, 1).repeat(20, 2)  # 1280x720, of blocks
    path = encode(folder / "a.mp4", "libx264", "yuv420p", GOOD, large, matrix="ITU709")
    return File(path, np.stack([resize(frame, (144, 256)) for frame in large]))


@row("Colours and transparency", "PNG with the profile of Display P3")
def _(folder: Path) -> File:
    pixels = np.round(wide(TO_P3, srgb)[:1] / 257).astype(np.uint8)
    return File(pictures(folder / "a.png", pixels, icc_profile=p3_profile()), FRAMES[:1])


@row("Colours and transparency", "JPEG with the profile of Display P3")
def _(folder: Path) -> File:
    pixels = np.round(wide(TO_P3, srgb)[:1] / 257).astype(np.uint8)
    return File(pictures(folder / "a.jpg", pixels, icc_profile=p3_profile(), **LOSSLESS[".jpg"]), FRAMES[:1])


@row("Colours and transparency", "PNG of 16 bits, HDR: PQ in its cICP")
def _(folder: Path) -> File:
    return File(png(folder / "a.png", wide(TO_BT2020, pq)[0], (b"cICP", bytes([9, 16, 0, 1]))), FRAMES[:1])


@row("Colours and transparency", "WebM, VP9 with transparency")
def _(folder: Path) -> File:
    path = encode(folder / "a.webm", "libvpx-vp9", "yuva420p", {**VPX, "auto-alt-ref": "0"}, RGBA)
    return File(path, MIXED)


@row("Colours and transparency", "MOV, ProRes 4444 with transparency")
def _(folder: Path) -> File:
    return File(encode(folder / "a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}, RGBA), MIXED)


# Shape and streams ---------------------------------------------------------------------------------------------------


@row("Shape and streams", "MP4, pixels of 4:3")
def _(folder: Path) -> File:
    path = encode(folder / "a.mp4", "libx264", "yuv420p", GOOD, aspect=Fraction(4, 3))
    return File(path, np.stack([resize(frame, (48, 85)) for frame in FRAMES]))


@row("Shape and streams", "MKV, a display size of 2:1")
def _(folder: Path) -> File:
    encode(folder / "a.mkv")
    program("ffmpeg", "-i", folder / "a.mkv", "-c", "copy", "-aspect", "2:1", folder / "b.mkv")
    return File(folder / "b.mkv", np.stack([resize(frame, (48, 96)) for frame in FRAMES]))


def _turned(folder: Path, matrix: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray]) -> File:
    path = encode(folder / "a.mp4", "libx264", "yuv420p", GOOD)
    data = bytearray(path.read_bytes())
    a, b, c, d = (n << 16 for n in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return File(path, shown(FRAMES))


row("Shape and streams", "MP4, turned by 90° by its display matrix")(
    partial(_turned, matrix=(0, 1, -1, 0), shown=lambda frames: np.rot90(frames, -1, (1, 2)))
)
row("Shape and streams", "MP4, mirrored by its display matrix")(
    partial(_turned, matrix=(-1, 0, 0, 1), shown=lambda frames: frames[:, :, ::-1])
)


@row("Shape and streams", "MP4, interlaced")
def _(folder: Path) -> File:
    woven = chart(range(4, 68, 8))
    woven[:, ::2] = FRAMES[:, ::2]
    graph = av.filter.Graph()
    form = av.VideoFormat("rgb24")
    source = graph.add_buffer(width=64, height=48, format=form, time_base=Fraction(1, 25))
    chain = [graph.add("setfield", "tff"), graph.add("format", "yuv444p"), graph.add("buffersink")]
    graph.link_nodes(source, *chain).configure()
    with av.open(str(folder / "a.mp4"), "w") as out:
        stream = add_stream(out, "libx264")
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        stream.options = {"crf": "4", "x264-params": "tff=1"}
        for index, frame in enumerate(woven):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = index, Fraction(1, 25)
            graph.push(image)
            out.mux(stream.encode(graph.pull()))
        out.mux(stream.encode())
    return File(folder / "a.mp4")


def _muxed(path: Path, videos: Sequence[tuple[np.ndarray, Disposition]], cover: bool = False) -> Path:
    """H.264 streams of frames with a disposition, and a PNG as a cover picture."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as out:
        streams = [(add_stream(out, "libx264", options=GOOD), frames, use) for frames, use in videos]
        for stream, frames, use in streams:
            stream.height, stream.width, stream.pix_fmt, stream.disposition = *frames.shape[1:3], "yuv420p", use
        tone = None if videos else add_stream(out, "aac", 44100)
        if cover:
            picture = add_stream(out, "png")
            picture.width = picture.height = 64
            picture.pix_fmt, picture.disposition = "rgb24", Disposition.attached_pic
        for stream, frames, _ in streams:
            for frame in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        if tone is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 44100
            out.mux([*tone.encode(silence), *tone.encode()])
        if cover:
            data = io.BytesIO()
            Image.new("RGB", (64, 64), "red").save(data, "PNG")
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
            out.mux(packet)
    return path


@row("Shape and streams", "MKV of two videos, of which the second is the default one")
def _(folder: Path) -> File:
    other = np.full((8, 64, 96, 3), 99, np.uint8)
    return File(_muxed(folder / "a.mkv", [(other, Disposition(0)), (FRAMES, Disposition.default)]))


@row("Shape and streams", "MP4 of a video and a cover picture")
def _(folder: Path) -> File:
    return File(_muxed(folder / "a.mp4", [(FRAMES, Disposition.default)], cover=True))


@row("Shape and streams", "M4A: sound and a cover picture")
def _(folder: Path) -> File:
    return File(_muxed(folder / "a.m4a", [], cover=True))


# Times ---------------------------------------------------------------------------------------------------------------

DROPPED = [0, 1, 2, 3, 4, 6, 7]


@row("Times", "MP4 with a pause of 2 s")
def _(folder: Path) -> File:
    return File(encode(folder / "a.mp4", "libx264", "yuv420p", GOOD, times=[0, 1, 2, 3, 54, 55, 56, 57]))


@row("Times", "MP4 of variable frame rate: a frame is missing")
def _(folder: Path) -> File:
    path = encode(folder / "a.mp4", "libx264", "yuv420p", GOOD, FRAMES[DROPPED], DROPPED)
    return File(path, FRAMES[[0, 1, 2, 3, 4, 4, 6, 7]])


@row("Times", "MP4 of 25 fps, with --fps 12.5")
def _(folder: Path) -> File:
    return File(encode(folder / "a.mp4", "libx264", "yuv420p", GOOD), FRAMES[::2], 12.5, {"fps": 12.5})


@row("Times", "GIF whose last frame is held for 2 s")
def _(folder: Path) -> File:
    return File(pictures(folder / "a.gif", duration=[100] * 7 + [2000]), fps=10)


# Damage and sizes ----------------------------------------------------------------------------------------------------


@row("Damage and sizes", "MKV, damaged in the middle")
def _(folder: Path) -> File:
    path = encode(folder / "a.mkv")
    with av.open(str(path)) as file:
        packet = [bytes(packet) for packet in file.demux(video=0) if packet.size][5]
    path.write_bytes(path.read_bytes().replace(packet, b"\xff" * len(packet)))
    return File(path)


@row("Damage and sizes", "the same, with --stop 5")
def _(folder: Path) -> File:
    return File(ROWS_BY_NAME["MKV, damaged in the middle"].write(folder).path, FRAMES[:5], options={"stop": 5})


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@row("Damage and sizes", "MP4, cut off before its index at the end")
def _(folder: Path) -> File:
    return File(_cut(encode(folder / "a.mp4", "libx264", "yuv420p", GOOD), 0.5))


def _cut_after(folder: Path, kept: int) -> File:
    """An MP4 whose index comes first, cut off after so many frames."""
    encode(folder / "b.mp4", "libx264", "yuv420p", GOOD)
    path, options = folder / "a.mp4", {"movflags": "faststart"}
    with av.open(str(folder / "b.mp4")) as source, av.open(str(path), "w", options=options) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        cut = bytes(packets[kept])
        for packet in packets:
            packet.stream = stream
            out.mux(packet)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(cut)])
    return File(path, FRAMES[:kept])  # no more is in it; that some are missing has to be said


row("Damage and sizes", "MP4, cut off after 3 of its 8 frames")(partial(_cut_after, kept=3))
row("Damage and sizes", "MP4, cut off after 5 of its 8 frames")(partial(_cut_after, kept=5))


@row("Damage and sizes", "GIF, cut off in its fifth frame")
def _(folder: Path) -> File:
    path = pictures(folder / "a.gif", duration=100)
    starts = [match.start() for match in re.finditer(rb"\x21\xf9\x04", path.read_bytes())]
    path.write_bytes(path.read_bytes()[: starts[5] - 20])
    return File(path)


@row("Damage and sizes", "PNG, cut off")
def _(folder: Path) -> File:
    return File(_cut(pictures(folder / "a.png", FRAMES[:1]), 0.7))


@row("Damage and sizes", "MPEG-TS whose size changes")
def _(folder: Path) -> File:
    large = encode(folder / "b.ts", "mpeg2video", "yuv420p", FINE, FRAMES.repeat(2, 1).repeat(2, 2)).read_bytes()
    small = encode(folder / "a.ts", "mpeg2video", "yuv420p", FINE)
    small.write_bytes(small.read_bytes() + large)
    return File(small)


@row("Damage and sizes", "folder of pictures of two sizes")
def _(folder: Path) -> File:
    return File(_folder(folder / "frames", [FRAMES[0], FRAMES[1, :32]]))


@row("Damage and sizes", "the same, with --size 64x48")
def _(folder: Path) -> File:
    path = _folder(folder / "frames", [FRAMES[0], FRAMES[1, :32]])
    return File(path, np.stack([FRAMES[0], resize(FRAMES[1, :32], (48, 64))]), 20, {"size": (48, 64)})


# What is no clip -----------------------------------------------------------------------------------------------------

NO_CLIPS = {
    "MP3": ("a.mp3", b"ID3\4" + bytes(40)),
    "MXF": ("a.mxf", b"\x06\x0e\x2b\x34" + bytes(40)),
    "JPEG XL": ("a.jxl", b"\xff\x0a" + bytes(40)),
    "PPM": ("a.ppm", b"P6\n2 1\n255\n" + bytes(6)),
    "PDF": ("a.pdf", b"%PDF-1.4\n" + bytes(40)),
    "RAW photo": ("a.cr3", b"\0\0\0\x18ftypcrx " + bytes(40)),
    "zip": ("a.zip", b"PK\3\4" + bytes(40)),
    "text": ("a.txt", b"a fish\n"),
    "safetensors": ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
    "NumPy array": ("a.npy", b"\x93NUMPY" + bytes(40)),
    "web page named as a video": ("a.mp4", b"<!DOCTYPE html><html>"),
    "empty file": ("a.mp4", b""),
}


def _bytes(folder: Path, name: str, data: bytes) -> File:
    (folder / name).write_bytes(data)
    return File(folder / name)


for what, (name, data) in NO_CLIPS.items():
    row("What is no clip", what)(partial(_bytes, name=name, data=data))


@row("What is no clip", "folder of a run")
def _(folder: Path) -> File:
    encode(folder / "fish.mp4", "libx264", "yuv420p", GOOD)
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(json.dumps({"source": str(folder / "fish.mp4")}))
    return File(folder / "run")


@row("What is no clip", "folder whose pictures lie one deeper")
def _(folder: Path) -> File:
    _folder(folder / "clips" / "fish")
    return File(folder / "clips")


@row("What is no clip", "folder of one video")
def _(folder: Path) -> File:
    (folder / "clips").mkdir()
    encode(folder / "clips" / "fish.mp4", "libx264", "yuv420p", GOOD)
    return File(folder / "clips")


@row("What is no clip", "name of nothing")
def _(folder: Path) -> File:
    return File(folder / "fish.mp4")


ROWS_BY_NAME = {one.what: one for one in ROWS}


# The document --------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def written() -> dict[str, str]:
    """Row -> outcome, as the document has them."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))


def measured(rows: Sequence[Row] = ()) -> dict[str, Outcome]:
    """Row -> outcome; a row that cannot be run here has what the document says of it."""
    before, outcomes = written(), {}
    for one in rows or ROWS:
        try:
            outcome = run(one)
        except NotHere as why:
            print(f"{one.what}: {why}", file=sys.stderr)
            outcome = Outcome(before.get(one.what, NOT_RUN + str(why)))
        else:
            outcome = Outcome(escaped(outcome.before), outcome.error, escaped(outcome.after))
        outcomes[one.what] = outcome
    return outcomes


def differences(outcomes: dict[str, Outcome]) -> list[str]:
    """What the document says otherwise, a line each."""
    before = written()
    return [
        f"{what}: {outcome.text()}\n  the document: {before.get(what, 'nothing')}"
        for what, outcome in outcomes.items()
        if not outcome.agrees(before.get(what, ""))
    ]


def tables(outcomes: dict[str, Outcome]) -> str:
    lines, group = [], ""
    for one in ROWS:
        if one.group != group:
            group = one.group
            lines += ["", f"## {group}", "", "| file | what happens |", "| --- | --- |"]
        lines.append(f"| {one.what} | {outcomes[one.what].text()} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Settings:
    write: bool = False  # write the document


def main(settings: Settings) -> None:
    outcomes = measured()
    if settings.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOCUMENT.write_text(f"{text[:begin]}\n{tables(outcomes)}\n{text[end:]}", encoding="utf-8")
        return
    print(tables(outcomes))
    if different := differences(outcomes):
        print("\n".join(different), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
