"""Names of files and folders: as they were typed, as a folder is named after them, as they are pasted, in their order.

as_path("~/fish.mp4")                 # Path of the home folder; SinfusionError for an empty name
name_after(Path("clip_2024.01.02/"))  # clip_2024.01.02; of fish.mp4: fish
pasteable(Path("my fish.mp4"))        # 'my fish.mp4', with its quotes
in_frame_order(["10.png", "2.png"])   # 2.png, 10.png
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from .errors import SinfusionError

# Of formats that are not written: at the end of an output's name they are refused, where other dots belong to the name.
OTHER_ENDINGS = frozenset(
    ".avi .mov .mkv .webm .m4v .mpg .mpeg .ts .wmv .flv .ogv .3gp .mxf .y4m .apng .jpg .jpeg .bmp .tif .tiff"
    " .heic .avif .jxl .ppm .mp3 .wav .txt .json .zip .pt .safetensors".split()
)

_NUMBER = re.compile(r"\d+")
_FRACTION = re.compile(r"\d+(?:\.\d+(?!\.?\d))?")


def as_path(name: str | os.PathLike[str], what: str = "the path") -> Path:
    """A path as people write it: ~ is the home folder, unless there is something of that name.

    what: what the error calls it. Raises SinfusionError for an empty name.
    """
    text = os.fspath(name)
    if text == "":
        raise SinfusionError(f"{what} is an empty name; give a file or a folder.")
    return Path(os.path.expanduser(text) if text.startswith("~") and not os.path.lexists(text) else text)


def name_after(path: Path) -> str:
    """The name of a folder for what is made of a file or folder: the whole name of a folder, a file's without ending.

    Dots belong to a name: an ending has at most five letters and digits, and a letter among them.
    """
    whole = path if path.name not in ("", "..") else path.resolve()  # "." and "/" have an empty name
    name = whole.name
    if not whole.is_dir():
        name = re.sub(r"(?<=.)\.(?=\w*[A-Za-z])[A-Za-z0-9]{1,5}$", "", name)
    return name or "run"


def pasteable(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command that can be pasted into a shell: quoted, never an option, a home or a protocol."""
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if re.match(r"[-~]|[^/]*:", text) else text)


def in_frame_order(names: Iterable[str]) -> list[str]:
    """Names sorted by their text, without regard to case, and the numbers in it: 2.png before 10.png.

    A minus is a sign, as in frame_-3, unless it follows a letter or digit (shot-3, 2024-01-02); after a letter it is
    one, too, where another name has the same text before a number without it (frame-1 beside frame0).
    """
    names = list(names)
    unsigned = {name[: number.start()] for name in names for number in _NUMBER.finditer(name)}
    return sorted(names, key=lambda name: (_frame_key(name, unsigned), name))


def _frame_key(name: str, unsigned: set[str]) -> list[str | float]:
    """The text and the numbers of a name in turn. unsigned: what names have before a number without a sign."""
    stem, ending = os.path.splitext(name)
    key: list[str | float] = []  # text first, and at every second place
    at = 0
    while number := _NUMBER.search(stem, at):
        begin, end = number.span()
        value: float = int(number[0])
        before = stem[begin - 1 : begin] if begin > at else ""
        if before in ("+", "-") and _is_sign(stem, begin - 1, unsigned):
            begin -= 1
            if before == "-" and (fraction := _FRACTION.match(stem, number.start())):
                end, value = fraction.end(), -float(fraction[0])
        key += [stem[at:begin].casefold(), value]
        at = end
    return [*key, stem[at:].casefold(), -1.0, ending.casefold()]


def _is_sign(stem: str, at: int, unsigned: set[str]) -> bool:
    """Whether the + or - there belongs to the number after it."""
    before = stem[at - 1 : at]
    return not before.isalnum() or (before.isalpha() and stem[:at] in unsigned)
