"""Loops: of a clip by patches, without training, or from a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional

from ..console import Bar, log
from ..errors import SinfusionError
from ..seeds import check_seed
from .options import Number, Precision, Size, Tile, Whole, check_steps, network_device, parse_size
from .outputs import Outputs
from .patches import Patches

if TYPE_CHECKING:
    import numpy as np

    from ..metrics.loops import LoopFigures

CLIP_OPTIONS = ("max_side", "start", "stop", "stride", "tile")  # for a clip alone
RUN_OPTIONS = ("steps", "projection", "precision")  # for a run alone


@dataclass(kw_only=True)
class Loop(Patches):
    """A video that loops: its last frame leads to its first. Of a clip without training, or of a run.

    GIF and WebP play for ever; for players of MP4 there is --times.
    """

    example: ClassVar[str] = "sinfusion loop fish.mp4 --out fish.webp"

    # A video, GIF or folder of frames; or a run, which generates another.
    input: Annotated[Positional[Path], tyro.conf.arg(metavar="CLIP|RUN")]
    # Frames of the loop; left out: chosen, where the clip comes back to itself.
    frames: Whole = None
    # Size of the result, such as 384x144; left out: that of the input.
    size: Size = None
    # How often the loop is in the file, one after another.
    times: int = 1
    # Of a clip: opposite borders meet, too: left and right (x), or all (x,y).
    tile: Tile = None
    # From a run: network evaluations for an image; left out: the recipe's.
    steps: Whole = None
    # From a run: weight (0 to 1) of the clip's patches; left out: the recipe's.
    projection: Number = None
    # From a run: arithmetic; auto is bf16 where it is fast.
    precision: Precision = "auto"

    def __call__(self) -> None:
        if self.times < 1:
            raise SinfusionError(f"--times must be at least 1, not {self.times}.")
        if (self.input / "run.json").is_file():
            self.refuse(CLIP_OPTIONS, "is for the loop of a clip; of a run, leave it out")
            self._of_run()
        else:
            self.refuse(RUN_OPTIONS, "is for a loop from a run; leave it out")
            self._of_clip()

    def _of_clip(self) -> None:
        clip, size = self.read(), parse_size(self.size)
        from ..patches import loop

        with self.outputs(clip.kind) as outputs:
            with Bar() as bar:
                result = loop(clip.pixels, self.frames, size, self.tile, self.seed, self.device, bar)
            self._finish(outputs, result, clip.frames, clip.fps)

    def _of_run(self) -> None:
        check_steps(self.steps)
        check_seed(self.seed)
        size = parse_size(self.size)
        from ..generation.loops import loop
        from ..run import load

        run = load(self.input, network_device(self.device), self.precision)
        with Outputs(self, run.kind, run.path / "outputs", {"run": run.path}) as outputs:
            with Bar() as bar:
                how = self.seed, self.steps, self.projection
                result = loop(run, self.frames, size, None, *how, on_progress=bar)
            self._finish(outputs, result, run.frames, run.fps)

    def _finish(self, outputs: Outputs, looped: np.ndarray, clip: np.ndarray, fps: float) -> None:
        """Print the figures; write the loop as often as asked."""
        import numpy as np

        from ..metrics.loops import loop_figures

        figures = loop_figures(looped, clip)
        _tell(figures)
        facts: dict[str, Any] = {"loop": asdict(figures), "loop_frames": len(looped)}
        if self.tile:
            facts["tile"] = _tell_tile(looped, self.tile)
        outputs.write_video(np.concatenate([looped] * self.times), fps, **facts)


def _tell(figures: LoopFigures) -> None:
    """Print the figures of a loop, and in words where the clip cannot loop."""
    log(str(figures))
    if not figures.loops:
        log("it does not loop without a jump: what moves one way has to go back; try another --frames.")


def _tell_tile(frames: np.ndarray, tile: str) -> dict[str, float]:
    """Print what changes across the borders of a tile; by axis."""
    from ..metrics.loops import tile_seam

    seams = {axis: tile_seam(frames, axis) for axis in tile.split(",")}
    of_axes = ", ".join(f"{axis} {seam:.2f}" for axis, seam in seams.items())
    log(f"across the borders changes, over the median: {of_axes}")
    return seams
