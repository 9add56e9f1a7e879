"""sinfusion train. Every setting of a recipe is an option too, on a help page of its own."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from ..console import print_result
from ..errors import SinfusionError, option_name
from ..names import as_path, pasteable
from ..recipe import RECIPES, RENAMED, Recipe
from .command import Command
from .options import (
    OPTIONAL,
    SEVERAL,
    Address,
    File,
    Graph,
    Inputs,
    Number,
    Precision,
    Size,
    Whole,
    network_device,
    parse_size,
)
from .several import Entry, check_several, named_paths, option_words, path_word, run_entries, without_repetitions


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

    # A video, GIF, folder of frames or image to train on; or the folder of a run. An unfinished run goes on as planned;
    # a finished one is trained further by --minutes or --steps; --tasks adds models to it.
    input: Annotated[Positional[Path], tyro.conf.arg(metavar="INPUT")]
    # More of these, one after another or --jobs at a time: see docs/many.md.
    others: Inputs = ()
    # Folder of the run, or of several; left out: runs/ and the name of the input.
    out: File = None
    # Preset of the settings; left out: fast on a GPU, tiny on a CPU.
    recipe: Annotated[Literal["paper", "fast", "tiny"] | None, OPTIONAL] = None
    # Minutes for all models together; left out: the recipe's steps (tiny: 10).
    minutes: Number = None
    # Steps of each model, in place of --minutes; a finished run gets that many more.
    steps: Whole = None
    # Pixels across that the network sees, in place of --depth; tiny: 73, fast: 161.
    receptive: Whole = None
    # Uses of a video's models: generate (default; also extrapolate, retarget), upsample.
    tasks: Annotated[
        tuple[Literal["generate", "upsample"], ...] | None, tyro.conf.arg(metavar="TASKS", help_behavior_hint="")
    ] = None
    # Size of the training frames, such as 256x144; left out: see --max-side.
    size: Size = None
    # Longer side, at most; 0: as it is; left out: 256 (tiny: what the time allows).
    max_side: Whole = None
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
    # Where to compute: auto (a run's own), cpu, cuda or cuda:1.
    device: str = "auto"
    # Arithmetic: auto is bf16 where that is fast, or as before.
    precision: Precision = "auto"
    # Call kernels one by one instead of replaying graphs, to find errors.
    graph: Graph = True
    # Write over a run that exists.
    overwrite: bool = False
    # Of several inputs, how many at a time; left out: one on each GPU, or one.
    jobs: Whole = None
    # Train several on a Ray cluster: its address, auto, or local (of this machine).
    cluster: Address = None


COMPUTE = frozenset({"device", "precision", "graph"})  # options of a run that goes on
NEW = (
    frozenset(option.name for option in dataclasses.fields(TrainOptions)) - SEVERAL - {"input", "out"}
)  # of one that begins


@dataclass(kw_only=True)
class Train(TrainOptions, Command):
    __doc__ = TrainOptions.__doc__

    example: ClassVar[str] = "sinfusion train fish.mp4 --out runs/fish --minutes 5 --tasks generate upsample"
    renamed: ClassVar[dict[str, str]] = {option_name(old): option_name(new) for old, new in RENAMED.items()}
    lower: ClassVar[str] = "--max-side first, then --batch-size, --filters or --depth"
    helps: ClassVar[dict[str, type]] = {"--help-recipe": Overrides, "--help": TrainOptions, "-h": TrainOptions}

    recipe_settings: OmitArgPrefixes[Overrides] = field(default_factory=Overrides)  # type: ignore[valid-type]

    def __call__(self) -> None:
        if self.others or self.cluster is not None:
            check_several(self)
            run_entries(self._entries(), "trained", self)
            return
        from ..training.session import train

        network_device(self.device)
        options = {
            option.name: getattr(self, option.name)
            for option in dataclasses.fields(TrainOptions)
            if option.name not in SEVERAL
        }
        options |= {"size": parse_size(self.size), "graph": None if self.graph else False}
        run = train(**options, settings=self._settings())
        if os.environ.get("RANK", "0") == "0":
            command = "upsample" if list(run.models) == ["interpolator"] else "generate"
            print_result(f"trained {run.path}; next: sinfusion {command} {pasteable(run.path)}")

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.recipe_settings).items() if value is not None}

    # Several inputs --------------------------------------------------------------------------------------------------

    def _entries(self) -> list[Entry]:
        """What is to be done for each of several inputs."""
        from ..training.request import run_folder

        inputs = without_repetitions([self.input, *self.others])
        clips = [path for path in inputs if run_folder(path) is None]
        if clips:
            self._check(clips[0])
        if self.out is not None and self.others and (self.out.is_file() or run_folder(self.out) is not None):
            what = "a file" if self.out.is_file() else "a run"
            raise SinfusionError(f"--out {self.out} is {what}; of several inputs it is the folder of their runs.")
        if self.out is not None and not self.others:
            folders = {self.input: self.out}
        else:
            folders = named_paths(clips, Path("runs") if self.out is None else self.out)
        return [self._of_clip(path, folders[path]) if path in clips else self._of_run(path) for path in inputs]

    def _check(self, clip: Path) -> None:
        """SinfusionError for what is wrong with all of several clips: it is said once, before any work."""
        from ..media import Source
        from ..training.request import TrainingRequest

        TrainingRequest(
            source=Source(clip, self.start, self.stop, self.stride, parse_size(self.size), self.max_side, self.fps),
            recipe=self.recipe,
            settings=self._settings(),
            minutes=self.minutes,
            steps=self.steps,
            tasks=self.tasks,
            seed=self.seed or 0,
        )

    def _of_clip(self, clip: Path, folder: Path) -> Entry:
        """What is to be done for one of several clips, whose run has, or will have, that folder."""
        from ..run import load

        if self.overwrite or not (folder / "run.json").is_file() or not (folder / "input.safetensors").is_file():
            return self._entry(folder.name, folder, clip, NEW, out=folder)
        try:
            run = load(folder, "cpu", log=lambda _: None)
        except SinfusionError as error:
            return Entry(folder.name, failure=str(error))
        source = as_path(run.source or "frames")
        if source.resolve() != clip.resolve() and (source.exists() or source.name != clip.name):
            return Entry(
                folder.name,
                failure=f"{folder} is a run of {pasteable(source)}, not of {pasteable(clip)}; choose another --out.",
            )
        if all(map(run.finished, run.models)):
            return Entry(folder.name, str(folder))
        return self._entry(folder.name, folder, folder, COMPUTE)

    def _of_run(self, path: Path) -> Entry:
        """What is to be done for one of several runs."""
        from ..run import load

        try:
            run = load(path, "cpu", log=lambda _: None)
        except SinfusionError as error:
            return Entry(str(path), failure=str(error))
        asked = (self.minutes, self.steps, self.tasks) != (None, None, None)
        if not asked and all(map(run.finished, run.models)):
            return Entry(str(path), str(path))
        return self._entry(str(path), path, path, NEW)

    def _entry(self, label: str, folder: Path, input: Path, names: frozenset[str], out: Path | None = None) -> Entry:
        """A job that trains on one input, with the options of these names."""
        words = ["train", path_word(input), *([] if out is None else [f"--out={path_word(out)}"])]
        words += option_words(self, names)
        if names is NEW:
            words += option_words(self.recipe_settings, vars(self.recipe_settings))
        return Entry(label, str(folder), words)
