"""The commands of the patch engine: new videos and images from one, without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro
from tyro.conf import Positional

from ..console import Bar, log
from ..errors import SinfusionError
from ..names import name_after
from ..seeds import check_seed
from .command import Command
from .options import File, Format, Number, Out, Size, Tile, Whole, check_count, evenly_spaced, parse_size
from .outputs import SHEET_COLUMNS, SHEET_FRAMES, Outputs

if TYPE_CHECKING:
    import numpy as np

    from ..clip import Sound
    from ..media import Clip

Input = Annotated[Positional[Path], tyro.conf.arg(metavar="INPUT")]


@dataclass(kw_only=True)
class Patches(Command):
    """What all commands of the patch engine have in common."""

    lower: ClassVar[str] = "--max-side, or use fewer frames (--stop)"
    called: ClassVar[dict[str, str]] = {"size": "--input-size"}

    # A video, GIF, folder of frames or image.
    input: Input
    # File to write; left out: outputs/<name of the input>/<command>-<number>.
    out: Out = None
    # Format of videos: mp4, gif, webp, or png (a folder of images); left out: by --out, else mp4. Images are png.
    format: Format = None
    # The longer side that a larger input is scaled down to; 0 keeps its size.
    max_side: int = 256
    # Exact size of the input's frames, such as 256x144, instead; for an input whose frames have several sizes.
    input_size: Size = None
    # First frame to use; left out: 0.
    start: Whole = None
    # Frame to stop before; left out: the end.
    stop: Whole = None
    # Use every n-th frame; left out: all.
    stride: Whole = None
    # Frames per second that a video is resampled to, or that a folder of frames has; so many has the result. Left out:
    # the input's own, else 20.
    fps: Number = None
    # Seed of all random numbers.
    seed: int = 0
    # Where to compute: auto, cpu, cuda, or cuda:1 of several GPUs.
    device: str = "auto"
    # Write over files that exist.
    overwrite: bool = False

    def read(self, path: Path | None = None) -> Clip:
        """The input, or another file read with the same options."""
        check_seed(self.seed, getattr(self, "count", 1))
        from ..media import Source
        from ..precision import choose_device

        choose_device(self.device)
        size = parse_size(self.input_size)
        side = self.max_side if size is None else None
        source = Source(path or self.input, self.start, self.stop, self.stride, size, side, self.fps)
        return source.read(log=log)

    def outputs(self, kind: str, count: int = 1) -> Outputs:
        """Where the results go."""
        return Outputs(self, kind, Path("outputs") / name_after(self.input), {"input": self.input}, count)

    def write(self, outputs: Outputs, results: np.ndarray, fps: float, sound: Sound | None = None) -> None:
        """Write (count, T, H, W, 3) videos, or (count, H, W, 3) images. sound: of one video, if it plays as long."""
        from ..media import beside, write_video

        if results.ndim == 4:
            outputs.write_images(results)
        elif len(results) == 1:
            outputs.write_video(results[0], fps, beside(sound, len(results[0]) / fps, log))
        else:
            for path, frames in zip(outputs.files, results, strict=True):
                write_video(path, frames, fps=fps, overwrite=self.overwrite)
            picked = evenly_spaced(results.shape[1], SHEET_COLUMNS)
            rows = [frames[i] for frames in results[: SHEET_FRAMES // 3] for i in picked]
            outputs.finish(rows, len(picked), fps=fps, frames=results.shape[1])


@dataclass(kw_only=True)
class PatchesGenerate(Patches):
    """Diverse new videos or images, in seconds."""

    example: ClassVar[str] = "sinfusion patches generate fish.mp4 --count 4"
    lower: ClassVar[str] = "--max-side, --scale or --frames"

    # Length of each video in frames; left out: half that of the input.
    frames: Whole = None
    # Size of the samples, such as 384x144; left out: that of the input, times --scale.
    size: Size = None
    # Size of the samples relative to the input.
    scale: float = 1.0
    # How different the samples are from the input: 0 is like it, 5 is usual.
    noise: float = 5.0
    # Number of samples; sample i is generated from seed + i.
    count: int = 1
    # Opposite borders meet, so that copies side by side have no seam: x (left and right), y (above and below) or x,y.
    tile: Tile = None

    def __call__(self) -> None:
        clip, size = self.read(), parse_size(self.size)
        from ..patches import generate

        check_count(self.count)
        with self.outputs(clip.kind, self.count) as outputs:
            with Bar() as bar:
                results = generate(
                    clip.pixels, self.frames, size, self.scale, self.noise, self.count, self.seed,
                    self.device, bar, self.tile,
                )  # fmt: skip
            self.write(outputs, results, clip.fps)


@dataclass(kw_only=True)
class PatchesRetarget(Patches):
    """A video or image at another size or length, with objects and motions at their own scale."""

    example: ClassVar[str] = "sinfusion patches retarget fish.mp4 --size 384x144"

    # Size of the result, such as 384x144; left out: that of the input.
    size: Size = None
    # Length of the result in frames; left out: that of the input.
    frames: Whole = None
    # Opposite borders meet, so that copies side by side have no seam: x (left and right), y (above and below) or x,y.
    tile: Tile = None

    def __call__(self) -> None:
        clip, size = self.read(), parse_size(self.size)
        from ..patches import retarget

        if size is None and self.frames is None and self.tile is None:
            raise SinfusionError("give the size or the length of the result: --size, --frames or both; or --tile.")
        with self.outputs(clip.kind) as outputs:
            with Bar() as bar:
                result = retarget(clip.pixels, size, self.frames, self.seed, self.device, bar, self.tile)
            self.write(outputs, result[None], clip.fps, clip.sound)


@dataclass(kw_only=True)
class PatchesAnalogy(Patches):
    """The layout of one video (or sketch) with the look and dynamics of another; or of images."""

    example: ClassVar[str] = "sinfusion patches analogy waterfall.mp4 lava.mp4"

    # The video or image that gives appearance and dynamics. --start, --stop, --stride and --fps also apply to
    # it.
    style: Annotated[Positional[Path], tyro.conf.arg(metavar="STYLE")]
    # The input is a sketch video: bright where there should be motion.
    sketch: bool = False
    # File with weights of torchvision's raft_large, for optical flow by RAFT; left out: by OpenCV's DIS.
    raft: File = None

    def __call__(self) -> None:
        content, style = self.read(), self.read(self.style)
        from ..patches import analogy

        with self.outputs(content.kind) as outputs:
            with Bar() as bar:
                result = analogy(
                    content.pixels, style.pixels, self.sketch, self.raft, self.seed, self.device, bar,
                )  # fmt: skip
            self.write(outputs, result[None], content.fps, content.sound)


@dataclass(kw_only=True)
class PatchesInpaint(Patches):
    """A masked part of a video or image, filled from what is around it."""

    example: ClassVar[str] = "sinfusion patches inpaint fish.mp4 --mask mask.png"

    # An image or a video as long as the input, white where to fill. --start, --stop, --stride and --fps also
    # apply to it.
    mask: Path
    # Use the colours of the input under the mask as a rough hint of what should be there.
    hints: bool = False

    def __call__(self) -> None:
        clip = self.read()
        from ..media import read_masks
        from ..patches import inpaint

        which = slice(self.start, self.stop, self.stride)
        masks = read_masks(self.mask, clip.frames.shape[1:3], len(clip.frames), which, self.fps, log)
        with self.outputs(clip.kind) as outputs:
            with Bar() as bar:
                mask = masks[0] if clip.kind == "image" else masks
                result = inpaint(clip.pixels, mask, self.hints, self.seed, self.device, bar)
            self.write(outputs, result[None], clip.fps, clip.sound)
