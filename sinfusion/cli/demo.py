"""sinfusion demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..console import log, print_result
from ..seeds import check_seed
from .command import Command
from .options import network_device


@dataclass(kw_only=True)
class Demo(Command):
    """Render a small lively scene, train on it and generate. Needs no input."""

    example: ClassVar[str] = "sinfusion demo --out my-demo"
    lower: ClassVar[str] = "--minutes"

    # Folder to write.
    out: Path = Path("sinfusion-demo")
    # Time for training; the rest takes about a minute on two CPU cores.
    minutes: float = 3.5
    # Frames per second that the videos play at.
    fps: float = 16.0
    # Seed of all random numbers.
    seed: int = 0
    # Write over an earlier demo.
    overwrite: bool = False

    def __call__(self) -> None:
        check_seed(self.seed, 2)  # the second video is made from seed + 1
        network_device("auto")
        from ..demo import demo

        demo(self.out, self.minutes, self.seed, self.overwrite, log, fps=self.fps)
        print_result(self.out / "original-beside-generated.mp4", self.out / "contact-sheet.png", self.out / "run")
