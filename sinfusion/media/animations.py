"""GIF and APNG as browsers show them: each frame is drawn over what the one before has left of a transparent canvas.

animation = open_gif(path)            # or open_apng(path): Animation, nothing decoded yet
for image in animation.shown(range(10)): ...

Pillow decodes the single frames. Put together by it, a GIF is cleared to a colour that browsers do not show and grows
with frames that reach beyond its screen, and in an APNG translucent pixels over opaque ones let the page through.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..clip import from_pillow

# Browsers show frames that are to last 10 ms or less for 100 ms: so many files say 0 and mean something else.
TOO_SHORT, INSTEAD = 0.0105, 0.1  # seconds
KEEP, CLEAR, RESTORE = range(3)  # what becomes of a frame's rectangle before the next one
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class Layer:
    """A frame as it is stored."""

    corner: tuple[int, int]  # (left, top) on the canvas
    size: tuple[int, int]  # (width, height)
    seconds: float
    dispose: int
    over: bool  # whether it is drawn over the canvas; or else replaces it, transparency and all
    decode: Callable[[BinaryIO], Image.Image]  # of the file, RGBA


@dataclass
class Animation:
    """The frames of a file, as they are stored."""

    path: Path
    size: tuple[int, int]  # (width, height)
    layers: list[Layer] = field(default_factory=list)
    damage: str = ""  # what is wrong behind the last frame
    profile: bytes | None = None  # ICC

    def shown(self, wanted: range) -> Iterator[Image.Image]:
        """The wanted frames as they are shown: RGBA, not to be kept or changed; ValueError for damage."""
        canvas = Image.new("RGBA", self.size)
        if self.profile:
            canvas.info["icc_profile"] = self.profile
        with self.path.open("rb") as file:
            for index, layer in enumerate(self.layers[: wanted.stop]):
                before = canvas.copy() if layer.dispose == RESTORE else None
                _draw(canvas, layer, layer.decode(file))
                if index in wanted:
                    yield canvas
                if before is not None:
                    canvas = before
                elif layer.dispose == CLEAR:
                    canvas.paste((0, 0, 0, 0), _box(layer))
        if self.damage and wanted.stop > len(self.layers):
            raise ValueError(self.damage)


def shown_seconds(seconds: float) -> float:
    """How long browsers show a frame of an animation that is to last so long."""
    return INSTEAD if seconds < TOO_SHORT else seconds


def _box(layer: Layer) -> tuple[int, int, int, int]:
    (left, top), (width, height) = layer.corner, layer.size
    return left, top, left + width, top + height


def _draw(canvas: Image.Image, layer: Layer, image: Image.Image) -> None:
    """Draw the part of a frame that lies on the canvas."""
    left, top, right, bottom = _box(layer)
    right, bottom = min(right, canvas.width), min(bottom, canvas.height)
    if left >= right or top >= bottom:
        return
    if image.size != (right - left, bottom - top):
        image = image.crop((0, 0, right - left, bottom - top))
    if layer.over:
        canvas.alpha_composite(image, (left, top))
    else:
        canvas.paste(image, (left, top))


# GIF -----------------------------------------------------------------------------------------------------------------


def open_gif(path: Path) -> Animation:
    """Find the frames of a GIF; ValueError if there are none."""
    with path.open("rb") as file:
        head = file.read(13)
        width, height, flags = struct.unpack_from("<HHB", head, 6)
        animation = Animation(path, (width, height))
        palette = file.read(_palette_bytes(flags))
        control = bytes(4)
        while (kind := file.read(1)) not in (b"", b";"):
            if kind == b"!" and file.read(1) == b"\xf9":
                control = _sub_blocks(file)[:4].ljust(4, b"\0")
            elif kind == b"!":
                _skip_sub_blocks(file)
            elif kind == b",":
                if not _add_gif_layer(animation, file, control, palette):
                    break
                control = bytes(4)
            elif kind != b"\0":
                animation.damage = "something between two frames that is neither"
                break
    if not animation.layers:
        raise ValueError(animation.damage or "no frames")
    return animation


def _add_gif_layer(animation: Animation, file: BinaryIO, control: bytes, palette: bytes) -> bool:
    """Add the frame whose description comes next in the file; False if the file ends before."""
    head = file.read(9)
    if len(head) < 9:
        animation.damage = "the last frame is not whole"
        return False
    left, top, width, height, flags = struct.unpack("<HHHHB", head)
    if not animation.layers:  # of which browsers see all, even beyond the screen
        animation.size = max(animation.size[0], left + width), max(animation.size[1], top + height)
    width, height = width or animation.size[0], height or animation.size[1]
    palette = file.read(_palette_bytes(flags)) or palette
    packed, hundredths, transparent = struct.unpack("<BHB", control)
    start = file.tell()
    file.seek(1, io.SEEK_CUR)
    _skip_sub_blocks(file)
    place = start, file.tell() - start
    colours = _gif_colours(palette, transparent if packed & 1 else None)
    animation.layers.append(
        Layer(
            corner=(left, top),
            size=(width, height),
            seconds=shown_seconds(hundredths / 100),
            dispose={2: CLEAR, 3: RESTORE, 4: RESTORE}.get(packed >> 2 & 7, KEEP),  # some writers take bit 4 for 3
            over=True,
            decode=lambda file: _decode_gif(file, place, (width, height), flags & 0x40, colours),
        )
    )
    return True


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _sub_blocks(file: BinaryIO) -> bytes:
    """What the blocks that come next hold, together."""
    parts = []
    while size := file.read(1)[:1]:
        if size == b"\0":
            break
        parts.append(file.read(size[0]))
    return b"".join(parts)


def _skip_sub_blocks(file: BinaryIO) -> None:
    while (size := file.read(1)) not in (b"", b"\0"):
        file.seek(size[0], io.SEEK_CUR)


def _gif_colours(palette: bytes, transparent: int | None) -> bytes:
    """256 colours RGBA; those that a palette lacks are transparent, as in browsers. Without any palette: greys."""
    colours = np.zeros((256, 4), np.uint8)
    known = np.frombuffer(palette, np.uint8)[: len(palette) // 3 * 3].reshape(-1, 3)
    if not len(known):
        known = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    colours[: len(known), :3], colours[: len(known), 3] = known, 255
    if transparent is not None:
        colours[transparent] = 0
    return colours.tobytes()


def _decode_gif(
    file: BinaryIO, place: tuple[int, int], size: tuple[int, int], interlaced: int, colours: bytes
) -> Image.Image:
    """A frame's compressed numbers of colours, as a GIF of their own."""
    file.seek(place[0])
    screen = struct.pack("<6sHHBBB", b"GIF89a", *size, 0x80, 0, 0) + bytes(6)
    data = screen + struct.pack("<cHHHHB", b",", 0, 0, *size, interlaced) + file.read(place[1]) + b";"
    with Image.open(io.BytesIO(data), formats=("GIF",)) as image:
        numbers = Image.frombytes("P", image.size, image.tobytes())
    numbers.putpalette(colours, "RGBA")
    return numbers.convert("RGBA")


