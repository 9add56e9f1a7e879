"""`restyle`: a run of a video in a new look. Its clip is drawn to a text, what it generates to patches of that clip.

reef = sinfusion.restyle("runs/fish", "runs/reef", text="a coral reef", text_model="clip-vit-base-patch32")
sinfusion.extrapolate(reef, after=60)        # as every other command, in the new look

The models are those of the run, and take a look that they do not know away within some frames: so all of each frame is
projected to patches of the restyled clip, and not only where a frame differs much from them. That needs no training;
with minutes, the models learn the restyled clip as well.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from ..checkpoint import last_checkpoint
from ..errors import SettingError, SinfusionError
from ..files import atomic_write, make_folders
from ..generation.guidance import Guidance
from ..generation.restyling import restyled
from ..generation.video import require_video
from ..names import as_path
from ..progress import OnProgress
from ..roles import PROJECTOR, ROLES
from ..run import Run, load, writing
from ..seeds import check_seed
from .run_setup import check_replaceable
from .session import train


def restyle(
    run: Run | str | Path,
    out: str | Path,
    text: str | None = None,
    text_model: str | Path | None = None,
    text_strength: float | None = None,
    text_fill: float | None = None,
    style: Any = None,
    where: Any = None,
    amount: float = 0.25,
    minutes: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
    on_progress: OnProgress | None = None,
) -> Run:
    """A new run in the folder `out`, whose clip is that of `run` drawn to a text, all frames together.

    text, text_model, text_strength, text_fill, style, where: as for `edit`. amount: in (0, 1], the share of the
    noise that guidance begins with. minutes: in which all models of the run learn the new clip, from where they are.
    overwrite: in place of an earlier run. quiet: print nothing. on_progress: called while the models learn. Returns the
    new run.
    Raises SinfusionError for anything wrong with these, before any work.
    """
    run = run if isinstance(run, Run) else load(run)
    require_video(run)
    for role in {PROJECTOR, *(ROLES[name] for name in run.models)}:
        run.denoiser(role)
    guidance = Guidance(text, text_model, style, where, text_strength, text_fill)
    if not guidance.wanted:
        raise SettingError("restyle needs {text}, or {style}.")
    if not 0 < amount <= 1:
        raise SettingError(f"{{amount}} must be above 0 and at most 1, not {amount}.")
    if not minutes >= 0:
        raise SettingError(f"{{minutes}} must be at least 0, not {minutes}.")
    folder, seed = as_path(out, "out"), check_seed(seed)
    if folder.absolute() == run.path.absolute():
        raise SinfusionError(f"{run.path} is the run itself; choose another --out.")
    check_replaceable(folder, overwrite)
    recipe = run.recipe.replace(projection_weight=1.0, projection_tolerance=0.0)
    new = dataclasses.replace(restyled(run, guidance, amount, seed), path=folder, recipe=recipe)
    make_folders(folder)
    with writing(folder):
        check_replaceable(folder, overwrite)  # again: now nobody else writes
        new.save(anew=True)
        for name in run.models:
            checkpoint = last_checkpoint(run.path / name)
            assert checkpoint is not None
            make_folders(folder / name)
            with atomic_write(folder / name / checkpoint.name) as temporary:
                shutil.copytree(checkpoint, temporary)
    return train(folder, minutes=minutes, quiet=quiet, on_progress=on_progress) if minutes else new
