"""From what decoders give to what is shown: upright frames of square pixels in sRGB, opaque.

frames = progressive(decoded(container, stream, note), codec, note)  # frames of FFmpeg; `interlacing` makes them whole
pixels = Display(stream, note).pixels(frame)                      # (H, W, 3) uint8
pixels = still_pixels(image, note)                                # of a Pillow image

What is done beyond decoding, and what a file asks for that is not done, goes to `note` as one line each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from io import BytesIO
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from PIL import Image, ImageCms, ImageOps

from ..clip import from_pillow
from . import colour
from .colour import BT709, BT2020, UNSPECIFIED, ColourSpace, Power, to_srgb
from .interlacing import Note, is_field

# Matrices of H.273 that FFmpeg's scaler knows, and names of others.
KNOWN_MATRICES = {1, 4, 5, 6, 7, 9}
MATRIX_NAMES = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 13: "constant luminance", 14: "ICtCp"}
HD_WIDTH, SD_HEIGHT = 1280, 576  # untagged video as wide as this, or higher than this, is BT.709, as in players
SD_PRIMARIES = {4, 5, 6, 7, 22}  # of BT.470 and BT.601
SQUARE = 0.01  # pixels that differ less from squares are squares
LARGEST_ASPECT = 10  # of pixels; what says more is an error
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ignore transparency
WHOLE_CHROMA = {"yuv420p": "yuv444p", "yuvj420p": "yuvj444p", "yuva420p": "yuva444p"}
TRANSPARENT_PALETTES = {"png", "apng"}  # codecs whose palettes hold transparency
INTEROPERABILITY = 0xA005  # of EXIF
PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}  # by the colour space of an ICC profile
ROUNDING = 2  # levels that a profile of sRGB changes colours by


def decoded(container: Any, stream: Any, note: Note) -> Iterator[av.VideoFrame]:
    """The frames of a stream, by a decoder that keeps their transparency."""
    name = stream.codec_context.name
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1" or name not in ALPHA_DECODERS:
        yield from container.decode(stream)
        return
    try:
        decoder: Any = av.CodecContext.create(ALPHA_DECODERS[name], "r")
    except Exception:  # an FFmpeg without libvpx
        note(f"transparency is left out: this FFmpeg has no {ALPHA_DECODERS[name]}")
        yield from container.decode(stream)
        return
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


@dataclass(frozen=True)
class _Tags:
    """Code points of H.273."""

    matrix: int
    primaries: int
    transfer: int
    range: int  # FFmpeg's: 0 unknown, 1 limited, 2 full


class Display:
    """What a video stream and its frames say about how they are shown."""

    def __init__(self, stream: Any, note: Note):
        context = stream.codec_context
        self.stream, self.note = stream, note
        # Before the first frame these are the tags of the container, which some decoders then forget.
        self.tags = _Tags(context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        self.codec_aspect = context.sample_aspect_ratio
        self.avi = stream.container.format.name == "avi"

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8: sRGB, over white, upright; the pixels as wide as they were."""
        layout = _layout(frame.format.name)
        tags = self._tags_of(frame, layout)
        space = _colour_space(tags, layout)
        if self.tags.primaries in SD_PRIMARIES or tags.primaries in SD_PRIMARIES:
            self.note("the primaries of BT.601 are taken for those of sRGB, as most players do")
        profile = _side_data(frame, "ICC_PROFILE")
        if layout.alpha or (layout.palette and self.stream.codec_context.name in TRANSPARENT_PALETTES):
            rgb = self._over_white(frame, space)
        else:
            rgb = _rgb(frame) if space.is_srgb or profile else to_srgb(_rgb16(frame), space)
        if profile is not None:
            rgb = np.asarray(_apply_profile(Image.fromarray(rgb), bytes(profile), self.note))
        elif not space.is_srgb:
            self.note(conversion(space))
        return turned(rgb, display_matrix(frame))

    def shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(height, width) of the frame upright, with square pixels: the stored height is kept, the width scaled."""
        fields = 2 if is_field(frame, self.stream.codec_context.name) else 1
        height, width = frame.height * fields, frame.width
        aspect = self._aspect()
        if aspect and aspect.numerator != aspect.denominator and abs(aspect - 1) > SQUARE:
            if 1 / LARGEST_ASPECT <= aspect <= LARGEST_ASPECT:
                width = max(1, round(width * aspect))
                self.note(
                    f"pixels of {aspect.numerator}:{aspect.denominator} were made square: "
                    f"{frame.width}x{height} stored, {width}x{height} shown"
                )
            else:
                self.note(f"pixels of {aspect.numerator}:{aspect.denominator} make no sense: taken for squares")
        return (width, height) if _sideways(display_matrix(frame)) else (height, width)

    def _aspect(self) -> Fraction | None:
        """Width of a pixel over its height; what the container says comes first."""
        stream, codec = self.stream.sample_aspect_ratio, self.stream.codec_context.sample_aspect_ratio
        return codec if codec and stream == self.codec_aspect else stream or codec

    def _tags_of(self, frame: av.VideoFrame, layout: _Layout) -> _Tags:
        """Of the frame, else of the container; the frame is given the matrix and range that FFmpeg's scaler reads."""
        tags = self.tags
        if frame.color_range == 0 and tags.range:
            frame.color_range = tags.range
        matrix = tags.matrix if frame.colorspace == UNSPECIFIED else frame.colorspace
        primaries = tags.primaries if frame.color_primaries == UNSPECIFIED else frame.color_primaries
        transfer = tags.transfer if frame.color_trc == UNSPECIFIED else frame.color_trc
        if layout.chroma:
            if matrix == 12:  # derived from the primaries
                matrix = primaries
            if matrix in MATRIX_NAMES:
                self.note(
                    f"the colour matrix {MATRIX_NAMES[matrix]} is not supported: read as another, colours are off"
                )
            if matrix not in KNOWN_MATRICES:
                hd = frame.width >= HD_WIDTH or frame.height > SD_HEIGHT
                matrix = BT709 if hd else UNSPECIFIED
            if matrix != frame.colorspace:
                frame.colorspace = matrix
        return _Tags(matrix, primaries, transfer, frame.color_range)

    def _over_white(self, frame: av.VideoFrame, space: ColourSpace) -> np.ndarray:
        rgba = _whole_chroma(frame).to_ndarray(format="rgba")
        if self.avi and not rgba[..., 3].any():  # programs that write 32 bits into AVI leave the last 8 empty
            rgba[..., 3] = 255
        if not space.is_srgb:
            rgba[..., :3] = to_srgb(_rgb16(frame), space)
        return from_pillow(Image.fromarray(rgba))


