"""A run in a new look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..console import print_result
from ..names import pasteable
from ..seeds import check_seed
from .command import Command
from .generation import Guiding
from .options import File, Precision, Text, Trained, network_device


@dataclass(kw_only=True)
class Restyle(Guiding, Command):
    """A run of a video in a new look: its clip is drawn to a text, what it generates to that clip.

    Every command that takes a run then works in the new look.
    """

    example: ClassVar[str] = 'sinfusion restyle runs/fish --text "a coral reef" --out runs/reef'
    lower: ClassVar[str] = "the size: train another run with a smaller --max-side"

    # The folder of a run of a video.
    run: Trained
    # Words that the clip is to show.
    text: Text = None
    # Folder of the new run; left out: that of the run, with -restyled after its name.
    out: File = None
    # Share of the noise that guidance begins with, above 0 and up to 1.
    amount: float = 0.25
    # Minutes in which all models of the run learn the new clip as well.
    minutes: float = 0.0
    # Seed of all random numbers.
    seed: int = 0
    # Where to compute: auto, cpu, cuda, or cuda:1 of several GPUs.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it.
    precision: Precision = "auto"
    # Write over a run that exists.
    overwrite: bool = False

    def __call__(self) -> None:
        check_seed(self.seed)
        from ..media import write_video
        from ..run import load
        from ..training.restyling import restyle

        run = load(self.run, network_device(self.device), self.precision)
        out: Path = self.out or self.run.with_name(f"{self.run.name}-restyled")
        guiding = self.guiding(run.size)
        new = restyle(
            run, out, **guiding, amount=self.amount, minutes=self.minutes, seed=self.seed, overwrite=self.overwrite
        )
        clip = new.path / "outputs" / "restyled.mp4"
        write_video(clip, new.frames, fps=new.fps, overwrite=self.overwrite)
        print_result(clip)
        print_result(f"restyled {new.path}; next: sinfusion generate {pasteable(new.path)}")
