"""What the page may ask for: each option of each verb, its default and its range.

checked("loop of clips", {"frames": 24})     # every option of the verb; SinfusionError for anything else
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import SinfusionError

MOST_SIDE = 1024  # pixels of what is generated
MOST_PIXELS = 1 << 19  # of a frame of it


@dataclass(frozen=True)
class Number:
    """A number; None where it may be left out to somebody else's choice."""

    default: float | None
    least: float
    most: float
    whole: bool = True

    def read(self, name: str, value: Any) -> float | None:
        if value is None and self.default is None:
            return None
        wanted = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise SinfusionError(f"{name} must be a {'whole ' if self.whole else ''}number, not {str(value)[:40]!r}.")
        if not self.least <= value <= self.most:  # nor is it what is no number
            raise SinfusionError(f"{name} must be from {self.least:g} to {self.most:g}, not {str(value)[:40]}.")
        return value


@dataclass(frozen=True)
class Size:
    """[width, height] in pixels, which becomes (height, width); or None."""

    needed: bool = False

    @property
    def default(self) -> None:
        return None

    def read(self, name: str, value: Any) -> tuple[int, int] | None:
        if value is None and not self.needed:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int for side in value):
            raise SinfusionError(f"{name} must be a width and a height, not {str(value)[:40]!r}.")
        width, height = value
        if not (8 <= min(value) and max(value) <= MOST_SIDE and width * height <= MOST_PIXELS):
            raise SinfusionError(
                f"{name} must be from 8x8 pixels to {MOST_SIDE} on a side and {MOST_PIXELS} in all, "
                f"not {str(width)[:20]}x{str(height)[:20]}."
            )
        return height, width


SEED = Number(0, 0, 2**32 - 1)
STEPS = Number(None, 1, 200)
LENGTH = Number(None, 2, 1000)
SIDE = Number(128, 32, 512)  # that the longer side of a clip is scaled down to
SIZE, PAINTED = Size(), Size(needed=True)

OPTIONS: dict[str, dict[str, Number | Size]] = {
    "patches of clips": {
        "frames": LENGTH,
        "size": SIZE,
        "noise": Number(5, 0, 100, False),
        "seed": SEED,
        "max_side": SIDE,
    },
    "retarget of clips": {"size": Size(needed=True), "seed": SEED, "max_side": SIDE},
    "loop of clips": {"frames": LENGTH, "size": SIZE, "seed": SEED, "max_side": SIDE},
    "loop of runs": {"frames": LENGTH, "size": SIZE, "seed": SEED},
    "inpaint of clips": {"painted": PAINTED, "seed": SEED, "max_side": SIDE},
    "edit of runs": {"painted": PAINTED, "strength": Number(0.5, 0.02, 1, False), "seed": SEED, "steps": STEPS},
    "train": {"minutes": Number(2, 0.05, 10000, False)},
    "train further": {"minutes": Number(None, 0.05, 10000, False)},
    "play": {"start": Number(None, 0, 10**6)},
    "next": {"after": Number(None, 0, 10**9)},
    "keep": {"frame": Number(0, 0, 10**9)},
    "settings": {
        "frame_offset": Number(1, -100, 100),
        "size": SIZE,
        "seed": SEED,
        "surprise": Number(1, 0, 3, False),
        "projection": Number(None, 0, 1, False),
        "steps": STEPS,
    },
}


def checked(verb: str, given: Any) -> dict[str, Any]:
    """The value of every option of a verb."""
    options = OPTIONS.get(verb)
    if options is None:
        raise SinfusionError(f"there is no {verb}.")
    if not isinstance(given, dict):
        raise SinfusionError("options must be an object of names and values.")
    unknown = sorted(set(given) - set(options))
    if unknown:
        raise SinfusionError(f"{verb} has no option {str(unknown[0])[:40]!r}; it has {', '.join(options)}.")
    return {name: option.read(name, given.get(name, option.default)) for name, option in options.items()}
