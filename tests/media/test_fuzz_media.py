"""Damaged and hostile files: reading them gives a clip or a SinfusionError, in little time and memory."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from contextlib import suppress

import av
import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import Clip, Source, read_media

VIDEOS = {"mp4": "libx264", "mov": "libx264", "webm": "libvpx-vp9", "mkv": "libvpx", "avi": "mpeg4"}
IMAGES = {
    "gif": {"save_all": True},
    "webp": {"save_all": True, "lossless": True},
    "apng": {"format": "PNG", "save_all": True},
    "png": {},
    "jpg": {},
    "lossy.webp": {},
    "bmp": {},
    "tiff": {},
    "lzw.tiff": {"compression": "tiff_lzw"},
}
CASES = 25  # of each format


@pytest.fixture(autouse=True)
def _memory_stays_small():
    if sys.platform == "win32":
        yield
        return
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 1 << 30


@pytest.fixture(scope="module")
def whole(texture):
    """A small file of every format, as bytes."""
    frames = texture(6, (32, 48))
    files = {}
    for name, codec in VIDEOS.items():
        out = io.BytesIO()
        with av.open(out, "w", format={"mkv": "matroska"}.get(name, name)) as container:
            stream = container.add_stream(codec, rate=20)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        files[name] = out.getvalue()
    images = [Image.fromarray(frame) for frame in frames]
    for name, options in IMAGES.items():
        out = io.BytesIO()
        options = {"format": {"jpg": "JPEG"}.get(name, name.split(".")[-1].upper()), **options}
        if "save_all" in options:
            options |= {"append_images": images[1:], "duration": 50}
        images[0].save(out, **options)
        files[name] = out.getvalue()
    return files


def read(path, **options):
    """What reading it ends in: a clip or the sentence of a SinfusionError. Anything else fails the test."""
    with suppress(SinfusionError):
        assert Source(path).probe().frames > 0
    try:
        clip = read_media(path, log=lambda _: None, **options)
    except SinfusionError as error:
        assert 10 < len(str(error)) < 600 and "\n" not in str(error)
        return str(error)
    assert isinstance(clip, Clip) and max(clip.frames.shape[1:3]) <= 256
    return clip


def damaged(data, rng):
    """Cut off, or with bytes changed, zeroed, left out or repeated; the beginning is hit as often as the rest."""
    data = bytearray(data)
    end = len(data) if rng.random() < 0.5 else min(len(data), 200)
    start = int(rng.integers(end))
    length = int(rng.integers(1, 40))
    match rng.integers(5):
        case 0:
            del data[start:]
        case 1:
            for at in rng.integers(end, size=int(rng.integers(1, 12))):
                data[at] = rng.integers(256)
        case 2:
            data[start : start + length] = bytes(length)
        case 3:
            del data[start : start + length]
        case 4:
            data[start:start] = data[start : start + length]
    return bytes(data)


@pytest.mark.parametrize("name", [*VIDEOS, *IMAGES])
def test_a_whole_file_is_read_and_a_damaged_one_read_or_refused(whole, tmp_path, name):
    rng = np.random.default_rng(len(name))
    path = tmp_path / f"a.{name}"
    path.write_bytes(whole[name])
    moves = name in VIDEOS or "save_all" in IMAGES[name]
    assert read(path).frames.shape == (6 if moves else 1, 32, 48, 3)
    refused = 0
    for _ in range(CASES):
        path.write_bytes(damaged(whole[name], rng))
        refused += isinstance(read(path), str)
    assert refused > 0


@pytest.mark.parametrize("name", [*VIDEOS, *IMAGES])
def test_every_beginning_of_a_file_is_read_or_refused(whole, tmp_path, name):
    data, path = whole[name], tmp_path / f"a.{name}"
    for size in {*range(1, 40, 3), *np.linspace(40, len(data) - 1, 12).astype(int).tolist()}:
        path.write_bytes(data[:size])
        outcome = read(path)
        assert isinstance(outcome, str) or size > 40


def test_one_format_behind_another_or_named_as_another_is_read_or_refused(whole, tmp_path):
    names = list(whole)
    for n, name in enumerate(names):
        other = names[(n + 5) % len(names)]
        path = tmp_path / f"a.{other}"
        path.write_bytes(whole[name])
        assert isinstance(read(path), Clip)
        path.write_bytes(whole[name][: len(whole[name]) // 2] + whole[other])
        read(path)


def test_damaged_frames_in_a_folder_are_refused_by_name(whole, tmp_path):
    rng = np.random.default_rng(0)
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(whole["png"])
    for _ in range(CASES):
        (tmp_path / "1.png").write_bytes(damaged(whole["png"], rng))
        outcome = read(tmp_path)
        assert isinstance(outcome, Clip) or "1.png" in outcome


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _claiming(side):
    """Small files that claim to be images of side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    yield "a.png", b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(999)))
    yield "a.bmp", struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 999, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0)
    yield "a.gif", b"GIF89a" + struct.pack("<HHBBB", side, side, 0xF0, 0, 0) + bytes(6) + b"," + bytes(20)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    jpeg = bytearray(out.getvalue())
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, side, side)
    yield "a.jpg", bytes(jpeg)
    tags = ((256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, side))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    yield "a.tiff", struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    yield "a.y4m", b"YUV4MPEG2 W%d H%d F25:1 Ip C420jpeg\nFRAME\n" % (side, side) + bytes(999)


