"""The studio's folder: clips that were uploaded, runs, results; each is known to the page by an id, never by a path.

    clips/clip-1/       source.mp4 (as it was uploaded), view.mp4 or view.png, poster.png, clip.json
    runs/run-1/         a run of `sinfusion train`; runs of other names are listed, too
    results/result-1/   see `making`
    studio.json         what the runs were trained on

An id is a hash of a folder's name; what is asked for is looked up among the folders that are there, links left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SinfusionError
from ..files import atomic_write, discard, remove, rows, writer_of

Facts = dict[str, Any]
KINDS = {"clips": "clip", "runs": "run", "results": "result"}  # folders, and what one thing in them is called
RECORDS = {"clips": "clip.json", "runs": "run.json", "results": "result.json"}
UPLOAD = ".upload-"  # beginning of the names of what does not count yet
CURVE_POINTS = 120  # of a loss curve, at most


class Missing(SinfusionError):
    """There is nothing with an id."""


def id_of(name: str) -> str:
    """The id of a folder with this name."""
    return hashlib.blake2b(os.fsencode(name), digest_size=6).hexdigest()


class Workspace:
    """A folder of clips, runs and results; created if needed."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        for kind in KINDS:
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
        for left in (self.folder / "clips").glob(f"{UPLOAD}*"):  # of a server that was killed
            discard(left)
        self._taken = {kind: 0 for kind in KINDS}  # the highest number given away
        self._histories: dict[Path, tuple[tuple[int, int], Facts, list[list[float]]]] = {}  # by log

    def names(self, kind: str) -> Iterator[str]:
        """Names of the folders of a kind that are whole, the newest last."""
        found = []
        for entry in os.scandir(self.folder / kind):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                record = Path(entry.path, RECORDS[kind])
                if record.is_file() and not record.is_symlink():
                    found.append((record.stat().st_mtime if kind == "runs" else 0, _number(entry.name), entry.name))
        yield from (name for *_, name in sorted(found))

    def path(self, kind: str, id: str) -> Path:
        """The folder with an id; Missing if there is none."""
        for name in self.names(kind):
            if id_of(name) == id:
                return self.folder / kind / name
        raise Missing(f"there is no such {KINDS[kind]}; load the page anew.")

    def file(self, kind: str, id: str, *names: str) -> Path:
        """A file in the folder with an id, by names of our own; Missing if it is not there, or is a link."""
        path = self.path(kind, id).joinpath(*names)
        if path.is_symlink() or not path.is_file() or self.folder not in path.resolve().parents:
            raise Missing(f"this {KINDS[kind]} has no {names[-1]} yet.")
        return path

    def new(self, kind: str) -> Path:
        """The path of a folder that is not there yet: clip-3."""
        numbers = [_number(entry.name) for entry in os.scandir(self.folder / kind)]
        self._taken[kind] = 1 + max([self._taken[kind], *numbers])
        return self.folder / kind / f"{KINDS[kind]}-{self._taken[kind]}"

    def remove(self, kind: str, id: str) -> None:
        """Remove a clip or a result."""
        remove(self.path(kind, id))

    # Descriptions for the page ---------------------------------------------------------------------------------------

    def describe(self, kind: str) -> list[Facts]:
        """What the page shows of each, the newest first; what cannot be read is left out."""
        about = self._run if kind == "runs" else lambda path: _record(path / RECORDS[kind])
        found = []
        for name in self.names(kind):
            path = self.folder / kind / name
            try:
                found.append({"id": id_of(name), "name": name, **about(path)})
            except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):  # damaged, or half there
                continue
        return found[::-1]

    def _run(self, path: Path) -> Facts:
        about = _record(path / "run.json")
        if about["kind"] == "tuned":
            raise ValueError("a tuned model, which has no frames to play")
        shape, _ = _tensor_of(path / "input.safetensors")
        models = [self._model(path / name, name, model) for name, model in about["models"].items()]
        known = self.origins().get(path.name, {})
        moving = about["kind"] == "video"
        return {
            "label": known.get("label", path.name),
            "clip": known.get("clip"),
            "kind": about["kind"],
            "frames": shape[0],
            "size": [shape[2], shape[1]],
            "fps": about["fps"],
            "models": models,
            "playable": all(model["saved"] for model in models[:1]),
            "finished": all(0 < model["total"] <= model["done"] for model in models),
            "share": _share(models),
            "busy": writer_of(path) is not None,
            "offsets": _offsets(about["recipe"]) if moving else [],
            "steps": about["recipe"]["sampling_steps" if moving else "unconditional_sampling_steps"],
            "projection": about["recipe"].get("projection_weight", 0),
        }

    def _model(self, folder: Path, name: str, stored: Facts) -> Facts:
        """How far a model of a run is; its loss."""
        steps = [int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.name[5:].isdigit()]
        last, loss = self._history(folder / "log.jsonl")
        preview = folder / "preview.png"
        return {
            "name": name,
            "done": max([int(last.get("step", 0)), *steps]),
            "saved": max(steps, default=0),
            "total": int(last.get("total", 0) or stored["steps"] or 0),
            "minutes": stored["minutes"] or 0,
            "loss": loss,
            "preview": int(preview.stat().st_mtime) if preview.is_file() else 0,
        }

    def _history(self, log: Path) -> tuple[Facts, list[list[float]]]:
        """The last row of a log, and its losses by steps; read anew where it has changed."""
        if not log.is_file():
            return {}, []
        about = log.stat()
        stamp = about.st_mtime_ns, about.st_size
        if self._histories.get(log, (None,))[0] != stamp:
            found = rows(log)
            every = max(1, len(found) // CURVE_POINTS)
            loss = [[row["step"], round(row["loss"], 5)] for row in found[::every] if row.get("loss") is not None]
            self._histories[log] = stamp, (found[-1] if found else {}), loss
        return self._histories[log][1:]

    def first_frame(self, id: str) -> bytes:
        """A PNG of the first frame that a run was trained on."""
        path = self.file("runs", id, "input.safetensors")
        (_, height, width, _), begin = _tensor_of(path)
        with path.open("rb") as file:
            file.seek(begin)
            return png(file.read(height * width * 3), width)

    def origins(self) -> dict[str, Facts]:
        """What the runs were trained on, by their names: label and id of a clip."""
        try:
            return dict(_record(self.folder / "studio.json")["runs"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def remember(self, run: str, label: str, clip: str) -> None:
        """Keep what a run is trained on."""
        with atomic_write(self.folder / "studio.json") as temporary:
            temporary.write_text(json.dumps({"runs": {**self.origins(), run: {"label": label, "clip": clip}}}))


def _number(name: str) -> int:
    match = re.fullmatch(r"[a-z]+-(\d{1,9})", name)
    return int(match[1]) if match else 0


def _record(path: Path) -> Facts:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a record")
    return found


def _offsets(recipe: Facts) -> list[int]:
    """Frame offsets that a Predictor trained to the end knows, as `Recipe.offsets` has them."""
    largest = min(int(recipe["max_frame_offset"]), 1 + len(recipe["offset_milestones"]))
    return [offset for offset in range(-largest, largest + 1) if offset]


def _share(models: list[Facts]) -> float:
    """How much of a training is done, by the time that its models were given."""
    weights = [model["minutes"] or 1 for model in models]
    parts = [min(1, model["done"] / model["total"]) if model["total"] else 0 for model in models]
    return sum(weight * part for weight, part in zip(weights, parts, strict=True)) / max(sum(weights), 1e-9)


def _tensor_of(path: Path) -> tuple[list[int], int]:
    """Shape of the frames in a file of safetensors, and where they begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > 1 << 20:
            raise ValueError("no header of safetensors")
        header = json.loads(file.read(length))["frames"]
    shape = [int(side) for side in header["shape"]]
    if len(shape) != 4 or shape[3] != 3 or not all(0 < side < 1 << 20 for side in shape):
        raise ValueError("no frames")
    return shape, 8 + length + int(header["data_offsets"][0])


def png(pixels: bytes, width: int) -> bytes:
    """RGB bytes as a PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = [b"\0" + pixels[at : at + 3 * width] for at in range(0, len(pixels), 3 * width)]
    head = struct.pack(">IIBBBBB", width, len(lines), 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(lines), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
