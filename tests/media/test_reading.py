"""Reading of videos, animations, folders and images. The files are made here, with PyAV and Pillow."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import (
    Clip,
    read_image,
    read_mask,
    read_masks,
    read_media,
    read_video,
    source,
    write_image,
    write_video,
)

REAL_DATA = Path(__file__).parents[2] / "shared/data"


def encode(path, frames, codec="libx264", rate=20, times=None, pix_fmt="yuv420p", options=None, metadata=None):
    """Frames (H, W, 3) uint8, or (3 H / 2, W) planes of yuv420p, as a video; times in milliseconds."""
    with av.open(str(path), "w") as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream(codec, rate=rate)
        planes = frames[0].ndim == 2
        stream.height, stream.width = (len(frames[0]) * 2 // 3 if planes else len(frames[0])), frames[0].shape[1]
        stream.pix_fmt, stream.options = pix_fmt, options or {}
        clock = Fraction(1, 1000) if times else Fraction(1, rate)
        stream.codec_context.time_base = clock
        for pts, frame in zip(times or range(len(frames)), frames, strict=True):
            image = av.VideoFrame.from_ndarray(frame, format=pix_fmt if planes else "rgb24")
            image.pts, image.time_base = pts, clock
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    return path


def order(frames, originals):
    """Which original each frame looks most like."""
    return [int(np.argmin([np.abs(f.astype(int) - o).mean() for o in originals])) for f in frames]


def blocks(height=16, width=24, seed=0):
    """(H, W, 3) uint8 of 8x8 squares in random colours."""
    squares = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return squares.repeat(8, 0).repeat(8, 1)[:height, :width]


def png(path, pixels):
    """A 16-bit PNG of (H, W, channels), which Pillow cannot write."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(lines))
    with path.open("wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n")
        for name, data in (*parts, (b"IEND", b"")):
            out.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return path


def silent(sentence):
    raise AssertionError(f"nothing was to be said, not {sentence!r}")


# Videos --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, codec",
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.webm", "libvpx-vp9"), ("b.webm", "libvpx"),
     ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a b:c %d é.mp4", "libx264")],
)  # fmt: skip
def test_videos_are_read_whole_in_order_and_at_their_speed(tmp_path, texture, name, codec):
    frames = texture(12, (48, 64), step=4)
    clip = read_media(encode(tmp_path / name, frames, codec, rate=12), log=silent)
    assert (clip.kind, clip.fps, clip.source_size, clip.frames.dtype) == ("video", 12, (48, 64), np.uint8)
    assert order(clip.frames, frames) == list(range(12))


def test_the_suffix_of_a_file_does_not_matter(tmp_path, texture):
    encode(tmp_path / "a.mp4", texture(4)).rename(tmp_path / "video.gif")
    Image.fromarray(blocks()).save(tmp_path / "image.mp4", "PNG")
    assert len(read_media(tmp_path / "video.gif").frames) == 4
    assert np.array_equal(read_media(tmp_path / "image.mp4").frames[0], blocks())


def test_frames_that_are_stored_out_of_order_come_in_the_order_they_are_shown(tmp_path, texture):
    frames = texture(12, (48, 64), step=4)
    path = encode(tmp_path / "a.mp4", frames, options={"bf": "3", "x264-params": "b-adapt=0"})
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stored != sorted(stored)
    assert order(read_media(path).frames, frames) == list(range(12))


@pytest.mark.parametrize("size", [(47, 63), (17, 33), (1, 1)])
def test_odd_sizes_of_videos_are_kept(tmp_path, texture, size):
    frames = texture(3, size) if min(size) > 1 else np.full((3, 1, 1, 3), 90, np.uint8)
    clip = read_media(encode(tmp_path / "a.webm", frames, "libvpx-vp9"))
    assert clip.frames.shape == (3, *size, 3)
    assert np.abs(clip.frames.astype(int) - frames).mean() < 12


