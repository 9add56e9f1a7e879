"""What cannot be read is told in a sentence with a way out, and the way out works."""

import json
import re
import shlex
import shutil
import subprocess

import av
import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SettingError, SinfusionError
from sinfusion.media import Source, read_media, write_image, write_video


def said(source, **options):
    """The sentence with which a source is refused."""
    with pytest.raises(SinfusionError) as raised:
        read_media(source, log=lambda _: None, **options)
    text = str(raised.value)
    assert not re.search(r"returned -?\d|Errno|Error:", text), text
    return text


# Damage --------------------------------------------------------------------------------------------------------------


def encode(path, frames, codec, **options):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        out.mux(stream.encode())
    return path


def damaged_video(path, frames, at):
    """A Matroska file of which the packet of frame `at` is noise."""
    encode(path, frames, "ffv1")
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    data = path.read_bytes()
    begin = data.index(packets[at])
    path.write_bytes(data[:begin] + b"\xff" * len(packets[at]) + data[begin + len(packets[at]) :])
    return path


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": 3, "start": 1}, {"start": 4}])
def test_the_stop_that_a_damaged_video_names_works(tmp_path, noise, options):
    path = damaged_video(tmp_path / "a.mkv", noise, 7)
    stop = int(re.search(r"--stop (\d+) reads", said(path, **options))[1])
    clip = read_media(path, log=lambda _: None, stop=stop, **options)
    assert len(clip.frames) == len(range(7)[options.get("start", 0) :: options.get("stride", 1)])
    assert Source(path, stop=stop, **options).probe().frames == len(clip.frames)


@pytest.mark.parametrize("options", [{}, {"start": 8}])
def test_a_video_without_a_frame_before_the_damage_names_what_may_save_the_rest(tmp_path, noise, options):
    path = damaged_video(tmp_path / "a b.mkv", noise, 7 if options else 0)
    sentence = said(path, **options)
    assert "--stop" not in sentence and f"ffmpeg -i '{path}' -c:v libx264 -crf 12 'a b-repaired.mp4'" in sentence


@pytest.mark.parametrize("options", [{}, {"stride": 3}])
def test_the_stop_that_a_truncated_video_names_works(tmp_path, noise, options):
    write_video(tmp_path / "a.mp4", noise, fps=10)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 2 // 3])
    stop = int(re.search(r"--stop (\d+) reads", said(tmp_path / "a.mp4", **options))[1])
    assert len(read_media(tmp_path / "a.mp4", stop=stop, **options).frames) >= 1


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_stop_that_a_damaged_animation_names_works(tmp_path, noise, name):
    images = [Image.fromarray(frame) for frame in noise]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    sentence = said(tmp_path / name)
    if stop := re.search(r"--stop (\d+) reads", sentence):
        assert len(read_media(tmp_path / name, stop=int(stop[1]), log=lambda _: None).frames) == int(stop[1])
    assert stop or name == "a.webp"  # of which nothing can be decoded in half a file


def test_the_stop_that_a_folder_with_a_damaged_picture_names_works(tmp_path, noise):
    for i, frame in enumerate(noise):
        write_image(tmp_path / f"frames/{i}.png", frame)
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:-30]), lambda p: p.write_bytes(b""), _as_broken_link):
        damage(tmp_path / "frames/7.png")
        sentence = said(tmp_path / "frames", stride=2, start=1)
        assert "7.png is" in sentence and "--stop 6 reads those before it, or remove the file" in sentence
        assert len(read_media(tmp_path / "frames", stride=2, start=1, stop=6).frames) == 3
    assert "choose a --start after it" in said(tmp_path / "frames", start=7)
    assert len(read_media(tmp_path / "frames", start=8).frames) == Source(tmp_path / "frames", start=8).probe().frames


def _as_broken_link(path):
    path.unlink()
    path.symlink_to("/nowhere/7.png")


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def changing(tmp_path, noise):
    """An MPEG stream whose frames are larger from frame 12 on."""
    small = encode(tmp_path / "1.ts", noise, "mpeg2video").read_bytes()
    large = encode(tmp_path / "2.ts", noise.repeat(2, 1).repeat(2, 2), "mpeg2video").read_bytes()
    (tmp_path / "both.ts").write_bytes(small + large)
    return tmp_path / "both.ts"


