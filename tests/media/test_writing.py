"""Writing of videos, animations, folders and images; contact sheets."""

from __future__ import annotations

import errno
import os
import sys

import av
import numpy as np
import pytest
from PIL import Image

from sinfusion.errors import SinfusionError
from sinfusion.media import (
    VideoWriter,
    contact_sheet,
    enlarge,
    mark_new,
    read_image,
    read_media,
    side_by_side,
    write_image,
    write_video,
)


def order(frames, originals):
    """Which original each frame looks most like."""
    return [int(np.argmin([np.abs(f.astype(int) - o).mean() for o in originals])) for f in frames]


def blocks(height=16, width=24, seed=0):
    """(H, W, 3) uint8 of 8x8 squares in random colours."""
    squares = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return squares.repeat(8, 0).repeat(8, 1)[:height, :width]


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [20, 29.97, 24000 / 1001, 0.5, 240, np.float32(12.5)])
def test_an_mp4_plays_in_browsers_at_its_speed(tmp_path, texture, fps):
    write_video(tmp_path / "a.mp4", texture(4, (48, 64)), fps=fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # playing begins before all is loaded
    assert read_media(tmp_path / "a.mp4").fps == pytest.approx(float(fps), rel=1e-3)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (47, 64), (16, 17), (1, 1)])
def test_an_mp4_keeps_every_frame_and_pads_odd_sizes(tmp_path, texture, size):
    frames = texture(9, size, step=4) if min(size) > 1 else np.full((9, 1, 1, 3), 90, np.uint8)
    write_video(tmp_path / "a.mp4", frames, fps=20)
    read = read_media(tmp_path / "a.mp4").frames
    assert read.shape == (9, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    if min(size) > 1:
        assert order(read[:, : size[0], : size[1]], frames) == list(range(9))
    assert np.abs(read[:, : size[0], : size[1]].astype(int) - frames).mean() < 8


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 150, 90)])
def test_an_mp4_keeps_colours(tmp_path, colour):
    write_video(tmp_path / "a.mp4", np.full((3, 32, 48, 3), colour, np.uint8), fps=20)
    assert np.abs(read_media(tmp_path / "a.mp4").frames.astype(int) - colour).max() <= 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert next(container.decode(video=0)).colorspace == 1  # BT.709, named in the file


def test_an_mp4_does_not_shift_colours_sideways(tmp_path):
    y, x = np.mgrid[:64, :96]
    waves = np.stack([127 + 100 * np.sin(x / 7), 127 - 100 * np.sin(x / 7), 127 + 100 * np.sin(y / 7)], -1)
    write_video(tmp_path / "a.mp4", [waves.astype(np.uint8)] * 3, fps=20)
    read = read_media(tmp_path / "a.mp4").frames[1].astype(int)
    left, here, right = (np.abs(read - np.roll(waves, shift, 1))[8:-8, 8:-8].mean() for shift in (-1, 0, 1))
    assert here < 2.5 and abs(left - right) < 0.5


def test_a_gif_keeps_its_speed_and_shows_a_repeated_frame_for_longer(tmp_path):
    frames = np.stack([blocks(seed=n) for n in (0, 1, 1, 2)])
    write_video(tmp_path / "a.gif", frames, fps=20)
    clip = read_media(tmp_path / "a.gif")
    assert np.array_equal(clip.frames, frames)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
        durations = []
        for n in range(3):
            image.seek(n)
            durations.append(image.info["duration"])
    assert durations == [50, 100, 50]


def test_a_webp_keeps_its_frames_and_its_speed_and_plays_for_ever(tmp_path, texture):
    frames = texture(30)
    write_video(tmp_path / "a.webp", frames, fps=30)
    clip = read_media(tmp_path / "a.webp")
    assert clip.frames.shape == frames.shape and np.abs(clip.frames.astype(int) - frames).mean() < 9
    assert clip.fps == pytest.approx(30, rel=0.02)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.info["loop"] == 0


def test_the_speed_of_a_gif_does_not_drift(tmp_path, texture):
    write_video(tmp_path / "a.gif", texture(30), fps=30)  # 33.3 ms, in a format that counts 10 ms
    clip = read_media(tmp_path / "a.gif")
    assert len(clip.frames) == 30 and clip.fps == pytest.approx(30, rel=0.01)


def test_a_gif_of_many_colours_stays_close(tmp_path, texture):
    frames = texture(3, (48, 64))
    write_video(tmp_path / "a.gif", frames, fps=10)
    assert np.abs(read_media(tmp_path / "a.gif").frames.astype(int) - frames).mean() < 8