@pytest.mark.parametrize(
    "matrix, red, blue, full",
    [("smpte170m", 0.299, 0.114, False), ("bt709", 0.2126, 0.0722, False), ("bt2020nc", 0.2627, 0.0593, False),
     ("bt709", 0.2126, 0.0722, True)],
)  # fmt: skip
def test_colours_follow_the_matrix_and_the_range_that_the_file_names(tmp_path, matrix, red, blue, full):
    y, u, v = 120, 100, 170
    planes = np.repeat(np.uint8([y, u, v]), [48 * 64, 12 * 64, 12 * 64]).reshape(72, 64)
    params = {"crf": "0", "x264-params": f"colormatrix={matrix}:fullrange={'on' if full else 'off'}"}
    path = encode(tmp_path / "a.mp4", [planes] * 2, pix_fmt="yuvj420p" if full else "yuv420p", options=params)
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((u - 128) / 255, (v - 128) / 255) if full else ((u - 128) / 224, (v - 128) / 224)
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    wanted = 255 * np.array([r, (luma - red * r - blue * b) / (1 - red - blue), b])
    assert np.abs(read_media(path).frames[1] - wanted).max() < 1.5


# A camera turned to its side writes its images as the sensor has them, and a matrix a, b, c, d that takes a point
# (x, y), with y downwards, to (a x + c y, b x + d y) when shown.
@pytest.mark.parametrize("matrix, turned", [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_the_rotation_of_a_video_is_applied(tmp_path, matrix, turned):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = (255, 0, 0)
    path = encode(tmp_path / "a.mp4", [image] * 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (n << 16 for n in matrix)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    clip, wanted = read_media(path), np.rot90(image, turned)
    assert clip.frames.shape[1:] == wanted.shape and clip.source_size == wanted.shape[:2]
    assert np.abs(clip.frames[0].astype(int) - wanted).mean() < 4


def test_a_trimmed_video_is_read_as_it_plays(tmp_path, texture):
    frames = texture(24, (48, 64))
    path = encode(tmp_path / "a.mp4", frames)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] // 2)
    path.write_bytes(data)
    assert order(read_media(path).frames, frames) == list(range(12))


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "libx264")])
def test_a_video_that_does_not_begin_at_time_zero_is_whole(tmp_path, texture, name, codec):
    times = list(range(10_000, 11_000, 50))
    clip = read_media(encode(tmp_path / name, texture(20, (48, 64)), codec, times=times))
    assert len(clip.frames) == 20 and clip.fps == pytest.approx(20, rel=0.01)


def test_metadata_that_is_not_utf8_does_not_matter(tmp_path, texture):
    path = encode(tmp_path / "a.mp4", texture(3), metadata={"title": "qqqq"})
    data = path.read_bytes()
    assert data.count(b"qqqq") == 1
    path.write_bytes(data.replace(b"qqqq", b"\xff\xfe\xe9\xff"))
    assert len(read_media(path).frames) == 3


