"""sinfusion studio."""

from __future__ import annotations

import os
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from tyro.conf import Positional

from ..console import log, print_result
from ..errors import SinfusionError
from ..files import discard
from .command import Command
from .options import OPTIONAL


@dataclass(kw_only=True)
class Studio(Command):
    """A page on this machine alone: drop a clip, watch it learn, play with it.

    Closing the page ends nothing. Ctrl-C ends the server; a training is saved, and can go on later.
    """

    example: ClassVar[str] = "sinfusion studio my-studio --port 8000"
    lower: ClassVar[str] = "the size"

    # Folder with clips, runs and results; created if needed. Runs that are in FOLDER/runs are listed, too.
    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("sinfusion-studio")
    # Port of 127.0.0.1 to listen at; 0 is any that is free.
    port: int = 0
    # Only print the address of the page, and open no browser.
    open: Annotated[bool, OPTIONAL] = True

    def __call__(self) -> None:
        from ..extras import need

        need("studio")
        if not 0 <= self.port < 1 << 16:
            raise SinfusionError(f"--port must be from 0 to 65535, not {self.port}.")
        if self.folder.exists() and not self.folder.is_dir():
            raise SinfusionError(f"{self.folder} is a file; give a folder.")
        from ..studio.server import serve

        door = self.folder / "open.html"
        try:
            serve(self.folder, self.port, lambda address: self._show(address, door))
        finally:
            discard(door)

    def _show(self, address: str, door: Path) -> None:
        """Print the address; open it through a file that others cannot read, as they can the words of a command."""
        print_result(address)
        log("the page is for this machine alone; Ctrl-C ends the server, and closing the page ends nothing.")
        if self.open:
            discard(door)
            descriptor = os.open(door, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">')
            webbrowser.open(door.absolute().as_uri())
