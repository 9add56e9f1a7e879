"""Loops: of a clip by patches, without training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..console import Bar, log
from ..errors import SinfusionError
from .options import Size, Tile, Whole, parse_size
from .patches import Patches

if TYPE_CHECKING:
    from ..metrics.loops import LoopFigures


@dataclass(kw_only=True)
class Loop(Patches):
    """A video that loops: its last frame goes on with its first. From a clip, without training.

    GIF and WebP play for ever; for players of MP4 there is --times.
    """

    example: ClassVar[str] = "sinfusion loop fish.mp4 --out fish.webp"
    lower: ClassVar[str] = "--max-side, or use fewer frames (--stop)"

    # Length of the loop in frames; left out: where the clip comes back to itself, from half its length on.
    frames: Whole = None
    # Size of the result, such as 384x144; left out: that of the input.
    size: Size = None
    # How often the loop is in the file, one after another.
    times: int = 1
    # Opposite borders meet, too: x (left and right), y (above and below) or x,y.
    tile: Tile = None

    def __call__(self) -> None:
        if self.times < 1:
            raise SinfusionError(f"--times must be at least 1, not {self.times}.")
        clip, size = self.read(), parse_size(self.size)
        from ..metrics.loops import loop_figures
        from ..patches import loop

        with self.outputs(clip.kind) as outputs:
            with Bar() as bar:
                result = loop(clip.pixels, self.frames, size, self.tile, self.seed, self.device, bar)
            figures = loop_figures(result, clip.frames)
            tell(figures)
            facts = {"loop": asdict(figures), "loop_frames": len(result)}
            if self.tile:
                facts["tile"] = tell_tile(result, self.tile)
            outputs.write_video(np.concatenate([result] * self.times), clip.fps, **facts)


def tell(figures: LoopFigures) -> None:
    """Print the figures of a loop, and in words where the clip cannot loop."""
    log(str(figures))
    if not figures.loops:
        log("it does not loop without a jump: what moves one way has to go back; try another --frames.")


def tell_tile(frames: np.ndarray, tile: str) -> dict[str, float]:
    """Print what changes across the borders of a tile; by axis."""
    from ..metrics.loops import tile_seam

    seams = {axis: tile_seam(frames, axis) for axis in tile.split(",")}
    log(
        "across the borders changes, over the median: "
        + ", ".join(f"{axis} {seam:.2f}" for axis, seam in seams.items())
    )
    return seams
