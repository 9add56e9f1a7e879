"""Which pictures of a file are meant: streams of videos, pages of TIFFs, parts of huge images; and memory."""

from __future__ import annotations

import io
import struct
import sys
import threading
import time
import zlib

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import Source, SourceInfo, read_image, read_media, source, stills

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DEFAULT, NEITHER = Disposition.default, Disposition(0)


def silent(sentence):
    raise AssertionError(f"nothing was to be said, not {sentence!r}")


# Streams -------------------------------------------------------------------------------------------------------------


def mux(path, videos=(), cover=False, sound=False):
    """videos: (size, disposition, colour) each; cover: a PNG beside them, of 64x64."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as out:
        streams = []
        for (height, width), disposition, colour in videos:
            stream = out.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt, stream.disposition = height, width, "yuv420p", disposition
            streams.append((stream, np.full((height, width, 3), colour, np.uint8)))
        tone = out.add_stream("aac", rate=44100) if sound else None
        if cover:
            picture = out.add_stream("png")
            picture.width = picture.height = 64
            picture.pix_fmt, picture.disposition = "rgb24", Disposition.attached_pic
        for stream, pixels in streams:
            for _ in range(4):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(stream.encode())
        if tone is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 44100
            out.mux(tone.encode(silence))
            out.mux(tone.encode())
        if cover:
            data = io.BytesIO()
            Image.new("RGB", (64, 64), RED).save(data, "PNG")
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
            out.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4"])
def test_the_cover_of_a_sound_file_is_no_video(tmp_path, name):
    path = mux(tmp_path / name, cover=True, sound=True)
    for read in (read_media, lambda path: Source(path).probe()):
        with pytest.raises(SinfusionError, match=f"{name} has no video in it, only a cover picture"):
            read(path)


def test_the_cover_beside_a_video_is_not_its_frames(tmp_path):
    clip = read_media(mux(tmp_path / "a.mp4", [((32, 48), DEFAULT, BLUE)], cover=True, sound=True), log=silent)
    assert clip.frames.shape == (4, 32, 48, 3) and np.abs(clip.frames.astype(int) - BLUE).max() < 6


@pytest.mark.parametrize(
    "videos, shown",
    [([((48, 64), NEITHER, BLUE), ((32, 48), DEFAULT, GREEN)], GREEN),  # the default one, if it is smaller and later
     ([((32, 48), NEITHER, BLUE), ((48, 64), NEITHER, GREEN)], GREEN),  # the largest, where none is the default one
     ([((32, 48), DEFAULT, BLUE), ((48, 64), DEFAULT, GREEN)], GREEN),
     ([((32, 48), DEFAULT, BLUE), ((48, 64), NEITHER, GREEN)], BLUE),
     ([((32, 48), DEFAULT, BLUE), ((32, 48), DEFAULT, GREEN)], BLUE)],
)  # fmt: skip
def test_of_several_video_streams_the_one_is_read_that_players_show(tmp_path, videos, shown):
    path = mux(tmp_path / "a.mkv", videos)
    clip = read_media(path, log=silent)
    size = next(size for size, _, colour in videos if colour == shown)
    assert clip.frames.shape == (4, *size, 3) and np.abs(clip.frames.astype(int) - shown).max() < 6
    assert Source(path).probe() == SourceInfo(size, 4, "video")


# Pages ---------------------------------------------------------------------------------------------------------------


def page(shade, size=(16, 24)):
    return Image.fromarray(np.full((*size, 3), shade, np.uint8))


def test_the_pages_of_a_tiff_are_frames(tmp_path):
    page(0).save(tmp_path / "a.tif", save_all=True, append_images=[page(10 * n) for n in range(1, 8)])
    clip = read_media(tmp_path / "a.tif", log=silent)
    assert clip.kind == "video" and clip.frames[:, 0, 0, 0].tolist() == list(range(0, 80, 10)) and clip.fps == 20
    assert read_media(tmp_path / "a.tif", start=2, stop=7, stride=2).frames[:, 0, 0, 0].tolist() == [20, 40, 60]
    assert Source(tmp_path / "a.tif", fps=8).read().fps == 8
    assert Source(tmp_path / "a.tif").probe() == SourceInfo((16, 24), 8, "video")
    assert (read_image(tmp_path / "a.tif") == 0).all()


def test_pages_of_a_tiff_are_turned_upright_each(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = [Image.fromarray(np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3) + np.uint8(n)) for n in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], exif=exif)
    with Image.open(tmp_path / "a.tif") as image:
        tags = []
        for n in range(3):
            image.seek(n)
            tags.append(image.tag_v2.get(0x0112))
    assert tags[0] == 6
    if set(tags) == {6}:  # as Pillow writes it depends on the version
        read = read_media(tmp_path / "a.tif").frames
        assert np.array_equal(read, np.stack([np.rot90(np.asarray(one), -1) for one in pages]))


def test_reduced_copies_in_a_tiff_are_no_frames(tmp_path):
    small = page(99, (8, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    page(10).save(tmp_path / "a.tif", save_all=True, append_images=[small])
    clip = read_media(tmp_path / "a.tif", log=silent)
    assert clip.kind == "image" and (clip.frames == 10).all()


def test_of_a_tiff_with_pages_of_different_sizes_the_first_is_read_and_that_is_said(tmp_path):
    page(10).save(tmp_path / "a.tif", save_all=True, append_images=[page(20), page(30, (17, 24))])
    said = []
    clip = read_media(tmp_path / "a.tif", log=said.append)
    assert clip.kind == "image" and (clip.frames == 10).all()
    assert said == ["a.tif has 3 pages of different sizes; the first is read"]


def test_the_first_picture_of_a_stereo_jpeg_is_read_and_the_other_is_mentioned(tmp_path):
    page(50).save(tmp_path / "a.mpo", save_all=True, append_images=[page(200)])
    data = (tmp_path / "a.mpo").read_bytes()
    assert data.count(b"MPF\0") >= 1
    said = []
    clip = read_media(tmp_path / "a.mpo", log=said.append)
    assert (
        clip.kind == "image" and clip.frames.shape == (1, 16, 24, 3) and np.abs(clip.frames.astype(int) - 50).max() < 3
    )
    with Image.open(tmp_path / "a.mpo") as image:
        views = sum(one["Attribute"]["MPType"].startswith("Multi-Frame") for one in image.mpinfo[0xB002])
    assert said == ([f"it holds {views} pictures; the first is read"] if views > 1 else [])


# Huge images ---------------------------------------------------------------------------------------------------------


CORNERS = [200, 40, 120, 80]


def four_shades(path, size=(1300, 1400), **options):
    """A grey JPEG of four shades, (height, width)."""
    height, width = size
    image = Image.new("L", (width, height), CORNERS[0])
    for shade, corner in zip(CORNERS[1:], ((width // 2, 0), (0, height // 2), (width // 2, height // 2)), strict=True):
        image.paste(shade, (*corner, width, height))
    image.save(path, quality=30, **options)
    return path


def corners(pixels):
    return pixels[[10, 10, -10, -10], [10, -10, 10, -10], 0].astype(int)


@pytest.fixture
def small_limits(monkeypatch):
    """A hundredth of the limits, so that an image of 1.8 megapixels stands for one of 180."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS // 100)
    monkeypatch.setattr(stills, "MAX_PIXELS", stills.MAX_PIXELS // 100)
    monkeypatch.setattr(stills, "WHOLE_JPEG_PIXELS", stills.WHOLE_JPEG_PIXELS // 100)


def test_a_jpeg_of_182_megapixels_is_read_in_part(tmp_path):
    path = four_shades(tmp_path / "a.jpg", (13_000, 14_000))
    said = []
    with Peak() as peak:
        clip = read_media(path, log=said.append)
    assert clip.frames.shape == (1, 238, 256, 3) and clip.source_size == (13_000, 14_000) and clip.kind == "image"
    assert len(said) == 1 and said[0].startswith("scaled 14000x13000 to 256x238")
    assert np.abs(corners(clip.frames[0]) - CORNERS).max() < 12
    assert peak.grown < 150 << 20  # whole it would be 182 MB grey and 546 MB in colour


def test_a_huge_jpeg_is_turned_upright_and_scaled_to_what_is_asked_for(tmp_path, small_limits):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    path = four_shades(tmp_path / "a.jpg", exif=exif)
    assert Source(path).probe() == SourceInfo((1400, 1300), 1, "image")
    read = read_image(path, size=(300, 200), log=lambda _: None)
    assert read.shape == (300, 200, 3)
    assert np.abs(corners(read) - np.array(CORNERS)[[2, 0, 3, 1]]).max() < 12
    for whole in ({"max_side": 0}, {"size": (1400, 1300)}):
        with pytest.raises(SinfusionError, match=r"too large an image: 1400x1300.*smaller --max-side"):
            read_media(path, **whole)


def test_a_huge_jpeg_is_a_frame_of_a_folder(tmp_path, small_limits):
    four_shades(tmp_path / "1.jpg")
    assert read_media(tmp_path, log=lambda _: None, max_side=64).frames.shape[1:3] == (59, 64)


def test_a_jpeg_that_is_decoded_in_part_looks_like_the_whole(tmp_path, monkeypatch):
    y, x = np.mgrid[:480, :640]
    waves = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), 127 + 100 * np.sin((x + y) / 50)], -1)
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    whole = read_image(tmp_path / "a.jpg", max_side=100, log=lambda _: None)
    monkeypatch.setattr(stills, "WHOLE_JPEG_PIXELS", 1000)
    part = read_image(tmp_path / "a.jpg", max_side=100, log=lambda _: None)
    assert part.shape == whole.shape and np.abs(part.astype(int) - whole).max() <= 3
    assert np.array_equal(read_image(tmp_path / "a.jpg", max_side=0), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_a_progressive_jpeg_that_would_fill_the_memory_is_refused(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG", progressive=True, subsampling=0)
    data = bytearray(out.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, 30_000, 30_000)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(SinfusionError, match=r"too large an image: 30000x30000.*save it smaller"):
        read_media(tmp_path / "a.jpg")


def test_a_png_of_225_megapixels_is_refused_with_a_way_out(tmp_path):
    lines = zlib.compress(bytes(15_000 // 8 + 1) * 15_000, 1)
    parts = (b"IHDR", struct.pack(">IIBBBBB", 15_000, 15_000, 1, 0, 0, 0, 0)), (b"IDAT", lines), (b"IEND", b"")
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(SinfusionError, match=r"too large an image: 225 megapixels.*save it smaller"):
        read_media(tmp_path / "a.png")


# Memory --------------------------------------------------------------------------------------------------------------


class Peak:
    """How much the memory of this process grows at most while it is entered, in bytes."""

    def __enter__(self):
        self.before, self.grown, self.done = self._now(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def _now(self):
        if not sys.platform.startswith("linux"):
            return 0
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def _watch(self):
        while not self.done.is_set():
            self.grown = max(self.grown, self._now() - self.before)
            time.sleep(0.001)


def test_a_clip_is_in_memory_once_while_it_is_read(tmp_path, monkeypatch):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=20)
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        for n in range(160):
            out.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((480, 640, 3), n % 250, np.uint8), format="rgb24"))
            )
        out.mux(stream.encode())
    read_media(tmp_path / "a.mp4", max_side=0, stop=20)  # what decoders keep is there
    with Peak() as peak:
        clip = read_media(tmp_path / "a.mp4", max_side=0)
    assert clip.frames.shape == (160, 480, 640, 3) and clip.frames.flags.c_contiguous
    assert peak.grown < clip.frames.nbytes + (110 << 20)  # a block, and the decoder; it was twice and three times


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_frames_are_whole_and_in_order_whatever_block_they_are_in(texture, monkeypatch, count):
    frames = texture(count, (16, 24))
    for bytes_of_a_block in (1, 3 * 16 * 24 * 3, 1 << 20):
        monkeypatch.setattr(source, "BLOCK_BYTES", bytes_of_a_block)
        clip = Source(frames).read()
        assert np.array_equal(clip.frames, frames) and not np.shares_memory(clip.frames, frames)
