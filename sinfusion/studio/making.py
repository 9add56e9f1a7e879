"""What the page asks for and takes more than a moment: results by patches, loops, edits, figures, GIFs.

A result is a folder: result.mp4 or result.png, frames.zip (PNGs), poster.png, result.json; result.gif once it is asked
for. It appears under its name when it is whole.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import patches
from ..errors import SinfusionError
from ..files import atomic_write
from ..generation.image import edit as edit_image
from ..generation.loops import loop as loop_of_run
from ..media import Clip, Source, write_image, write_video
from ..metrics.evaluation import evaluate
from ..metrics.loops import loop_figures
from ..pixels import resize
from ..precision import choose_device
from ..progress import OnProgress
from ..run import Run, load
from .pictures import as_png, write_poster

FIGURES = ("nnfdiv", "nnfdist", "coverage", "change", "high_frequency")  # of `evaluate`, that the page shows

Request = dict[str, Any]  # options by name; "source": a path, "result": the folder to write, "facts": for its record


def patches_generate(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """A new video or image, without training."""
    clip = read_clip(request)
    how = request["frames"], request["size"], 1.0, request["noise"], 1, request["seed"], choose_device()
    return save(request, patches.generate(clip.pixels, *how, on_progress)[0], clip.fps)


def retarget(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """The clip at another size, without training."""
    clip = read_clip(request)
    how = request["size"], None, request["seed"], choose_device(), on_progress
    return save(request, patches.retarget(clip.pixels, *how), clip.fps)


def loop(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """A video whose last frame leads to its first, from a clip or a run."""
    frames, size, seed = request["frames"], request["size"], request["seed"]
    original: Clip | Run
    if request["of"] == "run":
        original = load_run(request)
        looped = loop_of_run(original, frames, size, None, seed, on_progress=on_progress)
    else:
        original = read_clip(request)
        looped = patches.loop(original.pixels, frames, size, None, seed, choose_device(), on_progress)
    figures = loop_figures(looped, original.frames)
    words = "it loops" if figures.loops else "what moves one way has to go back, and shows where it does"
    note = f"{words}: the seam changes {figures.seam:.2f} times the median"
    return save(request, looped, original.fps, note)


def inpaint(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """The clip with a painted part filled from what is around it."""
    clip, (_, mask) = read_clip(request), painted(request, body)
    mask = _as_large(mask, clip.frames.shape[1:3])
    return save(
        request, patches.inpaint(clip.pixels, mask, False, request["seed"], choose_device(), on_progress), clip.fps
    )


def edit(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """The image of an image run as it was painted, made to look like the one it was trained on."""
    run, (image, mask) = load_run(request), painted(request, body)
    how = request["strength"], None, 1, request["seed"], request["steps"]
    return save(request, edit_image(run, resize(image, run.size), _as_large(mask, run.size), *how)[0], run.fps)


def measure(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """The figures of a result against its original, added to its record."""
    folder = Path(request["result"])
    frames, original = read_frames(folder), _original(request)
    size = frames.shape[-3:-1]
    original = np.stack([resize(frame, size) for frame in original])
    result, known = (frames, original) if frames.ndim == 4 else (frames, original[0])
    rows = evaluate(known, [result], log=lambda _: None, on_progress=on_progress)
    figures = {row["kind"]: {name: row[name] for name in FIGURES if row.get(name) is not None} for row in rows}
    record = json.loads((folder / "result.json").read_text())
    record["figures"] = figures["result"]
    record["self_baseline"] = figures["self_baseline"]
    _write_record(folder, record)
    return {"figures": figures["result"]}


def gif(request: Request, body: bytes, on_progress: OnProgress) -> Request:
    """result.gif of a result."""
    folder = Path(request["result"])
    record = json.loads((folder / "result.json").read_text())
    write_video(folder / "result.gif", read_frames(folder), fps=record["fps"], overwrite=True, log=lambda _: None)
    return {}


# Reading and writing -------------------------------------------------------------------------------------------------


def read_clip(request: Request) -> Clip:
    """The clip that a request is about, at most as large as it asks for."""
    return Source(request["source"], max_side=request["max_side"]).read(log=lambda _: None)


def load_run(request: Request) -> Run:
    return load(request["source"], choose_device(), log=lambda _: None)


def _original(request: Request) -> np.ndarray:
    """(T, H, W, 3) uint8: what a result was made of."""
    return load_run(request).frames if request["of"] == "run" else read_clip(request).frames


def painted(request: Request, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """What was painted, (H, W, 3) uint8, and where, (H, W) bool: of RGBA bytes."""
    height, width = request["painted"]
    if len(body) != height * width * 4:
        raise SinfusionError(f"a painting of {width}x{height} has {height * width * 4} bytes, not {len(body)}.")
    pixels = np.frombuffer(body, np.uint8).reshape(height, width, 4)
    mask = pixels[..., 3] > 127
    if not mask.any():
        raise SinfusionError("nothing is painted; paint what should change.")
    return np.ascontiguousarray(pixels[..., :3]), mask


def _as_large(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def save(request: Request, pixels: np.ndarray, fps: float, note: str = "") -> Request:
    """Write a result, (T, H, W, 3) or (H, W, 3) uint8."""
    frames = pixels if pixels.ndim == 4 else pixels[None]
    record = {
        **request["facts"],
        "kind": "video" if pixels.ndim == 4 else "image",
        "frames": len(frames),
        "size": [frames.shape[2], frames.shape[1]],
        "fps": fps,
        "note": note,
        "seconds": round(time.monotonic() - request["started"], 1),
    }
    with atomic_write(Path(request["result"]), overwrite=False) as folder:
        folder.mkdir()
        if pixels.ndim == 4:
            write_video(folder / "result.mp4", frames, fps=fps, log=lambda _: None)
        else:
            write_image(folder / "result.png", pixels)
        write_frames(folder / "frames.zip", frames)
        write_poster(folder / "poster.png", frames[0])
        (folder / "result.json").write_text(json.dumps(record))
    return record


def write_frames(path: Path, frames: Sequence[np.ndarray] | np.ndarray) -> None:
    """A zip file of numbered PNGs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, frame in enumerate(frames, 1):
            archive.writestr(f"{number:05d}.png", as_png(frame, 6))


def read_frames(folder: Path) -> np.ndarray:
    """The frames of a result, (T, H, W, 3) uint8; of an image (H, W, 3)."""
    with zipfile.ZipFile(folder / "frames.zip") as archive:
        names = sorted(archive.namelist())
        frames = np.stack([np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    return frames if (folder / "result.mp4").exists() else frames[0]


def _write_record(folder: Path, record: Request) -> None:
    with atomic_write(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(record))


MAKE: dict[str, Callable[[Request, bytes, OnProgress], Request]] = {
    "patches": patches_generate,
    "retarget": retarget,
    "loop": loop,
    "inpaint": inpaint,
    "edit": edit,
    "measure": measure,
    "gif": gif,
}
