"""A command, and a group of commands.

class Boil(Command): ...                                      # "boil": Boil in COMMANDS: sinfusion boil
"tea": Group("Everything about tea.", {"brew": TeaBrew})      # in COMMANDS: sinfusion tea brew
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar


class Command:
    """Subclasses are keyword-only dataclasses: a field is an option, its comment is the help; a call does the work."""

    example: ClassVar[str]  # a complete command line, printed below the help
    lower: ClassVar[str]  # what the user can lower when memory runs out, such as "--size or --count"
    renamed: ClassVar[dict[str, str]] = {}  # options of earlier versions, and what they are called now
    helps: ClassVar[dict[str, type]] = {}  # options that print the help of another dataclass instead

    def __call__(self) -> None:
        raise NotImplementedError


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