def test_sound_without_images_and_codecs_nobody_knows_are_refused(tmp_path, texture):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    data = encode(tmp_path / "a.mp4", texture(3)).read_bytes()
    (tmp_path / "unknown.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    for name in ("sound.mp4", "unknown.mp4"):
        with pytest.raises(SinfusionError, match=f"{name} has no video"):
            read_media(tmp_path / name)


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_a_video_cut_off_in_the_middle_is_refused_unless_the_part_asked_for_is_there(tmp_path, name, codec):
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    if name == "a.mp4":
        write_video(path, noise, fps=20)  # with its index at the front, so that it can be opened
    else:
        encode(path, noise, codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(SinfusionError, match="truncated"):
        read_media(path)
    assert len(read_media(path, stop=5).frames) == 5


# Animations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, options", [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})])
def test_animations_are_read_exactly_and_at_their_speed(tmp_path, name, options):
    frames = np.stack([blocks(seed=n) for n in range(4)])
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(
        tmp_path / name, save_all=True, append_images=images[1:], duration=[100, 300, 200, 200], loop=0, **options
    )
    clip = read_media(tmp_path / name, log=silent)
    assert clip.kind == "video" and clip.fps == pytest.approx(5)
    assert np.array_equal(clip.frames, frames)


def test_a_gif_without_times_plays_at_ten_frames_a_second_as_in_browsers(tmp_path):
    images = [Image.fromarray(blocks(seed=n)) for n in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    assert read_media(tmp_path / "a.gif").fps == pytest.approx(10)


def test_an_animation_of_one_frame_is_an_image(tmp_path):
    Image.fromarray(blocks()).save(tmp_path / "a.gif", save_all=True)
    assert read_media(tmp_path / "a.gif").kind == "image"


@pytest.mark.parametrize("disposal", [1, 2, 3])
def test_gif_frames_are_laid_over_what_the_one_before_leaves(tmp_path, disposal):
    layers = [Image.new("RGBA", (24, 16)) for _ in range(3)]
    layers[0].paste((255, 0, 0, 255), (0, 0, 16, 16))
    layers[1].paste((0, 255, 0, 255), (0, 0, 8, 8))
    layers[2].paste((0, 0, 255, 255), (16, 8, 24, 16))
    layers[0].save(tmp_path / "a.gif", save_all=True, append_images=layers[1:], disposal=[1, disposal, 1], duration=100)
    shown = [np.full((16, 24, 3), 255, np.uint8) for _ in range(3)]
    for frame in shown:
        frame[:, :16] = (255, 0, 0)
    shown[1][:8, :8] = (0, 255, 0)
    if disposal == 1:  # the second frame stays
        shown[2][:8, :8] = (0, 255, 0)
    if disposal == 2:  # its place is cleared: here all of it, as Pillow writes whole frames
        shown[2][:] = 255
    shown[2][8:, 16:] = (0, 0, 255)
    assert np.array_equal(read_media(tmp_path / "a.gif").frames, shown)


@pytest.mark.parametrize("name, options", [("a.gif", {"disposal": 2}), ("a.webp", {"lossless": True}), ("a.png", {})])
def test_transparent_animations_are_laid_over_white(tmp_path, name, options):
    images, wanted = [], []
    for n in range(3):
        layer = np.zeros((16, 24, 4), np.uint8)
        layer[4 * n : 4 * n + 4, ::2] = (10, 80, 200, 255)
        images.append(Image.fromarray(layer))
        wanted.append(np.where(layer[..., 3:] == 255, layer[..., :3], 255))
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=50, **options)
    assert np.array_equal(read_media(tmp_path / name).frames, wanted)


def test_the_still_before_an_apng_is_not_a_frame_of_it(tmp_path):
    still, *frames = (Image.fromarray(blocks(seed=n)) for n in range(4))
    still.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=50)
    clip = read_media(tmp_path / "a.png")
    assert np.array_equal(clip.frames, np.stack(frames)) and clip.fps == pytest.approx(20)
    assert np.array_equal(read_media(tmp_path / "a.png", start=1, stop=2).frames[0], frames[1])


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    ["1 2 10 11 100", "0001 0002 0010", "frame8 frame9 frame10", "7 08 009", "a1b2 a1b10 a2b1",
     "20240101-9 20240101-10 20240102-1", "shot1 shot1b shot2", "1 9999999999999998 99999999999999999999999"],
)  # fmt: skip
def test_folders_are_read_in_natural_order(tmp_path, names):
    names = names.split()
    for n in np.random.default_rng(0).permutation(len(names)):
        Image.new("RGB", (8, 8), (int(n), 0, 0)).save(tmp_path / f"{names[n]}.png")
    clip = read_media(tmp_path, log=silent)
    assert clip.frames[:, 0, 0, 0].tolist() == list(range(len(names)))
    assert (clip.kind, clip.fps) == ("video", 20)


