"""What commands share: the types of their options, checks of them, a progress bar."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..errors import SinfusionError

# Of an option that may be left out; its comment says what then happens.
OPTIONAL = tyro.conf.arg(help_behavior_hint="")
Whole = Annotated[int | None, OPTIONAL]
Number = Annotated[float | None, OPTIONAL]
File = Annotated[Path | None, OPTIONAL]
Size = Annotated[str | None, tyro.conf.arg(metavar="WIDTHxHEIGHT", help_behavior_hint="")]
Format = Annotated[Literal["mp4", "gif", "png"] | None, OPTIONAL]
Precision = Literal["auto", "bf16", "fp32"]
Graph = Annotated[bool, OPTIONAL]
Trained = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]


def parse_size(word: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT."""
    if word is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", word)
    if not match:
        raise SinfusionError(f"a size is WIDTHxHEIGHT in pixels, such as 256x144, not {word!r}.")
    return int(match[2]), int(match[1])


def check_seed(seed: int) -> None:
    """Raises where a random generator would."""
    if not 0 <= seed < 2**32:
        raise SinfusionError(f"--seed must be from 0 to {2**32 - 1}, not {seed}.")


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices spread evenly over range(count), first and last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


@contextmanager
def bar(total: int) -> Iterator[Callable[[], object]]:
    """A progress bar and the function that moves it on by a frame."""
    from tqdm import tqdm

    with tqdm(total=total, unit="frame", delay=0.5) as shown:
        yield shown.update
