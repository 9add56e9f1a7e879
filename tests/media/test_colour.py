"""Transfer curves and primaries: what `to_srgb` gives for colours that were encoded here, by the standards."""

from __future__ import annotations

import numpy as np
import pytest

from sinfusion.media.colour import (
    ADOBE_RGB,
    BT709,
    BT2020,
    DISPLAY_P3,
    HLG,
    PQ,
    SRGB,
    ColourSpace,
    Power,
    is_gamut,
    to_srgb,
)

COLOURS = np.array([[(200, 40, 40), (40, 180, 60), (50, 70, 200), (210, 190, 50)],
                    [(60, 190, 200), (190, 60, 180), (128, 128, 128), (5, 5, 5)]], np.uint8)  # fmt: skip
# From linear light of BT.709 to that of the primaries, as standards and ICC profiles print it.
FROM_BT709 = {
    BT709: np.eye(3),
    BT2020: np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]),
    DISPLAY_P3: np.array([[0.8225, 0.1774, 0.0000], [0.0332, 0.9669, 0.0000], [0.0171, 0.0724, 0.9108]]),
    ADOBE_RGB: np.array([[0.7151, 0.2849, 0.0000], [0.0000, 1.0000, 0.0000], [0.0000, 0.0412, 0.9588]]),
}


def linear(srgb):
    """[0, 255] -> [0, 1]: IEC 61966-2-1."""
    code = np.asarray(srgb, float) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def pq(nits):
    """SMPTE ST 2084."""
    power = (np.asarray(nits) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(nits):
    """ITU-R BT.2100, of light (..., 3) on a display of 1000 nits with BT.2020 primaries."""
    luminance = np.maximum(nits @ [0.2627, 0.6780, 0.0593] / 1000, 1e-9)[..., None]
    scene = nits / 1000 * luminance ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, (3 * scene) ** 0.5, high)


def codes(values):
    return np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)


@pytest.mark.parametrize("primaries", FROM_BT709)
@pytest.mark.parametrize("transfer, curve", [
    (4, lambda light: light ** (1 / 2.2)), (5, lambda light: light ** (1 / 2.8)), (8, lambda light: light),
    (Power(1.8), lambda light: light ** (1 / 1.8)), (9, lambda light: 1 + np.log10(np.maximum(light, 0.01)) / 2),
    (PQ, lambda light: pq(203 * light)),
])  # fmt: skip
def test_colours_come_back_from_every_curve_and_gamut(primaries, transfer, curve):
    light = np.maximum(linear(COLOURS) @ FROM_BT709[primaries].T, 0)
    read = to_srgb(codes(curve(light)), ColourSpace(primaries, transfer))
    far = np.abs(read.astype(int) - COLOURS) > 1
    assert not (far & ((transfer != 9) | (light.min(-1, keepdims=True) > 0.01))).any()


def test_hlg_on_a_display_of_1000_nits_comes_back():
    light = 203 * linear(COLOURS) @ FROM_BT709[BT2020].T
    assert np.abs(to_srgb(codes(hlg(light)), ColourSpace(BT2020, HLG)).astype(int) - COLOURS).max() <= 1


def test_srgb_stays_as_it_is_in_8_and_16_bits():
    every = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)
    assert np.array_equal(to_srgb(every, ColourSpace()), every)
    assert np.array_equal(to_srgb(every * np.uint16(257), ColourSpace(BT709, SRGB)), every)


def test_grey_stays_grey_in_every_gamut_whatever_its_white():
    grey = np.arange(0, 256, 5, dtype=np.uint8)[:, None, None].repeat(3, 2)
    for primaries in (8, BT2020, 11, DISPLAY_P3, ADOBE_RGB):
        assert np.abs(to_srgb(grey, ColourSpace(primaries, SRGB)).astype(int) - grey).max() <= 1


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_of_hdr_rise_to_white_and_keep_their_hue(transfer):
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16)[None, :, None].repeat(3, 2)
    read = to_srgb(ramp, ColourSpace(BT2020, transfer))[0].astype(int)
    assert (np.diff(read, axis=0) >= 0).all() and read[-1].min() == 255 and np.ptp(read, axis=1).max() <= 1
    orange = np.array([1.0, 0.5, 0.2]) * np.array([100, 1000, 3000])[:, None]  # nits; BT.709
    ratio = linear(to_srgb(codes(pq(orange @ FROM_BT709[BT2020].T))[None], ColourSpace(BT2020, PQ))[0])
    assert np.allclose(ratio / ratio[:, :1], [1, 0.5, 0.2], atol=0.02)


def test_white_of_203_nits_is_nearly_white_and_grey_below_the_knee_is_exact():
    nits = np.array([[203, 203 * 0.5, 203 * 0.2]])[..., None].repeat(3, 2)
    white, half, fifth = to_srgb(codes(pq(nits)), ColourSpace(BT2020, PQ))[0, :, 0]
    assert 244 <= white < 255 and (half, fifth) == (188, 124)


def test_the_power_1_is_not_the_code_1():
    assert not ColourSpace(BT709, Power(1.0)).is_srgb and ColourSpace(BT709, 1).is_srgb


def test_frames_larger_than_a_strip_are_whole():
    tall = np.arange(1500 * 1000 * 3, dtype=np.uint32).astype(np.uint16).reshape(1500, 1000, 3)
    space = ColourSpace(DISPLAY_P3, SRGB)
    assert np.array_equal(to_srgb(tall, space)[-7:], to_srgb(tall[-7:], space))


def test_chromaticities_that_span_nothing_are_no_gamut():
    white = (0.3127, 0.3290)
    assert is_gamut(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), white))
    assert not is_gamut(((0.64, 0.33), (0.64, 0.33), (0.15, 0.06), white))
    assert not is_gamut(((0.64, 0.33), (0.30, 0.60), (0.15, 0.0), white))
    assert not is_gamut(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.7, 0.3)))
