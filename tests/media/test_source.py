"""A source: range, size and rate apply to whatever holds frames, or are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import Clip, Source, SourceInfo, write_image, write_video

KINDS = ("array", "clip", "tensor", "list", "pillow", "folder", "gif", "mp4")
silent = {"log": lambda _: None}


@pytest.fixture
def outputs(clip, tmp_path):
    """The same twelve frames of 24x16 as each kind of source."""

    def make(kind):
        if kind == "folder":
            write_video(tmp_path / kind, clip, fps=20)
            return tmp_path / kind
        if kind == "gif":
            write_video(tmp_path / "a.gif", clip, fps=20)
            return tmp_path / "a.gif"
        if kind == "mp4":
            write_video(tmp_path / "a.mp4", clip, fps=20)
            return str(tmp_path / "a.mp4")
        return {
            "array": clip,
            "clip": Clip(clip, 20, "video", (16, 24)),
            "tensor": torch.from_numpy(clip).movedim(-1, 1) / 255,
            "list": list(clip),
            "pillow": [Image.fromarray(frame) for frame in clip],
        }[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_applies_to_every_kind_and_the_clip_plays_as_fast(outputs, clip, kind):
    read = Source(outputs(kind), start=2, stop=11, stride=3).read(**silent)
    assert read.frames.shape == (3, 16, 24, 3) and read.kind == "video"
    assert np.abs(read.frames.astype(int) - clip[2:11:3]).mean() < 12  # GIF and MP4 lose a little
    assert read.fps == pytest.approx(20 / 3, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_longer_side_apply_to_every_kind(outputs, kind):
    source = outputs(kind)
    exact = Source(source, size=(10, 12)).read(**silent)
    assert exact.frames.shape == (12, 10, 12, 3) and exact.source_size == (16, 24)
    assert Source(source, max_side=12).read(**silent).frames.shape == (12, 8, 12, 3)
    said = []
    assert Source(source).read(12, said.append).frames.shape == (12, 8, 12, 3)
    assert said == ["scaled 24x16 to 12x8 (longer side 12; use --size or --max-side for another)"]
    assert Source(source, max_side=0).read(12, **silent).frames.shape == (12, 16, 24, 3)


def test_every_kind_is_scaled_alike(outputs):
    kinds = ("array", "clip", "tensor", "list", "pillow", "folder")
    first, *others = (Source(outputs(kind), max_side=12).read(**silent).frames for kind in kinds)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_tells_native_size_number_and_kind_before_anything_is_scaled(outputs, kind):
    source = outputs(kind)
    assert Source(source, size=(10, 12)).probe() == SourceInfo((16, 24), 12, "video")
    assert Source(source, start=1, stop=8, stride=2).probe() == SourceInfo((16, 24), 4, "video")


@pytest.mark.parametrize("kind", ["array", "pillow", "file"])
def test_an_image_has_no_range_and_no_rate(clip, tmp_path, kind):
    write_image(tmp_path / "a.png", clip[0])
    image = {"array": clip[0], "pillow": Image.fromarray(clip[0]), "file": tmp_path / "a.png"}[kind]
    assert Source(image).probe() == SourceInfo((16, 24), 1, "image")
    assert Source(image).read().kind == "image"
    for option in ({"start": 0}, {"stop": 1}, {"stride": 1}, {"fps": 5}):
        for act in (Source.probe, Source.read):
            with pytest.raises(
                SinfusionError, match=f"{next(iter(option))} is for videos, this is an image; leave out"
            ):
                act(Source(image, **option))


def test_an_upright_image_is_probed_as_it_is_read(tmp_path, clip):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(clip[0]).save(tmp_path / "a.jpg", exif=exif)
    assert Source(tmp_path / "a.jpg").probe().size == (24, 16) == Source(tmp_path / "a.jpg").read().frames.shape[1:3]


def test_a_rate_is_taken_for_that_of_frames_that_have_none(outputs):
    for kind in ("array", "tensor", "list", "pillow", "folder"):
        source = outputs(kind)
        assert Source(source, fps=8, stride=2).read().fps == 4 and Source(source).read().fps == 20


def test_frames_with_a_rate_are_resampled(outputs, clip):
    for kind in ("clip", "gif", "mp4"):
        said, source = [], outputs(kind)
        read = Source(source, fps=10).read(log=said.append)
        assert read.fps == 10 and np.abs(read.frames.astype(int) - clip[::2]).mean() < 12
        assert len(said) == 1 and "20 frames a second resampled to 10: 12 became 6 (6 left out)" in said[0]
        assert len(Source(source, fps=20).read(**silent).frames) == 12


def test_one_frame_of_several_is_an_image_but_of_a_video_file(outputs):
    assert Source(outputs("array"), start=3, stop=4).read().kind == "image"
    assert Source(outputs("mp4"), start=3, stop=4).read().kind == "video"


def test_a_clip_remembers_its_size_before_scaling(clip):
    source = Source(Clip(clip, 20, "video", (160, 240)), max_side=12)
    assert source.probe().size == (160, 240) and source.read(**silent).source_size == (160, 240)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (16, 24), "max_side": 20}, "size and max_side both"), ({"size": "24x16"}, "height and a width"),
        ({"size": 24}, "height and a width"), ({"size": (16.0, 24)}, "height and a width"),
        ({"size": (0, 24)}, "height and a width"), ({"max_side": "12"}, "max_side must be"),
        ({"max_side": -1}, "max_side must be"), ({"start": -1}, "start must be"), ({"start": True}, "start must be"),
        ({"stop": 2.5}, "stop must be"), ({"stride": 0}, "stride must be"), ({"start": 4, "stop": 4}, "are none"),
        ({"fps": 0}, "fps must be"), ({"fps": "20"}, "fps must be"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_before_anything_is_opened(options, words):
    with pytest.raises(SinfusionError, match=words):
        Source("no such file", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_beyond_the_end_is_refused(outputs, kind):
    with pytest.raises(SinfusionError, match="no frames from 12 on"):
        Source(outputs(kind), start=12).read()


@pytest.mark.parametrize("value", [None, 3, object(), ["a.png"], b"bytes", np.zeros((2, 2), "datetime64[s]")])
def test_what_holds_no_frames_is_refused_in_one_sentence(value):
    for act in (Source.probe, Source.read):
        with pytest.raises(SinfusionError):
            act(Source(value))


def test_probing_what_is_damaged_is_refused(tmp_path, outputs):
    whole = open(outputs("mp4"), "rb").read()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.gif").write_bytes(b"GIF89a" + bytes(range(256)))
    (tmp_path / "empty.mp4").touch()
    for name in ("half.mp4", "noise.gif", "empty.mp4", "missing.mp4"):
        with pytest.raises(SinfusionError):
            Source(tmp_path / name).probe()