# APNG ----------------------------------------------------------------------------------------------------------------


def open_apng(path: Path) -> Animation:
    """Find the frames of an animated PNG; ValueError for damage before the last. The still image is not one of them,
    unless it is the first."""
    with path.open("rb") as file:
        animation = Animation(path, (0, 0))
        before: list[tuple[bytes, bytes]] = []  # chunks that all frames need
        control: bytes | None = None
        data: list[tuple[bytes, tuple[int, int]]] = []  # chunks with the compressed lines of the frame
        promised, header = 0, b""
        for kind, place in _chunks(file):
            if kind == b"IHDR":
                header = _chunk_data(file, kind, place)
                animation.size = struct.unpack_from(">II", header)
            elif kind == b"acTL":
                promised = struct.unpack_from(">I", _chunk_data(file, kind, place))[0]
            elif kind in (b"PLTE", b"tRNS"):
                before.append((kind, _chunk_data(file, kind, place)))
            elif kind in (b"fcTL", b"IEND"):
                if control is not None:
                    _add_apng_layer(animation, control, data, header, before)
                control, data = (_chunk_data(file, kind, place) if kind == b"fcTL" else None), []
            elif control is not None and kind in (b"IDAT", b"fdAT"):
                data.append((kind, place))
        if control is not None:  # the file ends in a frame
            _add_apng_layer(animation, control, data, header, before)
    if len(animation.layers) < promised or not animation.layers:
        animation.damage = f"{promised} frames are promised, {len(animation.layers)} are there"
    del animation.layers[promised:]
    if not animation.layers:
        raise ValueError(animation.damage)
    return animation


def _add_apng_layer(
    animation: Animation,
    control: bytes,
    data: list[tuple[bytes, tuple[int, int]]],
    header: bytes,
    before: list[tuple[bytes, bytes]],
) -> None:
    width, height, left, top, over, below, dispose, blend = struct.unpack_from(">IIIIHHBB", control, 4)
    if left + width > animation.size[0] or top + height > animation.size[1] or 0 in (width, height):
        raise ValueError(f"a frame of {width}x{height} at {left}, {top} is not in {animation.size}")
    kept = [(b"IHDR", struct.pack(">II", width, height) + header[8:]), *before]
    animation.layers.append(
        Layer(
            corner=(left, top),
            size=(width, height),
            seconds=shown_seconds(over / (below or 100)),
            dispose=CLEAR if dispose == RESTORE and not animation.layers else dispose,
            over=blend == 1,
            decode=lambda file: _decode_png(file, kept, data),
        )
    )


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """(type, (offset, length) of its data) of each chunk of a PNG, to the end of the file or IEND."""
    at = len(PNG_SIGNATURE)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, (at + 8, length)
        if kind == b"IEND":
            return
        at += length + 12


def _chunk_data(file: BinaryIO, kind: bytes, place: tuple[int, int]) -> bytes:
    """The data of a chunk; ValueError if its checksum is another."""
    file.seek(place[0])
    data, checksum = file.read(place[1]), file.read(4)
    if checksum != struct.pack(">I", zlib.crc32(kind + data)):
        raise ValueError(f"a chunk {kind.decode('ascii', 'replace')} has another checksum")
    return data


def _decode_png(
    file: BinaryIO, before: list[tuple[bytes, bytes]], data: list[tuple[bytes, tuple[int, int]]]
) -> Image.Image:
    """A frame as a PNG of its own."""
    parts = [PNG_SIGNATURE]
    lines = ((b"IDAT", _chunk_data(file, kind, place)[4 if kind == b"fdAT" else 0 :]) for kind, place in data)
    for kind, content in (*before, *lines, (b"IEND", b"")):
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    with Image.open(io.BytesIO(b"".join(parts)), formats=("PNG",)) as image:
        image.load()
        deep = image.mode == "F" or image.mode.startswith("I")
        return Image.fromarray(from_pillow(image)).convert("RGBA") if deep else image.convert("RGBA")
