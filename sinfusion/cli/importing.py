"""sinfusion import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from tyro.conf import Positional

from ..console import print_result
from ..names import pasteable
from .command import Command
from .options import OPTIONAL, File, Number


@dataclass(kw_only=True)
class Import(Command):
    """Import a checkpoint of the authors' released code as a run, or add it to a run."""

    example: ClassVar[str] = "sinfusion import projector.ckpt --out runs/fish --frames fish.mp4"
    lower: ClassVar[str] = "the size of --frames"

    # A .ckpt file; nothing in it is executed.
    checkpoint: Annotated[Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    # Folder of the run: a new folder, or a run to add the model to.
    out: Path
    # The video or image that the checkpoint was trained on; left out: that of the run.
    frames: File = None
    # Frames per second to resample a video to, or of a folder; left out: its own, 20.
    fps: Number = None
    # Which model the checkpoint is; left out: found from its weights and the frames.
    role: Annotated[Literal["image", "predictor", "projector", "interpolator"] | None, OPTIONAL] = None

    def __call__(self) -> None:
        from ..released import import_released

        run = import_released(self.checkpoint, self.out, self.frames, self.role, self.fps)
        print_result(f"{run.path} is a run with {' and '.join(run.models)}; see: sinfusion info {pasteable(run.path)}")
