"""sinfusion import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from tyro.conf import Positional

from ..console import print_result
from .command import Command
from .options import OPTIONAL, File


@dataclass(kw_only=True)
class Import(Command):
    """Make a checkpoint of the authors' released code a run, or add it to one."""

    example: ClassVar[str] = "sinfusion import projector.ckpt --out runs/fish --frames fish.mp4"
    lower: ClassVar[str] = "the size of --frames"

    # A .ckpt file; nothing in it is executed.
    checkpoint: Annotated[Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    # Folder of the run: a new one, or one to add the model to.
    out: Path
    # The video or image that the checkpoint was trained on; left out: what the run holds.
    frames: File = None
    # Which model it is; left out: told by its weights and the frames.
    role: Annotated[Literal["image", "predictor", "projector", "interpolator"] | None, OPTIONAL] = None

    def __call__(self) -> None:
        from ..released import import_released

        run = import_released(self.checkpoint, self.out, self.frames, self.role)
        print_result(f"{run.path} is a run with {' and '.join(run.models)}; see: sinfusion info {run.path}")
