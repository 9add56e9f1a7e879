"""A rendered scene for `sinfusion demo`: balloons, birds, a windmill and glittering water at dusk."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .pixels import fractions_to_uint8
from .seeds import check_seed

Colour = tuple[float, float, float]  # red, green, blue in [0, 1]


def render(frames: int = 48, size: tuple[int, int] = (40, 64), seed: int = 0) -> np.ndarray:
    """(frames, H, W, 3) uint8, rendered at three times the size and averaged. Everything moves a little each frame."""
    height, width = 3 * size[0], 3 * size[1]
    rng = np.random.default_rng(check_seed(seed))
    y, x = np.mgrid[0:height, 0:width] / height  # both in units of the height
    wide = width / height
    cloud = _noise(rng, height, 2 * width, 5)
    ground = _noise(rng, height, width, 6)
    hill = 0.68 + 0.05 * np.sin(2.3 * x + 1) + 0.03 * np.sin(7 * x)
    images = []
    for t in range(frames):
        sky = _mix((0.30, 0.36, 0.62), (0.98, 0.72, 0.48), np.clip(y / 0.7, 0, 1)[..., None])
        drift = np.roll(cloud, -2 * t, axis=1)[:, :width]
        thickness = np.clip(drift * 2.4 - 0.9, 0, 0.8) * np.clip((0.8 - y) / 0.3, 0, 1)
        image = _mix(sky, (1.0, 0.93, 0.88), thickness[..., None])
        for n, (speed, top, size_, colours) in enumerate(_BALLOONS):
            cx = (0.25 + 0.55 * n + speed * t) % (wide + 0.5) - 0.25
            cy = top + 0.03 * np.sin(0.23 * t + 2 * n)
            image = _balloon(image, x, y, cx, cy, size_, colours)
        for n in range(4):
            bx = (0.2 + 0.37 * n + 0.016 * t) % (wide + 0.2) - 0.1
            by = 0.14 + 0.09 * np.sin(1.7 * n) + 0.02 * np.sin(0.2 * t + n)
            flap = 0.035 * np.sin(0.9 * t + 1.3 * n)
            wing = np.abs(x - bx)
            bird = (wing < 0.05) & (np.abs(y - by + flap * wing / 0.05) < 0.009)
            image = np.where(bird[..., None], (0.12, 0.1, 0.16), image)
        wind = 0.5 + 0.5 * np.sin(9 * x - 7 * y + 6 * ground - 0.35 * t)
        land = _mix((0.16, 0.30, 0.17), (0.50, 0.56, 0.24), (0.65 * ground + 0.35 * wind)[..., None])
        image = np.where((y > hill)[..., None], land, image)
        image = _windmill(image, x, y, wide * 0.74, 0.60, 0.11 * t)
        ripple = np.sin(70 * y + 9 * x - 0.55 * t) * np.sin(23 * x + 31 * y + 0.41 * t)
        water = _mix((0.16, 0.26, 0.42), (0.95, 0.76, 0.60), np.clip(ripple * 0.75 + 0.22, 0, 1)[..., None])
        image = np.where((y > 0.84 + 0.02 * np.sin(4 * x))[..., None], water, image)
        small = image.reshape(size[0], 3, size[1], 3, 3).mean((1, 3))
        images.append(fractions_to_uint8(np.clip(small, 0, 1)))
    return np.stack(images)


# Speed, distance from the top, radius (all in units of the height), two colours.
_BALLOONS = (
    (0.011, 0.26, 0.13, ((0.85, 0.20, 0.22), (0.98, 0.86, 0.55))),
    (-0.008, 0.36, 0.10, ((0.17, 0.45, 0.62), (0.93, 0.95, 0.92))),
    (0.006, 0.18, 0.075, ((0.93, 0.62, 0.13), (0.47, 0.18, 0.42))),
)


def _balloon(
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    cx: float,
    cy: float,
    radius: float,
    colours: tuple[Colour, Colour],
) -> np.ndarray:
    dx, dy = (x - cx) / radius, (y - cy) / (radius * 1.15)
    # Narrower towards the bottom.
    inside = dx**2 * (1 + 0.45 * np.clip(dy, 0, 1)) + dy**2 < 1
    stripe = np.sin(7 * np.arcsin(np.clip(dx / np.sqrt(np.clip(1 - dy**2, 0.05, 1)), -1, 1))) > 0
    light = 0.75 + 0.3 * np.clip(-dx - 0.4 * dy, -0.6, 0.9)
    body = np.where(stripe[..., None], colours[0], colours[1]) * light[..., None]
    basket = (np.abs(dx) < 0.18) & (np.abs(dy - 1.45) < 0.14)
    ropes = (np.abs(np.abs(dx) - 0.14) < 0.03) & (dy > 0.9) & (dy < 1.35)
    image = np.where((basket | ropes)[..., None], (0.30, 0.19, 0.12), image)
    return np.where(inside[..., None], body, image)


def _windmill(image: np.ndarray, x: np.ndarray, y: np.ndarray, cx: float, cy: float, angle: float) -> np.ndarray:
    tower = (np.abs(x - cx) < 0.022 + 0.06 * (y - cy)) & (y > cy) & (y < cy + 0.2)
    image = np.where(tower[..., None], (0.86, 0.80, 0.72), image)
    for blade in range(4):
        a = angle + blade * np.pi / 2
        along = (x - cx) * np.cos(a) + (y - cy) * np.sin(a)
        across = -(x - cx) * np.sin(a) + (y - cy) * np.cos(a)
        image = np.where(((along > 0) & (along < 0.16) & (np.abs(across) < 0.014))[..., None], (0.35, 0.2, 0.16), image)
    return image


def _mix(a: ArrayLike, b: ArrayLike, share: np.ndarray) -> np.ndarray:
    """Two colours or images, blended: `share` of the second."""
    return np.asarray(a) * (1 - share) + np.asarray(b) * share


def _noise(rng: np.random.Generator, height: int, width: int, octaves: int) -> np.ndarray:
    """(height, width) in [0, 1]: smooth noise that repeats horizontally."""
    total = np.zeros((height, width))
    for octave in range(octaves):
        n = 3 * 2**octave
        grid = rng.random((n + 1, n))
        gy, gx = np.linspace(0, n - 1e-6, height), np.arange(width) / width * n
        iy, ix = gy.astype(int), gx.astype(int)
        fy, fx = ((f * f * (3 - 2 * f)) for f in (gy - iy, gx - ix))
        top = grid[iy][:, ix] * (1 - fx) + grid[iy][:, (ix + 1) % n] * fx
        bottom = grid[iy + 1][:, ix] * (1 - fx) + grid[iy + 1][:, (ix + 1) % n] * fx
        total += (top * (1 - fy[:, None]) + bottom * fy[:, None]) / 2**octave
    return (total - total.min()) / (total.max() - total.min())
