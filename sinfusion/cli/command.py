"""A command, and a group of commands.

class Boil(Command): ...                                      # "boil": Boil in COMMANDS: sinfusion boil
"tea": Group("Everything about tea.", {"brew": TeaBrew})      # in COMMANDS: sinfusion tea brew
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import SinfusionError, option_name
from ..names import as_path


class Command:
    """Subclasses are keyword-only dataclasses: a field is an option, its comment is the help; a call does the work."""

    example: ClassVar[str]  # a complete command line, printed below the help
    lower: ClassVar[str]  # what the user can lower when memory runs out, such as "--size or --count"
    renamed: ClassVar[dict[str, str]] = {}  # options of earlier versions, and what they are called now
    helps: ClassVar[dict[str, type]] = {}  # options that print the help of another dataclass instead
    called: ClassVar[dict[str, str]] = {}  # settings of the library that are an option of another name here

    def __call__(self) -> None:
        raise NotImplementedError

    def expand_paths(self) -> None:
        """~ at the beginning of a path is the home folder; a shell leaves it in --out=~/fish.mp4."""
        for name, value in vars(self).items():
            if isinstance(value, Path):
                setattr(self, name, as_path(value))
            elif isinstance(value, tuple) and all(isinstance(path, Path) for path in value):
                setattr(self, name, tuple(map(as_path, value)))

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """SinfusionError for options of these names that were given and would have no effect."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if field.name in names and getattr(self, field.name) != field.default:
                raise SinfusionError(f"{option_name(field.name)} {why}.")


@dataclass(frozen=True)
class Group:
    """Commands behind one word."""

    about: str  # one sentence for the overview
    commands: dict[str, type[Command] | Group]

    @property
    def example(self) -> str:
        """The example of its first command."""
        return next(iter(self.commands.values())).example


def command_name(kind: type) -> str:
    """What the user types: TeaBrew is "tea brew"."""
    return " ".join(re.findall(r"[A-Z][a-z]*", kind.__name__)).lower()
