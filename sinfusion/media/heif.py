"""HEIC and AVIF stills: which coded pictures the image of a file is made of, and what is done to them to see it.

still = read_still(path)          # Still: a frame as coded, transparency, colour profile; `upright` crops and turns

The container is ISO/IEC 23008-12. A file has items: coded pictures, and grids of them. The primary item is the image;
it is seldom the only one and need not be the first. Others are tiles, thumbnails, transparency, depth. FFmpeg decodes
them; PyAV does not show how they belong together, so that is read here. Orientation is what the boxes `irot` and `imir`
say: the Exif data of such a file repeats it, and readers are to ignore it there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from ..errors import SinfusionError

STILLS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"miaf", b"avif"}  # major brands
SEQUENCES = {b"hevc", b"hevx", b"hevm", b"hevs", b"msf1", b"avis"}
CODECS = {
    b"hvc1": ("hevc", b"hvcC"),
    b"av01": ("libdav1d", b"av1C"),
    b"avc1": ("h264", b"avcC"),
    b"jpeg": ("mjpeg", b"jpgC"),
}
ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
MAX_META_BYTES = 32 << 20  # of what describes the items; that of a photo has some thousand
MAX_PIXELS = 178_956_970  # of an image, as in Pillow
BT601, UNSPECIFIED = 6, 2  # matrix coefficients
LIMITED, FULL = 1, 2  # ranges of FFmpeg


@dataclass
class Item:
    """A coded picture, or one that is made of others."""

    kind: bytes = b""  # hvc1, av01, grid, ...
    extents: list[tuple[int, int]] = field(default_factory=list)  # (offset, length) of its bytes
    inside: bool = False  # whether offsets count in the box `idat`, not in the file
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)  # (type, content) in their order


@dataclass(frozen=True)
class Still:
    """The image of a file as it is coded, and how it is shown."""

    frame: av.VideoFrame
    alpha: np.ndarray | None  # (H, W) uint8
    premultiplied: bool  # whether colours are multiplied by the alpha already
    profile: bytes | None  # ICC
    size: tuple[int, int]  # (height, width) of the image; the frame may be larger
    turns: list[Callable[[np.ndarray], np.ndarray]]  # (H, W, ...) each: to crop, turn and mirror, in this order

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels of the frame, (H, W, ...), as they are shown."""
        pixels = pixels[: self.size[0], : self.size[1]]
        for turn in self.turns:
            pixels = turn(pixels)
        return np.ascontiguousarray(pixels)


