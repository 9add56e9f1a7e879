"""From decoded pixels to what is shown: files made here with PyAV and Pillow, whose look is known."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from sinfusion.media import Source, read_image, read_media
from sinfusion.media.display import turned
from sinfusion.pixels import resize

PATCHES = np.array([[(200, 40, 40), (40, 180, 60), (50, 70, 200), (210, 190, 50)],
                    [(60, 190, 200), (190, 60, 180), (128, 128, 128), (235, 225, 215)]], np.uint8)  # fmt: skip
CHART = PATCHES.repeat(32, 0).repeat(24, 1)  # (64, 96, 3)
TAGS = {"colorspace": 2, "color_primaries": 2, "color_trc": 2, "color_range": 1}  # of H.273 and FFmpeg; 2: unknown


def encode(path, frames, codec="ffv1", pix_fmt="yuv444p", options=None, aspect=None, **tags):
    """Frames (H, W, 3) uint8, or uint16 or RGBA, as a video with these tags; their matrix is that of the tags."""
    given = {**TAGS, **tags}
    rgba = frames[0].shape[2] == 4
    form = "rgba" if rgba else "rgb24" if frames[0].dtype == np.uint8 else "rgb48le"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.options = options or {}
        for name, value in given.items():
            setattr(stream.codec_context, name, value)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        matrix = {1: "ITU709", 9: "BT2020", 4: "FCC", 7: "SMPTE240M"}.get(given["colorspace"], "ITU601")
        for index, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=form)
            if not pix_fmt.startswith(("rgb", "gbr", "argb", "bgr")):
                image = image.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=given["color_range"])
            else:
                image = image.reformat(format=pix_fmt)
            image.pts, image.time_base = index, Fraction(1, 25)
            for name, value in given.items():
                setattr(image, name, value)
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    return path


def patches(frame):
    """The middle of each patch of a chart, (2, 4, 3)."""
    rows, columns = (
        np.arange(n) * size // n + size // (2 * n) for n, size in zip((2, 4), frame.shape[:2], strict=True)
    )
    return frame[rows][:, columns].astype(int)


def linear(srgb):
    code = np.asarray(srgb, float) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def srgb(light):
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def pq(light):
    power = (np.maximum(light, 0) * 203 / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
TO_P3 = np.array([[0.8225, 0.1774, 0.0000], [0.0332, 0.9669, 0.0000], [0.0171, 0.0724, 0.9108]])


def wide(matrix, curve):
    """The chart in another gamut and curve, (64, 96, 3) uint16."""
    return np.round(np.clip(curve(linear(CHART) @ matrix.T), 0, 1) * 65535).astype(np.uint16)


def read(path, **options):
    """The clip, and the lines that were said while it was read."""
    said = []
    return read_media(path, log=said.append, **options), said


def closely(frame, wanted=CHART, within=4):
    return frame.shape == wanted.shape and np.abs(patches(frame) - patches(wanted)).max() <= within


# A plain clip --------------------------------------------------------------------------------------------------------


def test_a_plain_clip_is_as_the_decoder_gives_it_and_nothing_is_said(tmp_path, texture):
    bt709 = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
    path = encode(tmp_path / "a.mp4", texture(5, (48, 64)), "libx264", "yuv420p", **bt709)
    clip, said = read(path)
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            plain = frame.reformat(format="yuv444p", interpolation="BICUBIC").to_ndarray(format="rgb24")
            assert np.array_equal(clip.frames[index], plain)
    assert said == []


# Square pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, codec, aspect, width",
    # In a.mkv and a.avi only the codec says it, in the MP4 of VP9 only the container.
    [("a.mp4", "libx264", "4/3", 128), ("a.ts", "libx264", "4/3", 128), ("a.mkv", "libx264", "64/45", 137),
     ("a.mp4", "libvpx-vp9", "4/3", 128), ("a.avi", "libx264", "8/9", 85)],
)  # fmt: skip
def test_pixels_of_videos_become_square_at_the_stored_height(tmp_path, name, codec, aspect, width):
    path = encode(tmp_path / name, [CHART] * 8, codec, "yuv420p", aspect=Fraction(aspect))
    clip, said = read(path)
    assert clip.source_size == Source(path).probe().size == (64, width)
    assert closely(clip.frames[0], resize(CHART, (64, width))) and len(said) == 1 and f"{width}x64" in said[0]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="PyAV writes no display size into Matroska; needs ffmpeg")
def test_the_display_size_of_matroska_makes_pixels_square(tmp_path):
    encode(tmp_path / "a.mkv", [CHART] * 2)
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.mkv"), "-c", "copy", "-aspect", "2:1"]
    subprocess.run([*command, str(tmp_path / "b.mkv")], check=True)
    assert closely(read(tmp_path / "b.mkv")[0].frames[0], resize(CHART, (64, 128)))


def test_pixels_become_square_in_the_same_resampling_as_the_size(tmp_path):
    path = encode(tmp_path / "a.mp4", [CHART] * 2, "libx264rgb", "rgb24", {"qp": "0"}, Fraction(4, 3), colorspace=0)
    clip, said = read(path, max_side=64)
    assert np.array_equal(clip.frames[0], resize(CHART, (32, 64)))
    assert said[0].startswith("scaled 128x64 to 64x32") and len(said) == 2


@pytest.mark.parametrize("aspect, words", [("1280/1281", 0), ("20/1", 1)])
def test_an_aspect_that_nobody_sees_or_that_makes_no_sense_changes_nothing(tmp_path, aspect, words):
    clip, said = read(encode(tmp_path / "a.mp4", [CHART] * 2, "libx264", aspect=Fraction(aspect)))
    assert clip.source_size == (64, 96) and len(said) == words


def test_an_aspect_that_changes_within_the_file_changes_the_size(tmp_path):
    for name, aspect in (("a.ts", Fraction(4, 3)), ("b.ts", Fraction(2))):
        encode(tmp_path / name, [CHART] * 12, "libx264", "yuv420p", aspect=aspect)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with pytest.raises(Exception, match="128x64, 192x64"):
        read_media(both)


def _with_matrix(path, matrix):
    """The MP4 file with another display matrix a, b, c, d."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (n << 16 for n in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


