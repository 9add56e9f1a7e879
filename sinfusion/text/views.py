"""Views of a picture, as a guide sees it: crops, mirrored, turned, seen from the side, in other colours.

The kinds of views and their ranges are those of SinDDM (Kulikov et al. 2023), after Text2LIVE. They are functions of a
seed and a step alone, so that all frames of a video can be seen alike; all of a picture's are sampled at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops

STREAM_VIEWS = 0x56696577  # of the random number generator
DRAWS = 32  # random numbers of a view
SMALLEST_CROP = 0.6  # of each side
DEGREES, SHIFT, DISTORTION, JITTER = 15.0, 0.1, 0.4, 0.1
MIRRORED, TURNED, DISTORTED, JITTERED, GREY = 0.5, 0.8, 0.5, 0.7, 0.15  # how often
LONGEST = 320 / 224  # longer side of a view, in multiples of the shorter side that a model sees
LUMA = (0.299, 0.587, 0.114)
TO_YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])


@dataclass(frozen=True)
class Views:
    """How n views look at a picture, whatever its size."""

    places: Tensor  # (n, 3, 3) fp32: from a place of the view to one of the picture, both from -1 to 1
    colours: Tensor  # (n, 3, 3) fp32: of colours in [0, 1]
    contrast: Tensor  # (n,) fp32

    def part(self, i: int, of: int) -> Views:
        """Every `of`-th view, from number i on."""
        return Views(self.places[i::of], self.colours[i::of], self.contrast[i::of])

    def of(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, 3, *size) in [-1, 1], with gradients, of an image (3, H, W) in [-1, 1]; what lies outside is white."""
        grid = _grid(size, self.places.to(image))
        image = _no_larger(image, size, self.places[:, :2, :2].norm(dim=1).amax().item())
        seen = F.grid_sample(image.expand(len(grid), -1, -1, -1) - 1, grid, align_corners=False) / 2 + 1
        seen = torch.einsum("nij,njhw->nihw", self.colours.to(image), seen)
        contrast = self.contrast.to(image)[:, None, None, None]
        mean = torch.einsum("c,nchw->n", seen.new_tensor(LUMA), seen)[:, None, None, None] / (size[0] * size[1])
        return ((contrast * seen + (1 - contrast) * mean) * 2 - 1).clamp(-1, 1)


def draw_views(seed: int, step: int, count: int, box: tuple[float, float, float, float] | None = None) -> Views:
    """The views of a step, the first of the whole picture.

    box: top, bottom, left, right of the part that is looked at, from -1 to 1; None: all of it.
    """
    numbers = ops.uniform_bits([seed], STREAM_VIEWS, step, count * DRAWS).view(count, DRAWS).double().numpy() / 2**32
    places, colours, contrast = [], [], []
    for i, drawn in enumerate(numbers):
        place = _box(box) if box is not None else np.eye(3)
        place = place @ (_crop(drawn[:3]) if i else np.eye(3))
        if drawn[3] < MIRRORED:
            place = place @ np.diag([-1.0, 1.0, 1.0])
        if drawn[4] < TURNED:
            place = place @ _turned(drawn[5:8])
        if drawn[8] < DISTORTED:
            place = place @ _seen_from_the_side(drawn[9:17])
        jitter = 1 + JITTER * (2 * drawn[18:22] - 1) if drawn[17] < JITTERED else np.ones(4)
        colour = jitter[0] * _colour(jitter[1], jitter[2] - 1)
        places.append(place)
        colours.append(np.tile(LUMA, (3, 1)) @ colour if drawn[22] < GREY else colour)
        contrast.append(jitter[3])
    return Views(*(torch.from_numpy(np.array(values)).float() for values in (places, colours, contrast)))


def plain_view(box: tuple[float, float, float, float] | None = None) -> Views:
    """The picture as it is."""
    place = torch.from_numpy(_box(box) if box is not None else np.eye(3)).float()[None]
    return Views(place, torch.eye(3)[None], torch.ones(1))


def size_of_views(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """(height, width) of the views of a picture of this size: as a model wants them, in about its proportions."""
    scale = min(side / min(size), LONGEST * side / max(size))
    height, width = (max(multiple, round(value * scale / multiple) * multiple) for value in size)
    return height, width


def _grid(size: tuple[int, int], places: Tensor) -> Tensor:
    """(n, H, W, 2): where each pixel of the views lies in the picture, x first."""
    y, x = ((torch.arange(n).to(places) * 2 + 1) / n - 1 for n in size)
    here = torch.stack((x.expand(size), y[:, None].expand(size), places.new_ones(size)), -1)
    there = torch.einsum("nij,hwj->nhwi", places, here)
    return there[..., :2] / there[..., 2:]


def _no_larger(image: Tensor, size: tuple[int, int], seen: float) -> Tensor:
    """(1, 3, h, w): the image, made smaller where a view of `seen` of its sides would leave out some of its pixels."""
    scale = max(size) / SMALLEST_CROP / max(image.shape[1:]) / min(1.0, seen)
    if scale >= 1:
        return image[None]
    smaller = [max(1, round(n * scale)) for n in image.shape[1:]]
    return F.interpolate(image[None], smaller, mode="bilinear", antialias=True, align_corners=False)


def _box(box: tuple[float, float, float, float]) -> np.ndarray:
    top, bottom, left, right = box
    half, middle = ((right - left) / 2, (bottom - top) / 2), ((right + left) / 2, (bottom + top) / 2)
    return np.array([[half[0], 0, middle[0]], [0, half[1], middle[1]], [0, 0, 1]])


def _crop(drawn: np.ndarray) -> np.ndarray:
    side = SMALLEST_CROP + (1 - SMALLEST_CROP) * drawn[0]
    x, y = (2 * drawn[1:] - 1) * (1 - side)
    return np.array([[side, 0, x], [0, side, y], [0, 0, 1]])


def _turned(drawn: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(DEGREES) * (2 * drawn[0] - 1)
    x, y = 2 * SHIFT * (2 * drawn[1:] - 1)
    return np.array([[np.cos(angle), -np.sin(angle), x], [np.sin(angle), np.cos(angle), y], [0, 0, 1]])


def _seen_from_the_side(drawn: np.ndarray) -> np.ndarray:
    """From a view whose corners have moved inwards, each on its own, to the whole."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    moved = corners * (1 - DISTORTION * drawn.reshape(4, 2))
    rows = []
    for (x, y), (u, v) in zip(moved, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), corners.reshape(8)), 1).reshape(3, 3)


def _colour(saturation: float, hue: float) -> np.ndarray:
    """(3, 3): colours turned by `hue`, a part of a circle, and made stronger."""
    c, s = saturation * np.cos(2 * np.pi * hue), saturation * np.sin(2 * np.pi * hue)
    return np.linalg.inv(TO_YIQ) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ TO_YIQ
