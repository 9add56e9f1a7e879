"""sinfusion evaluate: a table, its figures as JSON, a plot, the nearest-neighbour fields to look at."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional

from .. import __version__
from ..console import Bar, log, print_result
from ..errors import SinfusionError, option_name
from ..files import atomic_write, make_folders
from ..seeds import check_seed
from .command import Command
from .options import File, Format, Precision, Size, Whole, evenly_spaced, network_device, parse_size
from .outputs import SHEET_COLUMNS, Outputs, check_writable

if TYPE_CHECKING:
    import numpy as np

    from ..run import Run

Row = dict[str, Any]
Result = tuple[str, "np.ndarray", "np.ndarray"]  # name, images, nearest-neighbour field

OF_A_RUN = ("held_out", "count", "steps", "out", "format", "device", "precision")  # options of what is made here
OF_FILES = ("size", "max_side")
OF_VIDEOS = ("start", "stop", "stride")
FIELD_FPS = 10.0  # slow enough to be followed
LABEL_APART = 0.045  # of the height of a plot, between two names
LEGEND = (
    "The self-baseline is the original alone: its halves, each measured against the other.",
    "NNFDIV is diversity; NNFDIST and SWD (for each scale) are errors; change and high freq. are 1 in the original.",
)


@dataclass(kw_only=True)
class Evaluate(Command):
    """How close and how diverse results are, beside their original; or how good a run is.

    A run alone predicts frames, generates, and leaves figures, plot and what it made in its folder.
    """

    example: ClassVar[str] = "sinfusion evaluate fish.mp4 a.mp4 b.mp4 --plot quality.png --fields fields"
    lower: ClassVar[str] = "--size, --stop or --count"

    # A video, a folder of frames, an image; or a run, for the frames it was trained on.
    original: Annotated[Positional[Path], tyro.conf.arg(metavar="ORIGINAL")]
    # Results of the same kind; left out: ORIGINAL is a run, and makes them.
    generated: Annotated[
        Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[GENERATED ...]", help_behavior_hint="")
    ] = ()
    # File for the figures.
    json: File = None
    # Image of error against diversity.
    plot: File = None
    # Folder for the nearest-neighbour fields: where each patch comes from.
    fields: File = None
    # Weights of Inception v3, for the SIFID of images.
    inception: File = None
    # Weights of C3D, for the SVFID of videos.
    c3d: File = None
    # Size to bring all files to; left out: each keeps its own.
    size: Size = None
    # The longer side that larger files are scaled down to; left out: none.
    max_side: Whole = None
    # First frame to use of ORIGINAL, or of --held-out; left out: 0.
    start: Whole = None
    # Frame to stop before; left out: the end.
    stop: Whole = None
    # Use every n-th frame; left out: all.
    stride: Whole = None
    # Seed of all random numbers; sample i is made from seed + i.
    seed: int = 0
    # A run: further frames of its video, to predict.
    held_out: File = None
    # A run: how many to make; of a video run from a real frame and as many from noise.
    count: int = 3
    # A run: network evaluations for an image; left out: the recipe's.
    steps: Whole = None
    # A run: file to write; left out: outputs/evaluate-<number> in its folder.
    out: File = None
    # A run: videos as mp4, gif or png; left out: by --out, else mp4.
    format: Format = None
    # A run: where to compute: auto, cpu, cuda or cuda:1.
    device: str = "auto"
    # A run: arithmetic.
    precision: Precision = "auto"
    # Write over files that exist.
    overwrite: bool = False

    def __call__(self) -> None:
        if self.count < 1:
            raise SinfusionError(f"--count must be at least 1, not {self.count}.")
        check_seed(self.seed, self.count)
        if self.steps is not None and not 1 <= self.steps <= 4000:
            raise SinfusionError(f"--steps must be from 1 to 4000, not {self.steps}.")
        self._check_outputs()
        if self.generated:
            self._refuse(OF_A_RUN, "is of what a run makes; leave it out, or what is already generated")
            rows, results = self._measured(self.original)
            self._write(rows, results, self.plot)
            return
        self._refuse(OF_FILES, "is of generated files; what a run makes has the size of its frames")
        if self.held_out is None:
            self._refuse(OF_VIDEOS, "is of ORIGINAL where results are given, and of --held-out; give one of these")
        self._run()

    def _run(self) -> None:
        """Measure what a run makes, and keep it."""
        from ..metrics.evaluation import starts
        from ..run import load

        if self.original.exists() and not (self.original / "run.json").is_file():
            raise SinfusionError(f"{self.original} is not a run; give results to compare with it.")
        run = load(self.original, network_device(self.device), self.precision)
        count = self.count * max(1, len(starts(run)))
        with Outputs(self, run.kind, run.path / "outputs", {"run": run.path}, count) as outputs:
            self._make(run, outputs)

    def _make(self, run: Run, outputs: Outputs) -> None:
        from ..media import refuse_existing, write_image, write_video

        plot = self.plot or outputs.record.with_name(f"{outputs.record.stem}-plot.png")
        refuse_existing(plot, self.overwrite)
        rows, results = self._measured(run)
        outputs.files = outputs.files[: len(results)]  # none of a run that only interpolates
        videos = [result for _, result, _ in results]
        for path, result in zip(outputs.files, videos, strict=True):
            if run.kind == "image":
                write_image(path, result, self.overwrite)
            else:
                write_video(path, result, fps=run.fps, overwrite=self.overwrite)
        self._write(rows, results, plot)
        if run.kind == "image":
            outputs.finish([run.frames[0], *videos], **_facts(rows))
            return
        picked = evenly_spaced(len(run.frames), SHEET_COLUMNS)
        shown = [video[i] for video in (run.frames, *videos) for i in picked]
        outputs.finish(shown, len(picked), fps=run.fps, **_facts(rows))

    def _measured(self, original: Path | Run) -> tuple[list[Row], list[Result]]:
        from ..metrics.evaluation import evaluate

        results: list[Result] = []
        rows = evaluate(
            original, list(self.generated) or None, inception=self.inception, c3d=self.c3d, size=parse_size(self.size),
            max_side=self.max_side, start=self.start, stop=self.stop, stride=self.stride, held_out=self.held_out,
            count=self.count, seed=self.seed, steps=self.steps, log=log, bar=_bar,
            seen=lambda *seen: results.append(seen),
        )  # fmt: skip
        return rows, results

    def _refuse(self, options: tuple[str, ...], why: str) -> None:
        """Options that would be ignored in silence."""
        for field in dataclasses.fields(self):
            if field.name in options and getattr(self, field.name) != field.default:
                raise SinfusionError(f"{option_name(field.name)} {why}.")

    def _check_outputs(self) -> None:
        """SinfusionError for what exists or cannot be written, before any work."""
        from ..media import refuse_existing

        if self.plot is not None and self.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise SinfusionError(f"--plot must end in .png, .pdf or .svg, not {str(self.plot)!r}.")
        if self.fields is not None and self.fields.exists() and not (self.overwrite and self.fields.is_dir()):
            raise SinfusionError(f"{self.fields} exists; pass --overwrite or choose another name.")
        for path in (self.json, self.plot):
            if path is not None:
                refuse_existing(path, self.overwrite)
        for option in ("json", "plot", "fields"):
            if path := getattr(self, option):
                check_writable(path, option_name(option))

    def _write(self, rows: list[Row], results: list[Result], plot: Path | None) -> None:
        """JSON, plot and fields; then the table, and what there is."""
        written = []
        if self.json is not None:
            report = {
                "command": "evaluate",
                "original": str(self.original),
                "generated": [str(path) for path in self.generated],
                **_facts(rows),
                "seed": self.seed,
                "version": __version__,
            }
            make_folders(self.json.parent)
            with atomic_write(self.json, self.overwrite) as temporary:
                temporary.write_text(json.dumps(report, indent=1) + "\n")
            written.append(self.json)
        if plot is not None:
            draw(rows, plot)
            written.append(plot)
        if self.fields is not None:
            for number, (name, _, field) in enumerate(results, 1):
                slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
                _write_field(self.fields / f"{number}-{slug}.png", field, self.overwrite)
            written.append(self.fields)
        print_result(table(rows), *written)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], object]]:
    with Bar(total) as shown:
        yield shown.update


def _write_field(path: Path, field: np.ndarray, overwrite: bool) -> None:
    """The image of a field; of a video's a sheet, and an mp4 beside it."""
    from ..media import contact_sheet, enlarged, write_image, write_video
    from ..metrics.similarity import field_image

    images = field_image(field)
    write_image(path, contact_sheet(images), overwrite)
    if len(images) > 1:
        larger = (enlarged(image, 256) for image in images)
        write_video(path.with_suffix(".mp4"), larger, fps=FIELD_FPS, overwrite=overwrite)


