"""Frames in memory: `Clip`, and what else is taken for images and videos.

as_pixels(anything)         # (T, H, W, 3) uint8 of a video, (H, W, 3) of an image
as_frames(anything)         # (T, H, W, 3), of an image too
as_image(anything)        # (H, W, 3)
as_mask(anything)           # (H, W) or (T, H, W) bool
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import SinfusionError

FRAME_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames in memory. An image is a clip of one frame and kind `image`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, sRGB
    fps: float
    kind: str  # "image" or "video"
    source_size: tuple[int, int]  # (height, width) before scaling

    def __post_init__(self) -> None:
        shape, kind = _described(self.frames)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape or kind != "uint8":
            raise SinfusionError(f"frames are (T, H, W, 3) uint8 and not empty, not {shape} {kind}.")
        check_fps(self.fps)
        if self.kind not in ("image", "video"):
            raise SinfusionError(f"the kind of a clip is image or video, not {self.kind!r}.")
        if self.kind == "image" and len(self.frames) > 1:
            raise SinfusionError(f"a clip of kind image has one frame, not {len(self.frames)}.")

    def __repr__(self) -> str:
        return f"Clip({self.kind}, frames {self.frames.shape}, fps {self.fps:g}, source_size {self.source_size})"


def size_words(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def check_fps(fps: float) -> None:
    if not isinstance(fps, Real) or not 0 < fps < 1e6:
        raise SinfusionError(f"fps must be above 0, not {fps!r}.")


def as_pixels(value: Any, what: str = "the frames") -> np.ndarray:
    """(T, H, W, 3) uint8 of a video, (H, W, 3) of an image; without a copy where it is that already.

    value: an array or tensor (T, H, W, C) or (H, W, C), C being 1 (grey), 3 or 4 (transparency is laid over white), or
    grey (T, H, W) or (H, W); channels may come before rows and columns where that is plain, as (T, 3, H, W) is, and of
    tensors (3, H, W). Values: uint8, or other whole numbers from 0 to 255; floats from 0 to 1; bool, black and white. A
    Pillow image. A Clip. A list or tuple of images of one size, a video. `what` names it in errors.

    Raises SinfusionError for everything else.
    """
    if isinstance(value, Clip):
        return value.frames[0] if value.kind == "image" else value.frames
    if isinstance(value, Image.Image):
        if getattr(value, "n_frames", 1) > 1:
            raise SinfusionError(f"{what}: an animated Pillow image is not taken; give its file, or a list of frames.")
        return np.array(from_pillow(ImageOps.exif_transpose(value)))
    if isinstance(value, list | tuple):
        return _stacked(value, what)
    array = _array(value)
    if array is None or array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise _not_pixels(value, what)
    return _rgb(_uint8(_channels_last(array, _is_tensor(value), what), what))


def as_frames(value: Any, what: str = "the frames") -> np.ndarray:
    """(T, H, W, 3) uint8 of what `as_pixels` takes; an image is one frame."""
    pixels = as_pixels(value, what)
    return pixels[None] if pixels.ndim == 3 else pixels


def as_image(value: Any, what: str = "the image") -> np.ndarray:
    """(H, W, 3) uint8 of what `as_pixels` takes for an image, or for a video of one frame."""
    frames = as_frames(value, what)
    if len(frames) > 1:
        raise SinfusionError(f"{what} must be one image, (H, W, 3) uint8, not {len(frames)} frames.")
    return frames[0]


def as_mask(value: Any, what: str = "the mask") -> np.ndarray:
    """(H, W) or, of several frames, (T, H, W) bool.

    bool as it is, and 0 and 1; of all else that `as_pixels` takes: where it is light.
    """
    array = _array(value)
    plain = array is not None and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] not in CHANNELS))
    if array is not None and plain and 0 not in array.shape:
        zeros_and_ones = array.dtype.kind in "iu" and 0 <= int(array.min()) and int(array.max()) <= 1
        if array.dtype == bool or zeros_and_ones:
            return array.astype(bool)
    return as_pixels(value, what).mean(-1) > 127.5


def from_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image of any mode."""
    if image.mode == "F" or image.mode.startswith("I"):  # floats have no agreed white: 1, 255 or 65535
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        peak = values.max(initial=0)
        white = 65535 if image.mode != "F" or peak > 255 else 255 if peak > 1 else 1
        grey = np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white_layer = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white_layer, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _stacked(values: Sequence[Any], what: str) -> np.ndarray:
    """(T, H, W, 3) of a list of images."""
    if not values:
        raise SinfusionError(f"{what} are an empty list; give at least one image.")
    if all(isinstance(value, int | float) for value in values):  # a row of numbers is no list of images
        raise _not_pixels(values, what)
    images = [as_image(value, f"number {i} of {what}") for i, value in enumerate(values)]
    for i, image in enumerate(images):
        if image.shape != images[0].shape:
            raise SinfusionError(
                f"{what} have different sizes: number 0 is {size_words(images[0].shape)}, number {i} "
                f"{size_words(image.shape)}."
            )
    return np.stack(images)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # who holds a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def _array(value: Any) -> np.ndarray | None:
    """An array of an array, a tensor or what calls itself one; None for anything else."""
    if _is_tensor(value):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.is_floating_point() else value)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    return np.asarray(value) if hasattr(value, "__array__") else None