@dataclass(frozen=True)
class _Layout:
    """What the name of a pixel format says."""

    alpha: bool
    chroma: bool
    palette: bool
    xyz: bool


@cache
def _layout(name: str) -> _Layout:
    layout = av.VideoFormat(name, 2, 2)
    alpha = any(part.is_alpha for part in layout.components)
    colours = len(layout.components) - alpha
    chroma = colours == 3 and not layout.is_rgb
    return _Layout(alpha, chroma, layout.has_palette, xyz=name.startswith("xyz"))


@cache
def _colour_space(tags: _Tags, layout: _Layout) -> ColourSpace:
    """Of tags that may be missing or senseless."""
    primaries, transfer = tags.primaries, tags.transfer
    if layout.xyz:  # FFmpeg's scaler converts XYZ to sRGB
        return ColourSpace()
    if (
        transfer == primaries in (colour.GAMMA_22, colour.GAMMA_28)
    ):  # what all NTSC and PAL is marked with, made for sRGB
        transfer = colour.SRGB
    if primaries == UNSPECIFIED and transfer in (colour.PQ, colour.HLG):
        primaries = BT2020
    return ColourSpace(
        primaries if primaries in colour.CHROMATICITIES else BT709,
        transfer if transfer in colour.TRANSFER_NAMES else colour.SRGB,
    )


def conversion(space: ColourSpace) -> str:
    """The note on a conversion to sRGB."""
    how = f"mapped to sRGB; white is {colour.WHITE_NITS:g} nits" if space.is_hdr else "converted to sRGB"
    return f"{'HDR' if space.is_hdr else 'colours'} ({space.name}) {how}"