def test_a_folder_of_pngs_is_exact(tmp_path, texture):
    frames = texture(11)
    write_video(tmp_path / "new/frames", frames, fps=20)
    assert sorted(p.name for p in (tmp_path / "new/frames").iterdir()) == [f"{n:05d}.png" for n in range(1, 12)]
    assert np.array_equal(read_media(tmp_path / "new/frames").frames, frames)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.JPEG", "a.bmp", "a.tif", "a.tiff"])
def test_images_are_written_in_the_format_of_their_suffix(tmp_path, name):
    write_image(tmp_path / "new" / name, blocks(16, 32))
    with Image.open(tmp_path / "new" / name) as image:
        assert image.format.lower()[:3] in {"jpg": "jpe", "jpeg": "jpe"}.get(name[2:].lower(), name[2:5])
    assert np.abs(read_image(tmp_path / "new" / name).astype(int) - blocks(16, 32)).mean() < 8


def test_frames_are_written_as_they_come(tmp_path):
    def frames():
        for n in range(5):
            assert len(list(tmp_path.rglob("*.png"))) == n
            yield blocks(seed=n)

    write_video(tmp_path / "frames", frames(), fps=20)
    assert len(list((tmp_path / "frames").iterdir())) == 5


RESULTS = ["a.mp4", "a.gif", "a"]


@pytest.mark.parametrize("name", RESULTS)
def test_what_exists_is_only_written_over_when_asked(tmp_path, texture, name):
    old, new = texture(3, (32, 32)), texture(5, (32, 48), seed=1)
    write_video(tmp_path / name, old, fps=10)
    with pytest.raises(SinfusionError, match="exists; pass --overwrite"):
        write_video(tmp_path / name, new, fps=10)
    assert read_media(tmp_path / name).frames.shape == (3, 32, 32, 3)
    write_video(tmp_path / name, new, fps=10, overwrite=True)
    assert read_media(tmp_path / name).frames.shape == (5, 32, 48, 3)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_image_that_exists_is_only_written_over_when_asked(tmp_path):
    write_image(tmp_path / "a.png", blocks())
    with pytest.raises(SinfusionError, match="exists"):
        write_image(tmp_path / "a.png", blocks(seed=1))
    assert np.array_equal(read_image(tmp_path / "a.png"), blocks())
    write_image(tmp_path / "a.png", blocks(seed=1), overwrite=True)
    assert np.array_equal(read_image(tmp_path / "a.png"), blocks(seed=1))


