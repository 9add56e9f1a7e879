"""GIF, APNG and WebP as browsers show them. The files are made byte by byte, and what they show is drawn by hand."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import Source, read_media, write_video

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
PALETTE = (RED, GREEN, BLUE, (9, 9, 9))
KEEP, CLEAR, RESTORE = 1, 2, 3  # disposal methods of a GIF


def silent(sentence):
    raise AssertionError(f"nothing was to be said, not {sentence!r}")


# GIF -----------------------------------------------------------------------------------------------------------------


def table(palette):
    return b"".join(bytes(colour) for colour in palette)


def lzw(codes):
    """Numbers of colours, 0 to 3, as codes of three bits; a clear code after each two keeps them from growing."""
    bits, n = 0, 0
    for i, code in enumerate(codes):
        if i % 2 == 0:
            bits, n = bits | 4 << n, n + 3
        bits, n = bits | int(code) << n, n + 3
    bits, n = bits | 5 << n, n + 3
    data = bits.to_bytes(-(-n // 8), "little")
    blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"\x02" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def frame(codes, corner=(0, 0), dispose=0, delay=10, transparent=None, palette=None, interlaced=False):
    """A frame of a GIF: (H, W) numbers of colours of a palette of four."""
    codes = np.asarray(codes)
    height, width = codes.shape
    control = struct.pack(
        "<BBBBHBB", 0x21, 0xF9, 4, dispose << 2 | (transparent is not None), delay, transparent or 0, 0
    )
    flags = (0x81 if palette else 0) | (0x40 if interlaced else 0)
    if interlaced:
        rows = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
        codes = codes[rows]
    head = struct.pack("<BHHHHB", 0x2C, *corner, width, height, flags)
    return control + head + (table(palette) if palette else b"") + lzw(codes.ravel())


def gif(path, frames, screen=(12, 8), palette=PALETTE, background=1):
    """screen: (width, height)."""
    flags = 0x80 | (len(palette).bit_length() - 2) if palette else 0
    head = struct.pack("<6sHHBBB", b"GIF89a", *screen, flags, background, 0)
    path.write_bytes(head + (table(palette) if palette else b"") + b"".join(frames) + b";")
    return path


def area(code, width=12, height=8):
    return np.full((height, width), code)


def canvas(colour, *rectangles, size=(8, 12)):
    """(H, W, 3) of a colour, with rectangles (top, left, height, width, colour)."""
    pixels = np.empty((*size, 3), np.uint8)
    pixels[:] = colour
    for top, left, height, width, inside in rectangles:
        pixels[top : top + height, left : left + width] = inside
    return pixels


def test_what_an_opaque_gif_clears_is_transparent_and_not_of_its_background_colour(tmp_path):
    frames = [frame(area(0)), frame(area(1, 4, 4), (2, 2), CLEAR), frame(area(2, 2, 2), (10, 6))]
    read = read_media(gif(tmp_path / "a.gif", frames), log=silent).frames
    assert np.array_equal(read[1], canvas(RED, (2, 2, 4, 4, GREEN)))
    assert np.array_equal(read[2], canvas(RED, (2, 2, 4, 4, WHITE), (6, 10, 2, 2, BLUE)))


def test_a_gif_frame_that_restores_leaves_what_was_there_before(tmp_path):
    frames = [frame(area(0)), frame(area(1, 4, 4), (2, 2), RESTORE), frame(area(2, 2, 2), (10, 6), RESTORE),
              frame(area(3, 2, 2), (4, 4), KEEP), frame(area(1, 1, 1))]  # fmt: skip
    read = read_media(gif(tmp_path / "a.gif", frames)).frames
    assert np.array_equal(read[1], canvas(RED, (2, 2, 4, 4, GREEN)))
    assert np.array_equal(read[2], canvas(RED, (6, 10, 2, 2, BLUE)))
    assert np.array_equal(read[4], canvas(RED, (4, 4, 2, 2, PALETTE[3]), (0, 0, 1, 1, GREEN)))


@pytest.mark.parametrize("dispose", [CLEAR, RESTORE, 4])
def test_a_first_gif_frame_that_does_not_stay_leaves_nothing(tmp_path, dispose):
    read = read_media(gif(tmp_path / "a.gif", [frame(area(0), dispose=dispose), frame(area(1, 2, 2))])).frames
    assert np.array_equal(read[1], canvas(WHITE, (0, 0, 2, 2, GREEN)))


def test_a_first_gif_frame_smaller_than_the_screen_is_where_it_belongs(tmp_path):
    for frames in ([frame(area(0, 4, 2), (3, 5))], [frame(area(0, 4, 2), (3, 5)), frame(area(1, 1, 1))]):
        clip = read_media(gif(tmp_path / "a.gif", frames))
        assert clip.kind == ("image" if len(frames) == 1 else "video")
        assert np.array_equal(clip.frames[0], canvas(WHITE, (5, 3, 2, 4, RED)))


def test_later_gif_frames_are_cut_off_at_the_screen(tmp_path):
    frames = [
        frame(area(0)),
        frame(area(1, 10, 10), (8, 4), KEEP),
        frame(area(2, 3, 3), (40, 40)),
        frame(area(3, 1, 1)),
    ]
    path = gif(tmp_path / "a.gif", frames)
    read = read_media(path, log=silent).frames
    assert read.shape == (4, 8, 12, 3) and Source(path).probe().size == (8, 12)
    shown = canvas(RED, (4, 8, 4, 4, GREEN))
    assert np.array_equal(read[1], shown) and np.array_equal(read[2], shown)


@pytest.mark.parametrize("screen", [(6, 4), (0, 0)])
def test_a_first_gif_frame_larger_than_the_screen_is_shown_whole(tmp_path, screen):
    path = gif(tmp_path / "a.gif", [frame(area(0)), frame(area(1, 2, 2), (10, 6))], screen)
    assert np.array_equal(read_media(path).frames[1], canvas(RED, (6, 10, 2, 2, GREEN)))
    assert Source(path).probe().size == (8, 12)


def test_palettes_of_gif_frames_transparency_and_interlacing(tmp_path):
    stripes = np.repeat(np.arange(8)[:, None] % 3, 12, 1)
    own = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 0, 0))
    frames = [frame(area(0)), frame(stripes, transparent=1, palette=own, interlaced=True), frame(area(1, 1, 1))]
    read = read_media(gif(tmp_path / "a.gif", frames)).frames
    wanted = np.array([own[0], RED, own[2]], np.uint8)[stripes]
    assert np.array_equal(read[1], wanted)
    wanted[0, 0] = GREEN
    assert np.array_equal(read[2], wanted)


def test_a_gif_colour_that_the_palette_lacks_is_transparent(tmp_path):
    codes = area(0)
    codes[:, 6:] = 3
    read = read_media(gif(tmp_path / "a.gif", [frame(codes), frame(area(1, 1, 1))], palette=PALETTE[:2])).frames
    assert np.array_equal(read[0], canvas(RED, (0, 6, 8, 6, WHITE)))


@pytest.mark.parametrize("hundredths, fps", [(0, 10), (1, 10), (2, 50), (3, 100 / 3), (10, 10), (200, 0.5)])
def test_gif_frames_of_at_most_10_ms_last_100_as_in_browsers(tmp_path, hundredths, fps):
    path = gif(tmp_path / "a.gif", [frame(area(n), delay=hundredths) for n in range(3)])
    assert read_media(path).fps == pytest.approx(fps)


def test_a_damaged_gif_is_read_up_to_the_damage_if_asked(tmp_path):
    frames = [frame(area(0)), frame(area(1)), frame(area(2))]
    path = gif(tmp_path / "a.gif", frames)
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[: -len(frames[2]) - 1] + b"\x77" * 60):
        path.write_bytes(damaged)
        with pytest.raises(SinfusionError, match=r"damaged or truncated: 2 frame\(s\) read"):
            read_media(path)
        assert len(read_media(path, stop=2).frames) == 2
    path.write_bytes(whole[:-1])
    assert len(read_media(path).frames) == 3  # the last byte means nothing
    path.write_bytes(whole + b"junk" * 9)
    assert len(read_media(path).frames) == 3


# APNG ----------------------------------------------------------------------------------------------------------------


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def apng(path, frames, size=(12, 8), still=None, promised=None):
    """frames: (pixels (H, W, 4) uint8, corner, dispose, blend, seconds as a fraction); still: an image before them."""

    def lines(pixels):
        return zlib.compress(b"".join(b"\0" + line.tobytes() for line in np.asarray(pixels, np.uint8)))

    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 6, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", len(frames) if promised is None else promised, 0)))
    if still is not None:
        parts.append(chunk(b"IDAT", lines(still)))
    number = 0
    for n, (pixels, corner, dispose, blend, delay) in enumerate(frames):
        height, width = pixels.shape[:2]
        control = struct.pack(">IIIIIHHBB", number, width, height, *corner, *delay, dispose, blend)
        parts.append(chunk(b"fcTL", control))
        number += 1
        if n == 0 and still is None:
            parts.append(chunk(b"IDAT", lines(pixels)))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number) + lines(pixels)))
            number += 1
    path.write_bytes(b"".join(parts) + chunk(b"IEND", b""))
    return path


def rgba(colour, alpha=255, width=12, height=8):
    return np.broadcast_to(np.uint8([*colour, alpha]), (height, width, 4))


TENTH = (1, 10)


def test_translucent_apng_frames_are_laid_over_opaque_ones(tmp_path):
    frames = [(rgba(RED), (0, 0), 0, 0, TENTH), (rgba(BLUE, 102), (0, 0), 0, 1, TENTH)]
    read = read_media(apng(tmp_path / "a.png", frames), log=silent).frames
    assert np.abs(read[1].astype(int) - (153, 0, 102)).max() <= 1  # 0.6 red and 0.4 blue, and no white behind them


def test_translucent_apng_frames_over_nothing_keep_their_transparency(tmp_path):
    frames = [(rgba(RED, 0), (0, 0), 0, 0, TENTH), (rgba(BLUE, 102), (0, 0), 0, 1, TENTH)]
    read = read_media(apng(tmp_path / "a.png", frames)).frames
    assert np.abs(read[1].astype(int) - (153, 153, 255)).max() <= 1


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("dispose", [0, 1, 2])
def test_apng_frames_are_disposed_of_and_blended(tmp_path, dispose, blend):
    frames = [
        (rgba(RED), (0, 0), 0, 0, TENTH),
        (rgba(GREEN, 255, 4, 4), (2, 2), dispose, 0, TENTH),
        (rgba(BLUE, 0, 2, 8), (4, 0), 0, blend, TENTH),  # a transparent stripe
    ]
    read = read_media(apng(tmp_path / "a.png", frames)).frames
    assert np.array_equal(read[1], canvas(RED, (2, 2, 4, 4, GREEN)))
    left = canvas(RED, (2, 2, 4, 4, {0: GREEN, 1: WHITE, 2: RED}[dispose]))
    if blend == 0:
        left[:, 4:6] = WHITE
    assert np.array_equal(read[2], left)


def test_a_first_apng_frame_that_restores_leaves_nothing(tmp_path):
    frames = [(rgba(RED), (0, 0), 2, 0, TENTH), (rgba(GREEN, 255, 2, 2), (0, 0), 0, 1, TENTH)]
    read = read_media(apng(tmp_path / "a.png", frames)).frames
    assert np.array_equal(read[1], canvas(WHITE, (0, 0, 2, 2, GREEN)))


@pytest.mark.parametrize("count", [1, 2])
def test_the_still_image_before_an_apng_is_hidden(tmp_path, count):
    frames = [(rgba(GREEN), (0, 0), 0, 0, TENTH), (rgba(BLUE), (0, 0), 0, 0, TENTH)][:count]
    path = apng(tmp_path / "a.png", frames, still=rgba(RED))
    clip = read_media(path)
    assert np.array_equal(clip.frames, np.stack([canvas(GREEN), canvas(BLUE)][:count]))
    assert clip.kind == Source(path).probe().kind == ("image" if count == 1 else "video")


@pytest.mark.parametrize("delay, fps", [((0, 0), 10), ((1, 100), 10), ((1, 90), 90), ((4, 0), 25), ((3, 10), 10 / 3)])
def test_apng_frames_of_at_most_10_ms_last_100(tmp_path, delay, fps):
    frames = [(rgba(colour), (0, 0), 0, 0, delay) for colour in (RED, GREEN)]
    assert read_media(apng(tmp_path / "a.png", frames)).fps == pytest.approx(fps)


def test_an_apng_with_frames_outside_its_size_or_too_few_of_them_is_refused(tmp_path):
    good = (rgba(RED), (0, 0), 0, 0, TENTH)
    for frames, promised in (([good, (rgba(GREEN), (1, 0), 0, 0, TENTH)], 2), ([good, good], 5)):
        path = apng(tmp_path / "a.png", frames, promised=promised)
        with pytest.raises(SinfusionError, match="damaged"):
            read_media(path)
    data = bytearray(apng(tmp_path / "a.png", [good, good]).read_bytes())
    data[data.index(b"fdAT") + 12] ^= 1
    path.write_bytes(data)
    with pytest.raises(SinfusionError, match=r"1 frame\(s\) read"):
        read_media(path)
    assert len(read_media(path, stop=1).frames) == 1


# WebP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("milliseconds, fps", [(0, 10), (1, 10), (10, 10), (20, 50), (100, 10)])
def test_webp_frames_of_at_most_10_ms_last_100(tmp_path, milliseconds, fps):
    images = [Image.fromarray(canvas(colour)) for colour in (RED, GREEN, BLUE)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=milliseconds, lossless=True)
    clip = read_media(tmp_path / "a.webp")
    assert len(clip.frames) == 3 and clip.fps == pytest.approx(fps)


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps, count, kept", [(60, 60, 50), (120, 60, 25), (50, 20, 20), (59.94, 6, 5), (1000, 2, 1)])
def test_a_gif_of_more_than_50_frames_a_second_drops_some_and_says_so(tmp_path, fps, count, kept):
    frames = np.stack([np.full((8, 12, 3), 4 * n, np.uint8) for n in range(count)])
    said = []
    write_video(tmp_path / "a.gif", frames, fps=fps, log=said.append)
    shades = read_media(tmp_path / "a.gif").frames[:, 0, 0, 0] // 4
    assert len(shades) == kept and np.abs(shades - np.arange(kept) * max(1, fps / 50)).max() <= 0.5
    with Image.open(tmp_path / "a.gif") as image:
        delays = []
        for n in range(kept):
            image.seek(n)
            delays.append(image.info["duration"])
    assert min(delays) >= 20 and sum(delays) == pytest.approx(max(20, 1000 * count / fps), abs=10)
    assert len(said) == (kept < count) and all(f"without {count - kept} of the frames" in line for line in said)