def test_a_size_that_changes_is_accepted_with_an_exact_size_and_the_refusal_says_so(changing):
    with pytest.raises(SettingError, match="different sizes: 48x32, 96x64; scale all to one with size, such as 48x32"):
        read_media(changing, log=lambda _: None)
    clip = read_media(changing, size=(16, 24), log=lambda _: None)
    assert clip.frames.shape[1:] == (16, 24, 3) and len(clip.frames) > 18


def test_pictures_of_several_sizes_are_accepted_with_an_exact_size(tmp_path, noise):
    write_image(tmp_path / "frames/1.png", noise[0])
    write_image(tmp_path / "frames/2.png", noise[1][:-2])
    assert "1.png is 48x32, 2.png is 48x30; scale all to one with size" in said(tmp_path / "frames")
    clip = read_media(tmp_path / "frames", size=(32, 48))
    assert clip.frames.shape == (2, 32, 48, 3) and np.array_equal(clip.frames[0], noise[0])


# Formats -------------------------------------------------------------------------------------------------------------

FOREIGN = {
    "a.jxl": (b"\xff\x0a" + bytes(40), "a JPEG XL image", "ffmpeg -i {} a.png"),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "a JPEG XL image", "ffmpeg -i {} b.png"),
    "a.ppm": (b"P6\n2 1\n255\n" + bytes(6), "a PPM image", "ffmpeg -i {} a.png"),
    "a.tga": (bytes(60), "a Targa image", "ffmpeg -i {} a.png"),
    "a.psd": (b"8BPS\0\1" + bytes(40), "a Photoshop file", "magick {} a.png"),
    "a.pdf": (b"%PDF-1.4\n" + bytes(40), "a PDF", "magick {} a.png"),
    "a.svg": (b'<?xml version="1.0"?>\n<svg width="9"/>', "an SVG drawing", "magick {} a.png"),
    "a.cr3": (b"\0\0\0\x18ftypcrx " + bytes(40), "a RAW photo", "magick {} a.png"),
    "a.NEF": (None, "a RAW photo", "magick {} a.png"),
    "a.mxf": (b"\x06\x0e\x2b\x34" + bytes(40), "an MXF video", "ffmpeg -i {} -c:v libx264 -crf 12 a.mp4"),
    "a.m3u8": (b"#EXTM3U\n#EXTINF:1,\n0.ts\n", "a playlist (HLS)", "ffmpeg -i {} -c copy a.mp4"),
    "a.h264": (b"\0\0\0\1\x67" + bytes(40), "a bare video stream", "ffmpeg -i {} -c copy a.mp4"),
    "a.mp3": (b"ID3\4" + bytes(40), "sound (MP3) and has no pictures", ""),
    "a.wav": (b"RIFF\0\0\0\0WAVEfmt ", "sound (WAV) and has no pictures", ""),
    "a.zip": (b"PK\3\4" + bytes(40), "an archive (zip)", "unzip {} -d a"),
    "a.tar.gz": (b"\x1f\x8b" + bytes(40), "archive (gzip)", "tar xf {}"),
    "a.npy": (b"\x93NUMPY" + bytes(40), "a NumPy array", "sinfusion.train(array)"),
    "a.safetensors": (b"\x02\0\0\0\0\0\0\0{}", "a file of PyTorch", ""),
    "a.txt": ("Fische, größer\n".encode(), "a text file", ""),
    "a.mp4": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
    "b.mp4": (b"<!DOCTYPE html><html>", "a web page", ""),
    "c.mp4": (b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x40mdat" + bytes(56), "an MP4 without its index", ""),
    "a.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged: it begins as a PNG", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_not_read_is_named_with_what_to_do(tmp_path, noise, name):
    content, what, command = FOREIGN[name]
    path = tmp_path / name
    if content is None:  # a TIFF, of which the thumbnail could be read
        write_image(tmp_path / "a.tif", noise[0])
        content = (tmp_path / "a.tif").read_bytes()
    path.write_bytes(content)
    sentence = said(path)
    assert sentence.startswith(f"{path} is ") and what in sentence and sentence.endswith(command.format(path))
    assert len(sentence) < 300


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the commands that are named need ffmpeg")
@pytest.mark.parametrize("name", ["a.ppm", "a b'c.ppm", "-x.ppm", "a:b.ppm", "a.mxf"])
def test_the_command_that_is_named_makes_a_file_that_is_read(tmp_path, noise, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    size = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-i", "-"]
    count = 12 if name.endswith("mxf") else 1
    made = ["ffmpeg", "-v", "error", *size, "-update", "1", f"file:{name}"]
    subprocess.run(made if count == 1 else [*made[:-3], name], input=noise[:count].tobytes(), check=True)
    command = re.search(r"ffmpeg -i .*", said(name))[0]
    subprocess.run(["bash", "-c", f"{command} -v error"], check=True)
    assert len(read_media(shlex.split(command)[-1], log=lambda _: None).frames) == count


# Folders and names ---------------------------------------------------------------------------------------------------


def test_a_folder_whose_pictures_lie_deeper_names_their_folder(tmp_path, noise):
    write_image(tmp_path / "a/my clip/1.png", noise[0])
    assert said(tmp_path / "a").endswith(f"they lie deeper; give that folder: '{tmp_path}/a/my clip'")
    write_image(tmp_path / "b/c/d/1.png", noise[0])
    assert said(tmp_path / "b").endswith(f"give that folder: {tmp_path}/b/c/d")
    write_image(tmp_path / "a/other/1.png", noise[0])
    assert "2 folders in it do; give one" in said(tmp_path / "a")
    write_video(tmp_path / "v/w/1.mp4", noise, fps=10)
    assert said(tmp_path / "v").endswith(f"holds no videos itself, they lie deeper; give that folder: {tmp_path}/v/w")


def test_folders_of_videos_of_other_pictures_and_of_nothing(tmp_path, noise):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "folder is empty: it holds no images" in said(folder)
    (folder / ".DS_Store").touch()
    (folder / "Thumbs.db").touch()
    assert "folder holds no images (PNG" in said(folder)
    for i in range(3):
        (folder / f"{i}.ppm").touch()
    assert f"but 3 of .ppm; convert them: magick mogrify -format png {folder}/*.ppm" in said(folder)
    write_video(folder / "fish.mp4", noise, fps=10)
    assert said(folder).endswith(f"holds no images but a video; give that: {folder}/fish.mp4")
    write_video(folder / "cat.mp4", noise, fps=10)
    assert f"2 videos (cat.mp4, fish.mp4); give one: {folder}/cat.mp4" in said(folder)


def test_folders_between_frames_are_no_frames(tmp_path, noise):
    write_image(tmp_path / "1.png", noise[0])
    (tmp_path / "out.png").mkdir()
    assert len(read_media(tmp_path).frames) == 1


def test_a_run_and_its_files_are_no_clip(tmp_path, noise):
    (tmp_path / "fish.mp4").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"source": str(tmp_path / "fish.mp4")}))
    (tmp_path / "run/input.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert f"is a run and no video; give the video or image that it was trained on, {tmp_path}/fish.mp4" in said(
        tmp_path / "run"
    )
    for name in ("run.json", "input.safetensors"):
        assert f"give its folder: {tmp_path / 'run'}" in said(tmp_path / "run" / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("-", "standard input is not read"), ("https://example.org/a.mp4", "download the file"),
        ("frame_%04d.png", "give the folder: ."), ("*.png", "give the folder: ."), ("no.mp4", "does not exist; give a"),
    ],
)  # fmt: skip
def test_names_of_nothing(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in said(name)


def test_notes_go_to_standard_error(tmp_path, noise, capsys):
    write_video(tmp_path / "a.mp4", noise, fps=10)
    read_media(tmp_path / "a.mp4", max_side=24)
    printed = capsys.readouterr()
    assert printed.out == "" and "scaled 48x32 to 24x16" in printed.err
