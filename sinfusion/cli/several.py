"""A command with several inputs: which of them are there already, a job for each of the others, a table at the end.

entries = [Entry("fish", "runs/fish", words), Entry("ants", "runs/ants"), Entry("bees", failure="runs/bees is damaged")]
run_entries(entries, "trained", self)      # ants are done; prints the table; SinfusionError where some have failed
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..console import log, print_result
from ..errors import SinfusionError, option_name
from ..names import name_after, pasteable
from ..signals import Interrupted
from .jobs import Here, Job, Outcome, Running, run_jobs

MOST_NAMED = 3  # of what has failed, in the sentence at the end


class Several(Protocol):
    """The options of a command that may have several inputs."""

    others: tuple[Path, ...]
    jobs: int | None
    cluster: str | None
    device: str


@dataclass
class Entry:
    """One of several inputs."""

    label: str  # what it is called in the table, and before each line that its job prints
    result: str = ""  # name of what it leads to, where that is known before
    words: Sequence[str] = ()  # of the command line of its job; none: it is done already, or cannot be done
    failure: str = ""  # why it cannot be done

    @property
    def job(self) -> Job:
        """What is to be done."""
        return Job(in_a_line(self.label), tuple(self.words))

    def row(self, outcome: Outcome | None, done: str) -> tuple[str, str, str, str]:
        """Its row of the table: label, state, time, and result or reason. done: the state where all went well."""
        state, spent, what = "done before", "", self.result
        if self.failure:
            state, what = "failed", self.failure
        elif outcome is not None and outcome.code is None:
            state = "not begun"
        elif outcome is not None:
            spent = time.strftime("%H:%M:%S", time.gmtime(outcome.seconds))
            state = done if outcome.code == 0 else "stopped" if outcome.stopped else "failed"
            what = outcome.reason if state == "failed" else self.result or "".join(outcome.results[:1])
        return in_a_line(self.label), state, spent, in_a_line(what)


def in_a_line(text: str) -> str:
    """The text with escapes for what would break a line, or be no character."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def option_words(options: Any, names: Iterable[str]) -> list[str]:
    """The words of the command line that set these fields of a dataclass, where they are not at their defaults."""
    words = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in names or value == field.default:
            continue
        if isinstance(field.default, bool):
            words.append(option_name(field.name if value else f"no_{field.name}"))
        elif isinstance(value, tuple):
            words += [option_name(field.name), *map(str, value)]
        else:
            words.append(f"{option_name(field.name)}={value}")
    return words


def path_word(path: Path) -> str:
    """A path as a word of the command line, which is neither an option nor a home folder."""
    return os.path.abspath(path) if str(path).startswith(("-", "~")) else os.fspath(path)


def without_repetitions(paths: Sequence[Path]) -> list[Path]:
    """The paths, those that are given again left out, which is said."""
    found: dict[Path, Path] = {}
    for path in paths:
        if found.setdefault(path.resolve(), path) is not path:
            log(f"{pasteable(path)} is given more than once, and counts once")
    return list(found.values())


def named_paths(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A path in the folder for each path, named after it; where another has that name, with a number, which is said."""
    found: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = name_after(path), 1
        while name.casefold() in taken:
            number += 1
            name = f"{name_after(path)}-{number}"
        taken.add(name.casefold())
        found[path] = folder / name
        if number > 1:
            log(f"{pasteable(path)} goes to {pasteable(found[path])}, because another is named {name_after(path)}, too")
    return found


def check_several(command: Several) -> None:
    """SinfusionError where a command with several inputs cannot begin."""
    if command.jobs is not None and command.jobs < 1:
        raise SinfusionError(f"--jobs must be at least 1, not {command.jobs}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SinfusionError("several inputs are a process each; start them without torchrun, with --jobs.")


def run_entries(entries: Sequence[Entry], done: str, command: Several) -> None:
    """Do what is to be done for each input, and print a table.

    done: what the table says of those that went well. Raises SinfusionError where some have not, and Interrupted after
    a signal, once all have stopped.
    """
    todo = [number for number, entry in enumerate(entries) if entry.words]
    outcomes: dict[int, Outcome] = {}
    stopped = None
    if todo:
        with ExitStack() as stack:
            most, start = _engine(command, len(todo), stack)
            found, stopped = run_jobs([entries[number].job for number in todo], most, start)
            outcomes = dict(zip(todo, found, strict=True))
    rows = [entry.row(outcomes.get(number), done) for number, entry in enumerate(entries)]
    print_result(table([("input", "state", "time", "result"), *rows]))
    if stopped is not None:
        log("the same command goes on with what was stopped, and leaves out what is done")
        raise Interrupted(stopped)
    failed = [label for label, state, *_ in rows if state not in (done, "done before")]
    if failed:
        named = ", ".join(label[:60] for label in failed[:MOST_NAMED])
        more = f" and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
        raise SinfusionError(f"{len(failed)} of {len(rows)} failed ({named}{more}); the same command tries again.")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _engine(command: Several, count: int, stack: ExitStack) -> tuple[int, Callable[[Job, int], Running]]:
    """How many jobs run at a time, and what starts them."""
    if command.cluster is not None:
        from .cluster import cluster

        most = min(command.jobs or count, count)
        return most, stack.enter_context(cluster(command.cluster, most, gpus=command.device != "cpu"))
    gpus = visible_gpus(command.device)
    most = min(command.jobs or max(1, len(gpus)), count)
    return most, Here(gpus, most)


def visible_gpus(device: str) -> list[str]:
    """The GPUs for jobs on a device, by the names that CUDA_VISIBLE_DEVICES has for them.

    None for jobs on a CPU, or all on the one GPU that was asked for. SinfusionError for a device that is not there.
    """
    from ..precision import choose_device

    chosen = choose_device(device)
    if chosen.type != "cuda" or chosen.index is not None:
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
