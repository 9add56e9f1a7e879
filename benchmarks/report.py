"""Results of the benchmarks as the README's table and as a roofline plot.

python benchmarks/report.py benchmarks/results/*.json --readme README.md
python benchmarks/report.py benchmarks/results/*.json --plot docs/roofline.png

Reads JSON that `pytest benchmarks/bench_*.py --benchmark-json` wrote; of other files it says that they are left out.
Prints the table, and puts it between two comments of the README. In the plot each operator lies at the operations that
it makes for a byte (benchmarks/floors.py) and those that it makes a second, below what its machine can do.
A convolution counts as direct sums, of which Winograd's algorithm makes fewer: it may pass the roof.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from floors import Limits, Work

THEIRS = ("pytorch", "reference")  # implementations that are not ours; the reference is PyTorch operators too

Facts = dict[str, Any]
Info = dict[str, Any]
Row = tuple[str, str]  # what, figure

BEGIN, END = "<!-- benchmarks/report.py: begin -->", "<!-- benchmarks/report.py: end -->"

NEEDED = ("cpu", "device", "native", "threads", "torch", "commit")  # facts without which a figure says nothing
SAME = ("cpu", "device", "native", "threads", "torch", "instruction_sets", "settings")  # these make a machine another

MOST = {"sample_crops": 0.01, "ddpm_step": 0.02}  # shares of a step, of an evaluation, that they must stay below

PANEL, DPI = (1600, 1000), 100  # pixels of the plot of one machine, and to an inch
LABEL = 0.03  # height of a label in the plot, as a share of its axis


@dataclass
class Settings:
    results: tyro.conf.Positional[tuple[Path, ...]]
    readme: Path | None = None  # put the table between the two comments of this file
    plot: Path | None = None  # PNG to write
    batch: int = 1  # of the operators that are shown
    mixed_commits: bool = False  # let results of different commits into one table, each named


class Entry(NamedTuple):
    """One benchmark of a file."""

    test: str  # the function
    facts: Facts
    command: str
    info: Info

    @property
    def machine(self) -> tuple[Any, ...]:
        return tuple(self.facts.get(name) for name in SAME)


def read(paths: Iterable[Path], mixed_commits: bool) -> list[Entry]:
    """Every benchmark, or SystemExit in one sentence where one cannot stand for what is measured."""
    entries: list[Entry] = []
    seen: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        result = json.loads(path.read_text())
        if "benchmarks" not in result:
            print(f"left out: {path} is not of a benchmark", file=sys.stderr)
            continue
        facts, options = result.get("machine_info", {}), result.get("options", "")
        _check(path, facts, options)
        for benchmark in result["benchmarks"]:
            entry = _entry(path, benchmark, facts, options)
            key = (benchmark["fullname"], entry.machine)
            if key in seen:
                raise SystemExit(f"{benchmark['name']} is in {seen[key]} and in {path}: name one of them.")
            seen[key] = path
            entries.append(entry)
    commits = sorted({entry.facts["commit"][:7] for entry in entries})
    if len(commits) > 1 and not mixed_commits:
        raise SystemExit(f"these results are of different commits ({', '.join(commits)}): pass --mixed-commits to mix.")
    return entries


def _check(path: Path, facts: Facts, options: str) -> None:
    if missing := [name for name in NEEDED if not facts.get(name)]:
        raise SystemExit(f"{path} does not say on what it was measured (no {', '.join(missing)}).")
    if facts["device"] == "cpu" and not facts["native"].endswith("kernels"):
        raise SystemExit(f"{path} was measured without native code ({facts['native']}): it shows the reference alone.")
    if "--quick" in options:
        raise SystemExit(f"{path} is a rehearsal (--quick), which proves nothing.")


def _entry(path: Path, benchmark: Info, facts: Facts, options: str) -> Entry:
    file, test = benchmark["fullname"].split("[")[0].split("::")
    info = benchmark["extra_info"]
    if info.get("backend") != "native":
        ran = f"with the backend {info['backend']}" if "backend" in info else "with no backend named"
        raise SystemExit(f"{benchmark['name']} in {path} ran {ran}: it may not pass for the native code.")
    return Entry(test, facts, " ".join(["pytest", file, *options.split()]), info)


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def size_of(pair: tuple[int, int]) -> str:
    """Width x height of (height, width)."""
    return f"{pair[1]}x{pair[0]}"


def each(values: Iterable[str]) -> str:
    return " / ".join(values)


def _network(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        what = {"step": "forward and backward", "forward": "forward"}[info["what"]]
        dtype = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}[info["dtype"]]
        yield (
            f"{what} of the released network ({info['filters']} filters, depth {info['depth']}) at "
            f"{size_of(info['size'])}, ours in {dtype} against the authors' code in fp32",
            _faster(info["ours_seconds"], info["released_seconds"]),
        )


def _faster(ours: float, theirs: float) -> str:
    return f"{times(theirs / ours)} times as fast ({duration(ours)}, {duration(theirs)})"


def _memory(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        ours, theirs = info["ours_peak_gib"], info["released_peak_gib"]
        yield (
            f"memory at the peak of a forward and backward at {size_of(info['size'])}, ours and the authors'",
            f"{ours:.2f} GiB, {theirs:.2f} GiB",
        )


def _whole_step(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        what = f"training step of `{info['recipe']}`, batch {info['batch']} (released: 1), {size_of(info['crop'])}"
        yield what, _durations(info)


def _durations(info: Info) -> str:
    named = [f"{name} {duration(seconds)}" for name, seconds in info["seconds"].items()]
    return f"{', '.join(named)}; least possible {duration(info['floor_seconds'])}"


def _lightning(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        (seconds,) = info["seconds"].values()
        yield f"training step of the released code in Lightning, {size_of(info['crop'])}", duration(seconds)


def _step_of_tiny(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        seconds = info["seconds"]
        yield (
            f"whole training step of `tiny`, batch {info['batch']}, {size_of(info['crop'])}, against the reference",
            _faster(seconds["ours"], seconds["reference"]),
        )
        yield from _shares("that step", info["shares"])


def _shares(whole: str, shares: dict[str, float]) -> Iterator[Row]:
    for name, share in shares.items():
        limit = f" (must be below {MOST[name]:.0%})" if name in MOST else ""
        missed = "**" if share >= MOST.get(name, 1) else ""
        yield f"`{name}`, share of {whole}", f"{missed}{100 * share:.2g}%{missed}{limit}"


def _frame(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        seconds, size, count = info["seconds"], size_of(info["size"]), info["evaluations"]
        network = f"{info['filters']} filters, depth {info['depth']}, {info['kernel']}x{info['kernel']}"
        what = f"a frame of {size} by {count} evaluations ({network})"
        yield f"{what}, against the reference", _faster(seconds["ours"], seconds["reference"])
        if "released evaluation" in seconds:
            ours = seconds["ours"] / count
            yield (
                "one of these evaluations, against the released network in fp32",
                _faster(ours, seconds["released evaluation"]),
            )
        yield from _shares("one of these evaluations", info["shares"])


def _video_of_tiny(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        rates = info["frames_a_second"]
        yield (
            f"a video of `tiny` at {size_of(info['size'])}, {info['frames']} frames, and by the reference",
            f"{rates['ours']:.3g}, {rates['reference']:.3g} frames a second",
        )


def _rollout(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        what = f"videos of `{info['recipe']}` at {size_of(info['size'])}, {info['batch']} at once"
        rates = [f"{name} {rate:.3g}" for name, rate in info["frames_a_second"].items()]
        yield what, f"{', '.join(rates)} frames a second; a frame: {_durations(info)}"


def _operators(infos: list[Info]) -> Iterator[Row]:
    for (family, batch, size), shapes in _families(infos).items():
        what = f"{_code(family)}, batch {batch}, {size_of(size)}"
        if all(shapes):
            what += f": {each(shapes)}"
        of = list(shapes.values())
        figure = each(duration(info["seconds"][info["ours"]]) for info in of)
        for name, called in (("pytorch", "PyTorch"), ("reference", "the reference")):
            if all(name in info["seconds"] for info in of):
                ratios = [info["seconds"][name] / info["seconds"][info["ours"]] for info in of]
                figure += f"; {each(map(times, ratios))} times as fast as {called}"
        yield what, figure


def _families(infos: list[Info]) -> dict[tuple[str, int, tuple[int, int]], dict[str, Info]]:
    """(operator, batch, size) -> shape, such as `64 channels`, -> what was measured."""
    found: dict[tuple[str, int, tuple[int, int]], dict[str, Info]] = {}
    for info in infos:
        family, shape = _named(info["operator"])
        found.setdefault((family, info["batch"], tuple(info["size"])), {})[shape] = info
    return found


def _named(operator: str) -> tuple[str, str]:
    """`dense forward`, `3x3, 64 to 192` of `dense forward 3x3, 64 to 192`."""
    match = re.fullmatch(r"([a-z_ ]+?)(?:,? (\d.*))?", operator)
    assert match is not None, operator
    return match[1], match[2] or ""


def _code(family: str) -> str:
    name, _, which = family.partition(" ")
    return family if name == "network" else f"`{name}` {which}".strip()


def _against_pytorch(infos: list[Info]) -> Iterator[Row]:
    for what in ("forward", "backward"):
        some = [info for info in infos if info["what"] == what]
        if some:
            channels = each(str(info["channels"]) for info in some)
            figure = each(times(info["pytorch_seconds"] / info["ours_seconds"]) for info in some)
            ours = each(duration(info["ours_seconds"]) for info in some)
            yield (
                f"`depthwise_norm` {what} in bf16 at {size_of(some[0]['size'])}, {channels} channels, against PyTorch",
                f"{figure} times as fast ({ours})",
            )


def _patch_match(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        mean = f"{info['ours_mean_distance']:.3f}, {info['released_mean_distance']:.3f}"
        yield (
            "`patch_match`, 12 frames of 128x72, 3x3x3, against the authors' PyTorch code",
            f"{_faster(info['ours_seconds'], info['released_seconds'])} at a mean distance of {mean}",
        )


def _patches(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        figure = f"{duration(info['median_seconds'])}, {info['peak_gib']:.1f} GiB at the peak of the process"
        yield "`patches generate`: 8 frames from 13 of 256x144", figure


def _metrics(infos: list[Info]) -> Iterator[Row]:
    for info in infos:
        for figure in ("NNFDIV", "NNFDIST"):
            value = info[f"mirrored {figure}"]
            yield (
                f"{figure} of a mirrored clip, ours and by the authors' code, five seeds each",
                f"{value['ours']:.3f} ± {value['spread']:.4f}, {value['released']:.3f} ± "
                f"{value['released_spread']:.4f}",
            )


# What a test measured -> rows; in the order of the table.
ROWS: dict[str, Callable[[list[Info]], Iterator[Row]]] = {
    "test_network_against_released": _network,
    "test_peak_memory_of_a_step_against_released": _memory,
    "test_whole_step": _whole_step,
    "test_released_training_in_lightning": _lightning,
    "test_step_of_tiny": _step_of_tiny,
    "test_frame": _frame,
    "test_video_of_tiny": _video_of_tiny,
    "test_rollout": _rollout,
    "test_operator": _operators,
    "test_depthwise_norm_against_pytorch": _against_pytorch,
    "test_a_video_in_seconds": _patches,
    "test_patch_match_against_the_released_implementation": _patch_match,
    "test_the_metrics_agree_with_their_released_code": _metrics,
}


def machines(entries: list[Entry]) -> dict[tuple[Any, ...], str]:
    """A short name of every machine; no two alike."""
    names: dict[tuple[Any, ...], str] = {}
    for entry in entries:
        if entry.machine in names:
            continue
        facts = entry.facts
        of_cpu = f"{facts['cpu']}, {facts['threads']} threads, {facts['native']}"
        name = of_cpu if facts["device"] == "cpu" else facts["device"]
        same = sum(other.startswith(name) for other in names.values())
        names[entry.machine] = f"{name} ({same + 1})" if same else name
    return names


def shown(entries: list[Entry], batch: int) -> list[Entry]:
    """Without operators of other batch sizes and those of which nothing is ours, which are named."""
    found = []
    for entry in entries:
        if entry.test not in ROWS:
            print(f"left out: {entry.test} has no row", file=sys.stderr)
        elif entry.test != "test_operator":
            found.append(entry)
        elif entry.info["ours"] in THEIRS:
            print(f"left out: {entry.info['operator']}, of which nothing measured is ours", file=sys.stderr)
        elif entry.info["batch"] == batch:
            found.append(entry)
    return found


def table(entries: list[Entry]) -> str:
    """Markdown: a row for each thing that was measured, then what each machine is."""
    names, mixed = machines(entries), len({entry.facts["commit"] for entry in entries}) > 1
    lines = ["| what | figure | machine | command |", "| --- | --- | --- | --- |"]
    for test, rows in ROWS.items():
        groups: dict[tuple[Any, ...], list[Info]] = {}
        for entry in entries:
            if entry.test == test:
                key = (names[entry.machine], entry.facts["commit"][:7], entry.command)
                groups.setdefault(key, []).append(entry.info)
        for (name, commit, command), infos in groups.items():
            where = f"{name}, at {commit}" if mixed else name
            lines += [f"| {what} | {figure} | {where} | `{command}` |" for what, figure in rows(infos)]
    lines.append("")
    told = [f"- {names[entry.machine]}: {_details(entry.facts)}" for entry in entries]
    return "\n".join([*lines, *dict.fromkeys(told)]) + "\n"


def _details(facts: Facts) -> str:
    in_name = ("device", "native", "cpu", "threads") if facts["device"] == "cpu" else ("device",)
    said = {name: value for name, value in facts.items() if name not in in_name and value != "none"}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())


def put(text: str, readme: Path) -> None:
    """Replace what lies between the two comments of a file."""
    whole = readme.read_text()
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise SystemExit(f"{readme} needs the two comments {BEGIN} and {END}, in this order and once each.")
    before, rest = whole.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


class Point(NamedTuple):
    """An operator in the plot."""

    name: str
    intensity: float  # operations a byte
    rate: float  # operations a second


def points(entries: list[Entry]) -> list[Point]:
    """From the slowest to the fastest."""
    found = []
    for entry in entries:
        if entry.test == "test_operator":
            info, work = entry.info, Work(*(entry.info[field] for field in Work._fields))
            seconds = info["seconds"][info["ours"]]
            found.append(Point(info["operator"], work.operations / work.bytes, work.operations / seconds))
    return sorted(found, key=lambda point: point.rate)


def limits(entries: list[Entry]) -> Limits:
    """The most that any of these measured."""
    found = [Limits(**entry.info["limits"]) for entry in entries if "limits" in entry.info]
    return Limits(*map(max, zip(*found, strict=True)))


def roofline(entries: list[Entry], path: Path) -> None:
    """One panel for each machine whose operators were measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = machines(entries)
    panels = [key for key in names if points([entry for entry in entries if entry.machine == key])]
    if not panels:
        raise SystemExit("a roofline needs operators of ours: pytest benchmarks/bench_ops.py -k test_operator.")
    width, height = PANEL[0] / DPI, PANEL[1] / DPI * len(panels)
    figure = Figure((width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    some_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    figure.subplots_adjust(0.06, 0.8 / height, 0.7, 1 - 0.6 / height, hspace=0.16)
    for axes, key in zip(some_axes, panels, strict=True):
        _panel(axes, [entry for entry in entries if entry.machine == key], names[key])
    figure.savefig(path, dpi=DPI)


COLOURS = {"depthwise_norm": "tab:blue", "dense": "tab:red", "gelu": "tab:purple", "network": "black"}
OTHER_COLOUR = "tab:green"
GREY = "0.35"
KINDS = {"forward": ("o", True), "backward": ("o", False), "neither": ("s", True)}  # marker, filled


def _panel(axes: Any, entries: list[Entry], machine: str) -> None:
    found, limit = points(entries), limits(entries)
    x, y = [point.intensity for point in found], [point.rate for point in found]
    left, right = min(x) / 2, max(*x, limit.matrix / limit.copy) * 2
    low, high = min(y) / 2, max(*y, limit.matrix) * 2
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high),
             xlabel="FLOP for a byte that must be moved", ylabel="FLOP a second")  # fmt: skip
    axes.set_title(machine, loc="left")
    axes.grid(color="0.93")
    for bandwidth, style, name in ((limit.copy, "-", "memory"), (limit.cached_copy, ":", "cache")):
        corner = limit.matrix / bandwidth
        axes.plot([left, corner, right], [left * bandwidth, limit.matrix, limit.matrix], style, color=GREY, zorder=1)
        start = max(left, low / bandwidth)
        axes.annotate(f"{name} {bandwidth / 1e9:.0f} GB/s", (start, start * bandwidth), (18, 24), color=GREY,
                      textcoords="offset points", rotation=_slope(axes), rotation_mode="anchor")  # fmt: skip
    axes.plot([limit.arithmetic / limit.cached_copy, right], [limit.arithmetic] * 2, "--", color=GREY, zorder=1)
    for rate, name in ((limit.matrix, "matrix products"), (limit.arithmetic, "fp32")):
        axes.annotate(f"{name} {rate / 1e9:.0f} GFLOP/s", (rate / limit.cached_copy, rate), (14, 5), color=GREY,
                      textcoords="offset points")  # fmt: skip
    for point, height in zip(found, _heights([_share(rate, low, high) for rate in y]), strict=True):
        _draw(axes, point, height)
    for name, (marker, filled) in KINDS.items():
        axes.plot([], [], marker, color=GREY, markerfacecolor=GREY if filled else "white", label=name)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(KINDS), frameon=False)


