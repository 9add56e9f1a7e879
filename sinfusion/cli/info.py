"""sinfusion info."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from tyro.conf import Positional

from ..console import print_result
from .command import Command


@dataclass(kw_only=True)
class Info(Command):
    """Versions, the device, which native code is active and why the rest is not; and a summary of a run."""

    example: ClassVar[str] = "sinfusion info runs/fish"
    lower: ClassVar[str] = "nothing here"

    # The folder of a run to summarise.
    run: Annotated[Positional[Path | None], tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")] = None

    def __call__(self) -> None:
        from ..info import describe, describe_run
        from ..run import load

        lines = describe() if self.run is None else [*describe(), *describe_run(load(self.run))]
        print_result(*lines)