# A matrix a, b, c, d takes a point (x, y), with y downwards, to (a x + c y, b x + d y) when shown.
MATRICES = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("aspect, width", [(None, 96), (Fraction(4, 3), 128)])
def test_all_eight_display_matrices_are_applied_after_pixels_are_made_square(tmp_path, matrix, aspect, width):
    path = _with_matrix(encode(tmp_path / "a.mp4", [CHART] * 2, "libx264", "yuv420p", aspect=aspect), matrix)
    clip, _ = read(path)
    wanted = MATRICES[matrix](resize(CHART, (64, width)))
    assert clip.frames.shape[1:] == wanted.shape and Source(path).probe().size == wanted.shape[:2]
    assert np.abs(clip.frames[0].astype(int) - wanted).mean() < 4


@pytest.mark.parametrize("degrees", range(0, 360, 90))
def test_a_display_matrix_between_two_turns_is_taken_for_the_nearer(degrees):
    angle = np.deg2rad(degrees + 20)
    a, b = (int(f * 65536) for f in (np.cos(angle), np.sin(angle)))
    assert np.array_equal(turned(CHART, (a, b, -b, a)), np.rot90(CHART, -degrees // 90))


# Colours of videos ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, hd", [((720, 1280), True), ((536, 1280), True), ((1280, 720), True), ((576, 720), False)]
)
def test_a_video_without_tags_is_bt709_if_it_is_hd_and_bt601_if_not(tmp_path, size, hd):
    frames = [np.array(Image.fromarray(CHART).resize(size[::-1], 0))] * 2
    tagged = encode(tmp_path / "tagged.mp4", frames, "libx264", "yuv420p", {"crf": "4"}, colorspace=1 if hd else 6)
    (tmp_path / "a.mp4").write_bytes(_without_tags(tagged))
    assert closely(read_media(tmp_path / "a.mp4", log=str).frames[0], resize(frames[0], _fit(size)), within=5)


def _fit(size):
    return tuple(round(n * 256 / max(size)) for n in size)


def _without_tags(path):
    """The H.264 in MP4 as bytes, its matrix forgotten: the metadata filter of FFmpeg rewrites it."""
    copy = path.with_name("copy.mp4")
    with av.open(str(path)) as source, av.open(str(copy), "w") as out:
        stream = source.streams.video[0]
        clean = out.add_stream_from_template(stream)
        unset = av.bitstream.BitStreamFilterContext("h264_metadata=matrix_coefficients=2", stream, clean)
        for packet in source.demux(stream):
            for changed in unset.filter(packet if packet.size else None):
                changed.stream = clean
                out.mux(changed)
    data = copy.read_bytes()
    at = data.find(b"colrnclx")
    return data if at < 0 else data[: at + 12] + b"\0\2" + data[at + 14 :]


def test_tags_of_the_container_count_where_the_codec_has_forgotten_them(tmp_path):
    options = {"profile": "3"}
    path = encode(
        tmp_path / "a.mov",
        [CHART] * 2,
        "prores_ks",
        "yuv422p10le",
        options,
        colorspace=1,
        color_primaries=1,
        color_trc=1,
    )
    data = path.read_bytes()
    at = data.index(b"icpf")  # of the first frame, whose header names colours 14 bytes later
    assert data[at + 4 + 14 : at + 4 + 17] == b"\1\1\1"
    path.write_bytes(data.replace(data[at + 4 : at + 21], data[at + 4 : at + 18] + b"\2\2\2"))
    assert closely(read(path)[0].frames[0])


@pytest.mark.parametrize(
    "pixels, tags, words",
    [
        (wide(TO_BT2020, pq), {"colorspace": 9, "color_primaries": 9, "color_trc": 16}, "HDR (PQ, BT.2020)"),
        (wide(TO_BT2020, pq), {"colorspace": 9, "color_trc": 16}, "HDR (PQ, BT.2020)"),
        (wide(TO_BT2020, srgb), {"colorspace": 9, "color_primaries": 9, "color_trc": 14}, "(BT.2020)"),
        (wide(TO_P3, srgb), {"colorspace": 1, "color_primaries": 12, "color_trc": 1}, "(Display P3)"),
        (
            wide(np.eye(3), lambda x: x ** (1 / 2.8)),
            {"colorspace": 1, "color_primaries": 1, "color_trc": 5},
            "(gamma 2.8)",
        ),
        (wide(np.eye(3), lambda x: x), {"colorspace": 1, "color_primaries": 1, "color_trc": 8}, "(linear light)"),
    ],
)
@pytest.mark.parametrize("pix_fmt, limits", [("yuv420p10le", 1), ("yuv422p10le", 2), ("gbrp10le", 2)])
def test_hdr_wide_gamuts_and_other_curves_become_srgb_and_it_is_said(tmp_path, pixels, tags, words, pix_fmt, limits):
    if pix_fmt.startswith("gbr"):
        tags = {**tags, "colorspace": 0}
    clip, said = read(encode(tmp_path / "a.mkv", [pixels] * 2, pix_fmt=pix_fmt, color_range=limits, **tags))
    assert closely(clip.frames[0]) and len(said) == 1 and words in said[0]
    assert ("203 nits" in said[0]) == (tags["color_trc"] == 16)


def test_hlg_becomes_srgb(tmp_path):
    light = 0.203 * linear(CHART) @ TO_BT2020.T
    scene = light * (light @ [0.2627, 0.6780, 0.0593])[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    curve = np.where(scene <= 1 / 12, (3 * scene) ** 0.5, high)
    pixels, tags = np.round(curve * 65535).astype(np.uint16), {"colorspace": 9, "color_primaries": 9, "color_trc": 18}
    clip, said = read(encode(tmp_path / "a.mkv", [pixels] * 2, pix_fmt="yuv420p10le", **tags))
    assert closely(clip.frames[0]) and "HLG" in said[0]


@pytest.mark.parametrize("matrix, primaries, curve", [(5, 5, 5), (6, 6, 6), (7, 7, 7), (4, 4, 4)])
def test_the_primaries_of_sd_video_are_kept_and_that_is_said(tmp_path, matrix, primaries, curve):
    tags = {"colorspace": matrix, "color_primaries": primaries, "color_trc": curve}
    clip, said = read(encode(tmp_path / "a.mkv", [CHART] * 2, **tags))
    assert closely(clip.frames[0]) and len(said) == 1 and "BT.601" in said[0]


def test_a_matrix_that_is_not_known_is_said(tmp_path):
    assert any("YCgCo" in line for line in read(encode(tmp_path / "a.mkv", [CHART] * 2, colorspace=8))[1])


# Transparency of videos ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, codec, pix_fmt, options",
    [("a.webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b": "0", "auto-alt-ref": "0"}),
     ("a.webm", "libvpx", "yuva420p", {"crf": "4", "b": "2M", "auto-alt-ref": "0"}),
     ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}), ("a.mov", "qtrle", "argb", {}),
     ("a.mov", "png", "rgba", {}), ("a.mkv", "ffv1", "bgra", {}), ("a.mkv", "ffv1", "yuva420p", {})],
)  # fmt: skip
def test_transparent_videos_are_laid_over_white(tmp_path, name, codec, pix_fmt, options):
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[32:] = 0
    alpha[32:, 48:] = 128
    path = encode(tmp_path / name, [np.dstack([CHART, alpha])] * 3, codec, pix_fmt, options)
    frames = read(path)[0].frames
    assert len(frames) == 3
    mixed = 255 + (CHART - 255.0) * (alpha / 255)[..., None]
    assert closely(frames[0], mixed, within=6) and closely(frames[-1], mixed, within=6)