def _whole_chroma(frame: av.VideoFrame) -> av.VideoFrame:
    """By way of yuv444p: directly, FFmpeg would repeat each chroma sample, and round down."""
    name = WHOLE_CHROMA.get(frame.format.name)
    return frame.reformat(format=name, interpolation="BICUBIC") if name else frame


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8."""
    return _whole_chroma(frame).to_ndarray(format="rgb24")


def _rgb16(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint16."""
    if _layout(frame.format.name).chroma:
        frame = frame.reformat(format="yuv444p16le", interpolation="BICUBIC")
    return frame.to_ndarray(format="rgb48le")


def _side_data(frame: av.VideoFrame, kind: str) -> Any:
    """Bytes, or None. `frame.side_data` would refer to the frame and be kept by it, until Python looks for cycles."""
    container: Any = SideDataContainer
    return container(frame).get(kind)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d): a point goes from (x, y) to (a x + c y, b x + d y), up to a shift; None: as it is."""
    data = _side_data(frame, "DISPLAYMATRIX")
    if data is None:
        return None
    values = np.frombuffer(bytes(data), np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def _sideways(matrix: tuple[int, int, int, int] | None) -> bool:
    return matrix is not None and abs(matrix[1]) + abs(matrix[2]) > abs(matrix[0]) + abs(matrix[3])


def over_white(pixels: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 over white, with an alpha (H, W) of its own. premultiplied: whether it is multiplied by that."""
    if premultiplied:
        return np.minimum(pixels, alpha[..., None]) + (255 - alpha)[..., None]
    return from_pillow(Image.fromarray(np.dstack([pixels, alpha])))