def brand(path: Path) -> bytes:
    """The four letters of a file of this family that say what it is first of all; nothing for another file."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[8:12] if head[4:8] == b"ftyp" else b""


def read_still(path: Path) -> Still:
    """Decode the image of a HEIC or AVIF file; SinfusionError for what cannot be decoded, other errors for damage."""
    with path.open("rb") as file:
        return _HeifFile(path, file).still()


def probe_still(path: Path) -> tuple[int, int]:
    """(height, width) of the image as it is shown, without decoding it."""
    with path.open("rb") as file:
        heif = _HeifFile(path, file)
        size = heif.size(heif.primary)
        shown = np.broadcast_to(np.uint8(0), size)
        for turn in heif.turns(heif.primary):
            shown = turn(shown)
        return shown.shape[0], shown.shape[1]


class _HeifFile:
    """What the box `meta` of an open file says, and its items decoded."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.length = path.stat().st_size
        meta = self._meta()
        boxes = dict(_boxes(meta[4:]))
        self.items: dict[int, Item] = {}
        self.references: list[tuple[bytes, int, list[int]]] = []  # (kind, from, to)
        self.data = boxes.get(b"idat", b"")
        self._read_kinds(boxes[b"iinf"])
        self._read_places(boxes[b"iloc"])
        self._read_properties(boxes[b"iprp"])
        self._read_references(boxes.get(b"iref", bytes(4)))
        pitm = _Reader(boxes[b"pitm"])
        self.primary = pitm.number(2 if pitm.full_box()[0] == 0 else 4)

    def still(self) -> Still:
        """The primary item, decoded."""
        alpha = next((one for kind, one, to in self.references if kind == b"auxl" and self._is_alpha(one, to)), None)
        frame, size = self.decode(self.primary), self.size(self.primary)
        if frame.height < size[0] or frame.width < size[1]:
            size = frame.height, frame.width
        self._describe_colours(frame)
        return Still(
            frame=frame,
            alpha=None if alpha is None else _fit(first_plane(self.decode(alpha)), (frame.height, frame.width)),
            premultiplied=any(kind == b"prem" and one == self.primary for kind, one, _ in self.references),
            profile=next(
                (data[4:] for data in self._all(self.primary, b"colr") if data[:4] in (b"prof", b"rICC")), None
            ),
            size=size,
            turns=self.turns(self.primary),
        )

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of an item before it is turned; SinfusionError where that is too large."""
        width, height = struct.unpack_from(">II", self._first(number, b"ispe"), 4)
        if not 0 < width * height <= MAX_PIXELS:
            raise SinfusionError(
                f"{self.path} is too large an image: {width}x{height}; at most {MAX_PIXELS // 10**6} megapixels are "
                "read, save it smaller."
            )
        return height, width

    def turns(self, number: int) -> list[Callable[[np.ndarray], np.ndarray]]:
        """What is to be done to an item to see it: `clap` crops it, `irot` turns it left, `imir` mirrors it."""
        turns: list[Callable[[np.ndarray], np.ndarray]] = []
        for kind, data in self.items[number].properties:
            if kind == b"clap":
                turns.append(partial(_clean_aperture, numbers=struct.unpack_from(">IIIIiIiI", data)))
            elif kind == b"irot":
                turns.append(partial(np.rot90, k=data[0] & 3))
            elif kind == b"imir":  # axis 0 exchanges top and bottom
                turns.append(partial(np.flip, axis=data[0] & 1))
        if self.items[number].kind == b"iden":
            return self.turns(self._parts(number)[0]) + turns
        return turns

    def decode(self, number: int, depth: int = 0) -> av.VideoFrame:
        """An item as one frame, before it is turned."""
        item = self.items[number]
        if item.kind in CODECS:
            return next(self._decoded([number]))
        if item.kind == b"iden" and depth < 4:
            return self.decode(self._parts(number)[0], depth + 1)
        if item.kind != b"grid":
            raise SinfusionError(
                f"{self.path} has an image of type {_text(item.kind)}, of which only HEVC, AV1, H.264 and JPEG "
                "pictures and grids of them are read; save it as JPEG or PNG."
            )
        rows, columns = (n + 1 for n in self._bytes(number)[2:4])
        tiles = self._parts(number)
        if len(tiles) != rows * columns:
            raise ValueError(f"a grid of {columns}x{rows} has {len(tiles)} tiles")
        self.size(number)
        return _assembled(self._decoded(tiles), rows, columns)

    def _decoded(self, numbers: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Coded items, decoded one after another; those of one configuration by one decoder."""
        open_with, decoder = None, None
        for number in numbers:
            item = self.items[number]
            if item.kind not in CODECS:
                raise ValueError(f"a tile of type {_text(item.kind)}")
            self.size(number)
            name, configuration = CODECS[item.kind]
            settings = name, next(iter(self._all(number, configuration)), b"")
            if settings != open_with or decoder is None:
                decoder, open_with = self._decoder(*settings), settings
            data = (settings[1] if item.kind == b"jpeg" else b"") + self._bytes(number)
            frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
            decoder.flush_buffers()
            if not frames:
                raise ValueError("a picture without an image")
            yield frames[-1]

    def _decoder(self, name: str, configuration: bytes) -> Any:
        try:
            decoder: Any = av.CodecContext.create(name, "r")
        except ValueError as error:
            raise SinfusionError(f"{self.path} needs the decoder {name}; install PyAV from its wheels.") from error
        if configuration and name != "mjpeg":
            decoder.extradata = configuration
        # FFmpeg's threads, when they report an error, wait for Python's lock, which whoever closes the decoder holds.
        decoder.thread_count = 1
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        return decoder

    def _describe_colours(self, frame: av.VideoFrame) -> None:
        """What the box `colr` says goes before what the coded picture says."""
        for data in self._all(self.primary, b"colr"):
            if data[:4] == b"nclx":
                frame.color_primaries, frame.color_trc, frame.colorspace = struct.unpack_from(">HHH", data, 4)
                frame.color_range = FULL if data[10] & 0x80 else LIMITED
        if frame.colorspace == UNSPECIFIED and frame.format.name[:4] != "gbrp":
            frame.colorspace = BT601  # the default of the standard, of whatever size
        if frame.format.name.startswith("gray") and frame.color_range == LIMITED:
            _stretch(frame)  # FFmpeg's scaler takes all grey for full range

    def _is_alpha(self, number: int, masters: list[int]) -> bool:
        return self.primary in masters and any(data[4:].split(b"\0")[0] in ALPHA for data in self._all(number, b"auxC"))

    def _all(self, number: int, kind: bytes) -> list[bytes]:
        """Contents of an item's properties of a type."""
        return [data for name, data in self.items[number].properties if name == kind]

    def _first(self, number: int, kind: bytes) -> bytes:
        found = self._all(number, kind)
        if not found:
            raise ValueError(f"no {_text(kind)}")
        return found[0]

    def _parts(self, number: int) -> list[int]:
        """The items that another is made of."""
        return next(to for kind, one, to in self.references if kind == b"dimg" and one == number)

    def _bytes(self, number: int) -> bytes:
        """The bytes of an item."""
        item, parts = self.items[number], []
        for offset, length in item.extents:
            whole = len(self.data) if item.inside else self.length
            length = length or whole - offset
            if offset + length > whole:
                raise ValueError(f"{offset + length - whole} bytes are missing at the end")
            if item.inside:
                parts.append(self.data[offset : offset + length])
            else:
                self.file.seek(offset)
                parts.append(self.file.read(length))
        return b"".join(parts)

    # What the boxes say ----------------------------------------------------------------------------------------------

    def _meta(self) -> bytes:
        """The box `meta` of the file."""
        at = 0
        while at + 8 <= self.length:
            self.file.seek(at)
            size, kind, start = _header(self.file.read(16), self.length - at)
            if kind == b"meta":
                if size > MAX_META_BYTES or at + size > self.length:
                    raise ValueError("the description of its items is not whole")
                self.file.seek(at + start)
                return self.file.read(size - start)
            at += size
        raise ValueError("there is no description of its items")

    def _read_kinds(self, box: bytes) -> None:
        reader = _Reader(box)
        reader.number(2 if reader.full_box()[0] == 0 else 4)
        for kind, data in _boxes(reader.rest()):
            if kind == b"infe" and data[0] >= 2:
                entry = _Reader(data)
                number = entry.number(2 if entry.full_box()[0] == 2 else 4)
                entry.number(2)
                self.items[number] = Item(entry.take(4))

    def _read_places(self, box: bytes) -> None:
        reader = _Reader(box)
        version = reader.full_box()[0]
        sizes = reader.number(2)
        of_offset, of_length, of_base, of_index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        for _ in range(reader.number(2 if version < 2 else 4)):
            item = self.items.setdefault(reader.number(2 if version < 2 else 4), Item())
            item.inside = version > 0 and reader.number(2) & 15 == 1
            reader.number(2)
            base = reader.number(of_base)
            for _ in range(reader.number(2)):
                reader.number(of_index if version > 0 else 0)
                offset = base + reader.number(of_offset)
                item.extents.append((offset, reader.number(of_length)))

    def _read_properties(self, box: bytes) -> None:
        properties: list[tuple[bytes, bytes]] = []
        for kind, data in _boxes(box):
            if kind == b"ipco":
                properties = list(_boxes(data))
            if kind == b"ipma":
                reader = _Reader(data)
                version, flags = reader.full_box()
                for _ in range(reader.number(4)):
                    item = self.items.setdefault(reader.number(2 if version < 1 else 4), Item())
                    for _ in range(reader.number(1)):
                        index = reader.number(2) & 0x7FFF if flags & 1 else reader.number(1) & 0x7F
                        if 0 < index <= len(properties):
                            item.properties.append(properties[index - 1])

    def _read_references(self, box: bytes) -> None:
        reader = _Reader(box)
        width = 2 if reader.full_box()[0] == 0 else 4
        for kind, data in _boxes(reader.rest()):
            entry = _Reader(data)
            one = entry.number(width)
            self.references.append((kind, one, [entry.number(width) for _ in range(entry.number(2))]))


