"""Colours of other transfer curves and primaries as sRGB, by the code points of ITU-T H.273 that files name them with.

to_srgb(pixels, ColourSpace(BT2020, PQ))          # (H, W, 3) uint16 -> (H, W, 3) uint8

HDR is mapped with 203 nits, the reference white of ITU-R BT.2408, as the white of the result: up to `KNEE` of it light
is kept, above it a shoulder leads to white, on the largest of the three components, so that hues stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

UNSPECIFIED = 2
BT709, BT2020, DISPLAY_P3, ADOBE_RGB = 1, 9, 12, -1  # primaries; H.273 has no code for Adobe RGB
GAMMA_22, GAMMA_28, LINEAR, SRGB, PQ, HLG = 4, 5, 8, 13, 16, 18  # transfer curves

WHITE_NITS = 203.0  # ITU-R BT.2408
KNEE = 0.8  # of white
HLG_NITS = 1000.0  # peak of the display that HLG is made for; ITU-R BT.2100
STRIP = 1 << 19  # pixels that are converted at once

D65, DCI_WHITE, C_WHITE, E_WHITE = (0.3127, 0.3290), (0.314, 0.351), (0.310, 0.316), (1 / 3, 1 / 3)

# (x, y) of red, green, blue and white. H.273, table 2.
CHROMATICITIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), C_WHITE),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    10: ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), E_WHITE),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI_WHITE),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    ADOBE_RGB: ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), D65),
}
PRIMARIES_NAMES = {
    8: "film",
    BT2020: "BT.2020",
    10: "XYZ",
    11: "DCI P3",
    DISPLAY_P3: "Display P3",
    ADOBE_RGB: "Adobe RGB",
}

# Curves that are shown as sRGB is: those of BT.709, BT.601, SMPTE 240M, xvYCC, BT.1361, sRGB and BT.2020.
SHOWN_AS_SRGB = {1, 6, 7, 11, 12, SRGB, 14, 15}
TRANSFER_NAMES = {
    GAMMA_22: "gamma 2.2",
    GAMMA_28: "gamma 2.8",
    LINEAR: "linear light",
    9: "logarithm",
    10: "logarithm",
    PQ: "PQ",
    17: "SMPTE 428",
    HLG: "HLG",
}

Chromaticities = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Power:
    """The transfer curve of codes that are raised to an exponent."""

    exponent: float


@dataclass(frozen=True)
class ColourSpace:
    """Primaries and a transfer curve, each a code point that is known here."""

    # A code of `CHROMATICITIES`, or chromaticities of red, green, blue and white.
    primaries: int | Chromaticities = BT709
    # One of `TRANSFER_NAMES` or of `SHOWN_AS_SRGB`, or a power.
    transfer: int | Power = SRGB

    @property
    def is_srgb(self) -> bool:
        return self.primaries == BT709 and self.transfer in SHOWN_AS_SRGB

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (PQ, HLG)

    @property
    def name(self) -> str:
        if isinstance(self.transfer, Power):
            curve: str | None = f"gamma {self.transfer.exponent:.3g}"
        else:
            curve = TRANSFER_NAMES.get(self.transfer)
        gamut = None if self.primaries == BT709 else "primaries of its own"
        if isinstance(self.primaries, int) and self.primaries != BT709:
            gamut = PRIMARIES_NAMES[self.primaries]
        return ", ".join(part for part in (curve, gamut) if part)


def to_srgb(pixels: np.ndarray, space: ColourSpace) -> np.ndarray:
    """(H, W, 3) uint16 in [0, 65535], or uint8 in [0, 255] -> (H, W, 3) uint8, sRGB.

    Colours outside sRGB are clipped to it.
    """
    light, encoded = _light(space.transfer, 65535 if pixels.dtype == np.uint16 else 255), _srgb_codes()
    matrix = (_from_xyz() @ _to_xyz(space.primaries)).astype(np.float32)
    result = np.empty(pixels.shape, np.uint8)
    rows = max(1, STRIP // max(1, pixels.shape[1]))
    for top in range(0, len(pixels), rows):
        linear = light[pixels[top : top + rows]]  # (rows, W, 3) fp32; 1 is white
        if space.transfer == HLG:
            linear = _shown_hlg(linear, space.primaries)
        linear = np.maximum(linear @ matrix.T, 0)
        if space.is_hdr:
            linear *= _shoulder(linear.max(-1, keepdims=True))
        codes = np.minimum(linear, 1) * np.float32(65535) + np.float32(0.5)
        result[top : top + rows] = encoded[codes.astype(np.uint16)]
    return result


def is_gamut(primaries: Chromaticities) -> bool:
    """Whether chromaticities of red, green, blue and white span a triangle with the white inside."""
    red, green, blue, white = primaries
    if min(y for _, y in primaries) <= 0:
        return False
    columns = np.array([_xyz(*red), _xyz(*green), _xyz(*blue)]).T
    return abs(np.linalg.det(columns)) > 1e-6 and bool((np.linalg.solve(columns, _xyz(*white)) > 0).all())


@cache
def _light(transfer: int | Power, peak: int) -> np.ndarray:
    """(peak + 1,) fp32: linear light of each code, 1 for white; of HLG that of the scene, 1 for the largest code."""
    code = np.linspace(0, 1, peak + 1)
    if isinstance(transfer, Power):
        light = code**transfer.exponent
    elif transfer == PQ:  # SMPTE ST 2084
        root = code ** (1 / 78.84375)
        nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        light = nits / WHITE_NITS
    elif transfer == HLG:  # ITU-R BT.2100
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    elif transfer == 17:
        light = code**2.6 * (52.37 / 48)
    elif transfer in (9, 10):
        light = np.where(code > 0, 10 ** ((2 if transfer == 9 else 2.5) * (code - 1)), 0)
    elif transfer in (GAMMA_22, GAMMA_28, LINEAR):
        light = code ** {GAMMA_22: 2.2, GAMMA_28: 2.8, LINEAR: 1}[transfer]
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@cache
def _srgb_codes() -> np.ndarray:
    """(65536,) uint8: sRGB of linear light in steps of 1 / 65535."""
    light = np.linspace(0, 1, 65536)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(code * 255).astype(np.uint8)


def _shown_hlg(scene: np.ndarray, primaries: int | Chromaticities) -> np.ndarray:
    """Light of the scene (..., 3) -> light of the display, 1 for white: the system gamma of ITU-R BT.2100."""
    luminance = scene @ _to_xyz(primaries)[1].astype(np.float32)
    return scene * (luminance[..., None] ** np.float32(0.2) * np.float32(HLG_NITS / WHITE_NITS))


def _shoulder(peak: np.ndarray) -> np.ndarray:
    """What light whose largest component is `peak` is multiplied by: 1 up to the knee, towards 1 / peak above it."""
    over = np.maximum(peak, KNEE)
    return (1 - (1 - KNEE) * np.exp((KNEE - over) / (1 - KNEE))) / over


@cache
def _to_xyz(primaries: int | Chromaticities) -> np.ndarray:
    """(3, 3): linear light to XYZ under D65, to which another white is adapted (Bradford)."""
    red, green, blue, white = CHROMATICITIES[primaries] if isinstance(primaries, int) else primaries
    columns = np.array([_xyz(*red), _xyz(*green), _xyz(*blue)]).T
    matrix = columns * np.linalg.solve(columns, _xyz(*white))
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gain = (cones @ _xyz(*D65)) / (cones @ _xyz(*white))
    return np.linalg.solve(cones, gain[:, None] * cones) @ matrix


@cache
def _from_xyz() -> np.ndarray:
    return np.linalg.inv(_to_xyz(BT709))


def _xyz(x: float, y: float) -> np.ndarray:
    """XYZ of a chromaticity, of luminance 1; of luminance 0 where y is 0."""
    return np.array([x / y, 1, (1 - x - y) / y]) if y else np.array([x, y, 1 - x - y])
