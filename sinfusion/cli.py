"""The command line: words to functions. Catches SinfusionError only; anything else that escapes is a bug.

Each command is a dataclass whose field comments are its help.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, arg

from . import __version__
from .errors import SinfusionError
from .image_tasks import edit
from .info import describe, describe_run
from .media import VideoWriter, contact_sheet, mark_new, read_image, read_mask, read_media, refuse_existing, write_image
from .precision import choose_device
from .recipe import FAST, RECIPES, TINY, Recipe
from .rollout import extrapolate, generate_images, require_video, retarget, stream, upsample
from .run import Run, load
from .training import train

Size = str  # WIDTHxHEIGHT


def parse_size(text: str | None) -> tuple[int, int] | None:
    """'256x144' -> (144, 256), height first."""
    if text is None:
        return None
    width, cross, height = text.lower().partition("x")
    if not cross or not width.isdigit() or not height.isdigit():
        raise SinfusionError(f"a size is WIDTHxHEIGHT, like 256x144, not {text!r}.")
    return int(height), int(width)


@dataclass
class Train:
    """Train on one image or one video.

    Example: sinfusion train fish.mp4 --minutes 10
    """

    # A video, a picture, a folder of frames; or the folder of an unfinished run, to go on with it.
    input: Positional[Path]
    # The run folder; by default runs/<name of the input>.
    out: Path | None = None
    # Time budget for all models together; without it the recipe's steps count (tiny: 10 minutes).
    minutes: float | None = None
    # What a video run will be used for: generate (Predictor, Projector), upsample (Interpolator).
    tasks: tuple[Literal["generate", "upsample"], ...] = ("generate",)
    # Size of the training frames, WIDTHxHEIGHT; by default that of the input, scaled down to --max-side.
    size: Size | None = None
    # Longer side to which larger inputs are scaled down (fast and paper 256, tiny by the budget); 0 keeps.
    max_side: int | None = None
    # First frame to use, counted from 0.
    start: int | None = None
    # Frame to stop before.
    stop: int | None = None
    # Use every n-th frame.
    stride: int = 1
    # Seed of everything random.
    seed: int = 0
    # auto, cpu or cuda.
    device: str = "auto"
    # auto, bf16 or fp32 activations.
    precision: str = "auto"
    # Replace an existing run.
    overwrite: bool = False
    # Settings of the recipe; defaults are those of the one named by --recipe (paper, fast or tiny).
    recipe: OmitArgPrefixes[Recipe] = field(default_factory=lambda: TINY)

    def run(self) -> None:
        made = train(
            self.input, self.out, self.recipe, self.minutes, self.tasks, parse_size(self.size), self.max_side,
            self.start, self.stop, self.stride, seed=self.seed, device=self.device, precision=self.precision,
            overwrite=self.overwrite,
        )  # fmt: skip
        command = "generate" if made.kind == "image" else "generate --frames 100"
        print(f"trained {made.path}; next: sinfusion {command.replace('generate', f'generate {made.path}', 1)}")


@dataclass
class _Make:
    # A trained run.
    run_path: Annotated[Positional[Path], arg(metavar="RUN")]
    # File to write; by default RUN/made/<command>-<number>.
    out: Path | None = None
    # Seed; the same seed makes the same result.
    seed: int = 0
    # Network evaluations a picture; by default the recipe's.
    steps: int | None = None
    # auto, cpu or cuda.
    device: str = "auto"
    # auto, bf16 or fp32.
    precision: str = "auto"
    # Replace existing files.
    overwrite: bool = False

    def load(self) -> Run:
        return load(self.run_path, self.device, self.precision)


@dataclass
class Generate(_Make):
    """Make new videos from a video run, new images from an image run.

    Example: sinfusion generate runs/fish --frames 100 --count 4
    """

    # Frames of each video; by default as many as the training clip has.
    frames: int | None = None
    # How many.
    count: int = 1
    # WIDTHxHEIGHT; by default the training size.
    size: Size | None = None
    # First frame: a number counts the clip's frames from 0, else a picture file; `noise` lets the Projector make one.
    start: str = "noise"
    # Frames per step: 2 is double speed, -1 backward in time.
    frame_offset: int = 1
    # Format of videos.
    format: Literal["mp4", "gif", "png"] = "mp4"

    def run(self) -> None:
        run, size = self.load(), parse_size(self.size)
        if run.kind == "image":
            if self.frames is not None or self.start != "noise" or self.frame_offset != 1:
                raise SinfusionError(f"{run.path} is an image run: --frames, --start, --frame-offset are for videos.")
            outputs = _Outputs(self, run, "generate", ".png", self.count)
            pictures = generate_images(run, self.count, size, self.seed, self.steps)
            outputs.pictures(pictures)
            return
        length = self.frames if self.frames is not None else len(run.frames)
        suffix = "" if self.format == "png" else f".{self.format}"
        outputs = _Outputs(self, run, "generate", suffix, self.count)
        made = stream(run, length, self.count, size, self._start(), self.frame_offset, self.seed, self.steps)
        outputs.videos(tqdm(made, total=length, unit="frame", desc="generate"), run.fps)

    def _start(self) -> int | np.ndarray | None:
        if self.start == "noise":
            return None
        if self.start.lstrip("-").isdigit():
            return int(self.start)
        return read_image(self.start)


@dataclass
class Extrapolate(_Make):
    """Continue the training clip forward and/or backward in time.

    Example: sinfusion extrapolate runs/fish --after 60 --mark
    """

    # Frames to add at the end.
    after: int = 0
    # Frames to add before the beginning.
    before: int = 0
    # Put a border around the new frames.
    mark: bool = False

    def run(self) -> None:
        run = self.load()
        require_video(run)
        outputs = _Outputs(self, run, "extrapolate", ".mp4")
        frames, is_new = extrapolate(run, self.after, self.before, self.seed, self.steps)
        outputs.videos((frame[None] for frame in (mark_new(frames, is_new) if self.mark else frames)), run.fps)


@dataclass
class Upsample(_Make):
    """Put new frames between those of a video (train with --tasks generate upsample).

    Example: sinfusion upsample runs/fish --factor 4
    """

    # 2, 4 or 8 times the frames, shown at as many times the rate.
    factor: int = 2
    # A video to upsample; by default the training clip.
    input: Path | None = None

    def run(self) -> None:
        run = self.load()
        require_video(run)
        outputs = _Outputs(self, run, "upsample", ".mp4")
        clip = _clip(self.input, run)
        frames = upsample(run, self.factor, clip, self.seed, self.steps)
        outputs.videos((frame[None] for frame in frames), run.fps * self.factor)


@dataclass
class Retarget(_Make):
    """A video or picture at another size and aspect ratio, details kept at their own scale.

    Example: sinfusion retarget runs/fish --size 384x144
    """

    # WIDTHxHEIGHT of the result.
    size: Annotated[Size, arg(metavar="WxH")] = ""
    # What to retarget; by default what the run was trained on.
    input: Path | None = None
    # In (0, 1]: how much of the plainly resized input is made anew.
    strength: float = 0.5

    def run(self) -> None:
        run, size = self.load(), parse_size(self.size)
        assert size is not None
        outputs = _Outputs(self, run, "retarget", ".png" if run.kind == "image" else ".mp4")
        made = retarget(run, size, _clip(self.input, run), self.strength, self.seed, self.steps)
        if run.kind == "image":
            outputs.pictures(made[None])
        else:
            outputs.videos((frame[None] for frame in made), run.fps)


@dataclass
class Edit(_Make):
    """Make an edited picture, a sketch of colour blobs or a masked picture look like the training image.

    Example: sinfusion edit runs/balloons sketch.png --strength 0.6
    """

    # The edited picture or sketch.
    picture: Annotated[Path, arg(aliases=["--input"])] = Path()
    # A picture of the same size, white where the result may differ (inpainting).
    mask: Path | None = None
    # In (0, 1]: small keeps the picture, 1 makes it anew.
    strength: float = 0.5
    # WIDTHxHEIGHT of a larger canvas around the picture (outpainting).
    canvas: Size | None = None
    # How many.
    count: int = 1

    def run(self) -> None:
        run = self.load()
        outputs = _Outputs(self, run, "edit", ".png", self.count)
        picture = read_image(self.picture, max_side=max(run.size))
        mask = read_mask(self.mask, picture.shape[:2]) if self.mask else None
        canvas = parse_size(self.canvas)
        outputs.pictures(edit(run, picture, mask, self.strength, canvas, self.count, self.seed, self.steps))


@dataclass
class Info:
    """What runs where and why; with a run, what it holds.

    Example: sinfusion info
    """

    # A run to describe.
    run_path: Annotated[Positional[Path | None], arg(metavar="RUN")] = None

    def run(self) -> None:
        print("\n".join(describe() if self.run_path is None else describe_run(load(self.run_path))))


@dataclass
class Demo:
    """Render a scene, train on it, generate, and leave videos to look at; no input needed.

    Example: sinfusion demo
    """

    # Folder for everything.
    out: Path = Path("sinfusion-demo")
    # Training time.
    minutes: float = 3.5
    # Seed of everything random.
    seed: int = 0
    # Replace an earlier demo.
    overwrite: bool = False

    def run(self) -> None:
        from .demo import demo

        demo(self.out, self.minutes, self.seed, self.overwrite)


COMMANDS: dict[str, type[Any]] = {
    command.__name__.lower(): command for command in (Train, Generate, Extrapolate, Upsample, Retarget, Edit, Info, Demo)
}


class _Outputs:
    """Where a command writes: the result, a contact sheet and a JSON that says how it was made."""

    def __init__(self, command: _Make, run: Run, name: str, suffix: str, count: int = 1):
        if count < 1:
            raise SinfusionError(f"count must be at least 1, not {count}.")
        self.command, self.run, self.name, self.started = command, run, name, time.monotonic()
        base = command.out or self._free(run.path / "made", name)
        suffix = base.suffix if command.out and base.suffix else suffix
        stem = base.with_suffix("") if base.suffix else base
        self.files = [
            (stem if count == 1 else stem.with_name(f"{stem.name}-{i + 1}")).with_suffix(suffix) for i in range(count)
        ]
        self.sheet, self.json = stem.with_name(f"{stem.name}-sheet.png"), stem.with_suffix(".json")
        for path in (*self.files, self.sheet, self.json):
            refuse_existing(path, command.overwrite)

    @staticmethod
    def _free(folder: Path, name: str) -> Path:
        n = 1
        while any(folder.glob(f"{name}-{n}[.-]*")) or (folder / f"{name}-{n}").exists():
            n += 1
        return folder / f"{name}-{n}"

    def videos(self, frames: Iterable[np.ndarray], fps: float) -> None:
        """Write (count, H, W, 3) frames as they come, one video a sample."""
        writers = [VideoWriter(path, fps, self.command.overwrite) for path in self.files]
        shown: list[np.ndarray] = []
        failure: BaseException | None = None
        try:
            for made in frames:
                for writer, frame in zip(writers, made, strict=True):
                    writer.write(frame)
                shown.append(made[0])
        except BaseException as error:
            failure = error
            raise
        finally:
            for writer in writers:
                writer.__exit__(type(failure) if failure else None, failure, None)
        self._finish(shown, fps)

    def pictures(self, pictures: np.ndarray) -> None:
        for path, picture in zip(self.files, pictures, strict=True):
            write_image(path, picture, self.command.overwrite)
        self._finish(list(pictures), None)

    def _finish(self, shown: list[np.ndarray], fps: float | None) -> None:
        write_image(self.sheet, contact_sheet(shown), self.command.overwrite)
        arguments = {k: v for k, v in dataclasses.asdict(self.command).items() if k not in ("overwrite", "out")}
        facts = {
            "command": self.name,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
            "run": str(self.run.path),
            "source": self.run.source,
            "files": [path.name for path in self.files],
            "size": f"{shown[0].shape[1]}x{shown[0].shape[0]}",
            "frames": len(shown) if fps else None,
            "fps": fps,
            "seconds": round(time.monotonic() - self.started, 2),
            "version": __version__,
        }
        self.json.write_text(json.dumps(facts, indent=1))
        print("wrote " + ", ".join(map(str, (*self.files, self.sheet, self.json))))


def _clip(path: Path | None, run: Run) -> np.ndarray | None:
    """A given video at the longer side of the training frames, or None for the training clip."""
    return None if path is None else read_media(path, max_side=max(run.size)).frames


def _train_defaults(arguments: list[str]) -> tuple[Train, list[str]]:
    """Take --recipe NAME (and --device, to choose the default) off the line: the preset is the default of all fields."""
    rest, name, device = [], None, "auto"
    words = iter(arguments)
    for word in words:
        key, equals, value = word.partition("=")
        if key == "--recipe":
            name = value if equals else next(words, "")
            continue
        rest.append(word)
        if key == "--device":
            device = value if equals else arguments[min(arguments.index(word) + 1, len(arguments) - 1)]
    if name is None:
        try:
            name = (FAST if choose_device(device).type == "cuda" else TINY).name
        except SinfusionError:
            name = "tiny"  # the device's own sentence comes later
    if name not in RECIPES:
        raise SinfusionError(f"recipe must be one of {', '.join(RECIPES)}, not {name!r}.")
    return Train(input=tyro.MISSING, recipe=RECIPES[name]), rest


USAGE = "usage: sinfusion " + "{" + ",".join(COMMANDS) + "} ... [--debug]"


def _parse(arguments: list[str]) -> Any:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\n\nNew images and videos from one image or one video.\n")
        for name, command in COMMANDS.items():
            print(f"  {name:12}{(command.__doc__ or '').splitlines()[0]}")
        print("\nsinfusion COMMAND --help tells more. First time: sinfusion demo")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"sinfusion {__version__}")
        raise SystemExit(0)
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise SinfusionError(f"there is no command {name!r}; commands are {', '.join(COMMANDS)}.")
    command: Any = COMMANDS[name]
    default = None
    if command is Train:
        default, rest = _train_defaults(rest)
    if command is Edit and len(rest) > 1 and not rest[0].startswith("-") and not rest[1].startswith("-"):
        rest = [rest[0], "--picture", *rest[1:]]
    parsed = tyro.cli(command, args=rest, default=default, prog=f"sinfusion {name}", description=command.__doc__)
    if isinstance(parsed, Retarget) and not parsed.size:
        raise SinfusionError("retarget needs --size WIDTHxHEIGHT.")
    return parsed


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a SinfusionError, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        _parse(arguments).run()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (SinfusionError, MemoryError, torch.OutOfMemoryError, OSError, RuntimeError) as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def _sentence(error: BaseException) -> str | None:
    """What to tell a user, or None if it is a bug."""
    if isinstance(error, SinfusionError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
        return "out of memory; lower --size, --count or --frames."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"disk full while writing {error.filename or 'the result'}."
    if isinstance(error, PermissionError):
        return f"{error.filename} cannot be used: permission denied."
    if "PytorchStreamWriter" in str(error) or "file write" in str(error):
        return "disk full while writing a checkpoint; the last one is kept."
    return None
