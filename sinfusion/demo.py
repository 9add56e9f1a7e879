"""`sinfusion demo`: no input needed. Renders a scene, makes new ones by patches and by training, shows all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import console, patches
from .clip import check_fps
from .errors import SinfusionError
from .generation.video import generate
from .media import contact_sheet, side_by_side, write_image, write_video
from .names import as_path, pasteable
from .precision import choose_device
from .progress import OnProgress
from .run import Run
from .scene import render
from .seeds import check_seed
from .training.session import train

FPS = 16.0


def demo(
    out: str | Path = "sinfusion-demo",
    minutes: float = 3.5,
    seed: int = 0,
    overwrite: bool = False,
    log: Callable[[str], None] = console.log,
    on_progress: OnProgress | None = None,
    fps: float = FPS,
) -> Run:
    """Write, under `out`: original.mp4, a rendered scene; patches.mp4, made of its patches in seconds; and, after
    training for `minutes`, or for as long as a slow machine needs, generated.mp4 (from a real first frame), diverse.mp4
    (from a first frame of its own), original-beside-generated.mp4, contact-sheet.png and the run.

    on_progress: as `patches.generate` and `train` take it. fps: frames per second of all videos. Raises SinfusionError
    where `out` is in use, or a value is out of range.
    """
    out = as_path(out, "out")
    names = ("original.mp4", "patches.mp4", "generated.mp4", "diverse.mp4", "original-beside-generated.mp4",
             "contact-sheet.png")  # fmt: skip
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        hint = "pass --overwrite or choose" if out.is_dir() else "choose"
        raise SinfusionError(f"{out} exists; {hint} another --out.")
    if minutes <= 0:
        raise SinfusionError(f"minutes must be above 0, not {minutes}.")
    check_fps(fps)
    seed = check_seed(seed, 2)  # the second video is made from seed + 1
    original = render(seed=seed)
    write_video(out / names[0], original, fps=fps, overwrite=overwrite)
    log(f"rendered {out / names[0]}: {len(original)} frames of {original.shape[2]}x{original.shape[1]}")
    before = time.monotonic()
    shuffled = patches.generate(original, seed=seed, device=choose_device(), on_progress=on_progress)[0]
    write_video(out / names[1], shuffled, fps=fps, overwrite=overwrite)
    log(f"made {out / names[1]} of its patches, without training, in {time.monotonic() - before:.0f} s; now training")
    run = train(
        original, out / "run", minutes=minutes, fps=fps, seed=seed, overwrite=overwrite, patient=True,
        on_progress=on_progress,
    )  # fmt: skip
    log(f"generating two videos of {len(original)} frames")
    outputs = generate(run, len(original), start=0, seed=seed)[0]
    diverse = generate(run, len(original), seed=seed + 1)[0]
    write_video(out / names[2], outputs, fps=fps, overwrite=overwrite)
    write_video(out / names[3], diverse, fps=fps, overwrite=overwrite)
    both = side_by_side(original, outputs, ("original", "generated"))
    write_video(out / names[4], both, fps=fps, overwrite=overwrite)
    shown = {"original": original, "patches": shuffled, "generated": outputs, "diverse": diverse}
    rows = [video[np.linspace(0, len(video) - 1, 5).round().astype(int)] for video in shown.values()]
    labels = [f"{name} {i}" for name in shown for i in range(5)]
    write_image(out / names[5], contact_sheet(np.concatenate(rows), 5, 20, labels), overwrite)
    log(f"look at {out / names[4]} and {out / names[5]}")
    log(f"make more of it: sinfusion generate {pasteable(out / 'run')} --frames 200 --count 2")
    return run
