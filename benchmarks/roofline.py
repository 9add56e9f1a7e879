"""The roofline plot: each operator at the operations that it makes for a byte and those that it makes a second.

The least bytes and operations are those of benchmarks/floors.py; the roofs are what the machine was measured to do.
A convolution counts as direct sums, of which Winograd's algorithm makes fewer: it may pass the roof.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from floors import Limits, Work
from machine import name_of
from report import Entry
from rows import OPERATORS

SIZE, DPI = (1600, 1000), 100  # pixels of the plot of one machine, and to an inch
LABEL = 0.03  # height of a label in the plot, as a share of its axis


class Point(NamedTuple):
    """An operator in the plot."""

    name: str
    intensity: float  # operations a byte
    rate: float  # operations a second


def points(entries: list[Entry]) -> list[Point]:
    """From the slowest to the fastest."""
    found = []
    for entry in entries:
        if entry.test == OPERATORS:
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

    machines: dict[str, list[Entry]] = {}
    for entry in entries:
        machines.setdefault(name_of(entry.facts), []).append(entry)
    panels = {name: some for name, some in machines.items() if points(some)}
    if not panels:
        raise SystemExit("a roofline needs operators of ours: pytest benchmarks/bench_ops.py.")
    width, height = SIZE[0] / DPI, SIZE[1] / DPI * len(panels)
    figure = Figure((width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    some_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    figure.subplots_adjust(0.06, 0.8 / height, 0.7, 1 - 0.6 / height, hspace=0.16)
    for axes, (name, some) in zip(some_axes, panels.items(), strict=True):
        panel(axes, some, name)
    figure.savefig(path, dpi=DPI)


COLOURS = {"depthwise_norm": "tab:blue", "dense": "tab:red", "gelu": "tab:purple", "network": "black"}
OTHER_COLOUR = "tab:green"
GREY = "0.35"
KINDS = {"forward": ("o", True), "backward": ("o", False), "neither": ("s", True)}  # marker, filled


def panel(axes: Any, entries: list[Entry], machine: str) -> None:
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
                      textcoords="offset points", rotation=slope(axes), rotation_mode="anchor")  # fmt: skip
    axes.plot([limit.arithmetic / limit.cached_copy, right], [limit.arithmetic] * 2, "--", color=GREY, zorder=1)
    for rate, name in ((limit.matrix, "matrix products"), (limit.arithmetic, "fp32")):
        axes.annotate(f"{name} {rate / 1e9:.0f} GFLOP/s", (rate / limit.cached_copy, rate), (14, 5), color=GREY,
                      textcoords="offset points")  # fmt: skip
    for point, height in zip(found, label_heights([share(rate, low, high) for rate in y]), strict=True):
        draw(axes, point, height)
    for name, (marker, filled) in KINDS.items():
        axes.plot([], [], marker, color=GREY, markerfacecolor=GREY if filled else "white", label=name)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(KINDS), frameon=False)


def slope(axes: Any) -> float:
    """Degrees at which a line of one bandwidth rises."""
    box, (left, right), (low, high) = axes.get_window_extent(), axes.get_xlim(), axes.get_ylim()
    return math.degrees(math.atan2(box.height / math.log(high / low), box.width / math.log(right / left)))


def share(value: float, low: float, high: float) -> float:
    """Where a value lies on an axis of logarithms, from 0 to 1."""
    return math.log(value / low) / math.log(high / low)


def label_heights(wanted: list[float]) -> list[float]:
    """Where labels stand in their column, from 0 to 1: in the given, rising order, and none on another."""
    gap = min(LABEL, 1 / len(wanted))
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap if heights else 0))
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], heights[i + 1] - gap if i + 1 < len(heights) else 1)
    return heights


def draw(axes: Any, point: Point, height: float) -> None:
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
