"""The commands that generate images and videos with a run: generate, extrapolate, upsample, retarget, extend, edit."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional

from ..console import Bar, log
from ..errors import SinfusionError
from ..names import as_path, name_after
from ..seeds import check_seed
from .command import Command
from .options import (
    SEVERAL,
    Address,
    File,
    Format,
    Graph,
    Number,
    Out,
    Precision,
    Runs,
    Size,
    Text,
    Tile,
    Trained,
    Whole,
    check_count,
    check_steps,
    evenly_spaced,
    network_device,
    parse_size,
)
from .outputs import ENDINGS, SHEET_COLUMNS, SHEET_FRAMES, Outputs, arguments
from .several import Entry, check_several, named_paths, option_words, path_word, run_entries, without_repetitions

if TYPE_CHECKING:
    import numpy as np

    from ..clip import Sound
    from ..run import Run

RUN_OPTIONS = ("input", "seed", "steps", "precision", "graph")  # of upsample: for a run alone
STYLE_SIDE = 640  # pixels of the longer side of an image whose looks are wanted: twice what a CLIP sees


@dataclass(kw_only=True)
class Generation(Command):
    """What all commands that generate with a run have in common."""

    lower: ClassVar[str] = "the size: train another run with a smaller --max-side"

    # The folder of a run that `sinfusion train` has trained.
    run: Trained
    # File to write; left out: outputs/<command>-<number> in the run folder.
    out: Out = None
    # Format of videos: mp4, gif, webp, or png (a folder of images); left out: by --out, else mp4. Images are png.
    format: Format = None
    # Seed of all random numbers.
    seed: int = 0
    # Network evaluations for an image; left out: the recipe's.
    steps: Whole = None
    # Where to compute: auto, cpu, cuda, or cuda:1 of several GPUs.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it.
    precision: Precision = "auto"
    # Call kernels one by one instead of replaying graphs, to find errors.
    graph: Graph = True
    # Write over files that exist.
    overwrite: bool = False

    def load(self) -> Run:
        check_steps(self.steps)
        check_seed(self.seed, getattr(self, "count", 1))
        from ..run import load

        return load(self.run, network_device(self.device), self.precision, self.graph)

    def outputs(self, run: Run, count: int = 1, variants: tuple[str, ...] = ()) -> Outputs:
        """Where the results go."""
        return Outputs(self, run.kind, run.path / "outputs", {"run": run.path}, count, variants)


@dataclass(kw_only=True)
class Playing(Generation):
    """What the commands have in common whose results play."""

    # Frames per second of the result; left out: as fast as what it is made from.
    fps: Number = None

    def load(self) -> Run:
        run = super().load()
        from ..clip import check_fps

        if self.fps is not None:
            check_fps(self.fps)
            if run.kind == "image":
                raise SinfusionError(f"{run.path} is an image run: --fps is for videos; leave it out.")
        return run


@dataclass(kw_only=True)
class Rollout(Playing):
    """What the commands have in common in which a frame follows the one before."""

    # Weight, from 0 to 1, with which frames are drawn to the clip's patches, so that objects stay whole; left out: the
    # recipe's.
    projection: float | None = None


@dataclass(kw_only=True)
class Guiding:
    """How --text of sinfusion generate and edit guides what is generated."""

    # The folder of a CLIP of transformers with model.safetensors; left out: a stand-in that knows a thousand things.
    text_model: File = None
    # Share of their length by which pixels change in a step: from 0, no guidance, to 10; left out: 0.1, or 0.05 of what
    # begins with an image or a clip.
    text_strength: Number = None
    # Share of the pixels that change, from 0 to 1; left out: 0.5.
    text_fill: Number = None
    # An image whose looks are wanted, in place of --text; needs a CLIP.
    style: File = None
    # A mask: an image of the size of the samples, white where pixels may change; left out: everywhere.
    where: File = None

    def guiding(self, size: tuple[int, int]) -> dict[str, Any]:
        """The arguments of functions that are about guidance. size: (height, width) of what is guided."""
        from ..media import read_image, read_mask

        files = {
            "style": None if self.style is None else read_image(self.style, max_side=STYLE_SIDE, log=log),
            "where": None if self.where is None else read_mask(self.where, size),
        }
        names = "text", "text_model", "text_strength", "text_fill"
        return files | {name: getattr(self, name) for name in names}

    def guided_by(self) -> dict[str, str]:
        """What a record says of the model that guided."""
        from ..text.clip import fingerprint

        return {} if self.text_model is None else {"text_model_sha256": fingerprint(self.text_model)}


@dataclass(kw_only=True)
class GenerateOptions(Rollout):
    """New videos from a video run, new images from an image run."""

    example: ClassVar[str] = "sinfusion generate runs/fish --frames 200 --count 4 --size 384x144 --start 0"
    lower: ClassVar[str] = "--size or --count"

    # More runs, one after another or --jobs at a time; --out is their folder.
    others: Runs = ()
    # Length of each video in frames; left out: that of the training video.
    frames: Whole = None
    # Number of samples; sample i is generated from seed + i.
    count: int = 1
    # Size of the samples, such as 384x144; left out: that of the training frames.
    size: Size = None
    # First frame: the number of a training frame, an image file, or noise (the Projector generates one).
    start: str = "noise"
    # Training frames from one frame to the next: 2 is double speed, -1 plays backward.
    frame_offset: int = 1
    # Of an image run: borders that meet: x (left and right), y (above, below) or x,y.
    tile: Tile = None
    # Words that the samples are to show; sinfusion generate --help-text has more.
    text: Text = None
    # Of several runs, how many at a time; left out: one on each GPU, or one.
    jobs: Whole = None
    # Generate on a Ray cluster: its address, auto, or local (of this machine).
    cluster: Address = None


@dataclass(kw_only=True)
class Generate(Guiding, GenerateOptions):
    __doc__ = GenerateOptions.__doc__

    helps: ClassVar[dict[str, type]] = {"--help-text": Guiding, "--help": GenerateOptions, "-h": GenerateOptions}

    def __call__(self) -> None:
        if self.others or self.cluster is not None:
            check_several(self)
            run_entries(self._entries(), "generated", self)
            return
        from ..generation.video import generate

        run, size = self.load(), parse_size(self.size)
        start = self._start(size or run.size)
        check_count(self.count)
        with self.outputs(run, self.count) as outputs:
            if run.kind == "image":
                how = size, start, self.frame_offset, self.seed, self.steps, self.projection
                guiding = self.guiding(size or run.size)
                images = generate(run, self.frames, self.count, *how, tile=self.tile, **guiding)
                outputs.write_images(images, **self.guided_by())
            else:
                self._videos(run, outputs, size, start)

    def _videos(self, run: Run, outputs: Outputs, size: tuple[int, int] | None, start: int | np.ndarray | None) -> None:
        """Generate and write all videos, a frame at a time."""
        from ..generation.video import require_unguided, stream
        from ..media import VideoWriter

        require_unguided(run, self.text or self.style)
        if self.tile is not None:
            raise SinfusionError(f"{run.path} is a video run: --tile is for image runs, or for sinfusion patches.")
        length, fps = len(run.frames) if self.frames is None else self.frames, self.fps or run.fps
        how = size, start, self.frame_offset, self.seed, self.steps, self.projection
        frames = stream(run, length, self.count, *how)
        first = next(frames)  # raises what is wrong with the request before a file is opened
        columns = None if self.count == 1 else SHEET_COLUMNS
        picked = evenly_spaced(length, columns or SHEET_FRAMES)
        shown = []
        with ExitStack() as stack:
            bar = stack.enter_context(Bar(length))
            writers = [stack.enter_context(VideoWriter(path, fps, self.overwrite)) for path in outputs.files]
            for frame_index, images in enumerate(itertools.chain([first], frames)):  # (count, H, W, 3)
                for writer, image in zip(writers, images, strict=True):
                    writer.write(image)
                if frame_index in picked:
                    shown.append(images[: SHEET_FRAMES // 3])
                bar.update()
        rows = [images[i] for i in range(len(shown[0])) for images in shown]
        outputs.finish(rows, len(picked) if columns else None, fps=fps, frames=length)

    def _start(self, size: tuple[int, int]) -> int | np.ndarray | None:
        from ..media import read_image

        if self.start == "noise":
            return None
        if re.fullmatch(r"-?\d+", self.start):
            return int(self.start)
        return read_image(self.start, size=size, log=log)

    # Several runs ----------------------------------------------------------------------------------------------------

    def _entries(self) -> list[Entry]:
        """What is to be done for each of several runs."""
        check_steps(self.steps)
        check_seed(self.seed, self.count)
        check_count(self.count)
        parse_size(self.size)
        runs = without_repetitions([self.run, *self.others])
        if self.out is None or not self.others:
            return [self._entry(path, self.out) for path in runs]
        folder = as_path(self.out, "--out")
        if folder.is_file() or folder.suffix.lower() in ENDINGS:
            raise SinfusionError(f"--out {self.out} is one file; of several runs it is the folder of their results.")
        return [self._entry(path, out) for path, out in named_paths(runs, folder).items()]

    def _entry(self, path: Path, out: Path | str | None) -> Entry:
        """What is to be done for one of several runs, whose result has that name, without an ending."""
        from ..run import load

        try:
            run = load(path, "cpu", log=lambda _: None)
        except SinfusionError as error:
            return Entry(str(path), failure=str(error))
        if isinstance(out, Path):
            ending = ".png" if run.kind == "image" else "" if self.format == "png" else f".{self.format or 'mp4'}"
            out = out.with_name(out.name + ending)
        if not self.overwrite and (result := self._made(run, out)) is not None:
            return Entry(str(path), str(result))
        words = ["generate", path_word(path), *([] if out is None else [f"--out={out}"])]
        names = {option.name for option in dataclasses.fields(self)} - SEVERAL - {"run", "out"}
        return Entry(str(path), words=[*words, *option_words(self, names)])

    def _made(self, run: Run, out: Path | str | None) -> Path | None:
        """The first file that the run, as it is now, has given for the same request; None: there is none."""
        from ..checkpoint import last_checkpoint

        where = run.path / "outputs" if out is None else Path(out).parent
        pattern = "generate-*.json" if out is None else f"{glob.escape(Path(out).name)}.json"
        trained = [run.path / "run.json", *(last_checkpoint(run.path / name) for name in run.models)]
        since = max(path.stat().st_mtime for path in trained if path is not None)
        asked = {name: value for name, value in arguments(self).items() if name not in WHERE}
        for path in where.glob(pattern):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(path.read_text())
                same = {name: value for name, value in record["arguments"].items() if name not in WHERE} == asked
                files = [path.with_name(name) for name in record["files"]]
                own = out is None or record["run"] == str(run.path.resolve())
                if same and own and path.stat().st_mtime >= since and all(file.exists() for file in files):
                    return files[0]
        return None


WHERE = frozenset({"run", "out", "overwrite"})  # arguments that do not change what is generated


@dataclass(kw_only=True)
class Extrapolate(Rollout):
    """The training video with new frames after or before it, or both, as one video."""

    example: ClassVar[str] = "sinfusion extrapolate runs/fish --after 60 --mark"

    # Number of new frames after the last frame.
    after: int = 0
    # Number of new frames before the first frame.
    before: int = 0
    # Also write a video in which the new frames have a coloured border.
    mark: bool = False

    def __call__(self) -> None:
        from ..generation.video import extrapolate
        from ..media import beside, mark_new, write_video

        run = self.load()
        fps = self.fps or run.fps
        sound, delay = beside(_sound(run), len(run.frames) / fps, log), self.before / fps
        with self.outputs(run, variants=("marked",) if self.mark else ()) as outputs:
            with Bar() as bar:
                frames, is_new = extrapolate(run, self.after, self.before, self.seed, self.steps, self.projection, bar)
            if self.mark:
                write_video(
                    outputs.variants[0], mark_new(frames, is_new), fps=fps, overwrite=self.overwrite,
                    sound=sound, delay=delay, log=lambda _: None,
                )  # fmt: skip
            outputs.write_video(frames, fps, sound, delay)


@dataclass(kw_only=True)
class Upsample(Playing):
    """New frames between those of a video, which stay as they are. It plays as long as before.

    Of a clip by motion alone, without training; of a run by its Interpolator.
    """

    example: ClassVar[str] = "sinfusion upsample fish.mp4 --factor 4"
    lower: ClassVar[str] = "--max-side, or train another run with a smaller one"
    called: ClassVar[dict[str, str]] = {"size": "--max-side"}

    # A video, GIF or folder of frames; or the folder of a run that `sinfusion train` has trained.
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="CLIP|RUN")]
    # Factor by which the frame rate grows: 2, 4 or 8.
    factor: Literal[2, 4, 8] = 2
    # Of a clip: the longer side that a larger one is scaled down to; left out: its own.
    max_side: Whole = None
    # With a run: another video to upsample, such as a generated one; left out: the training video.
    input: File = None

    def __call__(self) -> None:
        if (self.run / "run.json").is_file():
            self.refuse(("max_side",), "is for a clip; with a run, leave it out")
            self._with_run()
        else:
            self.refuse(RUN_OPTIONS, "is for a run; without one, leave it out")
            self._of_clip()

    def _with_run(self) -> None:
        from ..generation.upsampling import upsample

        run = self.load()
        with self.outputs(run) as outputs:
            frames, fps, sound = _frames(run, self.input, None)
            with Bar() as bar:
                result = upsample(run, self.factor, frames, self.seed, self.steps, bar)
            self._finish(outputs, result, fps, sound, len(run.frames if frames is None else frames))

    def _of_clip(self) -> None:
        from ..clip import check_fps
        from ..generation.upsampling import upsample
        from ..media import read_video

        if self.fps is not None:
            check_fps(self.fps)
        device = network_device(self.device)
        with Outputs(self, "video", Path("outputs") / name_after(self.run), {"input": self.run}) as outputs:
            clip = read_video(self.run, max_side=self.max_side, log=log)
            with Bar() as bar:
                result = upsample(clip.frames, self.factor, on_progress=bar, device=device)
            self._finish(outputs, result, clip.fps, clip.sound, len(clip.frames))

    def _finish(self, outputs: Outputs, result: np.ndarray, fps: float, sound: Sound | None, frames: int) -> None:
        """Write the result; fps: of the `frames` that it is made from, with their sound."""
        from ..media import beside

        fps = self.fps or fps * self.factor
        outputs.write_video(result, fps, beside(sound, frames * self.factor / fps, log))


@dataclass(kw_only=True)
class Retarget(Rollout):
    """A video or image at another size and aspect ratio, with details at their own scale."""

    example: ClassVar[str] = "sinfusion retarget runs/fish --size 384x144"
    lower: ClassVar[str] = "--size"

    # Size of the result, such as 384x144.
    size: Annotated[str, tyro.conf.arg(metavar="WIDTHxHEIGHT")]
    # Another video or image to retarget; left out: what the run was trained on.
    input: File = None
    # How much of the resized input is generated anew, above 0 and up to 1.
    strength: float = 0.5

    def __call__(self) -> None:
        from ..generation.video import retarget
        from ..media import beside

        run = self.load()
        with self.outputs(run) as outputs:
            size = parse_size(self.size)
            assert size is not None
            frames, fps, sound = _frames(run, self.input, size)
            with Bar() as bar:
                result = retarget(run, size, frames, self.strength, self.seed, self.steps, self.projection, bar)
            if run.kind == "image":
                outputs.write_images(result[None])
            else:
                fps = self.fps or fps
                outputs.write_video(result, fps, beside(sound, len(result) / fps, log))


@dataclass(kw_only=True)
class Extend(Rollout):
    """A video continued on all sides: it stays as it is in the middle, and what lies around moves with it."""

    example: ClassVar[str] = "sinfusion extend runs/fish --size 384x216"
    lower: ClassVar[str] = "--size"

    # Size of the result, such as 384x216, with the video in its middle.
    size: Annotated[str, tyro.conf.arg(metavar="WIDTHxHEIGHT")]
    # Another video or a picture to continue, at the scale of the training video; left out: that video.
    input: File = None
    # Of a picture: frames of the result, all of which keep it; left out: as many as the training video has.
    length: Whole = None
    # How often each step of the first frame goes back and is taken again, so that what is made meets what is kept.
    jumps: int = 3

    def __call__(self) -> None:
        from ..generation.extension import extend
        from ..media import beside

        run = self.load()
        with self.outputs(run) as outputs:
            size = parse_size(self.size)
            assert size is not None
            frames, fps, sound = _frames(run, self.input, None)
            with Bar() as bar:
                how = self.length, self.seed, self.steps, self.projection, self.jumps
                result = extend(run, size, frames, *how, bar)
            still = frames is not None and len(frames) == 1
            fps = self.fps or (run.fps if still else fps)
            outputs.write_video(result, fps, None if still else beside(sound, len(result) / fps, log))


def _sound(run: Run) -> Sound | None:
    """The sound of the clip that a run was trained on."""
    from ..media import has_sound

    if run.sound is None and Path(run.source).is_file() and has_sound(Path(run.source)):
        log(f"the sound of {run.source} is left out: the run was trained before runs kept which part of it is theirs")
    return run.sound


def _frames(run: Run, path: Path | None, size: tuple[int, int] | None) -> tuple[np.ndarray | None, float, Sound | None]:
    """Frames of another video or image, at `size` or its own, frames per second and sound; None: those of the run."""
    from ..media import read_image, read_media

    if path is None:
        return None, run.fps, _sound(run)
    if run.kind == "image":
        return read_image(path, size=size, log=log), run.fps, None
    clip = read_media(
        path, size=size, max_side=None, log=lambda line: None if line.startswith("scaled ") else log(line)
    )
    return clip.frames, clip.fps, clip.sound


@dataclass(kw_only=True)
class EditOptions(Generation):
    """An edited image, a sketch or a masked image, made to look like the training image."""

    example: ClassVar[str] = "sinfusion edit runs/balloons sketch.png --strength 0.6 --count 4"
    lower: ClassVar[str] = "--count or --canvas"

    # The edited image or a sketch of colour blobs; scaled down if it is larger than the training image.
    image: Annotated[Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    # A mask: an image of the same size, white where IMAGE may change (inpainting); left out: everywhere.
    mask: File = None
    # How far back in the reverse process IMAGE enters: small values keep it, 1 generates it anew.
    strength: float = 0.5
    # A larger size, such as 256x128, that IMAGE is continued to on all sides (outpainting).
    canvas: Size = None
    # How often each step goes back and is taken again, so that what is made meets what is kept; left out: 3, or 0 where
    # nothing is kept or --text guides.
    jumps: Whole = None
    # Number of samples; sample i is generated from seed + i.
    count: int = 1
    # Words that the result is to show, where IMAGE may change; sinfusion edit --help-text has more.
    text: Text = None


@dataclass(kw_only=True)
class Edit(Guiding, EditOptions):
    __doc__ = EditOptions.__doc__

    helps: ClassVar[dict[str, type]] = {"--help-text": Guiding, "--help": EditOptions, "-h": EditOptions}

    def __call__(self) -> None:
        from ..generation.image import edit
        from ..media import read_image, read_mask

        run, canvas = self.load(), parse_size(self.canvas)
        check_count(self.count)
        image = read_image(self.image, max_side=max(run.size), log=log)
        mask = None if self.mask is None else read_mask(self.mask, image.shape[:2])
        with self.outputs(run, self.count) as outputs:
            how = self.strength, canvas, self.count, self.seed, self.steps
            guiding = self.guiding(canvas or (image.shape[0], image.shape[1]))
            images = edit(run, image, mask, *how, **guiding, jumps=self.jumps)
            outputs.write_images(images, **self.guided_by())