def _channels_last(array: np.ndarray, tensor: bool, what: str) -> np.ndarray:
    """(T, H, W, C) or (H, W, C), C one of CHANNELS, of every order that can mean one thing only."""
    shape = array.shape
    if array.ndim == 2:
        return array[..., None]
    first, last = shape[-3] in CHANNELS, shape[-1] in CHANNELS
    if array.ndim == 3 and not last and (not first or shape[0] == 1):  # one plane of grey means the same either way
        return array[..., None]
    channels_first = first and not last and (array.ndim == 4 or (tensor and shape[0] == 3))
    if (first and last and tensor) or not (last or channels_first):
        raise SinfusionError(f"{what} are {shape}: which of these are channels is not plain; give (T, H, W, 3).")
    return np.moveaxis(array, -3, -1) if channels_first else array


def _uint8(array: np.ndarray, what: str) -> np.ndarray:
    """The values as uint8, where their range says how."""
    if array.dtype == np.uint8:
        return array
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise SinfusionError(f"{what} must be numbers from 0 to 255, uint8, not {array.dtype}.")
    low, high = array.min(), array.max()
    if array.dtype == np.uint16:  # a dark image of 16 bits looks like one of 8
        raise SinfusionError(f"{what} are uint16, of which white is not plain; divide by 257 and give uint8.")
    most = 1 if kind == "f" else 255
    if not (low >= 0 and high <= most):  # not a number is neither
        kinds = "floats from 0 to 1" if kind == "f" else "whole numbers from 0 to 255"
        raise SinfusionError(
            f"{what} must be uint8, or {kinds}; these {array.dtype} values go from {low:g} to {high:g}."
        )
    if kind != "f":
        return array.astype(np.uint8)
    outputs = np.empty(array.shape, np.uint8)
    for one, values in zip(outputs, array, strict=True):  # a frame at a time, for the memory
        one[...] = np.round(np.float32(values) * 255)
    return outputs


def _rgb(array: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 of 1, 3 or 4 channels."""
    channels = array.shape[-1]
    if channels == 3:
        return array
    if channels == 1:
        return np.repeat(array, 3, -1)
    outputs = np.empty((*array.shape[:-1], 3), np.uint8)
    for one, values in zip(outputs, array, strict=True):
        share = np.float32(values[..., 3:]) / 255
        one[...] = np.round(values[..., :3] * share + 255 * (1 - share))
    return outputs


def _described(value: Any) -> tuple[tuple[int, ...], str]:
    """Shape and type, for a sentence."""
    array = value if hasattr(value, "shape") else None
    kind = getattr(value, "dtype", type(value).__name__)
    return (tuple(array.shape) if array is not None else ()), str(kind)


def _not_pixels(value: Any, what: str) -> SinfusionError:
    shape, kind = _described(value)
    found = f"{shape} {kind}" if shape else kind
    return SinfusionError(f"{what} must be (T, H, W, 3) uint8, or (H, W, 3) for an image, not {found:.80}.")
