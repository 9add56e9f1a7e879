"""The command line. A command is a dataclass, its comments are its help, calling it does the work.

This file finds the command, and `main` alone turns errors into messages and exit codes. `command` says what a command
is; `options` and `outputs` have what commands share. Torch is imported only when there is work.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from itertools import pairwise

import tyro

from .. import __version__
from ..console import log, open_streams, settle_streams
from ..errors import SettingError, SinfusionError
from ..names import pasteable
from ..signals import Interrupted, raised
from .command import Command, Group
from .demo import Demo
from .evaluate import Evaluate
from .generation import Edit, Extend, Extrapolate, Generate, Retarget, Upsample
from .importing import Import
from .info import Info
from .loop import Loop
from .patches import PatchesAnalogy, PatchesGenerate, PatchesInpaint, PatchesRetarget
from .preview import Preview
from .restyling import Restyle
from .studio import Studio
from .terminal import fitting_terminal
from .training import Train
from .tuning import Retell, Tune

__all__ = ["COMMANDS", "main"]

ABOUT = "New images and videos from one image or one video."
COMMANDS: dict[str, type[Command] | Group] = {
    "train": Train,
    "generate": Generate,
    "extrapolate": Extrapolate,
    "upsample": Upsample,
    "retarget": Retarget,
    "extend": Extend,
    "edit": Edit,
    "evaluate": Evaluate,
    "patches": Group(
        "New videos and images from one in seconds, without training.",
        {
            "generate": PatchesGenerate,
            "retarget": PatchesRetarget,
            "analogy": PatchesAnalogy,
            "inpaint": PatchesInpaint,
        },
    ),
    "loop": Loop,
    "restyle": Restyle,
    "preview": Preview,
    "tune": Tune,
    "retell": Retell,
    "studio": Studio,
    "import": Import,
    "info": Info,
    "demo": Demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for anything wrong with the request, 130, 143 or 129 after Ctrl-C,
    SIGTERM or SIGHUP."""
    open_streams()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # fonts that it does without would stand in the progress
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt as stop:
        log("interrupted.")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    finally:
        settle_streams()


def _main(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    command = None
    try:
        command = _parse(words)
        if command is not None:
            with raised():
                command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `sinfusion --help | head`
        return 1
    except SystemExit as stop:  # tyro has printed its message
        return int(stop.code or 0)
    except Exception as error:
        message = _message(error, command)
        if debug or message is None:
            raise
        log(f"error: {message}")
        return 2
    return 0


def _parse(words: list[str]) -> Command | None:
    """The command that the words ask for; None if help or the version was printed instead."""
    if words[:1] == ["--version"]:
        print(f"sinfusion {__version__}")
        return None
    found: type[Command] | Group = Group(ABOUT, COMMANDS)
    before = ""  # the words that lead to the group, each followed by a space
    while isinstance(found, Group):
        name, *words = words or ["--help"]
        if name in ("--help", "-h"):
            print(_overview(found, before))
            return None
        if name not in found.commands:
            there = ", ".join(before + other for other in found.commands)
            raise SinfusionError(f"there is no command {before + name!r}; there are {there}.")
        found = found.commands[name]
        before += f"{name} "
    _check_words(words)
    kind: type = found
    for option, other in found.helps.items():
        if option in words:
            kind, words = other, ["--help"]
            break
    for option in (word.split("=")[0] for word in words):
        if option in found.renamed:
            raise SinfusionError(f"{option} is called {found.renamed[option]} now.")
    settings = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    try:
        with fitting_terminal():
            command: Command = tyro.cli(kind, prog=f"sinfusion {before.rstrip()}", args=words, config=settings)
    except SystemExit as stop:
        if not stop.code:
            print(f"example:\n  {found.example}")
        raise
    command.expand_paths()
    return command


def _check_words(words: list[str]) -> None:
    """SinfusionError for words that are never meant: empty names, and names of files that look like options."""
    for before, word in pairwise(["", *words]):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            what = word.rstrip("=") or (before if before.startswith("--") else "one of the names")
            raise SinfusionError(f"{what} is empty; give a name, or leave it out (is a variable of the shell unset?).")
        if word.startswith("-") and word != "-" and os.path.exists(word):
            raise SinfusionError(f"{word} would be an option; a file of this name is given as {pasteable(word)}")


def _overview(group: Group, before: str) -> str:
    """The help of a group; `before`: the words that lead to it, each followed by a space."""
    lines = [f"usage: sinfusion {before}COMMAND ... [--debug]", "", group.about, ""]
    for name, found in group.commands.items():
        text = found.about if isinstance(found, Group) else found.__doc__ or ""
        about = text.split("\n")[0].split(". ")[0].rstrip(".")
        lines.append(f"  {name:13}{about}.")
    lines += [
        "",
        f"sinfusion {before}COMMAND --help lists the options of a command; --debug shows where an error comes from.",
        "",
    ]
    examples = [found.example for found in group.commands.values()][:2]
    return "\n".join([*lines, "example:", *(f"  {example}" for example in examples)])


def _message(error: Exception, command: Command | None) -> str | None:
    """The message of an error that a user can do something about; None for every other error.

    command: what was asked for, once that is known.
    """
    text = str(error)
    if isinstance(error, SettingError):
        return error.on_command_line(command.called if command else {})
    if isinstance(error, SinfusionError):
        return text
    # By name, so that reporting an error never imports torch; the CPU's allocator raises a plain RuntimeError.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or any(sign in text for sign in ("not enough memory", "can't allocate memory", "out of memory")):
        return f"out of memory; lower {command.lower if command else 'the size'}."
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors and torch report a failed write with errors of their own.
    if full or any(sign in text for sign in ("os error 28", "os error 27", "No space left", "file write failed")):
        return "the disk is full, or allows no file of this size; free some space or choose another --out."
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}."
    return None
