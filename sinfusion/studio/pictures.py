"""PNGs of frames, (H, W, 3) uint8: as bytes, as small posters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

POSTER_SIDE = 320  # pixels, at most


def write_poster(path: Path, frame: np.ndarray) -> None:
    """A small picture of a frame."""
    image = Image.fromarray(frame)
    image.thumbnail((POSTER_SIDE, POSTER_SIDE))
    image.save(path, "PNG")


def as_png(image: np.ndarray, effort: int = 1) -> bytes:
    """(H, W, 3) uint8 as a PNG; effort: from 1 to 9, of the compression."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=effort)
    return stream.getvalue()
