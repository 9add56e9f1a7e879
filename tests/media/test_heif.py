"""HEIC and AVIF. The files are made box by box, of pictures that PyAV encodes; AVIF by Pillow, too, where it can."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import Source, SourceInfo, read_image, read_media

CODECS = {"heic": ("libx265", b"hvc1", b"hvcC"), "avif": ("libsvtav1", b"av01", b"av1C")}
ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
Image.init()
needs_pillow_avif = pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow does not write AVIF")


def silent(sentence):
    raise AssertionError(f"nothing was to be said, not {sentence!r}")


def picture(height=128, width=192):
    """(H, W, 3) uint8: soft shades, so that little is lost, and different in every corner and orientation."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 180 * x / width, 40 + 180 * y / height, 200 - 150 * x * y / width / height], -1).astype(
        np.uint8
    )


def box(kind, *parts):
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full(kind, version, flags, *parts):
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def coded(pixels, family, pix_fmt="yuv420p"):
    """(configuration, data) of pixels, (H, W, 3) or (H, W) uint8, as a coded picture."""
    out = io.BytesIO()
    codec, _, configuration = CODECS[family]
    try:
        container = av.open(out, "w", format="mp4")
        stream = container.add_stream(codec, rate=1)
    except (ValueError, av.error.FFmpegError):
        pytest.skip(f"this PyAV has no {codec}")
    with container:
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], pix_fmt
        stream.options = {"crf": "8", "x265-params": "log-level=none:keyint=1", "svtav1-params": "avif=0"}
        frame = av.VideoFrame.from_ndarray(pixels, format="gray" if pixels.ndim == 2 else "rgb24")
        frame = frame.reformat(format=pix_fmt, dst_colorspace="ITU601")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = out.getvalue()
    found = []
    for name in (configuration, b"mdat"):
        at = data.index(name)
        found.append(data[at + 4 : at - 4 + struct.unpack_from(">I", data, at - 4)[0]])
    return found[0], found[1]


def tile(pixels, family, pix_fmt="yuv420p"):
    """An item that is coded: (type, data, properties)."""
    configuration, data = coded(pixels, family, pix_fmt)
    _, kind, name = CODECS[family]
    return kind, data, [box(name, configuration), ispe(*pixels.shape[:2])]


def ispe(height, width):
    return full(b"ispe", 0, 0, struct.pack(">II", width, height))


NCLX = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0))  # BT.601, limited range


def heif(path, items, primary=1, references=(), brand=None, split=False):
    """items: (type, data, properties); data of derived ones lies in `idat`. references: (type, from, to). Ids from 1.

    split: whether the bytes of coded items are in two places.
    """
    properties, associations = [], b""
    for n, (_, _, own) in enumerate(items, 1):
        indices = []
        for one in own:
            if one not in properties:
                properties.append(one)
            indices.append(properties.index(one) + 1)
        associations += struct.pack(">HB", n, len(indices)) + bytes(indices)
    entries = b"".join(
        full(b"infe", 2, 0, struct.pack(">HH4s", n, 0, kind), b"\0") for n, (kind, _, _) in enumerate(items, 1)
    )
    derived = b"".join(data for kind, data, _ in items if kind in (b"grid", b"iden"))
    pointing = b"".join(box(kind, struct.pack(f">HH{len(to)}H", start, len(to), *to)) for kind, start, to in references)
    brand = brand or (b"avif" if any(kind == b"av01" for kind, _, _ in items) else b"heic")
    ftyp = box(b"ftyp", brand, bytes(4), b"mif1", brand)

    def meta(base):
        places, inside = struct.pack(">BBH", 0x44, 0, len(items)), 0
        for n, (kind, data, _) in enumerate(items, 1):
            here = kind in (b"grid", b"iden")
            parts = [len(data)] if here or not split else [len(data) // 2, len(data) - len(data) // 2]
            places += struct.pack(">HHHH", n, here, 0, len(parts))
            for size in parts:
                places += struct.pack(">II", inside if here else base, size)
                inside, base = (inside + size, base) if here else (inside, base + size)
        return full(
            b"meta", 0, 0,
            full(b"hdlr", 0, 0, struct.pack(">I4s12s", 0, b"pict", bytes(12)), b"\0"),
            full(b"pitm", 0, 0, struct.pack(">H", primary)),
            full(b"iloc", 1, 0, places),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), entries),
            *([full(b"iref", 0, 0, pointing)] if references else []),
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", 0, 0, struct.pack(">I", len(items)), associations)),
            box(b"idat", derived),
        )  # fmt: skip

    start = len(ftyp) + len(meta(0)) + 8
    coded_data = b"".join(data for kind, data, _ in items if kind not in (b"grid", b"iden"))
    path.write_bytes(ftyp + meta(start) + box(b"mdat", coded_data))
    return path


