"""The output files of a command: images or videos, a contact sheet, a record of how they were generated.

with Outputs(command, run.kind, run.path / "outputs", {"run": run.path}) as outputs:   # refuses what cannot be written
    outputs.write_images(images)                                                       # or write_video(frames, fps)
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from ..console import log, print_result
from ..errors import SinfusionError
from ..files import acquire, atomic_write, discard_leftovers, make_folders, release, remove_empty
from ..names import OTHER_ENDINGS, as_path
from .command import command_name
from .options import SEVERAL, Format, evenly_spaced

if TYPE_CHECKING:
    import numpy as np

    from ..clip import Sound

ENDINGS = (".mp4", ".gif", ".webp", ".png")
SHEET_FRAMES = 24  # frames of one video on its contact sheet
SHEET_COLUMNS = 8  # frames of each video on a sheet of several videos, which has a row for each


def check_writable(path: Path, option: str) -> None:
    """SinfusionError unless a file or folder can be created at `path`, which `option` names."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise SinfusionError(f"{nearest} is not a folder that can be written to; choose another {option}.")


def arguments(command: Request) -> dict[str, Any]:
    """What a record says of a command."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(command).items() if k not in SEVERAL}


def _holds_numbered_frames(path: Path) -> bool:
    """Whether a path is a folder as --format png writes it."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return bool(names) and all(re.fullmatch(r"\d{5,}\.png", name) for name in names)


class Request(Protocol):
    """The fields of a command that Outputs needs; all other fields go into the record, too."""

    @property
    def out(self) -> str | Path | None: ...

    format: Format
    seed: int
    overwrite: bool