@pytest.mark.parametrize("side", [60_000, 65_000])
def test_images_that_claim_billions_of_pixels_are_refused(tmp_path, side):
    for name, data in _claiming(side):
        (tmp_path / name).write_bytes(data)
        outcome = read(tmp_path / name, max_side=0)
        assert isinstance(outcome, str), name
        assert "too large" in outcome or name == "a.y4m"
    assert isinstance(read(tmp_path), str)


def test_images_that_claim_more_pixels_than_they_have_are_refused(tmp_path):
    for name, data in _claiming(4_000):
        (tmp_path / name).write_bytes(data)
        outcome = read(tmp_path / name)
        assert isinstance(outcome, str) or name == "a.jpg"  # libjpeg paints the rest grey


def test_animations_of_thousands_of_frames_are_read_or_a_few_of_them(tmp_path):
    images = [Image.new("L", (4, 4), n % 256) for n in range(3000)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=20)
    assert len(read(tmp_path / "a.gif").frames) == 3000
    assert len(read(tmp_path / "a.gif", start=5, stop=8).frames) == 3


def test_an_animation_that_promises_more_frames_than_it_has_is_refused(whole, tmp_path):
    data = whole["apng"]
    at = data.index(b"acTL")
    data = data[: at - 4] + _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + data[at + 16 :]
    (tmp_path / "a.png").write_bytes(data)
    assert isinstance(read(tmp_path / "a.png"), str)


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n",
    "a.m3u": "#EXTM3U\n{video}\n",
    "a.mp4": "ffconcat version 1.0\nfile {video}\n",
    "a.txt": "file {video}\n",
    "a.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1"><BaseURL>{video}</BaseURL></Representation></AdaptationSet></Period></MPD>\n',
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "a.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="48" height="32"><image href="{video}"/></svg>\n',
    "a.smil": '<smil><body><video src="{video}"/></body></smil>\n',
    "a.avs": 'DirectShowSource("{video}")\n',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_do_not_open_other_files(whole, tmp_path, monkeypatch, name):
    (tmp_path / "video.mp4").write_bytes(whole["mp4"])
    monkeypatch.chdir(tmp_path)
    for video in ("video.mp4", str(tmp_path / "video.mp4"), (tmp_path / "video.mp4").as_uri()):
        for renamed in (name, "b.mp4", "b.png"):
            (tmp_path / renamed).write_text(PLAYLISTS[name].format(video=video))
            assert isinstance(read(tmp_path / renamed), str)


@pytest.mark.parametrize("name", ["concat:video.mp4|video.mp4", "file:video.mp4", "pipe:0", "http://127.0.0.1:9/a.mp4"])
def test_names_that_mean_something_to_ffmpeg_are_names_of_files(whole, tmp_path, monkeypatch, name):
    (tmp_path / "video.mp4").write_bytes(whole["mp4"])
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in read(name)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Ghostscript")
@pytest.mark.parametrize("name", ["a.eps", "a.ps", "a.png", "a.mp4"])
def test_postscript_is_not_run(tmp_path, monkeypatch, name):
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin/gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\nshowpage\n%%EOF\n")
    assert isinstance(read(tmp_path / name), str)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_and_devices_are_refused_and_not_waited_for(whole, tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert "neither a file nor a folder" in read(tmp_path / "a.mp4")
    assert "neither a file nor a folder" in read("/dev/zero")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/1.png").write_bytes(whole["png"])
    os.mkfifo(tmp_path / "frames/2.png")
    assert "2.png is not a file" in read(tmp_path / "frames")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_odd_things_in_a_folder_are_refused_by_name(whole, tmp_path):
    (tmp_path / "1.png").write_bytes(whole["png"])
    for target in (tmp_path / "2.png", tmp_path / "nothing"):
        (tmp_path / "2.png").symlink_to(target)
        assert "2.png is a broken link" in read(tmp_path)
        (tmp_path / "2.png").unlink()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "does not exist" in read(tmp_path / "loop")


@pytest.mark.parametrize("data", [b"", b"\0", b"just some words\n" * 99, bytes(5000), b"\xff" * 5000, b"<html></html>"])
@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.gif", "a"])
def test_files_of_something_else_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in read(tmp_path / name)
