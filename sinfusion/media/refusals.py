"""What to say of files and folders that hold no frames that are read: what they are, and the way to some that are.

raise SinfusionError(unreadable(path))       # fish.jxl is a JPEG XL image; PNG, ... are read, so convert it: ffmpeg ...
raise SinfusionError(without_frames(folder)) # clips holds no images itself, they are in clips/fish: give that folder
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import av

from ..clip import FRAME_ENDINGS
from ..names import in_frame_order, name_after, pasteable

IMAGES_READ = "PNG, JPEG, WebP, GIF, HEIC, AVIF, BMP and TIFF"
VIDEOS_READ = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV, OGG and WMV"
VIDEO_ENDINGS = frozenset(
    ".mp4 .m4v .mov .qt .mkv .webm .avi .ts .m2ts .mts .mpg .mpeg .vob .flv .ogv .ogg .asf .wmv .ivf .y4m .gif .3gp"
    " .3g2 .mxf .dv .rm .rmvb .h264 .hevc .m3u8".split()
)
MOST_FOLDERS = 500  # that are looked into for pictures that lie deeper

# What to do about a kind of file. {path}: as a word of a command; {name}: what is made of it, likewise.
_PICTURE = f"; {IMAGES_READ} are read, so convert it: ffmpeg -i {{path}} {{name}}.png"
_DRAWING = f"; {IMAGES_READ} are read, so convert it: magick {{path}} {{name}}.png"
_VIDEO = f"; {VIDEOS_READ} are read, so convert it: ffmpeg -i {{path}} -c:v libx264 -crf 12 {{name}}.mp4"
_REPACK = f"; {VIDEOS_READ} are read, so convert it: ffmpeg -i {{path}} -c copy {{name}}.mp4"
_MAKER = "; export it as MP4 with the program of the camera's maker."
_SOUND = " and has no pictures; give a video or an image."
_ARCHIVE = ", which is not looked into; unpack it, and give what is in it: "
_ARRAY = "; in Python give its array, (T, H, W, 3) uint8: sinfusion.train(array)"
_WEIGHTS = ", weights and no pictures; give a video or an image, or the folder of a run where one is wanted."

# What a file begins with, at an offset: what it is, and what to do about it.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xff\x0a", "a JPEG XL image", _PICTURE),
    (4, b"JXL \r\n\x87\n", "a JPEG XL image", _PICTURE),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000 image", _PICTURE),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", _PICTURE),
    (0, b"II\xbc", "a JPEG XR image", _DRAWING),
    (0, b"8BPS", "a Photoshop file", _DRAWING),
    (0, b"gimp xcf", "a GIMP file", _DRAWING),
    (0, b"%PDF", "a PDF", _DRAWING),
    (0, b"%!PS", "PostScript", _DRAWING),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", _DRAWING),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", _PICTURE),
    (0, b"#?RADIANCE", "a Radiance HDR image", _PICTURE),
    (0, b"#?RGBE", "a Radiance HDR image", _PICTURE),
    (0, b"DDS ", "a DDS texture", _PICTURE),
    (0, b"qoif", "a QOI image", _PICTURE),
    (0, b"SIMPLE  =", "a FITS image", _PICTURE),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)", _DRAWING),
    (0, b"SDPX", "a DPX image", _PICTURE),
    (0, b"XPDS", "a DPX image", _PICTURE),
    (0, b"\x01\xda", "an SGI image", _PICTURE),
    (128, b"DICM", "a DICOM image", _DRAWING),
    (4, b"ftypcrx ", "a RAW photo", _DRAWING),
    (0, b"FUJIFILMCCD-RAW", "a RAW photo", _DRAWING),
    (0, b"FOVb", "a RAW photo", _DRAWING),
    (0, b"\x06\x0e\x2b\x34", "an MXF video", _VIDEO),
    (0, b"\x1f\x07\x00", "a DV video", _VIDEO),
    (0, b".RMF", "a RealMedia video", _VIDEO),
    (0, b"nut/multimedia container", "a NUT video", _VIDEO),
    (0, b"\xb7\xd8\x00\x20\x37\x49\xda\x11", "a WTV video", _VIDEO),
    (0, b"\x8aMNG", "an MNG animation", _DRAWING),
    (0, b"FWS", "a Flash animation (SWF)", _VIDEO),
    (0, b"CWS", "a Flash animation (SWF)", _VIDEO),
    (0, b"\x00\x00\x00\x01", "a bare video stream", _REPACK),
    (0, b"ID3", "sound (MP3)", _SOUND),
    (0, b"\xff\xfb", "sound (MP3)", _SOUND),
    (0, b"\xff\xf1", "sound (AAC)", _SOUND),
    (0, b"fLaC", "sound (FLAC)", _SOUND),
    (8, b"WAVE", "sound (WAV)", _SOUND),
    (8, b"AIFF", "sound (AIFF)", _SOUND),
    (0, b"MThd", "music (MIDI)", _SOUND),
    (0, b"#!AMR", "sound (AMR)", _SOUND),
    (4, b"ftypM4A", "sound (M4A)", _SOUND),
    (0, b"\x1f\x8b", "a compressed file or archive (gzip)", _ARCHIVE + "tar xf {path}"),
    (0, b"7z\xbc\xaf\x27\x1c", "an archive (7z)", _ARCHIVE + "7z x {path}"),
    (0, b"Rar!", "an archive (RAR)", _ARCHIVE + "unrar x {path}"),
    (0, b"\xfd7zXZ", "a compressed file or archive (xz)", _ARCHIVE + "tar xf {path}"),
    (0, b"BZh", "a compressed file or archive (bzip2)", _ARCHIVE + "tar xf {path}"),
    (0, b"\x28\xb5\x2f\xfd", "a compressed file or archive (zstd)", _ARCHIVE + "tar xf {path}"),
    (257, b"ustar", "an archive (tar)", _ARCHIVE + "tar xf {path}"),
    (0, b"\x93NUMPY", "a NumPy array", _ARRAY),
    (0, b"\x89HDF", "an HDF5 file", _ARRAY),
)

_RAW_ENDINGS = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf"
    " .srw .x3f".split()
)  # many are TIFF files, of which Pillow reads the thumbnail

# Where the first bytes do not say it.
_ENDINGS = (
    (_RAW_ENDINGS, "a RAW photo", _DRAWING),
    ((".jxl",), "a JPEG XL image", _PICTURE),
    ((".tga",), "a Targa image", _PICTURE),
    ((".pcx", ".ras", ".xbm", ".xpm", ".xwd", ".pict"), "an image of a kind that is not read", _PICTURE),
    ((".mp3", ".aac", ".wma", ".m4a", ".opus"), "sound", _SOUND),
    ((".mxf",), "an MXF video", _VIDEO),
    ((".dv", ".rm", ".rmvb", ".gxf", ".swf"), "a video of a kind that is not read", _VIDEO),
    ((".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".m4s"), "a bare video stream", _REPACK),
    ((".r3d", ".braw", ".mlv", ".ari"), "raw video of a camera", _MAKER),
    ((".safetensors", ".ckpt", ".pt", ".pth"), "a file of PyTorch", _WEIGHTS),
    ((".npz",), "an archive of NumPy arrays", _ARRAY),
    ((".docx", ".pptx", ".xlsx", ".odt", ".odp"), "a document", _ARCHIVE + "unzip {path} -d {name}"),
    ((".part", ".crdownload", ".download"), "a download that is not finished", "; wait for it, or download it again."),
)

# What a text begins with or holds near its beginning.
_TEXTS = (
    (r"#EXTM3U", "a playlist (HLS)", _REPACK),
    (r"(?s).*<MPD\b", "a playlist (DASH)", _REPACK),
    (r"ffconcat|\[playlist\]|<asx", "a playlist", "; give the video that it names."),
    (r"(?s).*<svg\b", "an SVG drawing", _DRAWING),
    (r"(?i)\s*<!doctype html|\s*<html", "a web page, which downloads sometimes are", "; download the file itself."),
    (r"version https://git-lfs", "a pointer of Git LFS", "; fetch the file itself: git lfs pull"),
    (r"(?s)\[InternetShortcut\]|https?://", "a link", "; download what it leads to, and give that."),
)

_READABLE = (
    (0, b"\x89PNG", "a PNG"), (0, b"\xff\xd8\xff", "a JPEG"), (0, b"GIF8", "a GIF"), (8, b"WEBP", "a WebP"),
    (0, b"II*\0", "a TIFF"), (0, b"MM\0*", "a TIFF"), (0, b"BM", "a BMP"), (4, b"ftyp", "an MP4"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"), (8, b"AVI ", "an AVI"), (0, b"OggS", "an Ogg file"),
    (0, b"FLV", "an FLV"), (0, b"\x30\x26\xb2\x75", "a WMV"), (0, b"\0\0\x01\xba", "an MPEG video"),
)  # fmt: skip


def is_raw_photo(path: Path) -> bool:
    """Whether a file is a RAW photo, of which only a thumbnail could be read."""
    return path.suffix.lower() in _RAW_ENDINGS or _head(path)[4:12] == b"ftypcrx "


def unreadable(path: Path) -> str:
    """What to say of a file that neither Pillow nor FFmpeg opens."""
    head = _head(path)
    found = _part_of_a_run(path) or _kind(path, head)
    if found is not None:
        what, advice = found
        return f"{path} is {what}{advice.format(**_words(path))}"
    begins = next((what for at, magic, what in _READABLE if head[at : at + len(magic)] == magic), None)
    if begins is not None and head[4:8] == b"ftyp" and b"moov" not in _boxes(path):
        return (
            f"{path} is an MP4 without its index (moov): the recording or download ended early; record or download it "
            "again."
        )
    if begins is not None:
        return f"{path} is damaged: it begins as {begins}, and what follows cannot be read."
    return f"{path} is neither a video ({VIDEOS_READ}) nor an image ({IMAGES_READ}) that can be read, or it is damaged."


def without_video(path: Path, sound: bool, cover: bool = False) -> str:
    """What to say of a file in which there is no picture that can be decoded.

    sound: whether it holds sound alone. cover: whether it holds a cover picture.
    """
    if cover:
        return f"{path} has no video in it, only a cover picture; give a video or an image."
    if sound:
        return f"{path} has no video in it but sound alone; give a video or an image."
    return f"{path} has no video in it that this FFmpeg decodes{_VIDEO.format(**_words(path, '-new'))}"


def _words(path: Path, after: str = "") -> dict[str, str]:
    """The words of a command that converts a file, into the current folder. FFmpeg takes %d in a name for a number."""
    return {"path": pasteable(path), "name": pasteable(name_after(path).replace("%", "_") + after)}


def missing(path: Path) -> str:
    """What to say of a path where there is nothing."""
    if str(path) == "-":
        return "- does not exist: standard input is not read; give a video, an image or a folder of frames."
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE):
        return f"{path} does not exist: addresses are not opened; download the file, and give that."
    pattern = re.search(r"%\d*d|[*?]|\[.+\]", path.name)
    if pattern and path.parent.is_dir():
        return f"{path} does not exist; for all frames in a folder give the folder: {pasteable(path.parent)}"
    return f"{path} does not exist; give a video, an image or a folder of frames."


def run_as_clip(folder: Path) -> str | None:
    """What to say of a run folder where frames are wanted; None of other folders."""
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        source = str(description["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    of = f", {source}," if os.path.exists(source) else ""
    return f"{folder} is a run and no video; give the video or image that it was trained on{of} or one of its outputs."


def without_frames(folder: Path) -> str:
    """What to say of a folder that has no frames of its own."""
    if (run := run_as_clip(folder)) is not None:
        return run
    entries = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    videos = in_frame_order(entry.name for entry in entries if _ending(entry.name) in VIDEO_ENDINGS)
    if len(videos) == 1:
        return f"{folder} holds no images but a video; give that: {pasteable(folder / videos[0])}"
    if videos:
        shown = ", ".join(videos[:3]) + (" and more" if len(videos) > 3 else "")
        return f"{folder} holds no images but {len(videos)} videos ({shown}); give one: {pasteable(folder / videos[0])}"
    foreign = [_ending(entry.name) for entry in entries if not entry.is_dir() and _kind(Path(entry.path), b"")]
    foreign += [e for entry in entries if (e := _ending(entry.name)) in _CONVERTIBLE]
    if foreign:
        ending, count = Counter(foreign).most_common(1)[0]
        return (
            f"{folder} holds no images that can be read ({IMAGES_READ}) but {count} of {ending}; convert them: "
            f"magick mogrify -format png {pasteable(folder)}/*{ending}"
        )
    for endings, what in ((FRAME_ENDINGS, "images"), (VIDEO_ENDINGS, "videos")):
        if deeper := _deeper(folder, endings):
            where = (
                "they lie deeper; give that folder" if len(deeper) == 1 else f"{len(deeper)} folders in it do; give one"
            )
            return f"{folder} holds no {what} itself, {where}: {pasteable(deeper[0])}"
    nothing = "is empty: it holds no images" if not entries else "holds no images"
    return f"{folder} {nothing} ({IMAGES_READ}); give a video, an image or a folder of frames."


_CONVERTIBLE = frozenset(
    ".ppm .pgm .pbm .pnm .pam .jp2 .j2k .exr .hdr .dds .qoi .psd .svg .pdf .ico .dpx .dcm .jxr".split()
)


def _deeper(folder: Path, endings: Collection[str]) -> list[Path]:
    """The folders inside that hold files with these endings, of the nearest level that has some; runs are left out."""
    level, looked = [folder], 0
    while level and looked < MOST_FOLDERS:
        inner = [
            Path(entry.path)
            for outer in level
            for entry in _entries(outer)
            if entry.is_dir(follow_symlinks=False)
            and not entry.name.startswith(".")
            and not os.path.exists(os.path.join(entry.path, "run.json"))
        ]
        looked += len(inner)
        order = in_frame_order(str(path) for path in inner)
        level = [Path(name) for name in order]
        if found := [p for p in level if any(_ending(entry.name) in endings for entry in _entries(p))]:
            return found
    return []


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _part_of_a_run(path: Path) -> tuple[str, str] | None:
    """What to say of a file in a run folder that is not one of its outputs."""
    for folder in path.absolute().parents[:3]:
        if (folder / "run.json").is_file() and path.suffix in (".json", ".safetensors", ".pt", ".jsonl"):
            shown = os.path.relpath(folder) if not path.is_absolute() else folder
            return "a file of a run, not a video", f"; where a run is wanted give its folder: {pasteable(shown)}"
    return None


def _kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """What a file is that is not read, and what to do about it."""
    endings = ((what, advice) for names, what, advice in _ENDINGS if path.suffix.lower() in names)
    signatures = ((what, advice) for at, magic, what, advice in _SIGNATURES if head[at : at + len(magic)] == magic)
    if (found := next(signatures, None)) is not None:
        return found
    if re.match(rb"P[1-7Ff]\s", head):
        return "a PPM image or one of its family", _PICTURE
    if (found := next(endings, None)) is not None:
        return found
    if head[:4] == b"PK\x03\x04":
        return "an archive (zip)", _ARCHIVE + "unzip {path} -d {name}"
    return _text(head)


def _text(head: bytes) -> tuple[str, str] | None:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # otherwise a letter is cut in two
            return None
        text = head[: error.start].decode("utf-8-sig", "replace")
    if not text or re.search(r"[^\n\r\t\f\x1b -\U0010ffff]|\x7f", text):
        return None
    for pattern, what, advice in _TEXTS:
        if re.match(pattern, text):
            return what, advice
    return "a text file", "; give a video, an image or a folder of frames."


def shorten(error: BaseException) -> str:
    """What an error says, in brackets, for the message of another; nothing where it says no more than a number."""
    text = str(error).split("\n")[0]
    if isinstance(error, av.error.FFmpegError):
        text = error.strerror or "" if not re.search(r"returned -?\d", text) else ""
    return f" ({text:.120})" if text else ""


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _boxes(path: Path) -> list[bytes]:
    """The kinds of the outermost boxes of an MP4."""
    kinds: list[bytes] = []
    at, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while at + 8 <= size and len(kinds) < 1000:
            file.seek(at)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            kinds.append(header[4:8])
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length < 8:  # 0: to the end of the file
                break
            at += length
    return kinds