def test_hdr_with_transparency_is_laid_over_white_after_it_was_mapped(tmp_path):
    pixels = np.dstack([wide(TO_BT2020, pq), np.full((64, 96), 65535, np.uint16)])
    pixels[32:, :, 3] = 0
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        stream = out.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgba64be"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba64le").reformat(format="rgba64be")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        for holder in (stream.codec_context, frame):
            holder.color_primaries, holder.color_trc = 9, 16
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    frame = read(tmp_path / "a.mov")[0].frames[0]
    assert np.abs(patches(frame)[0] - PATCHES[0]).max() <= 4 and (frame[33:] == 255).all()


def test_avi_whose_transparency_was_never_written_is_opaque(tmp_path):
    path = encode(tmp_path / "a.avi", [np.dstack([CHART, 0 * CHART[..., 0]])] * 2, "ffv1", "bgra")
    assert closely(read(path)[0].frames[0])


# Interlacing ---------------------------------------------------------------------------------------------------------


def fields(count=24, height=96, width=128):
    """Frames of twice the rate: a bright square moves over a soft pattern."""
    y, x = np.mgrid[:height, :width]
    soft = (100 + 40 * np.sin(x / 9) + 30 * np.cos(y / 7)).astype(np.uint8)
    frames = soft[None, ..., None].repeat(count, 0).repeat(3, 3)
    for index in range(count):
        frames[index, 10:85, 4 * index : 4 * index + 24] = (235, 220, 60)
    return frames


