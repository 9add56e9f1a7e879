"""Checkpoints of one model: folders step-00001500/ with weights.safetensors and optimizer.pt.

A checkpoint is a folder written under another name and renamed when whole, so a kill at any moment leaves the last one.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file
from torch import Tensor

from .errors import SinfusionError
from .files import atomic_write, make_folders, remove


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a model, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints of a model, the newest last."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit())


def newest_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The newest checkpoint of a model and its weights, also while a training removes it for a newer one."""
    while True:
        checkpoint = last_checkpoint(folder)
        assert checkpoint is not None
        try:
            return checkpoint, load_weights(checkpoint / "weights.safetensors")[0]
        except SinfusionError:
            if last_checkpoint(folder) in (checkpoint, None):
                raise


def seconds_used(models: Iterable[Path]) -> float:
    """Time that a run had used when the newest checkpoint of its models was written; 0 where none tells."""
    seconds = [0.0]
    for folder in models:
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            continue
        try:
            with safe_open(checkpoint / "weights.safetensors", framework="pt") as file:
                seconds.append(float(json.loads(file.metadata()["sinfusion"])["seconds"]))
        except (OSError, SafetensorError, ValueError, LookupError, TypeError):
            continue  # damaged, or of an older version
    return max(seconds)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file: every weight as raw.<name> and as average.<name>."""
    try:
        with safe_open(path, framework="pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise SinfusionError(f"{path} is damaged or missing: {error!s:.100}") from error
    raw, average = (
        {name.removeprefix(prefix): value.shape for name, value in weights.items() if name.startswith(prefix)}
        for prefix in ("raw.", "average.")
    )
    if raw != average or len(weights) != 2 * len(raw):
        raise SinfusionError(f"{path} is damaged: raw and average weights differ.")
    return weights, metadata


def save_checkpoint(
    folder: Path,  # of the model
    step: int,  # steps done
    raw: dict[str, Tensor],
    average: dict[str, Tensor],
    optimizer: dict[str, Any],
    about: dict[str, Any],  # JSON, the metadata of the weights file
) -> Path:
    """Write a checkpoint beside the last one, rename it into place, then remove older ones."""
    make_folders(folder)
    final = folder / f"step-{step:08d}"
    if not final.exists():  # the state after a step is always the same
        tensors = {f"raw.{k}": v.detach().cpu().contiguous() for k, v in raw.items()}
        tensors |= {f"average.{k}": v.detach().cpu().contiguous() for k, v in average.items()}
        metadata = {"sinfusion": json.dumps(about)}
        with atomic_write(final) as temporary:
            temporary.mkdir()
            save_file(tensors, temporary / "weights.safetensors", metadata)
            torch.save({"step": step, "optimizer": optimizer}, temporary / "optimizer.pt")
    for old in checkpoints(folder):
        if old != final:
            remove(old)
    return final


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """{"step": steps done, "optimizer": state}, read without running code from the file."""
    weights, _ = load_weights(checkpoint / "weights.safetensors")
    try:
        state: dict[str, Any] = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
        if f"step-{state['step']:08d}" != checkpoint.name:
            raise ValueError(f"step {state['step']}")
        for name, moments in state["optimizer"].items():
            shape = weights[f"raw.{name}"].shape
            # An imported model has none.
            expected = {"step": (), "exp_avg": shape, "exp_avg_sq": shape} if moments else {}
            if expected != {key: value.shape for key, value in moments.items() if value.dtype == torch.float32}:
                raise ValueError(name)
        if len(state["optimizer"]) * 2 != len(weights):
            raise ValueError("weights without state")
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError,
            pickle.UnpicklingError, zipfile.BadZipFile) as error:  # fmt: skip
        raise SinfusionError(
            f"{checkpoint / 'optimizer.pt'} is damaged or missing: the run can be used, but not trained further."
        ) from error
    return state


def load_into(network: torch.nn.Module, weights: dict[str, Tensor], prefix: str, origin: Path) -> None:
    """Copy the tensors named prefix + parameter into a network; all must be there, with the right shapes."""
    picked = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(picked)
    except RuntimeError:
        raise SinfusionError(f"the weights in {origin} do not fit the network that run.json describes.") from None
