"""Decode an upload before it counts, in a process of its own that has little to break.

python -m sinfusion.studio.checking SOURCE FOLDER LABEL    # prints {"kind": ...} or {"error": ...}

It also writes a picture and a video of it that browsers show to the folder.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

SECONDS = 60  # of the processor
MEMORY = 3 << 30  # bytes, beside what is mapped from files
WRITTEN = 256 << 20  # bytes of each file that is written
OPEN_FILES = 64
MOST_FRAMES = 5000
SIDE = 256  # pixels that longer sides are scaled down to, as in training


def limit() -> None:
    """From here on this process can take no more than that."""
    for what, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_FSIZE, WRITTEN),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most, most) if hard == resource.RLIM_INFINITY else (min(most, hard), hard))


def check(source: Path, folder: Path, label: str) -> dict[str, Any]:
    """What is in an upload; a picture and a video of it that browsers show are written beside it."""
    from ..errors import SinfusionError
    from ..media import Source, write_image, write_video
    from .pictures import write_poster

    notes: list[str] = []
    opened = Source(source, max_side=SIDE)
    frames = opened.probe().frames
    if frames > MOST_FRAMES:
        raise SinfusionError(f"{label} has {frames} frames; cut it to at most {MOST_FRAMES}.")
    clip = opened.read(log=notes.append)
    if clip.kind == "video":
        write_video(folder / "view.mp4", clip.frames, fps=clip.fps, log=lambda _: None)
    else:
        write_image(folder / "view.png", clip.frames[0])
    write_poster(folder / "poster.png", clip.frames[0])
    height, width = clip.frames.shape[1:3]
    return {
        "kind": clip.kind,
        "frames": len(clip.frames),
        "size": [width, height],
        "source_size": list(clip.source_size)[::-1],
        "fps": clip.fps,
        "notes": [_called(note, source, label) for note in notes],
    }


def _called(text: str, source: Path, label: str) -> str:
    """A sentence that calls the upload what the page calls it."""
    for ours, theirs in ((str(source), label), (source.name, label), (f"{source.stem}.", f"{Path(label).stem}.")):
        text = text.replace(ours, theirs)
    return text


def main(words: list[str]) -> None:
    source, folder, label = Path(words[0]), Path(words[1]), words[2]
    try:
        limit()
        found = check(source, folder, label)
    except MemoryError:
        found = {"error": f"{label} needs more memory to decode than is allowed here; make it smaller or shorter."}
    except Exception as error:  # a SinfusionError, or what a decoder raises at a limit
        found = {"error": _called(str(error), source, label) or type(error).__name__}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