def woven(frames, top_first=True):
    """Two frames of twice the rate in one: the rows of the first field are those of the first."""
    first, second = frames[::2], frames[1::2]
    result = second.copy()
    start = 0 if top_first else 1
    result[:, start::2] = first[:, start::2]
    return result


def encode_marked(path, frames, codec, mark, options, rate=25, split=False):
    """Frames whose flags say tff, bff or prog; split: as fields."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frames.shape[2], height=frames.shape[1], format=av.VideoFormat("rgb24"), time_base=Fraction(1, rate)
    )
    chain = [
        graph.add("setfield", mark),
        *([graph.add("separatefields")] if split else []),
        graph.add("format", "yuv444p"),
    ]
    graph.link_nodes(source, *chain, graph.add("buffersink")).configure()
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate * (2 if split else 1))
        stream.height, stream.width = frames.shape[1] // (2 if split else 1), frames.shape[2]
        stream.pix_fmt, stream.options = "yuv420p" if codec == "mpeg2video" else "yuv444p", options
        for index, frame in enumerate([*frames, None]):
            image = None
            if frame is not None:
                image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                image.pts, image.time_base = index, Fraction(1, rate)
            graph.push(image)
            while True:
                try:
                    marked = graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
                if codec == "mpeg2video":
                    marked = marked.reformat(format="yuv420p")
                out.mux(stream.encode(marked))
        out.mux(stream.encode())
    return path


def comb(frame):
    """How much rows differ from those above and below."""
    grey = frame.astype(float).mean(2)
    return np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean()


MPEG2 = {"flags": "+ildct+ilme", "qmin": "1", "qmax": "2", "b": "20M"}


@pytest.mark.parametrize("mark", ["tff", "bff"])
@pytest.mark.parametrize("name, codec", [("a.mpg", "mpeg2video"), ("a.mp4", "libx264")])
def test_interlaced_frames_are_deinterlaced_in_their_field_order(tmp_path, mark, name, codec):
    moving = fields()
    options = MPEG2 if codec == "mpeg2video" else {"crf": "6", "x264-params": f"{mark}=1"}
    clip, said = read(encode_marked(tmp_path / name, woven(moving, mark == "tff"), codec, mark, options))
    assert len(clip.frames) == 12 and clip.fps == 25 and said == ["interlaced frames were deinterlaced (bwdif)"]
    assert comb(woven(moving)[6]) > 2 * comb(moving[12])
    for index in range(2, 10):
        assert comb(clip.frames[index]) < 0.5 * comb(woven(moving)[index])
        near, far = (np.abs(clip.frames[index].astype(int) - moving[2 * index + later]).mean() for later in (0, 1))
        assert near < 0.8 * far


@pytest.mark.parametrize("mark", ["tff", "bff"])
def test_interlaced_hevc_which_comes_as_fields_is_woven_first(tmp_path, mark):
    moving, options = fields(), {"crf": "6", "x265-params": f"interlace={mark}:log-level=0"}
    path = encode_marked(tmp_path / "a.mp4", woven(moving, mark == "tff"), "libx265", mark, options, split=True)
    clip, said = read(path)
    assert clip.frames.shape == (12, 96, 128, 3) and clip.fps == 25 and len(said) == 1
    info = Source(path).probe()
    assert (info.size, info.frames) == ((96, 128), 12)
    for index in range(2, 10):
        assert np.abs(clip.frames[index].astype(int) - moving[2 * index]).mean() < 2


def test_frames_that_are_marked_as_interlaced_but_are_not_stay_as_they_are(tmp_path):
    # All of the picture moves, so that each frame shows what it is.
    moving = np.stack([np.roll(CHART, 6 * i, 1) for i in range(10)])
    options = {"crf": "6", "x264-params": "tff=1"}
    path = encode_marked(tmp_path / "a.mp4", moving, "libx264", "tff", options)
    clip, said = read(path)
    assert any("not interlaced" in line for line in said)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert all(np.array_equal(a, b) for a, b in zip(clip.frames[3:], stored[3:], strict=True))


def test_progressive_frames_after_interlaced_ones_are_not_touched(tmp_path):
    interlaced = encode_marked(tmp_path / "a.ts", woven(fields()), "mpeg2video", "tff", MPEG2)
    progressive = encode_marked(tmp_path / "b.ts", fields()[::2], "mpeg2video", "prog", {**MPEG2, "flags": "0"})
    both = tmp_path / "both.ts"
    both.write_bytes(interlaced.read_bytes() + progressive.read_bytes())
    with av.open(str(both)) as container:
        frames = list(container.decode(video=0))
    marks = [frame.interlaced_frame for frame in frames]
    whole = [frame.reformat(format="yuv444p", interpolation="BICUBIC") for frame in frames]
    stored = [frame.to_ndarray(format="rgb24") for frame in whole]
    assert True in marks and False in marks
    clip, _ = read(both)
    assert len(clip.frames) == len(stored)
    for frame, before, marked in zip(clip.frames, stored, marks, strict=True):
        assert marked or np.array_equal(frame, before)
    assert comb(clip.frames[5]) < 0.5 * comb(stored[5])


def test_only_the_frames_that_are_wanted_of_an_interlaced_clip_are_read(tmp_path):
    path = encode_marked(tmp_path / "a.mpg", woven(fields()), "mpeg2video", "tff", MPEG2)
    whole, part = read(path)[0].frames, read(path, start=3, stop=8, stride=2)[0].frames
    assert np.array_equal(part, whole[3:8:2])


# Stills --------------------------------------------------------------------------------------------------------------


def icc(kind, tags, klass=b"mntr", connection=b"XYZ "):
    """An ICC profile of version 4 with these tags."""
    tags = {b"desc": _text("made here"), b"cprt": _text("none"), b"wtpt": _xyz(0.96419, 1, 0.82489), **tags}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x04000000, klass, kind, connection)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL" + bytes(24) + _fixed(0.96419, 1, 0.82489)
    return head + b"none" + bytes(44) + table + body


def _fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(*values):
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _text(words):
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", 2 * len(words), 28) + words.encode("utf-16-be")


def _gamma(value):
    return b"para\0\0\0\0" + struct.pack(">HH", 0, 0) + _fixed(value)


SRGB_CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
P3_COLOURS = {
    b"rXYZ": _xyz(0.51512, 0.2412, -0.00105),
    b"gXYZ": _xyz(0.29198, 0.69225, 0.04189),
    b"bXYZ": _xyz(0.1571, 0.06657, 0.78407),
}
P3 = icc(b"RGB ", P3_COLOURS | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), SRGB_CURVE))
GREY = icc(b"GRAY", {b"kTRC": _gamma(1.8)})
P3_CHART = np.round(srgb(linear(CHART) @ TO_P3.T) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
@pytest.mark.parametrize("folder", [False, True])
def test_profiles_of_stills_are_converted_to_srgb_and_it_is_said_once(tmp_path, name, folder):
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 97, "subsampling": 0}}.get(name, {})
    for path in (tmp_path / name, tmp_path / f"b{name[1:]}"):
        Image.fromarray(P3_CHART).save(path, icc_profile=P3, **options)
    clip, said = read(tmp_path if folder else tmp_path / name)
    assert all(closely(frame) for frame in clip.frames)
    assert said == ["colours converted to sRGB from the profile made here"]


def test_profiles_of_animations_are_converted(tmp_path):
    images = [Image.fromarray(np.roll(P3_CHART, 24 * i, 1)) for i in range(3)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True, icc_profile=P3)
    frames = read(tmp_path / "a.webp")[0].frames
    assert all(closely(frame, np.roll(CHART, 24 * i, 1)) for i, frame in enumerate(frames)) and len(frames) == 3


def test_a_profile_of_srgb_changes_no_pixel(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=profile)
    clip, said = read(tmp_path / "a.png")
    assert np.array_equal(clip.frames[0], noise) and said == []


def test_a_profile_is_applied_before_transparency_is_laid_over_white(tmp_path):
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[32:] = 128
    Image.fromarray(np.dstack([P3_CHART, alpha])).save(tmp_path / "a.png", icc_profile=P3)
    assert closely(read(tmp_path / "a.png")[0].frames[0], 255 + (CHART - 255.0) * (alpha / 255)[..., None])


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_images_follow_grey_profiles(tmp_path, mode):
    grey = np.linspace(0, 255, 96).round().astype(np.uint8)[None].repeat(16, 0)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=GREY)
    wanted = (srgb((grey / 255) ** 1.8) * 255)[..., None].repeat(3, 2)
    assert np.abs(read(tmp_path / "a.png")[0].frames[0] - wanted).max() <= 2


def test_grey_images_may_have_profiles_of_colours(tmp_path):
    profile = icc(b"RGB ", P3_COLOURS | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(1.8)))
    grey = np.linspace(0, 255, 96).round().astype(np.uint8)[None].repeat(16, 0)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile)
    wanted = (srgb((grey / 255) ** 1.8) * 255)[..., None].repeat(3, 2)
    assert np.abs(read(tmp_path / "a.png")[0].frames[0] - wanted).max() <= 2


def test_cmyk_follows_its_profile(tmp_path):
    """A profile whose table makes each ink a shade of grey: white without ink, L* = 50 under cyan alone."""
    shades = [(0xFFFF if not inks else 0x8000 if inks == 8 else 0, 0x8080, 0x8080) for inks in range(16)]
    curve = struct.pack(">2H", 0, 0xFFFF)
    table = b"mft2\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">2H", 2, 2)
    table += curve * 4 + b"".join(struct.pack(">3H", *shade) for shade in shades) + curve * 3
    profile = icc(b"CMYK", {b"A2B0": table}, b"prtr", b"Lab ")
    inks = np.zeros((32, 32, 4), np.uint8)
    inks[:16, :, 0] = 255
    inks[:16, :, 3] = 0
    for name, options in (("a.tiff", {}), ("a.jpg", {"quality": 100})):
        Image.fromarray(inks, "CMYK").save(tmp_path / name, icc_profile=profile, **options)
        frame = read(tmp_path / name)[0].frames[0].astype(int)
        assert np.ptp(frame[4]) <= 6 and abs(frame[4].mean() - 119) < 6  # L* = 50 is 119 in sRGB
        assert frame[24].min() >= 250


@pytest.mark.parametrize("profile", [P3[:200], b"nonsense", P3[:400] + bytes(len(P3) - 400), GREY])
def test_a_profile_that_is_damaged_or_of_another_kind_is_said_and_colours_are_kept(tmp_path, profile):
    Image.fromarray(CHART).save(tmp_path / "a.png", icc_profile=profile)
    clip, said = read(tmp_path / "a.png")
    assert np.array_equal(clip.frames[0], CHART) and len(said) == 1 and "profile is not applied" in said[0]


def test_lab_becomes_srgb(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.fromarray(CHART), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "a.tiff")
    assert closely(read(tmp_path / "a.tiff")[0].frames[0], within=8)  # Lab has 8 bits


def _chunks(path, pixels, *chunks):
    """A PNG file with chunks before its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    more = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(data[:33] + more + data[33:])
    return path


