"""sinfusion evaluate: a table, its numbers as JSON, a plot, the nearest-neighbour fields as images."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro
from tyro.conf import Positional

from .. import __version__
from ..console import Bar, log, print_result
from ..errors import SinfusionError, option_name
from ..files import atomic_write, make_folders
from ..seeds import check_seed
from .command import Command
from .evaluation_report import Row, draw, table, write_field
from .options import (
    OPTIONAL,
    File,
    Flag,
    Format,
    Number,
    Out,
    Precision,
    Size,
    Whole,
    check_count,
    check_steps,
    evenly_spaced,
    network_device,
    parse_size,
)
from .outputs import SHEET_COLUMNS, Outputs, check_writable

if TYPE_CHECKING:
    import numpy as np

    from ..run import Run

Result = tuple[str, "np.ndarray", "np.ndarray"]  # name, pixels, nearest-neighbour field

RUN_OPTIONS = ("held_out", "count", "steps", "out", "format", "device", "precision")  # for a run alone
FILE_OPTIONS = ("size", "max_side")  # for generated files
FRAME_OPTIONS = ("start", "stop", "stride", "fps")


@dataclass(kw_only=True)
class Evaluate(Command):
    """How close to the original and how diverse results are; or how well a run predicts and generates."""

    example: ClassVar[str] = "sinfusion evaluate fish.mp4 a.mp4 b.mp4 --plot quality.png --fields fields"
    lower: ClassVar[str] = "--size, --stop or --count"

    # A video, a folder of frames or an image; or a run, for its frames.
    original: Annotated[Positional[Path], tyro.conf.arg(metavar="ORIGINAL")]
    # Results of the same kind; left out: ORIGINAL is a run, which generates them.
    generated: Annotated[
        Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[GENERATED ...]", help_behavior_hint="")
    ] = ()
    # JSON file to write the numbers to.
    json: File = None
    # Image file for a plot of error against diversity.
    plot: File = None
    # Folder for images of the nearest-neighbour fields: where each patch comes from.
    fields: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    # File with weights of Inception v3, for the SIFID of images.
    inception: File = None
    # File with weights of C3D, for the SVFID of videos.
    c3d: File = None
    # Folder with a CLIP of transformers: do frames go together, and with their text?
    clip: File = None
    # The text for --clip; left out: what `sinfusion retell` was told.
    prompt: Annotated[str | None, OPTIONAL] = None
    # Of images: how different results are from each other, by ST-LPIPS (extra lpips).
    lpips: Flag = False
    # Size that all files are resized to; left out: each keeps its own.
    size: Size = None
    # The longer side that larger files get; left out: no limit.
    max_side: Whole = None
    # First frame to use of ORIGINAL or --held-out; left out: 0.
    start: Whole = None
    # Frame of ORIGINAL or --held-out to stop before; left out: the end.
    stop: Whole = None
    # Use every n-th frame of ORIGINAL or --held-out; left out: all.
    stride: Whole = None
    # Frames per second to resample all videos to; left out: their own.
    fps: Number = None
    # Seed of all random numbers; sample i is generated from seed + i.
    seed: int = 0
    # For a run: further frames of its video, to predict.
    held_out: File = None
    # For a run: samples; of videos, from a frame and from noise each.
    count: int = 3
    # For a run: network evaluations for an image; left out: the recipe's.
    steps: Whole = None
    # For a run: file to write; left out: outputs/evaluate-<number> in its folder.
    out: Out = None
    # For a run: videos as mp4, gif, webp or png; left out: by --out, else mp4.
    format: Format = None
    # For a run: where to compute: auto, cpu, cuda or cuda:1.
    device: str = "auto"
    # For a run: arithmetic; auto is bf16 where it is fast.
    precision: Precision = "auto"
    # Write over files that exist.
    overwrite: bool = False

    def __call__(self) -> None:
        check_count(self.count)
        check_seed(self.seed, self.count)
        check_steps(self.steps)
        self._check_outputs()
        if self.generated:
            self._refuse(RUN_OPTIONS, "is for the evaluation of a run alone; leave it out, or leave out the results")
            rows, results = self._evaluate(self.original)
            self._write(rows, results, self.plot)
            return
        self._refuse(FILE_OPTIONS, "is for generated files; what a run generates has the size of its frames")
        if self.held_out is None:
            self._refuse(FRAME_OPTIONS, "is for an ORIGINAL with results, and for --held-out; give one of these")
        self._evaluate_run()

    def _evaluate_run(self) -> None:
        """Measure what a run generates, and write it to its folder."""
        from ..metrics.run_evaluation import start_frames
        from ..run import load

        if self.original.exists() and not (self.original / "run.json").is_file():
            raise SinfusionError(f"{self.original} is not a run; give results to compare with it.")
        run = load(self.original, network_device(self.device), self.precision)
        count = self.count * max(1, len(start_frames(run)))
        with Outputs(self, run.kind, run.path / "outputs", {"run": run.path}, count) as outputs:
            self._write_outputs(run, outputs)

    def _write_outputs(self, run: Run, outputs: Outputs) -> None:
        from ..media import refuse_existing, write_image, write_video

        plot = self.plot or outputs.record.with_name(f"{outputs.record.stem}-plot.png")
        refuse_existing(plot, self.overwrite)
        rows, results = self._evaluate(run)
        outputs.files = outputs.files[: len(results)]  # a run that only interpolates generates none
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

    def _evaluate(self, original: Path | Run) -> tuple[list[Row], list[Result]]:
        from ..metrics.evaluation import evaluate

        results: list[Result] = []
        with Bar() as bar:
            rows = evaluate(
                original, list(self.generated) or None, inception=self.inception, c3d=self.c3d,
                clip=self.clip, prompt=self.prompt, lpips=self.lpips,
                size=parse_size(self.size), max_side=self.max_side, start=self.start, stop=self.stop,
                stride=self.stride, fps=self.fps, held_out=self.held_out, count=self.count, seed=self.seed,
                steps=self.steps,
                log=log, on_progress=bar, on_result=lambda *result: results.append(result),
            )  # fmt: skip
        return rows, results

    def _refuse(self, options: tuple[str, ...], why: str) -> None:
        """SinfusionError for options that were given and would have no effect."""
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
        """Write JSON, plot and fields; then print the table and the names of the files."""
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
                write_field(self.fields / f"{number}-{slug}.png", field, self.overwrite)
            written.append(self.fields)
        print_result(table(rows), *written)


def _facts(rows: list[Row]) -> Row:
    """What a record holds of the evaluation."""
    from ..metrics.comparison import SETTINGS

    return {"settings": SETTINGS, "seeds": [row["seed"] for row in rows if "seed" in row], "rows": rows}
