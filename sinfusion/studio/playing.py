"""A rollout played live: each frame is generated when it is asked for, after any frame, with settings of its own.

player = Player(run, start=0)                      # or None: from a frame that the run generates
shown = player.next(None, Settings())              # the first frame: shown.number, shown.image (H, W, 3) uint8
shown = player.next(shown.number, Settings(seed=1))   # a frame after it; after an earlier one it is another branch
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import SinfusionError
from ..generation.reverse_process import reverse_process
from ..generation.video import NextFrame, first_frames, next_frame
from ..pixels import check_size, resize, to_uint8, to_unit
from ..roles import IMAGE, PROJECTOR
from ..run import Run

MOST_BYTES = 512 << 20  # of the frames of one player


@dataclass(frozen=True)
class Settings:
    """What the sliders say."""

    frame_offset: int = 1  # training frames from one frame to the next
    size: tuple[int, int] | None = None  # (height, width); None: the run's
    seed: int = 0
    surprise: float = 1.0  # of the sampler's noise, in multiples of the usual
    projection: float | None = None  # None: the recipe's
    steps: int | None = None  # network evaluations a frame; None: the recipe's


@dataclass(frozen=True)
class Shown:
    """A frame that was generated or that a video begins with."""

    number: int
    image: np.ndarray  # (H, W, 3) uint8
    parent: int | None  # number of the frame before it
    moment: int  # when it is, in training frames after the first
    index: int  # how many frames of its branch are before it; below 0: it says what moves, and is not shown
    frame_index: int  # which keys its noise


class Player:
    """The frames of one run, as a tree: a branch for each way in which it went on."""

    def __init__(self, run: Run, start: int | None = None):
        self.run, self.start = run, start
        self.frames: list[Shown] = []
        self.bytes = 0
        if start is not None and run.kind == "video" and not 0 <= start < len(run.frames):
            raise SinfusionError(f"start frame {start} does not exist: the clip has {len(run.frames)} frames.")
        # Of the frame that was generated last: what the next one is made with, and from.
        self._advance: NextFrame | None = None
        self._made_with: tuple[object, ...] = ()
        self._tip: int | None = None
        self._previous: Tensor

    @property
    def offsets(self) -> tuple[int, ...]:
        """Speeds and directions that the run knows; none of an image."""
        return self.run.recipe.offsets() if self.run.kind == "video" else ()

    def next(self, after: int | None, settings: Settings) -> Shown:
        """The frame after another one; the first where `after` is None. Of an image run: another image."""
        if after is not None and not 0 <= after < len(self.frames):
            raise SinfusionError(f"there is no frame {after}; play from one that is there.")
        if self.bytes > MOST_BYTES:
            raise SinfusionError("this rollout has as many frames as fit in memory; keep it and play anew.")
        size = check_size(settings.size or self.run.size)
        if self.run.kind == "image":
            return self._add(self._image(size, settings), after, 1)
        if settings.frame_offset not in self.offsets:
            known = ", ".join(map(str, self.offsets))
            raise SinfusionError(f"frame offset {settings.frame_offset} was not trained; this run knows {known}.")
        return self._first(size, settings) if after is None else self._following(after, size, settings)

    def branch(self, last: int) -> list[np.ndarray]:
        """The images up to a frame, as large as that is."""
        if not 0 <= last < len(self.frames):
            raise SinfusionError(f"there is no frame {last} to keep.")
        images, at, size = [], self.frames[last], self.frames[last].image.shape[:2]
        while at.index >= 0:
            images.append(resize(at.image, size))
            if at.parent is None:
                break
            at = self.frames[at.parent]
        return images[::-1]

    def _add(self, image: np.ndarray, parent: int | None, offset: int) -> Shown:
        before = None if parent is None else self.frames[parent]
        moment, index, key = 0, 0, 0
        if before is not None:
            moment, index, key = before.moment + offset, before.index + 1, before.frame_index + 1
        shown = Shown(len(self.frames), image, parent, moment, index, key)
        self.frames.append(shown)
        self.bytes += image.nbytes
        return shown

    def _image(self, size: tuple[int, int], settings: Settings) -> np.ndarray:
        """A new image: no other of this player has its noise."""
        process = reverse_process(self.run, IMAGE, steps=settings.steps)
        process.scale_noise(settings.surprise)
        return to_uint8(process(self._seeds(settings), len(self.frames), size=size))[0].cpu().numpy()

    def _first(self, size: tuple[int, int], settings: Settings) -> Shown:
        if self.start is not None:
            return self._add(resize(self.run.frames[self.start], size), None, 0)
        self.run.denoiser(PROJECTOR, otherwise="begin with a frame of the clip")
        self._make(settings)
        assert self._advance is not None
        seeds = self._seeds(settings)
        images = first_frames(self.run, self._advance, seeds, size)  # with what was before
        for image in reversed(images[0].split(3)):
            shown = self._add(to_uint8(image).cpu().numpy(), self._last, settings.frame_offset)
        if self._advance.project is None:
            for _ in range(self.run.recipe.burn_in_frames):
                shown = self._following(shown.number, size, settings)
            return self._as_first(shown, shown.frame_index)
        return self._as_first(shown, 0)

    @property
    def _last(self) -> int | None:
        return len(self.frames) - 1 if self.frames else None

    def _as_first(self, shown: Shown, frame_index: int) -> Shown:
        """The last frame as the first that counts: those before it only say what moves."""
        self.frames = [
            replace(
                one,
                moment=one.moment - shown.moment,
                index=one.index - shown.index,
                frame_index=one.frame_index - shown.frame_index + frame_index,
            )
            for one in self.frames
        ]
        return self.frames[-1]

    def _following(self, after: int, size: tuple[int, int], settings: Settings) -> Shown:
        before = self.frames[after]
        made_with = (settings.frame_offset, settings.steps, settings.projection, size)
        if made_with != self._made_with or after != self._tip:
            if made_with[:3] != self._made_with[:3]:
                self._make(settings)
            assert self._advance is not None
            self._previous = self._advance.begin(self._known(before, size, settings.frame_offset))
            self._made_with = made_with
        assert self._advance is not None
        self._advance.predict.scale_noise(settings.surprise)
        image = self._advance(self._previous, self._seeds(settings), before.frame_index + 1)
        self._previous = image if self._previous.shape[1] == 3 else torch.cat((image, self._previous[:, :-3]), 1)
        shown = self._add(to_uint8(image)[0].cpu().numpy(), after, settings.frame_offset)
        self._tip = shown.number
        return shown

    def _make(self, settings: Settings) -> None:
        how = settings.frame_offset, settings.steps
        self._advance = next_frame(self.run, *how, projection=settings.projection)
        self._made_with, self._tip = (), None

    def _known(self, last: Shown, size: tuple[int, int], offset: int) -> Tensor:
        """(1, 3 m, H, W) in [-1, 1]: a frame and those before it in this direction and speed, as far as there are."""
        assert self._advance is not None
        images: list[np.ndarray] = []
        at_moment = self._at_moments(last)
        for i in range(max(1, self._advance.needed)):
            image = at_moment.get(last.moment - i * offset)
            if image is None:
                image = self._of_the_clip(last.moment - i * offset, last.moment)
            if image is None:
                break
            images.append(resize(image, size))
        unit = to_unit(torch.from_numpy(np.stack(images)).to(self.run.device))
        return unit.flatten(0, 1)[None]

    def _at_moments(self, last: Shown) -> dict[int, np.ndarray]:
        """The newest image of the branch at each moment."""
        found: dict[int, np.ndarray] = {}
        at: Shown | None = last
        while at is not None and len(found) < 64:
            found.setdefault(at.moment, at.image)
            at = None if at.parent is None else self.frames[at.parent]
        return found

    def _of_the_clip(self, moment: int, last: int) -> np.ndarray | None:
        """The clip's frame at a moment that lies beyond the first frame, as seen from the last."""
        if self.start is None or moment * -last < 0:
            return None
        at = self.start + moment
        return self.run.frames[at] if 0 <= at < len(self.run.frames) else None

    def _seeds(self, settings: Settings) -> Tensor:
        return torch.tensor([settings.seed], dtype=torch.int64, device=self.run.device)
