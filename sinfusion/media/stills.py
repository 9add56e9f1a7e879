"""Images that Pillow reads: what is opened, at which part of its size, and which pictures of a file are meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin

from ..clip import format_size
from ..errors import SinfusionError

# Only these, because Pillow would start other programs (Ghostscript for EPS).
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 178_956_970  # that are decoded of one image: Pillow's limit, half a gigabyte
WHOLE_JPEG_PIXELS = 64 << 20  # a larger JPEG is decoded at a half, quarter or eighth, where that is enough
MAX_JPEG_PIXELS = 1 << 30
MAX_COEFFICIENT_BYTES = 2 << 30  # that a progressive JPEG keeps, at whatever size it is decoded
SUBFILE_TYPE, REDUCED_OR_MASK = 254, 0b101  # of a page of a TIFF

Fit = Callable[[tuple[int, int]], tuple[int, int]]  # (height, width) of an image -> that of the frame it becomes


def open_image(path: Path, fit: Fit) -> tuple[Image.Image, tuple[int, int] | None]:
    """Open an image; SinfusionError if it is too large, and what Pillow raises if it is none.

    Of a very large JPEG the decoder makes a half, quarter or eighth, of at least twice the size that `fit` says; then
    the second value is its whole size, (height, width) upright.
    """
    try:
        image: Any = Image.open(path, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        with path.open("rb") as file:
            is_jpeg = file.read(2) == b"\xff\xd8"
        if not is_jpeg:
            pixels = re.search(r"\d+", str(error))
            raise _too_large(
                path, f"{int(pixels[0]) // 10**6} megapixels" if pixels else "", "save it smaller"
            ) from error
        image = JpegImagePlugin.JpegImageFile(str(path))
    pixels = image.width * image.height
    if image.format not in ("JPEG", "MPO") or pixels <= WHOLE_JPEG_PIXELS:
        return image, None
    size = format_size((image.height, image.width))
    if pixels > MAX_JPEG_PIXELS or _coefficient_bytes(image) > MAX_COEFFICIENT_BYTES:
        raise _too_large(path, size, "save it smaller")
    whole = upright_size(image)
    height, width = fit(whole)
    if whole != (image.height, image.width):
        height, width = width, height
    image.draft(None, (2 * width, 2 * height))
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, size, "use a smaller --max-side or --size, at which it is decoded in part")
    return image, whole


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the rotation that EXIF asks for."""
    sideways = image.getexif().get(0x0112, 1) > 4  # orientations 5 to 8
    return (image.width, image.height) if sideways else (image.height, image.width)


def tiff_pages(path: Path) -> tuple[list[int], str]:
    """Which pages of a TIFF are its frames, and a note where that is not all: they have one size.

    Reduced copies and masks are no pages of their own. Of pages of different sizes the first alone is meant.
    """
    with Image.open(path, formats=("TIFF",)) as image:
        sizes: dict[int, tuple[int, int]] = {}
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            if not sizes or not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED_OR_MASK:  # type: ignore[attr-defined]
                sizes[index] = image.size
    if len(set(sizes.values())) == 1:
        return list(sizes), ""
    return [0], f"{path.name} has {len(sizes)} pages of different sizes; the first is read"


def pictures_note(image: Image.Image) -> str:
    """A note on the other pictures of a JPEG, of a stereo camera or a panorama; not on previews and gain maps."""
    entries = getattr(image, "mpinfo", {}).get(0xB002, [])
    views = [entry for entry in entries if entry["Attribute"]["MPType"].startswith("Multi-Frame")]
    return f"it holds {len(views)} pictures; the first is read" if len(views) > 1 else ""


def _coefficient_bytes(image: Any) -> int:
    """What a decoder keeps of all components of a progressive JPEG; 0 of others, which are decoded line by line."""
    if not image.info.get("progressive"):
        return 0
    areas = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
    return 2 * image.width * image.height * sum(areas) // max(1, max(areas))


def _too_large(path: Path, what: str, way_out: str) -> SinfusionError:
    return SinfusionError(
        f"{path} is too large an image: {what}; at most {MAX_PIXELS // 10**6} megapixels are decoded, {way_out}."
    )
