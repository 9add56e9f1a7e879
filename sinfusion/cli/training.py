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
from ..errors import option_name
from ..names import pasteable
from ..recipe import RECIPES, RENAMED, Recipe
from .command import Command
from .options import OPTIONAL, File, Graph, Number, Precision, Size, Whole, network_device, parse_size


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
    # Folder of the run; left out: runs/ and the name of the input.
    out: File = None
    # Preset of the settings; left out: fast on a GPU, tiny on a CPU.
    recipe: Annotated[Literal["paper", "fast", "tiny"] | None, OPTIONAL] = None
    # Minutes for all models together; left out: the recipe's steps (tiny: 10).
    minutes: Number = None
    # Steps of each model, in place of --minutes; a finished run gets that many more.
    steps: Whole = None
    # Pixels across that the network sees, in place of --depth; tiny: 73, fast: 161.
    receptive: Whole = None
    # What the models of a video will be used for: generate (the default; also for extrapolate and retarget), upsample.
    tasks: Annotated[
        tuple[Literal["generate", "upsample"], ...] | None, tyro.conf.arg(metavar="TASKS", help_behavior_hint="")
    ] = None
    # Size of the training frames, such as 256x144; left out: see --max-side.
    size: Size = None
    # Longer side that larger inputs are scaled down to; 0 keeps their size; left out: 256 (tiny: what the time allows).
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
    # Where to compute: auto, cpu, cuda, or cuda:1 of several GPUs; auto keeps the device of a run that goes on.
    device: str = "auto"
    # Arithmetic: auto is bf16 where the hardware is fast at it; auto keeps the precision of a run that goes on.
    precision: Precision = "auto"
    # Call kernels one by one instead of replaying graphs, to find errors.
    graph: Graph = True
    # Write over a run that exists.
    overwrite: bool = False


@dataclass(kw_only=True)
class Train(TrainOptions, Command):
    __doc__ = TrainOptions.__doc__

    example: ClassVar[str] = "sinfusion train fish.mp4 --out runs/fish --minutes 5 --tasks generate upsample"
    renamed: ClassVar[dict[str, str]] = {option_name(old): option_name(new) for old, new in RENAMED.items()}
    lower: ClassVar[str] = "--max-side first, then --batch-size, --filters or --depth"
    helps: ClassVar[dict[str, type]] = {"--help-recipe": Overrides, "--help": TrainOptions, "-h": TrainOptions}

    recipe_settings: OmitArgPrefixes[Overrides] = field(default_factory=Overrides)  # type: ignore[valid-type]

    def __call__(self) -> None:
        from ..training.session import train

        network_device(self.device)
        options = {option.name: getattr(self, option.name) for option in dataclasses.fields(TrainOptions)}
        options |= {"size": parse_size(self.size), "graph": None if self.graph else False}
        settings = {name: value for name, value in vars(self.recipe_settings).items() if value is not None}
        run = train(**options, settings=settings)
        if os.environ.get("RANK", "0") == "0":
            command = "upsample" if list(run.models) == ["interpolator"] else "generate"
            print_result(f"trained {run.path}; next: sinfusion {command} {pasteable(run.path)}")
