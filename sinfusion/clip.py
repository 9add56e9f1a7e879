"""Frames in memory: `Clip`, and the conversion of everything else that is accepted as an image, a video or a mask.

as_pixels(value)            # a video: (T, H, W, 3) uint8; an image: (H, W, 3)
as_frames(value)            # (T, H, W, 3); of an image one frame
as_image(value)             # (H, W, 3)
as_mask(value)              # (H, W) or (T, H, W) bool
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import SinfusionError
from .pixels import fractions_to_uint8, is_light

FRAME_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency (RGBA)
UINT16_WHITE = 65535


@dataclass(frozen=True)
class Sound:
    """The part of a file that is the sound of a clip."""

    path: str  # absolute
    start: float  # seconds on the clock of the file
    stop: float
    bytes: int  # size of the file, to see that it is still the same
    in_step: bool = True  # False: pauses of the clip were cut, which its sound still has

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.stop - self.start


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames in memory. An image is a clip of one frame and kind `image`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, sRGB
    fps: float
    kind: str  # "image" or "video"
    source_size: tuple[int, int]  # (height, width) before scaling
    sound: Sound | None = None  # of its file; None: it has none

    def __post_init__(self) -> None:
        shape, kind = _described(self.frames)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape or kind != "uint8":
            raise SinfusionError(f"frames are (T, H, W, 3) uint8 and not empty, not {shape} {kind}.")
        check_fps(self.fps)
        if self.kind not in ("image", "video"):
            raise SinfusionError(f"the kind of a clip is image or video, not {self.kind!r}.")
        if self.kind == "image" and len(self.frames) > 1:
            raise SinfusionError(f"a clip of kind image has one frame, not {len(self.frames)}.")

    @property
    def pixels(self) -> np.ndarray:
        """(T, H, W, 3) uint8 of a video, (H, W, 3) of an image."""
        return self.frames[0] if self.kind == "image" else self.frames

    def __repr__(self) -> str:
        return f"Clip({self.kind}, frames {self.frames.shape}, fps {self.fps:g}, source_size {self.source_size})"


def format_size(shape: Sequence[int]) -> str:
    """WIDTHxHEIGHT of (height, width, ...)."""
    return f"{shape[1]}x{shape[0]}"


def check_fps(fps: float) -> None:
    """SinfusionError unless it is a number of frames per second."""
    if not isinstance(fps, Real) or not 0 < fps < 1e6:
        raise SinfusionError(f"fps must be above 0, not {fps!r}.")


def as_pixels(value: Any, what: str = "the frames") -> np.ndarray:
    """A video as (T, H, W, 3) uint8, an image as (H, W, 3); no copy where it is that already.

    value: one of
    - an array or tensor (T, H, W, C) or (H, W, C) with 1 channel (grey), 3 or 4 (composited over white), or grey
      (T, H, W) or (H, W). Channels may come first where the shape leaves no doubt: (T, 3, H, W), and (3, H, W) of a
      tensor. Values are uint8, other whole numbers from 0 to 255, floats from 0 to 1, or bool for black and white;
    - a Pillow image;
    - a Clip;
    - a list or tuple of images of one size: a video.

    what: what errors call it. Raises SinfusionError for everything else.
    """
    if isinstance(value, Clip):
        return value.pixels
    if isinstance(value, Image.Image):
        if getattr(value, "n_frames", 1) > 1:
            raise SinfusionError(
                f"{what}: an animated Pillow image is not accepted; give its file, or a list of frames."
            )
        return np.array(from_pillow(ImageOps.exif_transpose(value)))
    if isinstance(value, list | tuple):
        return _stacked(value, what)
    array = _array(value)
    if array is None or array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise _not_pixels(value, what)
    return _rgb(_uint8(_channels_last(array, isinstance(value, torch.Tensor), what), what))


def as_frames(value: Any, what: str = "the frames") -> np.ndarray:
    """What `as_pixels` accepts as (T, H, W, 3) uint8; an image is one frame."""
    pixels = as_pixels(value, what)
    return pixels[None] if pixels.ndim == 3 else pixels


def as_image(value: Any, what: str = "the image") -> np.ndarray:
    """An image, or a video of one frame, that `as_pixels` accepts as (H, W, 3) uint8."""
    frames = as_frames(value, what)
    if len(frames) > 1:
        raise SinfusionError(f"{what} must be one image, (H, W, 3) uint8, not {len(frames)} frames.")
    return frames[0]


def as_mask(value: Any, what: str = "the mask") -> np.ndarray:
    """A mask as (H, W) bool or, of several frames, (T, H, W).

    bool stays as it is, and 0 and 1 are bool; anything else that `as_pixels` accepts is True where it is light.
    """
    array = _array(value)
    no_channels = array is not None and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] not in CHANNELS))
    if array is not None and no_channels and 0 not in array.shape:
        zeros_and_ones = array.dtype.kind in "iu" and 0 <= int(array.min()) and int(array.max()) <= 1
        if array.dtype == bool or zeros_and_ones:
            return array.astype(bool)
    return is_light(as_pixels(value, what))


def from_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image of any mode."""
    if image.mode == "F" or image.mode.startswith("I"):  # floats have no agreed white: 1, 255 or 65535
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        peak = values.max(initial=0)
        white = UINT16_WHITE if image.mode != "F" or peak > 255 else 255 if peak > 1 else 1
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
    if all(isinstance(value, int | float) for value in values):  # a list of numbers is no list of images
        raise _not_pixels(values, what)
    images = [as_image(value, f"number {i} of {what}") for i, value in enumerate(values)]
    for i, image in enumerate(images):
        if image.shape != images[0].shape:
            raise SinfusionError(
                f"{what} have different sizes: number 0 is {format_size(images[0].shape)}, number {i} "
                f"{format_size(image.shape)}."
            )
    return np.stack(images)