def test_folders_may_mix_formats_and_hold_other_files(tmp_path):
    endings = ("png", "jpg", "webp", "PNG", "jpeg", "bmp", "tif", "tiff", "JPG")
    for n, ending in enumerate(endings):
        Image.new("RGB", (16, 16), (20 * n, 0, 0)).save(tmp_path / f"{n}.{ending}")
    for name in (".DS_Store", "._1.png", ".hidden.jpg", "notes.txt", "Thumbs.db"):
        (tmp_path / name).write_text("no image")
    red = read_media(tmp_path).frames[:, 8, 8, 0]
    assert np.abs(red - 20.0 * np.arange(len(endings))).max() < 4


def test_a_folder_of_one_image_is_an_image(tmp_path):
    write_image(tmp_path / "1.png", blocks())
    assert read_media(tmp_path).kind == "image"


@pytest.mark.parametrize("size", [(16, 24), (600, 400)])
def test_folder_frames_of_different_sizes_are_named(tmp_path, size):
    write_image(tmp_path / "7.png", blocks(*size))
    write_image(tmp_path / "8.png", blocks(size[0] - 1, size[1]))
    with pytest.raises(SinfusionError, match=f"7.png is {size[1]}x{size[0]}, 8.png is {size[1]}x{size[0] - 1}"):
        read_media(tmp_path)


def test_a_damaged_frame_in_a_folder_is_named(tmp_path):
    for n in range(3):
        write_image(tmp_path / f"{n}.png", blocks(seed=n))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(SinfusionError, match=r"1\.png is damaged"):
        read_media(tmp_path)
    assert len(read_media(tmp_path, stride=2).frames) == 2


# Images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options", [("a.png", {}), ("a.webp", {"lossless": True}), ("a.bmp", {}), ("a.tiff", {}),
                      ("a.tif", {"compression": "tiff_lzw"}), ("a.gif", {})],
)  # fmt: skip
def test_images_are_read_exactly(tmp_path, name, options):
    Image.fromarray(blocks(17, 31)).save(tmp_path / name, **options)
    clip = read_media(tmp_path / name, log=silent)
    assert np.array_equal(clip.frames, blocks(17, 31)[None])
    assert (clip.kind, clip.fps, clip.source_size) == ("image", 20, (17, 31))


def test_jpeg_images_are_read_closely(tmp_path):
    Image.fromarray(blocks(16, 32)).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - blocks(16, 32)).max() < 12


def _translucent():
    colours = np.dstack([blocks(), np.random.default_rng(1).integers(0, 256, (16, 24), dtype=np.uint8)])
    alpha = colours[..., 3:] / 255
    return colours, colours[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_transparency_is_laid_over_white(tmp_path, name):
    colours, wanted = _translucent()
    Image.fromarray(colours).save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    assert np.abs(read_image(tmp_path / name) - wanted).max() <= 1


def test_transparency_of_grey_and_palette_images_is_laid_over_white(tmp_path):
    grey = np.dstack([blocks()[..., 0], np.random.default_rng(1).integers(0, 256, (16, 24), dtype=np.uint8)])
    Image.fromarray(grey).save(tmp_path / "grey.png")
    alpha = grey[..., 1] / 255
    assert np.abs(read_image(tmp_path / "grey.png")[..., 1] - (grey[..., 0] * alpha + 255 * (1 - alpha))).max() <= 1

    palette = Image.frombytes("P", (24, 16), bytes([0, 1, 2] * 128))
    palette.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 0, 51]))
    read = read_image(tmp_path / "palette.png")
    assert read[0, :3].tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 214]]

    Image.fromarray(blocks()).save(tmp_path / "key.png", transparency=tuple(int(v) for v in blocks()[0, 0]))
    read = read_image(tmp_path / "key.png")
    assert (read[:8, :8] == 255).all() and np.array_equal(read[8:], blocks()[8:])


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_becomes_8_bit(tmp_path, name):
    values = np.linspace(0, 65535, 16 * 24).astype(np.uint16).reshape(16, 24)
    Image.fromarray(values).save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert np.abs(read - values[..., None] / 257).max() < 1 and read.shape == (16, 24, 3)


