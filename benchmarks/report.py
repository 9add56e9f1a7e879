"""Results of `pytest benchmarks --benchmark-json=OUT.json` as a table, and as a roofline plot.

python benchmarks/report.py OUT.json [MORE.json ...]
python benchmarks/report.py benchmarks/results/speed.json --plot docs/roofline.png

Refuses results that say nothing of their machine, that may not have run native code, that are a rehearsal, or that are
of different commits. The figures of the documentation are listed in benchmarks/figures.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from load import QUIET
from machine import describe
from rows import OPERATORS, THEIRS, Info, rows

Facts = dict[str, Any]

NEEDED = ("cpu", "device", "native", "threads", "torch", "commit")  # facts without which a figure says nothing


@dataclass
class Settings:
    results: tyro.conf.Positional[tuple[Path, ...]]
    plot: Path | None = None  # PNG to write
    batch: int = 1  # of the operators that are shown
    mixed_commits: bool = False  # show results of different commits, each named


class Entry(NamedTuple):
    """One benchmark of a file."""

    test: str  # the function
    facts: Facts  # of the machine
    info: Info


class Results(NamedTuple):
    """One file."""

    command: str
    facts: Facts
    entries: list[Entry]


def read(paths: Sequence[Path], mixed_commits: bool = False) -> list[Results]:
    """Every file, or SystemExit in one sentence where one cannot stand for what is measured."""
    files = [_read(path) for path in paths]
    commits = sorted({file.facts["commit"][:7] for file in files})
    if len(commits) > 1 and not mixed_commits:
        raise SystemExit(f"these results are of different commits ({', '.join(commits)}): pass --mixed-commits to mix.")
    return files


def _read(path: Path) -> Results:
    result = json.loads(path.read_text())
    if "benchmarks" not in result:
        raise SystemExit(f"{path} is not of a benchmark.")
    facts, options = result.get("machine_info", {}), result.get("options", "")
    if missing := [name for name in NEEDED if not facts.get(name)]:
        raise SystemExit(f"{path} does not say on what it was measured (no {', '.join(missing)}).")
    if facts["device"] == "cpu" and not facts["native"].endswith("kernels"):
        raise SystemExit(f"{path} was measured without native code ({facts['native']}): it shows the reference alone.")
    if "--quick" in options:
        raise SystemExit(f"{path} is a rehearsal (--quick), which proves nothing.")
    for benchmark in result["benchmarks"]:
        if (ran := benchmark["extra_info"].get("backend")) != "native":
            how = f"with the backend {ran}" if ran else "with no backend named"
            raise SystemExit(f"{benchmark['name']} in {path} ran {how}: it may not pass for the native code.")
    tests = [benchmark["fullname"].split("[")[0].split("::") for benchmark in result["benchmarks"]]
    entries = [
        Entry(test, facts, benchmark["extra_info"])
        for (_, test), benchmark in zip(tests, result["benchmarks"], strict=True)
    ]
    files = {file for file, _ in tests}
    command = " ".join(["pytest", files.pop() if len(files) == 1 else "benchmarks", *options.split()])
    return Results(command, facts | {"cores_share": result.get("cores_share")}, entries)


def table(file: Results, batch: int = 1) -> str:
    """Markdown: the command, the machine, a row for each thing that was measured."""
    facts, share = file.facts, file.facts["cores_share"]
    details = describe({name: value for name, value in facts.items() if name not in ("commit", "cores_share")})
    loaded = f" **Under load: this process got {share:.0%} of its cores.**" if share and share < QUIET else ""
    lines = [
        f"`{file.command}`, commit {facts['commit'][:7]}, on {details}.{loaded}", "",
        "| what | figure |", "| --- | --- |",
    ]  # fmt: skip
    lines += [f"| {what} | {figure} |" for what, figure in rows(((e.test, e.info) for e in file.entries), batch)]
    return "\n".join(lines) + "\n"


def left_out(file: Results) -> list[str]:
    """Operators of which nothing measured is ours."""
    infos = [entry.info for entry in file.entries if entry.test == OPERATORS]
    return sorted({info["operator"] for info in infos if info["ours"] in THEIRS})


def main(settings: Settings) -> None:
    files = read(settings.results, settings.mixed_commits)
    print("\n".join(table(file, settings.batch) for file in files), end="")
    for name in sorted({name for file in files for name in left_out(file)}):
        print(f"left out: {name}, of which nothing measured is ours")
    if settings.plot:
        from roofline import roofline

        entries = [entry for file in files for entry in file.entries]
        shown = [e for e in entries if e.info.get("batch") == settings.batch and e.info.get("ours") not in THEIRS]
        roofline(shown, settings.plot)


if __name__ == "__main__":
    main(tyro.cli(Settings))