def test_a_folder_with_other_files_is_never_written_over(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/00001.png").touch()
    (tmp_path / "thesis/chapter.tex").write_text("precious")
    for write in (
        lambda path: write_video(path, blocks()[None], fps=5, overwrite=True),
        lambda path: write_image(path / "chapter.tex", blocks(), overwrite=True),
    ):
        with pytest.raises(SinfusionError):
            write(tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.tex").read_text() == "precious"


def test_a_folder_replaces_a_file_when_overwriting(tmp_path):
    (tmp_path / "a").write_text("old")
    write_video(tmp_path / "a", blocks()[None], fps=5, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a/00001.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_a_link_to_a_folder_is_replaced_and_the_folder_left(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/00001.png").write_text("kept")
    (tmp_path / "a").symlink_to(tmp_path / "old")
    write_video(tmp_path / "a", blocks()[None], fps=5, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "old"] and not (tmp_path / "a").is_symlink()
    assert (tmp_path / "old/00001.png").read_text() == "kept"


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_an_error_nothing_is_left_and_the_old_result_is_whole(tmp_path, texture, name, error):
    def broken():
        yield from texture(3, (32, 32))
        raise error

    with pytest.raises(error):
        write_video(tmp_path / name, broken(), fps=10)
    assert not list(tmp_path.iterdir())
    write_video(tmp_path / name, texture(4, (32, 32)), fps=10)
    with pytest.raises(error):
        write_video(tmp_path / name, broken(), fps=10, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [name] and len(read_media(tmp_path / name).frames) == 4


@pytest.mark.parametrize("name", RESULTS)
def test_frames_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path, name):
    good = np.zeros((16, 16, 3), np.uint8)
    for frames, said in (
        ([good, good[:8]], "the same size, not 16x16 and 16x8"),
        ([], "no frames"),
        ([good.astype(np.float32) + 2], "floats from 0 to 1"),
        ([good[..., :2, 0, 0]], "uint8"),
        ([good[:0]], "uint8"),
    ):
        with pytest.raises(SinfusionError, match=said):
            write_video(tmp_path / name, frames, fps=10)
    for fps in (0, -1, float("nan"), "20"):
        with pytest.raises(SinfusionError, match="fps"):
            write_video(tmp_path / name, [good], fps=fps)
    assert not list(tmp_path.iterdir())


def test_formats_that_are_not_written_are_named(tmp_path):
    with pytest.raises(SinfusionError, match=r"write \.mp4, \.gif"):
        VideoWriter(tmp_path / "a.avi", 20)
    with pytest.raises(SinfusionError, match=r"write \.png"):
        write_image(tmp_path / "a.mp4", blocks())
    with pytest.raises(SinfusionError, match="floats from 0 to 1"):
        write_image(tmp_path / "a.png", blocks() / 2)


@pytest.mark.parametrize("name", [*RESULTS, "a.png"])
def test_a_place_that_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SinfusionError, match="cannot be written"):
        path = tmp_path / "file" / name
        write_image(path, blocks()) if name == "a.png" else write_video(path, [blocks()], fps=5)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("name", [*RESULTS, "a.png"])
def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path, name):
    import resource

    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 128, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(SinfusionError, match="written"):
            write_image(tmp_path / name, noise[0]) if name == "a.png" else write_video(tmp_path / name, noise, fps=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*RESULTS, "a.png"])
def test_a_full_disk_is_reported(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SinfusionError, match="the disk is full"):
        write_image(tmp_path / name, blocks()) if name == "a.png" else write_video(tmp_path / name, [blocks()], fps=5)
    assert not list(tmp_path.iterdir())


# Sheets --------------------------------------------------------------------------------------------------------------


def test_small_frames_are_enlarged_by_whole_factors():
    assert np.array_equal(enlarge(blocks(16, 24)), blocks(16, 24).repeat(6, 0).repeat(6, 1))
    assert np.array_equal(enlarge(blocks(160, 24)), blocks(160, 24))


def test_a_contact_sheet_shows_evenly_picked_frames_in_a_white_grid(texture):
    frames = np.stack([np.full((72, 144, 3), n, np.uint8) for n in range(47)])
    sheet = contact_sheet(frames, columns=4, max_frames=8)
    assert sheet.shape == (2 * 76 + 4, 4 * 148 + 4, 3)
    shown = [int(sheet[40 + 76 * row, 70 + 148 * column, 0]) for row in range(2) for column in range(4)]
    assert shown[0] == 0 and shown[-1] == 46 and set(np.diff(shown)) <= {6, 7}
    assert (sheet[:4] == 255).all() and (sheet[:, :4] == 255).all() and (sheet[76:80] == 255).all()
    assert contact_sheet(frames[:1]).shape == (80, 152, 3)
    assert contact_sheet(list(frames[:5]), columns=3).shape == (156, 448, 3)


def test_a_contact_sheet_carries_the_labels_of_the_frames_it_picks():
    frames = np.full((9, 72, 144, 3), 128, np.uint8)
    plain = contact_sheet(frames, 3, 3)
    same = contact_sheet(frames, 3, 3, ["x"] * 9)
    other = contact_sheet(frames, 3, 3, ["x", *"??????", "?", "x"])
    assert not np.array_equal(plain, same)
    difference = np.abs(same.astype(int) - other).sum((0, 2))
    assert difference[152:296].any() and not difference[:148].any() and not difference[300:].any()


def test_side_by_side_starts_the_shorter_video_over(texture):
    left, right = texture(5, (32, 64)), texture(2, (32, 64), seed=1)
    both = side_by_side(left, right)
    assert both.shape == (5, 128, 516, 3)
    for t in range(5):
        assert np.array_equal(both[t, ::4, :256:4], left[t]) and np.array_equal(both[t, ::4, 260::4], right[t % 2])
    assert (both[:, :, 256:260] == 255).all()
    labelled = side_by_side(left, right, ("a", "b"))
    assert labelled.shape == both.shape and not np.array_equal(labelled[:, :20], both[:, :20])
    assert np.array_equal(labelled[:, 40:], both[:, 40:])


def test_new_frames_get_a_border_and_the_others_stay(texture):
    frames = texture(4, (32, 48))
    before = frames.copy()
    marked = mark_new(frames, np.array([False, True, False, True]))
    assert np.array_equal(frames, before) and np.array_equal(marked[::2], frames[::2])
    for frame in marked[1::2]:
        for edge in (frame[0], frame[-1], frame[:, 0], frame[:, -1]):
            assert (edge == (255, 140, 0)).all()
    assert np.array_equal(marked[1::2, 1:-1, 1:-1], frames[1::2, 1:-1, 1:-1])