P3_CHROMATICITIES = b"".join(struct.pack(">I", n) for n in (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SRGB_CHROMATICITIES = b"".join(struct.pack(">I", n) for n in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))


def _eight_bits(pixels):
    return np.round(pixels / 257).astype(np.uint8)


@pytest.mark.parametrize(
    "pixels, chunks, within",
    [
        (_eight_bits(wide(TO_BT2020, pq)), [(b"cICP", bytes([9, 16, 0, 1]))], 12),
        (P3_CHART, [(b"cICP", bytes([12, 13, 0, 1]))], 3),
        (P3_CHART, [(b"cICP", bytes([12, 13, 0, 1])), (b"sRGB", b"\0")], 3),
        (P3_CHART, [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", P3_CHROMATICITIES)], 3),
        (_eight_bits(wide(np.eye(3), lambda x: x)), [(b"gAMA", struct.pack(">I", 100000))], 3),
        (_eight_bits(wide(np.eye(3), lambda x: x ** (1 / 1.8))), [(b"gAMA", struct.pack(">I", 55556))], 2),
        (CHART, [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", SRGB_CHROMATICITIES)], 0),
        (CHART, [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], 0),
        (CHART, [(b"gAMA", struct.pack(">I", 0)), (b"cHRM", bytes(32))], 0),
    ],
)
def test_colours_of_png_without_a_profile_follow_its_chunks(tmp_path, pixels, chunks, within):
    clip, said = read(_chunks(tmp_path / "a.png", pixels, *chunks))
    assert closely(clip.frames[0], within=within) and len(said) == (within > 0)


def test_adobe_rgb_that_only_exif_names_becomes_srgb(tmp_path):
    to_adobe = np.array([[0.7151, 0.2849, 0.0000], [0.0000, 1.0000, 0.0000], [0.0000, 0.0412, 0.9588]])
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    pixels = _eight_bits(wide(to_adobe, lambda x: x ** (1 / 2.2)))
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    clip, said = read(tmp_path / "a.jpg")
    assert closely(clip.frames[0], within=5) and said == ["colours (gamma 2.2, Adobe RGB) converted to sRGB"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_densities_that_differ_are_not_applied_and_that_is_said(tmp_path, name):
    Image.fromarray(CHART).save(tmp_path / name, dpi=(204, 98))
    clip, said = read(tmp_path / name)
    assert clip.source_size == (64, 96) and len(said) == 1 and "densities" in said[0]


def test_one_image_says_what_was_done_to_it_too(tmp_path):
    Image.fromarray(P3_CHART).save(tmp_path / "a.png", icc_profile=P3)
    said = []
    assert closely(read_image(tmp_path / "a.png", log=said.append)) and len(said) == 1