def grid(path, pixels, family, rows, columns, size, *turns, thumbnail=True, pix_fmt="yuv420p"):
    """A file as phones write it: tiles, a thumbnail, and last the grid of tiles, which is the image."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    items = [
        tile(pixels[r * height : (r + 1) * height, c * width : (c + 1) * width], family, pix_fmt)
        for r in range(rows)
        for c in range(columns)
    ]
    tiles = list(range(1, len(items) + 1))
    if thumbnail:
        items.insert(0, tile(np.full((64, 64, 3), 255, np.uint8), family))
        tiles = [n + 1 for n in tiles]
    description = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, size[1], size[0])
    items.append((b"grid", description, [ispe(*size), NCLX, *turns]))
    last = len(items)
    references = [(b"dimg", last, tiles)] + ([(b"thmb", 1, [last])] if thumbnail else [])
    return heif(path, items, last, references)


def irot(times):
    return box(b"irot", bytes([times]))


def imir(axis):
    return box(b"imir", bytes([axis]))


def close(read, wanted, most=4.0):
    assert read.shape == wanted.shape
    return np.abs(read.astype(int) - wanted).mean() < most


@pytest.mark.parametrize("family", CODECS)
def test_a_still_is_an_image(tmp_path, family):
    path = heif(tmp_path / f"a.{family}", [(*tile(picture(), family)[:2], [*tile(picture(), family)[2], NCLX])])
    clip = read_media(path, log=silent)
    assert (clip.kind, clip.fps, clip.source_size) == ("image", 20, (128, 192)) and close(clip.frames[0], picture())
    assert Source(path).probe() == SourceInfo((128, 192), 1, "image")
    with pytest.raises(SinfusionError, match="this is an image"):
        read_media(path, stop=1)


@pytest.mark.parametrize("turns", [(), (irot(1),), (irot(2),), (irot(3), imir(1))])
@pytest.mark.parametrize("family", CODECS)
def test_a_grid_of_tiles_is_read_whole_and_upright(tmp_path, family, turns):
    pixels = picture(256, 384)
    path = grid(tmp_path / f"a.{family}", pixels, family, 2, 3, (250, 380), *turns)
    wanted = pixels[:250, :380]
    for turn in turns:
        wanted = np.rot90(wanted, turn[8]) if turn[4:8] == b"irot" else np.flip(wanted, turn[8])
    clip = read_media(path, max_side=0, log=silent)
    assert clip.kind == "image" and close(clip.frames[0], wanted)
    assert Source(path).probe() == SourceInfo(wanted.shape[:2], 1, "image")


@pytest.mark.parametrize("axis, mirrored", [(0, picture()[::-1]), (1, picture()[:, ::-1])])
def test_mirrored_images_are_mirrored(tmp_path, axis, mirrored):
    kind, data, own = tile(picture(), "heic")
    assert close(read_image(heif(tmp_path / "a.heic", [(kind, data, [*own, NCLX, imir(axis)])])), mirrored)


def test_the_exif_orientation_beside_a_rotation_is_not_applied_again(tmp_path):
    kind, data, own = tile(picture(), "heic")
    exif = Image.Exif()
    exif[0x0112] = 6
    items = [(kind, data, [*own, NCLX, irot(3)]), (b"Exif", struct.pack(">I", 0) + exif.tobytes(), [])]
    path = heif(tmp_path / "a.heic", items, references=[(b"cdsc", 2, [1])])
    assert close(read_image(path), np.rot90(picture(), 3))


def test_the_primary_image_is_read_wherever_it_is_and_in_however_many_places(tmp_path):
    first, second = tile(picture()[::-1], "heic"), tile(picture(), "heic")
    second[2].append(NCLX)
    path = heif(tmp_path / "a.heic", [first, second], primary=2, split=True, brand=b"mif1")
    assert close(read_image(path), picture())


def test_a_clean_aperture_is_cut_out(tmp_path):
    kind, data, own = tile(picture(), "heic")
    aperture = box(b"clap", struct.pack(">IIIIiIiI", 101, 1, 75, 1, -91, 2, -53, 2))  # from the upper left corner
    path = heif(tmp_path / "a.heic", [(kind, data, [*own, NCLX, aperture])])
    assert close(read_image(path), picture()[:75, :101])
    assert Source(path).probe().size == (75, 101)


def test_an_image_that_is_another_turned_is_read(tmp_path):
    items = [tile(picture(), "heic"), (b"iden", b"", [ispe(128, 192), NCLX, irot(1)])]
    path = heif(tmp_path / "a.heic", items, primary=2, references=[(b"dimg", 2, [1])])
    assert close(read_image(path), np.rot90(picture()))


@pytest.mark.parametrize("family, pix_fmt", [("heic", "yuv420p10le"), ("heic", "yuv444p"), ("avif", "yuv420p10le")])
def test_ten_bits_and_whole_chroma_are_read(tmp_path, family, pix_fmt):
    path = grid(tmp_path / "a", picture(256, 256), family, 2, 2, (256, 256), pix_fmt=pix_fmt)
    assert close(read_image(path), picture(256, 256))


@pytest.mark.parametrize("premultiplied", [False, True])
def test_transparency_is_laid_over_white(tmp_path, premultiplied):
    alpha = np.full((128, 192), 255, np.uint8)
    alpha[64:] = 102
    share = alpha[..., None] / 255
    kind, data, own = tile((picture() * share).astype(np.uint8) if premultiplied else picture(), "heic")
    auxiliary, alpha_data, of_alpha = tile(alpha, "heic", "gray")
    items = [(kind, data, [*own, NCLX]), (auxiliary, alpha_data, [*of_alpha, full(b"auxC", 0, 0, ALPHA)])]
    references = [(b"auxl", 2, [1])] + ([(b"prem", 1, [2])] if premultiplied else [])
    wanted = picture() * share + 255 * (1 - share)
    assert close(read_image(heif(tmp_path / "a.heic", items, references=references)), wanted.astype(np.uint8), 14.0)


def test_folders_may_hold_them(tmp_path):
    own = tile(picture(), "heic")
    for n in range(2):
        heif(tmp_path / f"{n}.HEIC", [(own[0], own[1], [*own[2], NCLX, *([imir(1)] if n else [])])])
    clip = read_media(tmp_path, log=silent)
    assert clip.kind == "video" and close(clip.frames[0], picture()) and close(clip.frames[1], picture()[:, ::-1])
    assert Source(tmp_path).probe() == SourceInfo((128, 192), 2, "video")


def test_what_is_missing_or_cannot_be_decoded_is_said(tmp_path):
    path = grid(tmp_path / "a.heic", picture(256, 256), "heic", 2, 2, (256, 256))
    whole = path.read_bytes()
    for size in (len(whole) - 9, len(whole) // 2, 100, 30):
        path.write_bytes(whole[:size])
        with pytest.raises(SinfusionError, match="damaged or truncated"):
            read_media(path)
    path.write_bytes(whole.replace(b"grid", b"iovl"))
    with pytest.raises(SinfusionError, match=r"an image of type iovl.*save it as JPEG or PNG"):
        read_media(path)


@pytest.mark.parametrize("claimed", [(60_000, 60_000), (2**31, 2**31)])
def test_images_that_claim_billions_of_pixels_are_refused(tmp_path, claimed):
    path = grid(tmp_path / "a.heic", picture(256, 256), "heic", 2, 2, (256, 256))
    path.write_bytes(path.read_bytes().replace(ispe(256, 256), ispe(*claimed)))
    for read in (read_media, lambda path: Source(path).probe()):
        with pytest.raises(SinfusionError, match="too large an image"):
            read(path)


def test_damaged_files_are_read_or_refused(tmp_path):
    path = grid(tmp_path / "a.heic", picture(256, 256), "heic", 2, 2, (250, 250), irot(1))
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for n in range(60):
        data = bytearray(whole)
        for at in rng.integers(len(data) if n % 4 == 0 else whole.index(b"mdat"), size=int(rng.integers(1, 4))):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            Source(path).probe()
            assert max(read_media(path, log=lambda _: None).frames.shape[1:3]) <= 256
        except SinfusionError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused


# AVIF by Pillow ------------------------------------------------------------------------------------------------------


def over_white(image):
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return np.asarray(white.convert("RGB"))


@needs_pillow_avif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_an_avif_is_applied_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.avif", exif=exif, quality=95)
    p = picture()
    wanted = [p, p[:, ::-1], p[::-1, ::-1], p[::-1], p.transpose(1, 0, 2), np.rot90(p, -1),
              p[::-1, ::-1].transpose(1, 0, 2), np.rot90(p, 1)][orientation - 1]  # fmt: skip
    assert close(read_image(tmp_path / "a.avif"), wanted)
    assert Source(tmp_path / "a.avif").probe().size == wanted.shape[:2]


@needs_pillow_avif
@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"range": "limited"}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_stills_of_all_kinds_look_as_in_pillow(tmp_path, mode, options):
    image = Image.fromarray(picture()).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray((np.mgrid[:128, :192][1] * 255 // 191).astype(np.uint8)))
    image.save(tmp_path / "a.avif", quality=95, **options)
    with Image.open(tmp_path / "a.avif") as truth:
        assert close(read_image(tmp_path / "a.avif"), over_white(truth), 1.5)


@needs_pillow_avif
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_all_frames_of_an_animated_avif_are_read_at_their_speed(tmp_path, mode):
    frames = []
    for n in range(6):
        image = Image.fromarray(np.roll(picture(), 20 * n, 1)).convert(mode)
        if mode == "RGBA":
            image.putalpha(Image.fromarray(np.where(np.mgrid[:128, :192][0] < 20 * n, 0, 255).astype(np.uint8)))
        frames.append(image)
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=80, quality=95)
    clip = read_media(tmp_path / "a.avif", log=silent)
    assert clip.kind == "video" and clip.fps == pytest.approx(12.5)
    assert close(clip.frames, np.stack([over_white(frame) for frame in frames]))
    assert Source(tmp_path / "a.avif").probe() == SourceInfo((128, 192), 6, "video")
    assert close(read_media(tmp_path / "a.avif", start=2, stop=5, stride=2).frames[1], over_white(frames[4]))