def _facts(rows: list[Row]) -> Row:
    """What a record holds beside the request."""
    from ..metrics.evaluation import SETTINGS

    return {"settings": SETTINGS, "seeds": [row["seed"] for row in rows if "seed" in row], "rows": rows}


def table(rows: list[Row]) -> str:
    """The rows for the eye."""
    guesses = [row for row in rows if "baseline" in row]
    measured = [row for row in rows if "baseline" not in row]
    lines = []
    if guesses:
        cells = [["PSNR in dB", "expected", "sampled", "baseline", "frames", ""]]
        for row in guesses:
            decibels = [f"{row[key]:.2f}" for key in ("mean_db", "sample_db", "baseline_db")]
            cells.append([row["name"], *decibels, str(row["frames"]), f"baseline: {row['baseline']}"])
        lines += [*_aligned(cells), ""]
    columns: list[tuple[str, list[str]]] = [
        ("", [_title(row) for row in measured]),
        ("NNFDIV", [f"{row['nnfdiv']:.3f}" for row in measured]),
        ("NNFDIST", [f"{row['nnfdist']:.2f}" for row in measured]),
    ]
    for scale in range(len(measured[0]["swd"])):
        columns.append((f"SWD 1/{2**scale}", [f"{row['swd'][scale]:.3f}" for row in measured]))
    for key, title in {"sifid": "SIFID", "svfid": "SVFID", "change": "change", "high_frequency": "high freq."}.items():
        if any(key in row for row in measured):
            columns.append((title, [f"{row[key]:.2f}" if key in row else "-" for row in measured]))
    columns.append(("frames", [str(row["frames"]) for row in measured]))
    columns.append(("size", [row["size"] for row in measured]))
    lines += _aligned([[title, *cells] for title, cells in columns], turned=True)
    return "\n".join([*lines, *LEGEND])


