"""The folder of a tuned model: what is needed to use it or to go on, beside the image model that it is of.

    run.json              format, kind "tuned", prompt, settings, seed; the image model: folder, SHA-256 of weights
    input.safetensors     the frames that were learnt, uint8
    tuned/                step-00000300/ (weights.safetensors, optimizer.safetensors), log.jsonl, loss.png, preview.png

Weights are the tuned tensors alone, fp32, with the published names. As of every run, a kill at any moment leaves what
was whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import __version__
from ..checkpoint import checkpoints, last_checkpoint
from ..errors import SinfusionError
from ..files import LOCK, TEMPORARY, atomic_write, discard, discard_leftovers, make_folders, remove, sole_writer
from ..names import pasteable
from ..precision import choose_device, choose_dtype
from ..run import FORMAT, write_run
from ..seeds import check_seed
from .base_model import BaseModel
from .network import VideoNetwork, tuned
from .settings import Settings

KIND, MODEL = "tuned", "tuned"  # in run.json; the folder of checkpoints
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, for each tensor


@dataclass
class TunedRun:
    """A tuned, or half-tuned, model."""

    path: Path
    prompt: str  # what the frames show
    frames: np.ndarray  # (T, H, W, 3) uint8
    fps: float
    settings: Settings
    seed: int
    model: Path  # folder of the image model
    fingerprint: dict[str, str]  # of its weights
    picked: list[int]  # numbers of the frames in the clip
    source_size: tuple[int, int]  # (height, width) of the clip
    source: str = ""
    trained_with: dict[str, str] = field(default_factory=dict)  # "device" (cpu, cuda) and "precision" (bf16, fp32)
    device: torch.device = field(default_factory=lambda: choose_device("auto"))
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def folder(self) -> Path:
        """Where its checkpoints and its log are."""
        return self.path / MODEL

    def steps_done(self) -> int:
        """As the last checkpoint has it."""
        checkpoint = last_checkpoint(self.folder)
        return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0

    def finished(self) -> bool:
        """Whether it has been tuned to its planned end."""
        return self.steps_done() >= self.settings.steps

    def to(self, device: torch.device | str, precision: str = "auto") -> TunedRun:
        """The same run computing elsewhere or otherwise."""
        chosen = choose_device(device)
        return dataclasses.replace(self, device=chosen, dtype=choose_dtype(precision, chosen))

    def base_model(self, folder: str | Path | None = None) -> BaseModel:
        """The image model, from its folder or another; SinfusionError where it is not the one that was tuned."""
        base = BaseModel(Path(folder or self.model), self.device)
        found = base.fingerprint()
        if other := [part for part, digest in self.fingerprint.items() if found.get(part) != digest]:
            raise SinfusionError(
                f"{base.folder} is not the model that {self.path} was tuned on (its {' and '.join(other)} differ); "
                f"give that one: --model FOLDER."
            )
        return base

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, anew: bool = False) -> None:
        """Write run.json, and the frames if they are not there. anew: in place of an earlier run, which is removed."""
        write_run(self.path, self.frames, self.description(), _remove_run if anew else None)

    def description(self) -> dict[str, Any]:
        """What run.json holds, and what the weights carry as metadata."""
        return {
            "format": FORMAT,
            "version": __version__,
            "kind": KIND,
            "prompt": self.prompt,
            "model": {"folder": str(self.model), "sha256": self.fingerprint},
            "settings": dataclasses.asdict(self.settings),
            "fps": self.fps,
            "seed": self.seed,
            "picked": self.picked,
            "source_size": self.source_size,
            "source": self.source,
            "trained_with": self.trained_with,
        }

    def save_checkpoint(self, step: int, network: VideoNetwork, optimizer: torch.optim.Optimizer) -> None:
        """Write what is tuned, and the optimizer's moments; an older checkpoint is removed."""
        values = dict(tuned(network.unet))
        if not all(bool(value.isfinite().all()) for value in values.values()):
            raise SinfusionError(
                f"the weights stopped being finite by step {step}; the last good checkpoint is kept: lower "
                f"--learning-rate (now {self.settings.learning_rate})."
            )
        moments = {
            f"{moment}.{name}": optimizer.state[value][moment] for name, value in values.items() for moment in MOMENTS
        }
        make_folders(self.folder)
        final = self.folder / f"step-{step:08d}"
        if not final.exists():  # the state after a step is always the same
            metadata = {"sinfusion": json.dumps({**self.description(), "step": step})}
            with atomic_write(final) as temporary:
                temporary.mkdir()
                save_file(_stored(values), temporary / "weights.safetensors", metadata)
                save_file(_stored(moments), temporary / "optimizer.safetensors")
        for old in checkpoints(self.folder):
            if old != final:
                remove(old)

    def restore(self, network: VideoNetwork, optimizer: torch.optim.Optimizer | None = None) -> int:
        """Put the last checkpoint into a network, and into an optimizer of what is tuned; returns the steps done."""
        checkpoint, values = last_checkpoint(self.folder), dict(tuned(network.unet))
        if checkpoint is None:
            return 0
        weights = _read(checkpoint / "weights.safetensors", {name: value.shape for name, value in values.items()})
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(weights[name])
        if optimizer is not None:
            shapes = {f"{moment}.{name}": value.shape for name, value in values.items() for moment in MOMENTS}
            stored = _read(checkpoint / "optimizer.safetensors", shapes)
            for name, value in values.items():
                moments = {moment: stored[f"{moment}.{name}"].to(value.device) for moment in MOMENTS}
                optimizer.state[value] = {"step": torch.tensor(float(self.steps_done())), **moments}
        return self.steps_done()