class _Reader:
    """Numbers, big-endian, one after another; ValueError where they end."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError("a description that ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def full_box(self) -> tuple[int, int]:
        """Version and flags, with which many boxes begin."""
        return self.number(1), self.number(3)

    def rest(self) -> bytes:
        return self.data[self.at :]


def _header(head: bytes, left: int) -> tuple[int, bytes, int]:
    """(size, type, where the content begins) of a box; left: bytes from its beginning to the end of all."""
    size, kind = struct.unpack_from(">I4s", head)
    start = 8
    if size == 1:
        size, start = struct.unpack_from(">Q", head, 8)[0], 16
    size = size or left
    if size < start:
        raise ValueError("a box that is smaller than its header")
    return size, kind, start


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of boxes one behind another."""
    at = 0
    while at + 8 <= len(data):
        size, kind, start = _header(data[at : at + 16], len(data) - at)
        if at + size > len(data):
            raise ValueError("a box that is larger than what it is in")
        yield kind, data[at + start : at + size]
        at += size


def _assembled(tiles: Iterator[av.VideoFrame], rows: int, columns: int) -> av.VideoFrame:
    """One frame of tiles, row by row; ValueError where they do not fit together."""
    whole: Any = None
    first: Any = None
    for n, tile in enumerate(tiles):
        if first is None:
            first = tile
            if tile.width * tile.height * rows * columns > 2 * MAX_PIXELS:
                raise ValueError(f"{rows * columns} tiles of {tile.width}x{tile.height}")
            whole = av.VideoFrame(tile.width * columns, tile.height * rows, tile.format.name)
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                setattr(whole, name, getattr(tile, name))
        if (tile.width, tile.height, tile.format.name) != (first.width, first.height, first.format.name):
            raise ValueError("tiles of different sizes or formats")
        for into, plane in zip(_planes(whole), _planes(tile), strict=True):
            height, width = plane.shape
            if into.shape != (height * rows, width * columns):
                raise ValueError(f"tiles of {tile.width}x{tile.height} with chroma of half that size")
            top, left = n // columns * height, n % columns * width
            into[top : top + height, left : left + width] = plane
    return whole


