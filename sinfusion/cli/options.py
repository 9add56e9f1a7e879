"""What commands share: the types of their options, and checks of these."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from ..errors import SinfusionError

if TYPE_CHECKING:
    import torch

MAX_STEPS = 4000  # network evaluations for an image

# For an option that may be left out; the comment of the option says what happens then.
OPTIONAL = tyro.conf.arg(help_behavior_hint="")
Whole = Annotated[int | None, OPTIONAL]
Number = Annotated[float | None, OPTIONAL]
# File or folder to write; a string, since a path would lose the slash at its end, which means a folder.
Out = Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
File = Annotated[Path | None, OPTIONAL]
Size = Annotated[str | None, tyro.conf.arg(metavar="WIDTHxHEIGHT", help_behavior_hint="")]
Format = Annotated[Literal["mp4", "gif", "webp", "png"] | None, OPTIONAL]
Tile = Annotated[str | None, tyro.conf.arg(metavar="x|y|x,y", help_behavior_hint="")]
Text = Annotated[str | None, OPTIONAL]
Precision = Literal["auto", "bf16", "fp32"]
Flag = Annotated[bool, OPTIONAL]
Graph = Annotated[bool, OPTIONAL]
Trained = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]

# Of commands that take several inputs: their options, which none of the jobs has (see `several`), and their types.
SEVERAL = frozenset({"others", "jobs", "cluster"})
Inputs = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[INPUT ...]", help_behavior_hint="")]
Runs = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN ...]", help_behavior_hint="")]
Address = Annotated[str | None, OPTIONAL]


def check_count(count: int) -> None:
    """SinfusionError unless --count asks for something."""
    if count < 1:
        raise SinfusionError(f"--count must be at least 1, not {count}.")


def check_steps(steps: int | None) -> None:
    """SinfusionError unless --steps is a possible number of network evaluations; None is the recipe's."""
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise SinfusionError(f"--steps must be from 1 to {MAX_STEPS}, not {steps}.")


def parse_size(word: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT; SinfusionError for other words."""
    if word is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", word)
    if not match:
        raise SinfusionError(f"a size is WIDTHxHEIGHT in pixels, such as 256x144, not {word!r}.")
    return int(match[2]), int(match[1])


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` indices evenly spaced over range(count), first and last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def network_device(word: str) -> torch.device:
    """The device of a command that runs a network; on a CPU the process keeps the memory that it frees, for speed."""
    from .. import ops
    from ..precision import choose_device

    device = choose_device(word)
    if device.type == "cpu":
        ops.keep_memory()
    return device
