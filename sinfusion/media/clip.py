"""A clip: frames in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ..errors import SinfusionError

FRAME_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames in memory. A picture is a clip of one frame and kind `image`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, sRGB
    fps: float
    kind: str  # "image" or "video"
    source_size: tuple[int, int]  # (height, width) before scaling

    def __post_init__(self) -> None:
        shape, kind = np.shape(self.frames), getattr(self.frames, "dtype", type(self.frames))
        if len(shape) != 4 or shape[3] != 3 or 0 in shape or kind != np.uint8:
            raise SinfusionError(f"frames are (T, H, W, 3) uint8 and not empty, not {shape} {kind}.")
        check_fps(self.fps)
        if self.kind not in ("image", "video"):
            raise SinfusionError(f"the kind of a clip is image or video, not {self.kind!r}.")

    def __repr__(self) -> str:
        return f"Clip({self.kind}, frames {self.frames.shape}, fps {self.fps:g}, source_size {self.source_size})"


def size_words(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def check_fps(fps: float) -> None:
    if not isinstance(fps, Real) or not 0 < fps < 1e6:
        raise SinfusionError(f"fps must be above 0, not {fps!r}.")