def _planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Views of a frame's planes: (H, W) uint8 or uint16."""
    dtype = np.dtype("<u2") if frame.format.components[0].bits > 8 else np.dtype(np.uint8)
    views = []
    for plane in frame.planes:
        data: Any = plane  # a buffer
        rows = np.frombuffer(data, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, plane.line_size)
        views.append(rows[:, : plane.width * dtype.itemsize].view(dtype))
    return views


def _stretch(frame: av.VideoFrame) -> None:
    """Grey of limited range becomes full, in place."""
    plane, step = _planes(frame)[0], 1 << frame.format.components[0].bits - 8
    full = (plane.astype(np.float32) - 16 * step) * ((256 * step - 1) / (219 * step))
    plane[:] = np.clip(np.round(full), 0, 256 * step - 1).astype(plane.dtype)
    frame.color_range = FULL


def first_plane(frame: av.VideoFrame) -> np.ndarray:
    """(H, W) uint8: the first plane, of which transparency is made."""
    bits = frame.format.components[0].bits
    return np.round(_planes(frame)[0] * (255 / (2**bits - 1))).astype(np.uint8)


def _fit(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Transparency (H, W), which may be coded at another size than the image."""
    if alpha.shape == size:
        return alpha
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, alpha.shape, strict=True))
    return alpha[np.ix_(rows, columns)]


def _clean_aperture(pixels: np.ndarray, numbers: tuple[int, ...]) -> np.ndarray:
    """The part that `clap` says: width, height and the offset of its centre, each as a fraction."""
    if 0 in numbers[1::2]:
        raise ValueError("an aperture that is divided by 0")
    width, height, right, down = (n / d for n, d in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = (pixels.shape[1] - width) / 2 + right, (pixels.shape[0] - height) / 2 + down
    if min(width, height) < 1 or min(left, top) < -0.5:
        raise ValueError("an aperture outside the image")
    left, top = max(0, round(left)), max(0, round(top))
    return pixels[top : top + round(height), left : left + round(width)]


def _text(kind: bytes) -> str:
    return kind.decode("ascii", "replace")