def _remove_run(folder: Path) -> None:
    """Remove all of a tuned run but run.json, which stays until another takes its place; the frames last."""
    for checkpoint in checkpoints(folder / MODEL):
        remove(checkpoint)
    for file in ("log.jsonl", "loss.png", "preview.png"):
        discard(folder / MODEL / file)
    discard(folder / "input.safetensors")


def _stored(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in values.items()}


def _read(path: Path, shapes: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a file, all there and of these shapes."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SinfusionError(f"{path} is damaged or missing: {error!s:.100}") from error
    if {name: value.shape for name, value in found.items()} != shapes:
        raise SinfusionError(f"{path} does not fit the model that run.json describes.")
    return found


def is_tuned(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run of this kind, whole or damaged."""
    try:
        description = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        return bool(description["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(path: str | Path, device: torch.device | str = "auto", precision: str = "auto") -> TunedRun:
    """Open the folder of a tuned model. Raises SinfusionError for any other, and for one that is damaged."""
    folder = Path(path)
    if not is_tuned(folder):
        what = "is not a run of sinfusion tune" if folder.exists() else "does not exist"
        raise SinfusionError(f"{folder} {what}; tune one with: sinfusion tune CLIP --prompt ... --model FOLDER")
    if not (folder / "input.safetensors").is_file():
        raise SinfusionError(f"{folder} was stopped before it began; begin again with --overwrite.")
    try:
        stored = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise SinfusionError(f"it has format {stored['format']!r:.40}, this sinfusion reads format {FORMAT}.")
        height, width = stored["settings"].pop("size")
        run = TunedRun(
            path=folder,
            prompt=str(stored["prompt"]),
            frames=load_file(folder / "input.safetensors")["frames"].numpy(),
            fps=float(stored["fps"]),
            settings=Settings(**stored["settings"], size=(height, width)),
            seed=check_seed(stored["seed"]),
            model=Path(stored["model"]["folder"]),
            fingerprint={str(part): str(digest) for part, digest in stored["model"]["sha256"].items()},
            picked=[int(number) for number in stored["picked"]],
            source_size=(int(stored["source_size"][0]), int(stored["source_size"][1])),
            source=str(stored["source"]),
            trained_with={name: str(stored["trained_with"][name]) for name in ("device", "precision")},
        )
        if run.frames.dtype != np.uint8 or run.frames.shape[1:] != (*run.settings.size, 3) or not 0 < run.fps < 1e6:
            raise ValueError(f"frames {run.frames.shape} {run.frames.dtype}")
        if len(run.picked) != len(run.frames) or not run.fingerprint:
            raise ValueError("numbers of the frames, or the model's hash")
    except SinfusionError as error:
        raise SinfusionError(f"{folder} cannot be used: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
        raise SinfusionError(f"{folder} is damaged: {type(error).__name__}: {error!s:.100}") from error
    return run.to(device, precision)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The folder for this process alone; what a killed one has left in it is removed."""
    with sole_writer(folder):
        for place in (folder, folder / MODEL):
            discard_leftovers(place)
        for old in checkpoints(folder / MODEL)[:-1]:
            remove(old)
        yield


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuse to write over anything unless asked to, and over anything but an earlier run of this kind."""
    if not folder.exists():
        return
    there = {p.name for p in folder.iterdir() if not p.name.startswith(TEMPORARY)} - {LOCK} if folder.is_dir() else {""}
    if not there or (is_tuned(folder) and "input.safetensors" not in there):
        return  # empty, or stopped before it began
    if not is_tuned(folder):
        raise SinfusionError(f"{folder} exists and is no run of sinfusion tune; choose another --out.")
    if not overwrite:
        raise SinfusionError(
            f"{folder} exists; pass --overwrite or choose another --out; to go on with it: "
            f"sinfusion tune {pasteable(folder)}"
        )