def test_a_dark_16_bit_image_stays_dark(tmp_path):
    Image.fromarray(np.full((16, 16), 250, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 1).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_colours_and_transparency_become_8_bit(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 65536, (16, 24, channels))
    read = read_image(png(tmp_path / "a.png", values))
    colours, alpha = (values[..., :-1], values[..., -1:] / 65535) if channels in (2, 4) else (values, 1)
    assert np.abs(read - (colours / 257 * alpha + 255 * (1 - alpha))).max() < 2


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_float_tiffs_become_8_bit_whatever_their_white_is(tmp_path, white):
    values = np.linspace(0, white, 16 * 24, dtype=np.float32).reshape(16, 24)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.abs(read_image(tmp_path / "a.tiff") - values[..., None] / white * 255).max() < 1


def test_what_is_no_number_in_a_float_tiff_is_black_or_white(tmp_path):
    values = np.full((8, 8), 0.5, np.float32)
    values[0, 0], values[0, 1] = np.nan, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tiff")
    read = read_image(tmp_path / "a.tiff")
    assert (read[0, :2] == 0).all() and np.abs(read[1:].astype(int) - 128).max() <= 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_cmyk_becomes_rgb(tmp_path, name):
    Image.new("CMYK", (16, 16), (255, 0, 0, 51)).save(tmp_path / name)
    assert np.abs(read_image(tmp_path / name)[8, 8] - [0, 204, 204]).max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "I"])
def test_grey_and_palette_images_become_rgb(tmp_path, mode):
    grey = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((8, 12), np.uint8)) * 255
    stored = Image.fromarray(grey.astype(np.int32) * 257) if mode == "I" else Image.fromarray(grey).convert(mode)
    stored.save(tmp_path / "a.tiff")
    assert np.array_equal(read_image(tmp_path / "a.tiff"), np.repeat(grey[..., None], 3, 2))


# What the EXIF standard says is to be done to the stored image to see it upright.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 95, "subsampling": 0}}.get(name, {})
    Image.fromarray(blocks()).save(tmp_path / name, exif=exif, **options)
    wanted = UPRIGHT[orientation](blocks())
    clip = read_media(tmp_path / name)
    assert clip.source_size == wanted.shape[:2]
    assert np.abs(clip.frames[0].astype(int) - wanted).max() < (12 if name == "a.jpg" else 1)


# What is asked for ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten(tmp_path_factory, texture):
    """The same ten frames as a video, an animation and a folder."""
    folder, frames = tmp_path_factory.mktemp("ten"), texture(10, (48, 64), step=5)
    encode(folder / "a.mp4", frames)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(folder / "a.webp", save_all=True, append_images=images[1:], duration=50, lossless=True)
    for n, frame in enumerate(frames):
        write_image(folder / f"a/{n}.png", frame)
    return folder, frames


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a"])
@pytest.mark.parametrize("start, stop, stride", [(None, None, 3), (2, None, 1), (None, 4, 1), (3, 9, 2), (8, 99, 1)])
def test_a_range_of_frames_is_as_in_a_slice_and_plays_as_fast(ten, name, start, stop, stride):
    folder, frames = ten
    clip = read_media(folder / name, start=start, stop=stop, stride=stride)
    assert order(clip.frames, frames) == list(range(10))[start:stop:stride]
    assert clip.fps == pytest.approx(20 / stride)


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a"])
def test_a_start_after_the_last_frame_is_refused(ten, name):
    with pytest.raises(SinfusionError, match="no frames from 10 on"):
        read_media(ten[0] / name, start=10)