def _array(value: Any) -> np.ndarray | None:
    """The array of an array, of a tensor, or of an object with `__array__`; None for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.is_floating_point() else value)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    return np.asarray(value) if hasattr(value, "__array__") else None


def _channels_last(array: np.ndarray, tensor: bool, what: str) -> np.ndarray:
    """(T, H, W, C) or (H, W, C), C one of CHANNELS; SinfusionError where the order of the axes is ambiguous.

    tensor: whether it was a tensor, whose channels usually come first.
    """
    shape = array.shape
    if array.ndim == 2:
        return array[..., None]
    first, last = shape[-3] in CHANNELS, shape[-1] in CHANNELS
    if array.ndim == 3 and not last and (not first or shape[0] == 1):  # one grey plane is the same in either order
        return array[..., None]
    channels_first = first and not last and (array.ndim == 4 or (tensor and shape[0] == 3))
    if (first and last and tensor) or not (last or channels_first):
        raise SinfusionError(f"{what} are {shape}: which axis has the channels is ambiguous; give (T, H, W, 3).")
    return np.moveaxis(array, -3, -1) if channels_first else array


def _uint8(array: np.ndarray, what: str) -> np.ndarray:
    """The values as uint8; SinfusionError where their type and range do not say how."""
    if array.dtype == np.uint8:
        return array
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise SinfusionError(f"{what} must be numbers from 0 to 255, uint8, not {array.dtype}.")
    low, high = array.min(), array.max()
    if array.dtype == np.uint16:  # a dark image of 16 bits looks like one of 8
        raise SinfusionError(f"{what} are uint16, in which white is ambiguous; divide by 257 and give uint8.")
    white = 1 if kind == "f" else 255
    if not (low >= 0 and high <= white):  # also where there is a NaN
        kinds = "floats from 0 to 1" if kind == "f" else "whole numbers from 0 to 255"
        raise SinfusionError(
            f"{what} must be uint8, or {kinds}; these {array.dtype} values go from {low:g} to {high:g}."
        )
    if kind != "f":
        return array.astype(np.uint8)
    converted = np.empty(array.shape, np.uint8)
    for frame, values in zip(converted, array, strict=True):  # a frame at a time, for the memory
        frame[...] = fractions_to_uint8(np.asarray(values, np.float32))
    return converted


def _rgb(array: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 from 1, 3 or 4 channels."""
    channels = array.shape[-1]
    if channels == 3:
        return array
    if channels == 1:
        return np.repeat(array, 3, -1)
    composited = np.empty((*array.shape[:-1], 3), np.uint8)
    for frame, values in zip(composited, array, strict=True):
        alpha = np.float32(values[..., 3:]) / 255
        frame[...] = np.round(values[..., :3] * alpha + 255 * (1 - alpha))  # over white
    return composited


def _described(value: Any) -> tuple[tuple[int, ...], str]:
    """Shape and type, for an error message."""
    array = value if hasattr(value, "shape") else None
    kind = getattr(value, "dtype", type(value).__name__)
    return (tuple(array.shape) if array is not None else ()), str(kind)


def _not_pixels(value: Any, what: str) -> SinfusionError:
    shape, kind = _described(value)
    found = f"{shape} {kind}" if shape else kind
    return SinfusionError(f"{what} must be (T, H, W, 3) uint8, or (H, W, 3) for an image, not {found:.80}.")