def _slope(axes: Any) -> float:
    """Degrees at which a line of one bandwidth rises."""
    box, (left, right), (low, high) = axes.get_window_extent(), axes.get_xlim(), axes.get_ylim()
    return math.degrees(math.atan2(box.height / math.log(high / low), box.width / math.log(right / left)))


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies on an axis of logarithms, from 0 to 1."""
    return math.log(value / low) / math.log(high / low)


def _heights(wanted: list[float]) -> list[float]:
    """Where labels stand in their column, from 0 to 1: in the given, rising order, and none on another."""
    gap = min(LABEL, 1 / len(wanted))
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap if heights else 0))
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], heights[i + 1] - gap if i + 1 < len(heights) else 1)
    return heights


def _draw(axes: Any, point: Point, height: float) -> None:
    """A point and, at a height in the column beside the plot, its name."""
    colour = COLOURS.get(re.split(r"[ ,]", point.name)[0], OTHER_COLOUR)
    kind = next((kind for kind in KINDS if kind in point.name), "backward" if "gradient" in point.name else "neither")
    marker, filled = KINDS[kind]
    axes.plot(point.intensity, point.rate, marker, color=colour, markerfacecolor=colour if filled else "white",
              markersize=8, zorder=3)  # fmt: skip
    line = {"arrowstyle": "-", "color": colour, "alpha": 0.3, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 4}
    axes.annotate(f"{point.name}: {point.rate / 1e9:.3g} GFLOP/s", (point.intensity, point.rate), (1.04, height),
                  textcoords="axes fraction", va="center", color=colour, annotation_clip=False,
                  arrowprops=line)  # fmt: skip


def main(settings: Settings) -> None:
    entries = shown(read(settings.results, settings.mixed_commits), settings.batch)
    text = table(entries)
    print(text, end="")
    if settings.readme:
        put(text, settings.readme)
    if settings.plot:
        roofline(entries, settings.plot)


if __name__ == "__main__":
    main(tyro.cli(Settings))