class Outputs:
    """The output files of one command: refused where they exist, before any work; written at its end.

    Inside of its context the names of the files belong to this process alone: commands that number their results in
    one folder at the same time get different numbers.
    """

    def __init__(
        self,
        command: Request,
        kind: str,  # "image": the results are png images; "video": mp4, or the format that is asked for
        folder: Path,  # of the results if --out is left out; they are numbered there
        source: dict[str, Path],  # what the command works on, for the record: {"run": run.path}, {"input": video}
        count: int = 1,  # number of results, each a file
        variants: tuple[str, ...] = (),  # suffixes of further files, such as "marked", which the caller writes
    ):
        self.command, self.kind, self.source = command, kind, source
        # Where the results go: to files of this name or, if it is None, to a folder where they are numbered.
        self.out, self.folder = self._place(command.out, folder)
        self.started = time.monotonic()
        self.name = command_name(type(command))
        self.ending, self.count, self.tails = self._ending(), count, variants
        self._name_files(self._numbered() if self.out is None else self._without_ending(self.out))
        if self.out is not None:  # a number that others take meanwhile is passed over on entering
            self._refuse_existing()
        check_writable(self.record, "--out")

    def _name_files(self, base: Path) -> None:
        """Name all files; `base` is the path without number, suffix and ending."""
        self.base = base
        tails = [f"-{i + 1}" for i in range(self.count)] if self.count > 1 else [""]
        self.files = [base.with_name(base.name + tail + self.ending) for tail in tails]
        self.variants = [base.with_name(f"{base.name}-{variant}{self.ending}") for variant in self.tails]
        # These keep the ending, because p.mp4 and p.gif are two results.
        self.sheet = base.with_name(f"{base.name}{self.ending}-sheet.png")
        self.record = base.with_name(f"{base.name}{self.ending}.json")
        self.lock = base.with_name(f".{base.name}{'' if self.out is None else self.ending}.lock")

    def _refuse_existing(self) -> None:
        from ..media import refuse_existing

        for path in (*self.files, *self.variants, self.sheet, self.record):
            refuse_existing(path, self.command.overwrite)

    def _place(self, out: str | Path | None, folder: Path) -> tuple[Path | None, Path]:
        """The name that the files are given, or None; and the folder where they are numbered in that case.

        A folder that exists, or a name with a slash at its end, is where they are numbered.
        """
        if out is None:
            return None, folder
        path = as_path(out, "--out")
        if path.name.lower() in ENDINGS:
            raise SinfusionError(f"--out {out} is an ending without a name before it, such as fish{path.name}.")
        replaced = self.command.format == "png" and _holds_numbered_frames(path)  # refused, unless to be overwritten
        if str(out).endswith(os.sep) or (path.is_dir() and not replaced):
            return None, path
        return path, path.parent

    def _without_ending(self, out: Path) -> Path:
        """The path of --out without .mp4, .gif, .webp or .png; other dots belong to the name."""
        return out.with_suffix("") if out.suffix.lower() in ENDINGS else out

    def _numbered(self, beyond: int = 0) -> Path:
        """The path with the next number, above that of all results and above `beyond`."""
        stem = self.name.replace(" ", "-")
        numbers = [re.match(rf"{stem}-(\d+)", path.name) for path in self.folder.glob(f"{stem}-*")]
        self.number = 1 + max([beyond, *(int(match[1]) for match in numbers if match)])
        return self.folder / f"{stem}-{self.number}"

    def __enter__(self) -> Outputs:
        self.new_folders = make_folders(self.record.parent)
        owner = acquire(self.lock)
        if self.out is None:
            # Another process may have this number, or have used it since it was chosen.
            while owner or self._numbered(self.number - 1) != self.base:
                if not owner:
                    release(self.lock)
                self._name_files(self._numbered(self.number if owner else 0))
                owner = acquire(self.lock)
        if owner:
            raise SinfusionError(f"{self.files[0]} is being written by {owner}; choose another --out.")
        try:
            self._refuse_existing()
            for path in (*self.files, *self.variants, self.sheet, self.record):
                discard_leftovers(path.parent, path.name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        release(self.lock)
        remove_empty(self.new_folders)

    def _ending(self) -> str:
        """.mp4, .gif, .webp or .png; empty for a folder of images."""
        out, wanted = self.out, self.command.format
        ending = out.suffix.lower() if out is not None else ""
        if ending in OTHER_ENDINGS:
            raise SinfusionError(f"--out must end in .mp4, .gif, .webp or .png, not {ending}.")
        given = ending.removeprefix(".") if ending in ENDINGS else ""
        if given and wanted and given != wanted:
            raise SinfusionError(f"--out {out} and --format {wanted} do not agree; leave one of them out.")
        chosen = wanted or given or ("png" if self.kind == "image" else "mp4")
        if self.kind == "image":
            if chosen != "png":
                word, path = next(iter(self.source.items()))
                raise SinfusionError(f"{path} is an image {word}: its results are png images, not {chosen}.")
            return ".png"
        return "" if chosen == "png" else f".{chosen}"

    def write_images(self, images: np.ndarray, **facts: Any) -> None:
        """Write (count, H, W, 3) uint8, each to a file; then the contact sheet and the record, with `facts`."""
        from ..media import write_image

        for path, image in zip(self.files, images, strict=True):
            write_image(path, image, overwrite=self.command.overwrite)
        self.finish(images[:SHEET_FRAMES], **facts)

    def write_video(
        self, frames: np.ndarray, fps: float, sound: Sound | None = None, delay: float = 0.0, **facts: Any
    ) -> None:
        """Write (T, H, W, 3) uint8 as a video, its sound after `delay` seconds; then the contact sheet and the record,
        with `facts`."""
        from ..media import write_video

        overwrite = self.command.overwrite
        write_video(self.files[0], frames, fps=fps, overwrite=overwrite, sound=sound, delay=delay, log=log)
        self.finish(frames[evenly_spaced(len(frames), SHEET_FRAMES)], fps=fps, frames=len(frames), **facts)

    def finish(self, shown: Sequence[np.ndarray] | np.ndarray, columns: int | None = None, **facts: Any) -> None:
        """Write the contact sheet of the frames `shown` and the record, with `facts`; print the names of all files."""
        from ..clip import format_size
        from ..media import contact_sheet, write_image

        write_image(self.sheet, contact_sheet(shown, columns, len(shown)), overwrite=self.command.overwrite)
        files = [*self.files, *self.variants]
        record = {
            "command": self.name,
            "arguments": arguments(self.command),
            **{word: str(path.resolve()) for word, path in self.source.items()},
            "files": [path.name for path in files],
            "seed": self.command.seed,
            "size": format_size(shown[0].shape),
            **facts,
            "version": __version__,
            "seconds": round(time.monotonic() - self.started, 2),
        }
        with atomic_write(self.record, self.command.overwrite) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        print_result(*files, self.sheet, self.record)
