"""One-shot tuning of an image model: tune, retell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from tyro.conf import Positional

from ..console import Bar, print_result
from ..names import pasteable
from ..seeds import check_seed
from .command import Command
from .options import (
    OPTIONAL,
    File,
    Format,
    Number,
    Out,
    Precision,
    Size,
    Text,
    Whole,
    evenly_spaced,
    network_device,
    parse_size,
)
from .outputs import SHEET_COLUMNS, Outputs


@dataclass(kw_only=True)
class Tune(Command):
    """Tune a Stable Diffusion that you have on one video, to retell it in other words. Needs a GPU.

    The published method (Tune-A-Video): pip install 'sinfusion[tune]'.
    """

    example: ClassVar[str] = 'sinfusion tune ski.mp4 --prompt "a man is skiing" --model stable-diffusion-v1-4'
    lower: ClassVar[str] = "--frames, --window or --size"

    # A video, GIF or folder of frames; or the folder of a run, which goes on, by --steps more if it is finished.
    input: Annotated[Positional[Path], tyro.conf.arg(metavar="INPUT")]
    # What the video shows, in a sentence.
    prompt: Text = None
    # Folder of the image model, Stable Diffusion 1.4 or 1.5, in the layout of diffusers, weights as safetensors.
    model: File = None
    # Folder of the run; left out: runs/ and the name of the input.
    out: File = None
    # paper (the default): 8 frames spread over the video, 300 steps; released: the first 24 frames, 500 steps.
    recipe: Annotated[Literal["paper", "released"] | None, OPTIONAL] = None
    # Number of frames; left out: the recipe's.
    frames: Whole = None
    # Number of steps; left out: the recipe's.
    steps: Whole = None
    # Size of the frames, multiples of 8; left out: 512x512, whatever the shape of the video.
    size: Size = None
    # Learning rate; left out: 3e-5.
    learning_rate: Number = None
    # Frames that the network sees at once; more are learnt and told in windows that overlap; left out: 24.
    window: Whole = None
    # First frame to use; left out: 0.
    start: Whole = None
    # Frame to stop before; left out: the end.
    stop: Whole = None
    # Use every n-th frame; left out: all.
    stride: Whole = None
    # Frames per second to resample a video to, or of a folder; left out: its own, 20.
    fps: Number = None
    # Seed of all random numbers; left out: 0.
    seed: Whole = None
    # Where to compute: auto, cpu, cuda, or cuda:1 of several GPUs.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it.
    precision: Precision = "auto"
    # Begin on a CPU, too, though it takes hours.
    really_on_cpu: bool = False
    # Write over a tuned run that exists.
    overwrite: bool = False

    def __call__(self) -> None:
        from ..tuning.session import tune

        network_device(self.device)
        run = tune(**vars(self) | {"size": parse_size(self.size)})
        print_result(f'tuned {run.path}; next: sinfusion retell {pasteable(run.path)} --prompt "..."')


@dataclass(kw_only=True)
class Retell(Command):
    """The video of a tuned run in other words: another subject, place or style, the same motion."""

    example: ClassVar[str] = 'sinfusion retell runs/ski --prompt "spider man is skiing on the beach, cartoon style"'
    lower: ClassVar[str] = "the size: tune another run with a smaller --size or --window"

    # The folder of a run that `sinfusion tune` has tuned.
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    # What the video should show; of several sentences, a video each.
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT")]
    # How strongly the text counts.
    guidance: float = 12.5
    # Evaluations of the reverse process.
    steps: int = 50
    # Those that find the noise of the video, a multiple of --steps; more keep more of it; left out: as many.
    inversion_steps: Whole = None
    # A mask, white where the video stays: an image, or a video with the frames of the clip.
    keep_mask: File = None
    # Begin with noise of the seed instead of that of the video.
    from_noise: bool = False
    # Where the image model is now, if it was moved.
    model: File = None
    # File to write; left out: outputs/retell-<number> in the run folder.
    out: Out = None
    # Format: mp4, gif, webp or png (a folder of images); left out: by --out, else mp4.
    format: Format = None
    # Seed of the noise of --from-noise.
    seed: int = 0
    # Where to compute: auto, cpu, cuda, or cuda:1 of several GPUs.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it.
    precision: Precision = "auto"
    # Begin on a CPU, too, though it takes hours.
    really_on_cpu: bool = False
    # Write over files that exist.
    overwrite: bool = False

    def __call__(self) -> None:
        check_seed(self.seed)
        from ..media import write_video
        from ..tuning.retelling import check_request, retell
        from ..tuning.tuned_run import load

        check_request(list(self.prompt), self.guidance, self.steps, self.inversion_steps)
        run = load(self.run, network_device(self.device), self.precision)
        with Outputs(self, "video", run.path / "outputs", {"run": run.path}, len(self.prompt)) as outputs:
            with Bar() as bar:
                videos = retell(
                    run, self.prompt, self.guidance, self.steps, self.inversion_steps, self.keep_mask, self.from_noise,
                    self.seed, self.model, self.really_on_cpu, bar,
                )  # fmt: skip
            for path, video in zip(outputs.files, videos, strict=True):
                write_video(path, video, fps=run.fps, overwrite=self.overwrite)
            picked = evenly_spaced(len(run.frames), SHEET_COLUMNS)
            shown = [video[i] for video in (run.frames, *videos) for i in picked]
            outputs.finish(shown, len(picked), fps=run.fps, frames=len(run.frames))