@pytest.mark.parametrize(
    "options, said",
    [({"start": -1}, "start must be"), ({"stop": 0}, "stop must be"), ({"stride": 0}, "stride must be"),
     ({"stride": 1.5}, "stride must be"), ({"start": 5, "stop": 5}, "stop must be above start"),
     ({"size": (0, 5)}, "size must be"), ({"size": (5,)}, "size must be"), ({"size": (8.5, 9)}, "size must be"),
     ({"max_side": -1}, "max_side must be"), ({"max_side": 9.5}, "max_side must be")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(ten, options, said):
    with pytest.raises(SinfusionError, match=said):
        read_media(ten[0] / "a.mp4", **options)


def test_larger_inputs_are_scaled_down_and_that_is_logged(tmp_path):
    write_image(tmp_path / "a.png", blocks(300, 512))
    said = []
    clip = read_media(tmp_path / "a.png", log=said.append)
    assert clip.frames.shape == (1, 150, 256, 3) and clip.source_size == (300, 512)
    assert len(said) == 1 and said[0].startswith("scaled 512x300 to 256x150") and "--max-side" in said[0]
    assert read_media(tmp_path / "a.png", max_side=64, log=said.append).frames.shape == (1, 38, 64, 3)
    for keep in (0, None, 512, 600):
        assert read_media(tmp_path / "a.png", max_side=keep, log=silent).frames.shape == (1, 300, 512, 3)
    assert read_image(tmp_path / "a.png", log=said.append).shape == (150, 256, 3)
    assert said[-1] == "scaled a.png from 512x300 to 256x150"


def test_an_exact_size_may_enlarge_and_change_the_shape(tmp_path):
    write_image(tmp_path / "a.png", blocks(16, 24))
    said = []
    assert read_media(tmp_path / "a.png", size=(300, 40), log=said.append).frames.shape == (1, 300, 40, 3)
    assert said == ["scaled 24x16 to 40x300"]


def test_a_very_long_input_keeps_at_least_one_pixel(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((1, 2000, 3), np.uint8))
    assert read_media(tmp_path / "a.png", log=lambda _: None).frames.shape == (1, 1, 256, 3)


def test_scaling_down_is_antialiased(tmp_path):
    board = np.indices((600, 600)).sum(0) % 2 * 255
    write_image(tmp_path / "a.png", np.repeat(board[..., None], 3, 2).astype(np.uint8))
    inside = read_image(tmp_path / "a.png", log=lambda _: None)[4:-4, 4:-4]
    assert np.abs(inside - 127.5).max() < 6


def test_a_video_has_at_least_two_frames_and_an_image_is_its_first(ten, tmp_path):
    folder, frames = ten
    write_image(tmp_path / "a.png", frames[0])
    with pytest.raises(SinfusionError, match="one frame only"):
        read_video(tmp_path / "a.png")
    assert read_video(folder / "a.mp4", stop=2).frames.shape == (2, 48, 64, 3)
    assert np.array_equal(read_image(folder / "a.webp"), frames[0])


def test_a_mask_is_true_where_it_is_light_and_must_have_the_shape_of_its_image(tmp_path):
    mask = np.zeros((40, 60, 3), np.uint8)
    mask[:, 30:] = 200
    write_image(tmp_path / "a.png", mask)
    read = read_mask(tmp_path / "a.png", (20, 30))
    assert read.dtype == bool and read[:, 16:].all() and not read[:, :14].any()
    with pytest.raises(SinfusionError, match="must have the aspect ratio of 30x30"):
        read_mask(tmp_path / "a.png", (30, 30))


def moving_mask(frames=6):
    """(frames, 40, 60, 3) uint8: a light bar of 20 columns that moves 8 pixels a frame."""
    mask = np.zeros((frames, 40, 60, 3), np.uint8)
    for t, frame in enumerate(mask):
        frame[:, 8 * t : 8 * t + 20] = 200
    return mask


def test_an_image_is_a_mask_for_all_frames_whichever_are_used(tmp_path):
    write_image(tmp_path / "a.png", moving_mask()[2])
    for which in (slice(None), slice(3, None, 2)):
        read = read_masks(tmp_path / "a.png", (40, 60), 5, which)
        assert read.shape == (5, 40, 60) and read.dtype == bool
        assert np.array_equal(read, np.repeat(moving_mask()[2:3, ..., 0] > 0, 5, 0))


@pytest.mark.parametrize("name", ["a", "a.mp4", "a.gif", "a.webp"])
def test_a_video_is_a_mask_for_each_of_the_frames_that_are_used(tmp_path, name):
    write_video(tmp_path / name, moving_mask(), fps=20)
    light = moving_mask()[..., 0] > 0
    for which, count in ((slice(None), 6), (slice(1, 5, 2), 2), (slice(2, 99), 4), (slice(None, None, 3), 2)):
        read = read_masks(tmp_path / name, (40, 60), count, which)
        assert read.shape == (count, 40, 60) and read.dtype == bool
        assert (read != light[which]).mean() < (0.02 if name == "a.mp4" else 1e-9)


def test_masks_are_scaled_to_the_size_of_the_frames(tmp_path):
    write_video(tmp_path / "a", moving_mask(), fps=20)
    read = read_masks(tmp_path / "a", (20, 30), 6)
    assert read.shape == (6, 20, 30)
    for t in range(6):
        assert read[t, :, 4 * t + 1 : 4 * t + 9].all() and read[t].sum() == pytest.approx(200, abs=40)


@pytest.mark.parametrize("which, frames", [(slice(None), 6), (slice(5, 9), 1), (slice(8, 9), 0), (slice(0, 4), 4)])
def test_a_mask_of_another_length_or_shape_is_refused(tmp_path, which, frames):
    write_video(tmp_path / "a", moving_mask(), fps=20)
    with pytest.raises(SinfusionError, match=rf"a has {frames} frame\(s\); give a mask of 5, or an image"):
        read_masks(tmp_path / "a", (40, 60), 5, which)
    with pytest.raises(SinfusionError, match="60x40; it must have the aspect ratio of 40x40"):
        read_masks(tmp_path / "a", (40, 40), 6)


def test_long_masks_are_not_scaled_down_first(tmp_path):
    mask = np.zeros((4, 600, 3), np.uint8)
    mask[:, 301:302] = 255  # would be lost at a longer side of 256
    write_image(tmp_path / "a.png", mask)
    assert read_masks(tmp_path / "a.png", (4, 600), 1).sum() == 4


def test_what_would_not_fit_in_memory_is_refused_while_reading(ten, monkeypatch):
    monkeypatch.setattr(source, "MAX_BYTES", 4 * 48 * 64 * 3)
    with pytest.raises(SinfusionError, match="4 frames of 64x48 fill"):
        read_media(ten[0] / "a.mp4")
    assert len(read_media(ten[0] / "a.mp4", stride=3).frames) == 4


def test_a_clip_of_something_else_is_refused():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    assert "frames (2, 8, 8, 3), fps 5" in repr(Clip(frames, 5, "video", (8, 8)))
    for bad in (frames[0], frames.astype(float), frames[..., :2], frames[:0], None):
        with pytest.raises(SinfusionError, match="uint8"):
            Clip(bad, 5, "video", (8, 8))
    for fps in (0, -1, float("nan"), float("inf"), "5"):
        with pytest.raises(SinfusionError, match="fps"):
            Clip(frames, fps, "video", (8, 8))
    with pytest.raises(SinfusionError, match="kind"):
        Clip(frames, 5, "film", (8, 8))


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the clips of the paper are not here")
def test_the_clips_of_the_paper_are_read():
    clip = read_media(REAL_DATA / "tornado")
    assert clip.kind == "video" and clip.frames.shape[1:] == (144, 256, 3) and len(clip.frames) > 28
    assert read_media(REAL_DATA / "balloons.png", log=silent).kind == "image"