def _aligned(cells: list[list[str]], turned: bool = False) -> list[str]:
    """Lines of a table given by rows, or by columns: the first column to the left, all others to the right."""
    rows = list(zip(*cells, strict=True)) if turned else cells
    lines = [""] * len(rows)
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        lines = [
            f"{line}  {cell.rjust(width)}" if number else cell.ljust(width)
            for line, cell in zip(lines, column, strict=True)
        ]
    return [line.rstrip() for line in lines]


def draw(rows: list[Row], path: Path) -> None:
    """Write an image of error (NNFDIST) against diversity (NNFDIV), a point for each result and its name beside."""
    from matplotlib.figure import Figure

    points = sorted((row for row in rows if row["kind"] in ("self_baseline", "result")), key=lambda row: row["nnfdist"])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="diversity (NNFDIV)", ylabel="error (NNFDIST), lower is closer to the original")
    axes.plot([row["nnfdiv"] for row in points], [row["nnfdist"] for row in points], "none")  # settles the limits
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    heights = _apart([(row["nnfdist"] - low) / (high - low) for row in points])
    for number, (row, height) in enumerate(zip(points, heights, strict=True)):
        known = row["kind"] == "self_baseline"
        colour = "black" if known else f"C{number % 10}"
        place = (row["nnfdiv"], row["nnfdist"])
        axes.plot(*place, "*" if known else "o", color=colour, markersize=14 if known else 7)
        axes.annotate(
            _title(row), place, (1.03, height), textcoords="axes fraction", va="center", fontsize=9, color=colour,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": colour, "alpha": 0.5, "relpos": (0, 0.5)},
        )  # fmt: skip
    make_folders(path.parent)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _apart(heights: list[float]) -> list[float]:
    """Rising heights in an axes, moved so that names at them do not overlap."""
    apart = min(LABEL_APART, 1 / len(heights))
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 1 - apart * (len(heights) - 1 - i))
    return heights


def _title(row: Row) -> str:
    return f"self-baseline: {row['name']}" if row["kind"] == "self_baseline" else str(row["name"])
