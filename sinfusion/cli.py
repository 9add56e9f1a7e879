"""The command line. A command is a dataclass, its comments are its help, calling it does the work.

`main` alone turns errors into sentences and exit codes; torch is imported only when there is work.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from . import __version__
from .errors import SinfusionError
from .recipe import RECIPES, Recipe
from .roles import ROLES

if TYPE_CHECKING:
    import numpy as np

    from .run import Run

# Options that may be left out: the comment says what then happens.
_OPTIONAL = tyro.conf.arg(help_behavior_hint="")
Whole = Annotated[int | None, _OPTIONAL]
Number = Annotated[float | None, _OPTIONAL]
File = Annotated[Path | None, _OPTIONAL]
Size = Annotated[str | None, tyro.conf.arg(metavar="WIDTHxHEIGHT", help_behavior_hint="")]
Trained = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]

SHEET_FRAMES = 24  # frames of one video on its contact sheet
SHEET_COLUMNS = 8  # frames a row where the sheet shows several videos, a row each


def parse_size(word: str | None) -> tuple[int, int] | None:
    """(height, width) from WIDTHxHEIGHT."""
    if word is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", word)
    if not match:
        raise SinfusionError(f"a size is WIDTHxHEIGHT in pixels, such as 256x144, not {word!r}.")
    return int(match[2]), int(match[1])


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise SinfusionError(f"--seed must be from 0 to {2**32 - 1}, not {seed}.")


def _overrides() -> type:
    """A dataclass with every setting of a recipe, all left out by default; help from the comments in recipe.py."""
    comments = dict(
        (name, " ".join(re.findall(r"# (.*)", comment)))
        for comment, name in re.findall(r"((?: {4}# .*\n)+) {4}(\w+):", inspect.getsource(Recipe))
    )
    options: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(Recipe).items():
        if name == "name":
            continue
        values = [getattr(recipe, name) for recipe in RECIPES.values()]
        words = [" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
        hint = f"({words[0] if len(set(words)) == 1 else ', '.join(words)})"
        # A setting that can be switched on must also be one that can be switched off.
        kind = Literal[True, False] if kind is bool else kind
        about = tyro.conf.arg(help=comments[name], help_behavior_hint=hint)
        options.append((name, Annotated[kind | None, about], None))
    overrides = dataclasses.make_dataclass("Overrides", options, kw_only=True)
    overrides.__doc__ = (
        f"Settings of the recipe. In brackets: {', '.join(RECIPES)}; or one value where all agree.\n\n"
        "They stand beside the options of sinfusion train --help."
    )
    return overrides


Overrides = _overrides()


@dataclass(kw_only=True)
class TrainOptions:
    """Train on one image or one video. The kind of input decides which models.

    Every setting of the recipe is an option too: sinfusion train --help-recipe
    """

    # A video, GIF, folder of frames or picture; or the folder of an unfinished run, to go on with it.
    input: Annotated[Positional[Path], tyro.conf.arg(metavar="INPUT")]
    # Folder of the run; left out: runs/ and the name of the input.
    out: File = None
    # Settings to begin with; left out: fast on a GPU, tiny on a CPU.
    recipe: Annotated[Literal["paper", "fast", "tiny"] | None, _OPTIONAL] = None
    # Time for all models together; left out: the recipe's steps (tiny: 10 minutes).
    minutes: Number = None
    # What a video run will be used for: generate (also extrapolates, retargets), upsample.
    tasks: tuple[Literal["generate", "upsample"], ...] = ("generate",)
    # Size of the training frames, such as 256x144; left out: that of the input, scaled down to --max-side.
    size: Size = None
    # The longer side that larger inputs are scaled down to; 0 keeps; left out: 256 (tiny: by the time given).
    max_side: Whole = None
    # First frame to use; left out: 0.
    start: Whole = None
    # Frame to stop before; left out: the end.
    stop: Whole = None
    # Use every n-th frame.
    stride: int = 1
    # Seed of all random numbers.
    seed: int = 0
    # Where to compute: auto, cpu, cuda.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Write over a run that exists.
    overwrite: bool = False


@dataclass(kw_only=True)
class Train(TrainOptions):
    __doc__ = TrainOptions.__doc__

    example: ClassVar[str] = "sinfusion train fish.mp4 --out runs/fish --minutes 5 --tasks generate upsample"
    lower: ClassVar[str] = "--max-side first, then --batch-size, --filters or --depth"

    recipe_settings: OmitArgPrefixes[Overrides] = field(default_factory=Overrides)  # type: ignore[valid-type]

    def __call__(self) -> None:
        _check_seed(self.seed)
        settings = {name: value for name, value in vars(self.recipe_settings).items() if value is not None}
        self._check_continuing(settings)
        for steps in (f"{role}_steps" for role in ROLES):
            if self.minutes is not None and steps in settings:
                raise SinfusionError(f"--minutes and {_option(steps)} both say how long to train; give one of them.")
        from .precision import choose_device
        from .training import train

        recipe: str | Recipe | None = self.recipe
        if settings:
            default = "fast" if choose_device(self.device).type == "cuda" else "tiny"
            recipe = RECIPES[self.recipe or default].replace(**settings)
        run = train(
            self.input, self.out, recipe, self.minutes, self.tasks, parse_size(self.size), self.max_side, self.start,
            self.stop, self.stride, seed=self.seed, device=self.device, precision=self.precision,
            overwrite=self.overwrite,
        )  # fmt: skip
        if os.environ.get("RANK", "0") == "0":
            command = "upsample" if list(run.models) == ["interpolator"] else "generate"
            print(f"trained {run.path}; next: sinfusion {command} {run.path}")

    def _check_continuing(self, settings: dict[str, Any]) -> None:
        """A run that is continued has its settings; others would be ignored in silence."""
        if not (self.input / "run.json").is_file():
            return
        free = ("input", "device", "precision", "recipe_settings")
        changed = [
            f.name for f in dataclasses.fields(self) if f.name not in free and getattr(self, f.name) != f.default
        ]
        if changed := [*changed, *settings]:
            raise SinfusionError(
                f"{self.input} is a run and goes on with its own settings; leave out {_option(changed[0])}."
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(kw_only=True)
class _Making:
    """What all commands that make something have in common."""

    lower: ClassVar[str] = "the size: train the run again with a smaller --max-side"

    # A run made by `sinfusion train`.
    run: Trained
    # File to write; left out: made/<command>-<number> in the run folder.
    out: File = None
    # Videos: mp4, gif or png (a folder of numbered pictures); pictures: png. Left out: by --out, else mp4.
    format: Annotated[Literal["mp4", "gif", "png"] | None, _OPTIONAL] = None
    # Seed of all random numbers.
    seed: int = 0
    # Network evaluations for a picture; left out: the recipe's.
    steps: Whole = None
    # Where to compute: auto, cpu, cuda.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Write over files that exist.
    overwrite: bool = False

    def load(self) -> Run:
        if self.steps is not None and not 1 <= self.steps <= 4000:
            raise SinfusionError(f"--steps must be from 1 to 4000, not {self.steps}.")
        _check_seed(self.seed)
        from .run import load

        return load(self.run, self.device, self.precision)


class _Made:
    """The files of one making command: named, and refused where they exist, before any work; written at its end."""

    def __init__(self, command: _Making, run: Run, count: int = 1, variants: tuple[str, ...] = ()):
        from .media import refuse_existing

        self.command, self.run, self.started = command, run, time.monotonic()
        self.name = type(command).__name__.lower()
        base, ending = self._base(), self._ending()
        tails = [f"-{i + 1}" for i in range(count)] if count > 1 else [""]
        self.files = [base.with_name(base.name + tail + ending) for tail in tails]
        self.variants = [base.with_name(f"{base.name}-{variant}{ending}") for variant in variants]
        self.sheet = base.with_name(f"{base.name}-sheet.png")
        self.record = base.with_name(f"{base.name}.json")
        for path in (*self.files, *self.variants, self.sheet, self.record):
            refuse_existing(path, command.overwrite)
        nearest = next(folder for folder in base.absolute().parents if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise SinfusionError(f"{nearest} is not a folder that can be written to; choose another --out.")

    def _base(self) -> Path:
        """Where the results go, without tail and ending."""
        out = self.command.out
        if out is not None:
            if not out.name:
                raise SinfusionError(f"--out must name a file, not {str(out)!r}.")
            return out.with_suffix("") if out.suffix.lower() in (".mp4", ".gif", ".png") else out
        folder = self.run.path / "made"
        numbers = [re.match(rf"{self.name}-(\d+)", path.name) for path in folder.glob(f"{self.name}-*")]
        number = 1 + max((int(match[1]) for match in numbers if match), default=0)
        return folder / f"{self.name}-{number}"

    def _ending(self) -> str:
        """.mp4, .gif or .png; none for a folder of pictures."""
        out, wanted = self.command.out, self.command.format
        given = out.suffix.lower().removeprefix(".") if out is not None else ""
        if given and given not in ("mp4", "gif", "png"):
            raise SinfusionError(f"--out must end in .mp4, .gif or .png, not .{given}.")
        if given and wanted and given != wanted:
            raise SinfusionError(f"--out {out} and --format {wanted} do not agree; leave one of them out.")
        chosen = wanted or given or ("png" if self.run.kind == "image" else "mp4")
        if self.run.kind == "image":
            if chosen != "png":
                raise SinfusionError(f"{self.run.path} is an image run: it makes png pictures, not {chosen}.")
            return ".png"
        return "" if chosen == "png" else f".{chosen}"

    def pictures(self, pictures: np.ndarray) -> None:
        """Write (count, H, W, 3) uint8 as one picture each, and all that goes with them."""
        from .media import write_image

        for path, picture in zip(self.files, pictures, strict=True):
            write_image(path, picture, overwrite=self.command.overwrite)
        self.finish(pictures[:SHEET_FRAMES])

    def video(self, frames: np.ndarray, fps: float) -> None:
        """Write (T, H, W, 3) uint8 as a video, and all that goes with it."""
        from .media import write_video

        write_video(self.files[0], frames, fps=fps, overwrite=self.command.overwrite)
        self.finish(frames[_spread(len(frames), SHEET_FRAMES)], fps=fps, frames=len(frames))

    def finish(self, shown: Sequence[np.ndarray] | np.ndarray, columns: int | None = None, **facts: Any) -> None:
        """Write the contact sheet and the record; say what there is."""
        from .media import contact_sheet, write_image
        from .run import beside

        write_image(self.sheet, contact_sheet(shown, columns, len(shown)), overwrite=self.command.overwrite)
        files = [*self.files, *self.variants]
        height, width = shown[0].shape[:2]
        record = {
            "command": self.name,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.command).items()},
            "run": str(self.run.path.resolve()),
            "files": [path.name for path in files],
            "seed": self.command.seed,
            "size": f"{width}x{height}",
            **facts,
            "version": __version__,
            "seconds": round(time.monotonic() - self.started, 2),
        }
        with beside(self.record) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        print(*files, self.sheet, self.record, sep="\n")


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices spread evenly over range(count), first and last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


@dataclass(kw_only=True)
class Generate(_Making):
    """New videos from a video run, new pictures from an image run."""

    example: ClassVar[str] = "sinfusion generate runs/fish --frames 200 --count 4 --size 384x144 --start 0"
    lower: ClassVar[str] = "--size or --count"

    # Length of each video in frames; left out: that of the training video.
    frames: Whole = None
    # How many; sample i is made from seed + i.
    count: int = 1
    # Size of what is made, such as 384x144; left out: that of the training frames.
    size: Size = None
    # First frame: a number of a training frame, a picture file, or noise (the Projector makes one).
    start: str = "noise"
    # Frames of the training video a step: 2 is double speed, -1 backward.
    frame_offset: int = 1

    def __call__(self) -> None:
        from . import rollout
        from .media import VideoWriter

        run, size = self.load(), parse_size(self.size)
        start = self._start(size or run.size)
        if self.count < 1:
            raise SinfusionError(f"--count must be at least 1, not {self.count}.")
        made = _Made(self, run, self.count)
        if run.kind == "image":
            made.pictures(
                rollout.generate(run, self.frames, self.count, size, start, self.frame_offset, self.seed, self.steps)
            )
            return
        length = len(run.frames) if self.frames is None else self.frames
        stream = rollout.stream(run, length, self.count, size, start, self.frame_offset, self.seed, self.steps)
        first = next(stream)  # raises what is wrong with the request before a file is opened
        columns = None if self.count == 1 else SHEET_COLUMNS
        picked = _spread(length, columns or SHEET_FRAMES)
        shown = []
        with ExitStack() as stack:
            told = stack.enter_context(_bar(length))
            writers = [stack.enter_context(VideoWriter(path, run.fps, self.overwrite)) for path in made.files]
            for moment, pictures in enumerate(itertools.chain([first], stream)):  # (count, H, W, 3)
                for writer, picture in zip(writers, pictures, strict=True):
                    writer.write(picture)
                if moment in picked:
                    shown.append(pictures[: SHEET_FRAMES // 3])
                told()
        rows = [pictures[i] for i in range(len(shown[0])) for pictures in shown]
        made.finish(rows, len(picked) if columns else None, fps=run.fps, frames=length)

    def _start(self, size: tuple[int, int]) -> int | np.ndarray | None:
        from .media import read_image

        if self.start == "noise":
            return None
        return int(self.start) if re.fullmatch(r"-?\d+", self.start) else read_image(self.start, size=size)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], object]]:
    """A progress bar and the function that moves it on by a frame."""
    from tqdm import tqdm

    with tqdm(total=total, unit="frame", delay=0.5) as bar:
        yield bar.update


@dataclass(kw_only=True)
class Extrapolate(_Making):
    """The training video with new frames after and/or before it, as one video."""

    example: ClassVar[str] = "sinfusion extrapolate runs/fish --after 60 --mark"

    # Number of new frames after the last one.
    after: int = 0
    # Number of new frames before the first one.
    before: int = 0
    # Write a second video in which the new frames are marked.
    mark: bool = False

    def __call__(self) -> None:
        from .media import mark_new, write_video
        from .rollout import extrapolate

        run = self.load()
        made = _Made(self, run, variants=("marked",) if self.mark else ())
        with _bar(self.after + self.before) as told:
            frames, is_new = extrapolate(run, self.after, self.before, self.seed, self.steps, told)
        if self.mark:
            write_video(made.variants[0], mark_new(frames, is_new), fps=run.fps, overwrite=self.overwrite)
        made.video(frames, run.fps)


@dataclass(kw_only=True)
class Upsample(_Making):
    """New frames between those of a video, which stay as they are. Plays as long as before."""

    example: ClassVar[str] = "sinfusion upsample runs/fish --factor 4"

    # How many times as many frames: 2, 4 or 8.
    factor: Literal[2, 4, 8] = 2
    # Another video to upsample, such as a generated one; left out: the training video.
    input: File = None

    def __call__(self) -> None:
        from .rollout import upsample

        run = self.load()
        made = _Made(self, run)
        frames, fps = _frames(run, self.input, None)
        pairs = len(run.frames if frames is None else frames) - 1
        with _bar(pairs * (self.factor - 1)) as told:
            result = upsample(run, self.factor, frames, self.seed, self.steps, told)
        made.video(result, fps * self.factor)


@dataclass(kw_only=True)
class Retarget(_Making):
    """A video or picture at another size and aspect ratio, its details at their own scale."""

    example: ClassVar[str] = "sinfusion retarget runs/fish --size 384x144"
    lower: ClassVar[str] = "--size"

    # Size to bring it to, such as 384x144.
    size: Annotated[str, tyro.conf.arg(metavar="WIDTHxHEIGHT")]
    # Another video or picture to retarget; left out: the one the run was trained on.
    input: File = None
    # How much is made anew, above 0 and up to 1.
    strength: float = 0.5

    def __call__(self) -> None:
        from .rollout import retarget

        run = self.load()
        made = _Made(self, run)
        size = parse_size(self.size)
        assert size is not None
        frames, fps = _frames(run, self.input, size)
        with _bar(1 if run.kind == "image" else len(run.frames if frames is None else frames)) as told:
            result = retarget(run, size, frames, self.strength, self.seed, self.steps, told)
        if run.kind == "image":
            made.pictures(result[None])
        else:
            made.video(result, fps)


def _frames(run: Run, path: Path | None, size: tuple[int, int] | None) -> tuple[np.ndarray | None, float]:
    """Frames and frames per second of another video or picture, at a size or its own; None is what the run holds."""
    from .media import read_image, read_media

    if path is None:
        return None, run.fps
    if run.kind == "image":
        return read_image(path, size=size), run.fps
    clip = read_media(path, size=size, max_side=None, say=lambda _: None)
    return clip.frames, clip.fps


@dataclass(kw_only=True)
class Edit(_Making):
    """An edited picture, a sketch or a masked picture, made to look like the training image."""

    example: ClassVar[str] = "sinfusion edit runs/balloons sketch.png --strength 0.6 --count 4"
    lower: ClassVar[str] = "--count or --canvas"

    # The edited picture or a sketch of colour blobs; scaled down if it is larger than the training image.
    picture: Annotated[Positional[Path], tyro.conf.arg(metavar="PICTURE")]
    # A picture of the same size, white where the picture may change (inpainting); left out: everywhere.
    mask: File = None
    # Where in the reverse process the picture enters: small keeps it, 1 makes it anew.
    strength: float = 0.5
    # A larger size, such as 256x128, to continue the picture to on all sides (outpainting).
    canvas: Size = None
    # How many; sample i is made from seed + i.
    count: int = 1

    def __call__(self) -> None:
        from .image_tasks import edit
        from .media import read_image, read_mask

        run, canvas = self.load(), parse_size(self.canvas)
        if self.count < 1:
            raise SinfusionError(f"--count must be at least 1, not {self.count}.")
        picture = read_image(self.picture, max_side=max(run.size))
        mask = None if self.mask is None else read_mask(self.mask, picture.shape[:2])
        made = _Made(self, run, self.count)
        made.pictures(edit(run, picture, mask, self.strength, canvas, self.count, self.seed, self.steps))


@dataclass(kw_only=True)
class Info:
    """Versions, device, which native code is active and why not; and what a run is."""

    example: ClassVar[str] = "sinfusion info runs/fish"
    lower: ClassVar[str] = "nothing here"

    # A run to describe.
    run: Annotated[Positional[Path | None], tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")] = None

    def __call__(self) -> None:
        from .info import describe, describe_run
        from .run import load

        lines = describe() if self.run is None else [*describe(), *describe_run(load(self.run))]
        print(*lines, sep="\n")


@dataclass(kw_only=True)
class Import:
    """Make a checkpoint of the authors' released code a run, or add it to one."""

    example: ClassVar[str] = "sinfusion import projector.ckpt --out runs/fish --frames fish.mp4"
    lower: ClassVar[str] = "the size of --frames"

    # A .ckpt file; nothing in it is executed.
    checkpoint: Annotated[Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    # Folder of the run: a new one, or one to add the model to.
    out: Path
    # The video or picture that the checkpoint was trained on; left out: what the run holds.
    frames: File = None
    # Which model it is; left out: told by its weights and the frames.
    role: Annotated[Literal["image", "predictor", "projector", "interpolator"] | None, _OPTIONAL] = None

    def __call__(self) -> None:
        from .released import import_released

        run = import_released(self.checkpoint, self.out, self.frames, self.role)
        print(f"{run.path} is a run with {' and '.join(run.models)}; see: sinfusion info {run.path}")


@dataclass(kw_only=True)
class Demo:
    """Render a small lively scene, train on it and generate. Needs no input."""

    example: ClassVar[str] = "sinfusion demo --out my-demo"
    lower: ClassVar[str] = "--minutes"

    # Folder to write.
    out: Path = Path("sinfusion-demo")
    # Time for training; the rest takes about a minute on two CPU cores.
    minutes: float = 3.5
    # Seed of all random numbers.
    seed: int = 0
    # Write over an earlier demo.
    overwrite: bool = False

    def __call__(self) -> None:
        _check_seed(self.seed)
        from .demo import demo

        demo(self.out, self.minutes, self.seed, self.overwrite)


Command = Train | Generate | Extrapolate | Upsample | Retarget | Edit | Import | Info | Demo
COMMANDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in get_args(Command)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for anything wrong with the request, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    lower = ""
    try:
        command = _parse(words)
        if command is None:
            return 0
        lower = command.lower
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `sinfusion ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # tyro has said what it had to say
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = _sentence(error, lower)
        if debug or sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    return 0


def _parse(words: list[str]) -> Command | None:
    """The command that the words ask for, or None where help or the version was printed instead."""
    name = words[0] if words else "--help"
    if name == "--version":
        print(f"sinfusion {__version__}")
        return None
    if name in ("--help", "-h"):
        print(_overview())
        return None
    if name not in COMMANDS:
        raise SinfusionError(f"there is no command {name!r}; there are {', '.join(COMMANDS)}.")
    kind, options = COMMANDS[name], words[1:]
    if kind is Train and "--help-recipe" in options:
        kind, options = Overrides, ["--help"]
    elif kind is Train and ("--help" in options or "-h" in options):
        kind = TrainOptions
    settings = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    try:
        command: Command = tyro.cli(kind, prog=f"sinfusion {name}", args=options, config=settings)
    except SystemExit as stop:
        if not stop.code:
            print(f"example:\n  {COMMANDS[name].example}")
        raise
    return command


def _overview() -> str:
    lines = ["usage: sinfusion COMMAND ... [--debug]", "", "New images and videos from one image or one video.", ""]
    for name, kind in COMMANDS.items():
        about = (kind.__doc__ or "").split("\n")[0].split(". ")[0].rstrip(".")
        lines.append(f"  {name:13}{about}.")
    lines += ["", "sinfusion COMMAND --help tells the rest; --debug shows where an error comes from.", ""]
    return "\n".join([*lines, "example:", f"  {Train.example}", f"  {Generate.example}"])


def _sentence(error: Exception, lower: str) -> str | None:
    """What a user can do something about, as a sentence; None for everything else."""
    text = str(error)
    if isinstance(error, SinfusionError):
        return text
    # By name, so that reporting an error never imports torch; the CPU's allocator raises a plain RuntimeError.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or any(sign in text for sign in ("not enough memory", "can't allocate memory", "out of memory")):
        return f"out of memory; lower {lower}."
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors and torch report a failed write with errors of their own.
    if full or any(sign in text for sign in ("os error 28", "os error 27", "No space left", "file write failed")):
        return "the disk is full, or allows no file of this size; free some space or choose another --out."
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}."
    return None


if __name__ == "__main__":
    sys.exit(main())
