"""The preview: what comes after a clip, in closed form, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..console import Bar
from ..errors import SinfusionError
from .options import check_count
from .patches import Patches


@dataclass(kw_only=True)
class Preview(Patches):
    """What comes after a video, at once: patches change as they did in it. For clouds, smoke, water."""

    example: ClassVar[str] = "sinfusion preview fish.mp4 --frames 60"
    lower: ClassVar[str] = "--max-side, or use fewer frames (--stop)"

    # The longer side that a larger input is scaled down to; 0 keeps its size.
    max_side: int = 64
    # Number of new frames.
    frames: int = 60
    # How far each frame moves to what the nearest 7x7 patches of the clip say, from 0 to 1: more keeps things whole,
    # and moves less.
    wholeness: float = 0.5
    # Number of samples; sample i is generated from seed + i.
    count: int = 1

    def __call__(self) -> None:
        clip = self.read()
        from ..closed_form import generate

        check_count(self.count)
        if clip.kind == "image":
            raise SinfusionError(f"{self.input} is an image, in which nothing moves; give a video.")
        with self.outputs(clip.kind, self.count) as outputs:
            with Bar() as bar:
                results = generate(
                    clip.frames, self.frames, self.count, self.seed,
                    wholeness=self.wholeness, device=self.device, on_progress=bar,
                )  # fmt: skip
            self.write(outputs, results, clip.fps)