def tagged_pixels(frame: av.VideoFrame, profile: bytes | None, note: Note) -> np.ndarray:
    """(H, W, 3) uint8, sRGB: of a frame without a stream, by its ICC profile, else by its own tags."""
    layout = _layout(frame.format.name)
    tags = _Tags(frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
    space = ColourSpace() if profile else _colour_space(tags, layout)
    if profile:
        return np.asarray(_apply_profile(Image.fromarray(_rgb(frame)), profile, note).convert("RGB"))
    if space.is_srgb:
        return _rgb(frame)
    note(conversion(space))
    return to_srgb(_rgb16(frame), space)


def turned(image: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """(H, W, 3) turned and mirrored as a display matrix says: the nearest of eight ways."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if _sideways(matrix):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def still_pixels(image: Image.Image, note: Note, upright: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image of any mode: sRGB, over white, and turned as EXIF says if `upright`.

    The colours are those of its ICC profile; else of PNG's cICP, or gAMA and cHRM, AVIF's nclx, EXIF's Adobe RGB.
    """
    profile, space = _still_colours(image)
    across, down = _densities(image)
    if abs(across - down) > SQUARE * max(across, down):
        note(
            f"unequal densities ({across:g} and {down:g}) are not applied: pixels are taken for squares, as viewers do"
        )
    if upright:
        image = ImageOps.exif_transpose(image)
    if profile:
        return from_pillow(_apply_profile(image, profile, note))
    if space.is_srgb:
        return from_pillow(image)
    note(conversion(space))
    rgb, alpha = Image.fromarray(to_srgb(np.asarray(_opaque(image).convert("RGB")), space)), _transparency(image)
    if alpha is not None:
        rgb.putalpha(alpha)
    return from_pillow(rgb)


def _still_colours(image: Image.Image) -> tuple[bytes, ColourSpace]:
    """The ICC profile of an image, empty if it has none that counts; and its colour space where it has none."""
    info = image.info
    profile = info.get("icc_profile") or b""
    codes = _code_points(image)
    if codes and (image.format == "PNG" or not profile):
        return b"", _colour_space(_Tags(BT709, *codes, 0), _layout("rgb24"))
    if profile or "srgb" in info:
        return profile, ColourSpace()
    if image.format == "PNG":
        return b"", _png_space(info.get("gamma"), info.get("chromaticity"))
    adobe = image.getexif().get_ifd(INTEROPERABILITY).get(1) == "R03"
    return b"", ColourSpace(colour.ADOBE_RGB, colour.GAMMA_22) if adobe else ColourSpace()


def _png_space(gamma: float | None, chromaticities: tuple[float, ...] | None) -> ColourSpace:
    """Of the chunks gAMA and cHRM; sRGB where they are close to it, or make no sense."""
    transfer: int | Power = colour.SRGB
    if gamma and 0.1 < gamma < 10 and abs(gamma * 2.2 - 1) > 0.02:
        transfer = Power(1 / gamma)
    if chromaticities is None:
        return ColourSpace(BT709, transfer)
    white, red, green, blue = (tuple(chromaticities[i : i + 2]) for i in (0, 2, 4, 6))
    own: Any = (red, green, blue, white)
    known = np.array(colour.CHROMATICITIES[BT709])
    if np.abs(np.array(own) - known).max() < 0.005 or not colour.is_gamut(own):
        return ColourSpace(BT709, transfer)
    return ColourSpace(own, transfer)


def _code_points(image: Image.Image) -> tuple[int, int] | None:
    """(primaries, transfer) of PNG's chunk cICP, or of the first box nclx of AVIF and HEIC."""
    path = getattr(image, "filename", "")
    if image.format not in ("PNG", "AVIF", "HEIF") or not path:
        return None
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    found = head.find(b"cICP", 0, head.find(b"IDAT")) if image.format == "PNG" else head.find(b"colrnclx")
    if found < 0 or found + 12 > len(head):
        return None
    if image.format == "PNG":
        return head[found + 4], head[found + 5]
    return int.from_bytes(head[found + 8 : found + 10]), int.from_bytes(head[found + 10 : found + 12])


def _densities(image: Image.Image) -> tuple[float, float]:
    """Pixels across and down in a length, of any unit."""
    info = image.info
    for name in ("dpi", "aspect", "jfif_density"):
        values = info.get(name)
        if values and len(values) == 2 and all(value > 0 for value in values):
            return float(values[0]), float(values[1])
    return 1.0, 1.0


def _opaque(image: Image.Image) -> Image.Image:
    """As L, RGB, CMYK or LAB, without its transparency."""
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(from_pillow(image)[..., 0])
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _transparency(image: Image.Image) -> Image.Image | None:
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _apply_profile(image: Image.Image, profile: bytes, note: Note) -> Image.Image:
    """The image in sRGB, as RGB or RGBA; as it was, with a note, if the profile is damaged or of another kind."""
    plain = _opaque(image)
    try:
        mode, transform, name = _profile_transform(profile)
        if mode != plain.mode and (mode, plain.mode) != ("RGB", "L"):
            raise ValueError(f"it is of {mode}, the image is {plain.mode}")
        if transform is None:
            return image
        converted: Any = ImageCms.applyTransform(plain.convert(mode), transform)
    except Exception as error:  # of LittleCMS and Pillow, of all kinds
        note(f"the colour profile is not applied: {error}".split("\n")[0][:160])
        return image
    note(f"colours converted to sRGB from the profile {name}")
    alpha = _transparency(image)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=8)
def _profile_transform(data: bytes) -> tuple[str, Any, str]:
    """Mode of images that an ICC profile is for, the transform of such images to sRGB, and the profile's name.

    The transform is None where it is that of sRGB itself, but for roundings.
    """
    profile: Any = ImageCms.ImageCmsProfile(BytesIO(data))
    mode = PROFILE_MODES[profile.profile.xcolor_space.strip()]
    transform: Any = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode in ("L", "RGB"):
        steps = np.arange(0, 256, 15).astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        sample = Image.fromarray(grid) if mode == "RGB" else Image.fromarray(steps[None])
        shown: Any = ImageCms.applyTransform(sample, transform)
        change = np.asarray(shown, int) - np.asarray(sample.convert("RGB"), int)
        if np.abs(change).max() <= ROUNDING:
            transform = None
    return mode, transform, ImageCms.getProfileDescription(profile).strip()[:60] or "without a name"
