"""Import checkpoints of the released SinFusion code (PyTorch Lightning .ckpt files) as runs.

run = import_released("projector.ckpt", "runs/fish", "fish.mp4")      # once for each model of the run
Nothing in the file is executed: of its pickled objects only tensors and plain containers are created.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import console
from .diffusion.denoiser import rms_change
from .diffusion.schedule import SCHEDULES
from .errors import SinfusionError
from .media import Source
from .network import NextNet
from .recipe import PAPER, Recipe
from .roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, ROLES, Role
from .run import Run, load, writing

# What the released code trains each model to predict; for the Projector this is not what the paper says.
PARAMETERIZATIONS = {"image": "x0", "predictor": "noise", "projector": "noise", "interpolator": "x0"}

# Names of the parts of a block and of the rest of the network: ours, and those of the released code.
_BLOCK = {"depthwise": "ds_conv", "shift": "mlp.1", "expand": "net.1", "project": "net.3", "residual": "res_conv"}
_REST = {
    "final": "final_conv",
    "time.inner": "time_encoder.1",
    "time.outer": "time_encoder.3",
    "frame_offset.inner": "frame_encoder.1",
    "frame_offset.outer": "frame_encoder.3",
}


def import_released(
    checkpoint: str | Path,
    out: str | Path,
    frames: Any = None,
    role: str | None = None,
    fps: float | None = None,
) -> Run:
    """Import a released checkpoint as a run of its own, or add it to the run in the folder `out`.

    frames: what it was trained on, a file or whatever else `Source` takes; None: the frames of the run `out`.
    fps: as `Source` takes it, for `frames`.
    role: image, predictor, projector or interpolator; None: found from the weights and the kind of `frames`.

    The run has the paper's recipe with the network and schedule of the checkpoint; it cannot be trained further.
    Raises SinfusionError for a file that is not such a checkpoint, or that does not fit the run.
    """
    path, folder = Path(checkpoint), Path(out)
    content = read_checkpoint(path)
    weights, depth, filters, channels = _network_weights(content, path)
    existing = load(folder) if (folder / "run.json").is_file() else None
    if existing is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SinfusionError(f"{folder} exists and is not a run folder; choose another --out.")
    clip, kind, rate = _clip(frames, existing, fps)
    chosen = _role(role, channels, "frame_offset.inner.weight" in weights, kind, path)
    schedule, timesteps = _schedule(content["state_dict"], path)
    recipe = _recipe(depth, filters, schedule, timesteps, len(clip))
    _check_network(weights, recipe, chosen, path)
    steps = content.get("global_step")
    steps = min(max(steps, 1), 99_999_999) if isinstance(steps, int) else 1
    # x0 and noise models use no sigma_data; only the Predictor's is needed, because retargeting starts from it.
    sigma_data = [rms_change(clip, k) for k in range(1, recipe.max_frame_offset + 1)] if chosen is PREDICTOR else [1.0]
    model = {
        "steps": steps,
        "minutes": None,
        "sigma_data": sigma_data,
        "parameterization": PARAMETERIZATIONS[chosen.name],
    }
    average = {name: value.clone() for name, value in weights.items()}
    with writing(folder):
        run = Run(folder, kind, recipe, clip, rate, 0, {}, str(path))
        if (folder / "run.json").is_file():
            run = load(folder)  # read again, now that no other process can write to it
            _check_fits(run, recipe, chosen)
        run.models[chosen.name] = model
        run.save()
        run.save_checkpoint(chosen, steps, weights, average, {name: {} for name in weights})
    return load(folder)


def _recipe(depth: int, filters: int, schedule: str, timesteps: int, frames: int) -> Recipe:
    """The paper's recipe with the network and noise schedule of a checkpoint."""
    return PAPER.replace(
        filters=filters,
        depth=depth,
        schedule=schedule,
        timesteps=timesteps,
        sampling_steps=timesteps,
        unconditional_sampling_steps=timesteps,
        # The paper's numbers, for 50 and for 500 timesteps.
        correction_timesteps=min(3 if timesteps < 500 else 10, timesteps),
        correction_steps=3 if timesteps < 500 else 10,
        max_frame_offset=min(PAPER.max_frame_offset, max(1, frames - 1)),
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a .ckpt file, with `state_dict` of tensors on the CPU; other objects in it are inert."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            with archive.open(entry) as file:
                content = _Reader(file, archive, entry.removesuffix("data.pkl")).load()
    except FileNotFoundError:
        raise SinfusionError(f"{path} does not exist; give a .ckpt file of the released SinFusion code.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise SinfusionError(f"{path} is not a PyTorch checkpoint, or is damaged: {type(error).__name__}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise SinfusionError(f"{path} is not a PyTorch Lightning checkpoint: it has no state_dict.")
    return content


class _Inert:
    """Replaces any object that is not a tensor: accepts whatever a pickle does to it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def ignore(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = __call__ = append = extend = add = ignore


def _view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Reader(pickle.Unpickler):
    """Reads the zip format of torch.save: a pickle that refers to each storage, which is a file of its own."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return allowed.get((module, name), _Inert)

    def persistent_load(self, reference: Any) -> Tensor:
        _, dtype, key, _, count = reference
        if count == 0:
            return torch.empty(0, dtype=dtype)
        entry = self.archive.getinfo(f"{self.root}data/{key}")
        if entry.file_size != count * dtype.itemsize:
            raise ValueError("a storage is truncated")
        return torch.frombuffer(bytearray(self.archive.read(entry)), dtype=dtype)


def _network_weights(content: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], int, int, int]:
    """The weights with our names, fp32; depth, filters and input channels of the network."""
    theirs = {
        name.removeprefix("model."): value.float().contiguous()
        for name, value in content["state_dict"].items()
        if isinstance(name, str) and name.startswith("model.") and isinstance(value, Tensor)
    }
    numbers = {int(match[1]) for name in theirs if (match := re.match(r"layers\.(\d+)\.", name))}
    depth = len(numbers)
    names = {f"{ours}.{part}": f"{name}.{part}" for ours, name in _REST.items() for part in ("weight", "bias")}
    for i in range(depth):
        names |= {f"blocks.{i}.{o}.{p}": f"layers.{i}.{t}.{p}" for o, t in _BLOCK.items() for p in ("weight", "bias")}
        names |= {f"blocks.{i}.gain": f"layers.{i}.net.0.g", f"blocks.{i}.offset": f"layers.{i}.net.0.b"}
    weights = {ours: theirs[name] for ours, name in names.items() if name in theirs}
    weights |= {n: w.flatten() for n, w in weights.items() if n.endswith((".gain", ".offset"))}  # theirs: (1, C, 1, 1)
    first, final = weights.get("blocks.0.depthwise.weight"), weights.get("final.weight")
    if first is None or final is None or first.ndim != 4 or final.ndim != 4 or len(weights) != len(theirs):
        raise SinfusionError(f"{path} does not hold a network of the released SinFusion code.")
    return weights, depth, final.shape[1], len(first)


def _clip(frames: Any, existing: Run | None, fps: float | None) -> tuple[np.ndarray, str, float]:
    """(T, H, W, 3) uint8, "image" or "video", and frames per second."""
    if frames is None:
        if existing is None:
            raise SinfusionError("a new run needs the video or image that the checkpoint was trained on: --frames.")
        if fps is not None:
            raise SinfusionError(f"{existing.path} has its frames and their rate; leave out fps, or give frames.")
        return existing.frames, existing.kind, existing.fps
    clip = Source(frames, max_side=0, fps=fps).read(log=console.log)
    if existing is not None and not np.array_equal(clip.frames, existing.frames):
        raise SinfusionError(f"{existing.path} has other frames than these; leave out frames to keep those of the run.")
    return clip.frames, clip.kind, clip.fps


def _role(name: str | None, channels: int, frame_offset: bool, kind: str, path: Path) -> Role:
    """The role of that name, or the role that fits the inputs of the network and the kind of clip."""
    if name is not None and name not in ROLES:
        raise SinfusionError(f"role must be one of {', '.join(ROLES)}, not {name!r}.")
    unconditional = IMAGE if kind == "image" else PROJECTOR
    by_channels = {3: unconditional, 6: PREDICTOR, 9: INTERPOLATOR}
    role = by_channels.get(channels) if name is None else ROLES[name]
    if role is None or role.in_channels != channels or role.frame_offset != frame_offset:
        raise SinfusionError(
            f"{path} has a network with {channels} input channels and {'a' if frame_offset else 'no'} frame encoder, "
            f"which is not that of {f'the {role.name}' if role else 'any model'}."
        )
    if (role is IMAGE) != (kind == "image"):
        raise SinfusionError(f"the {role.name} model belongs to {'an image' if role is IMAGE else 'a video'}.")
    return role


def _schedule(state: dict[str, Any], path: Path) -> tuple[str, int]:
    """Name and number of timesteps of the noise schedule in the checkpoint; if it has none, cosine and 50."""
    betas = state.get("betas")
    if betas is None:
        return "cosine", PAPER.timesteps
    if isinstance(betas, Tensor) and betas.ndim == 1 and 2 <= len(betas) <= 100_000:
        for name in ("cosine", "linear"):
            if np.allclose(SCHEDULES[name](len(betas)).betas, betas.double().numpy(), rtol=1e-4, atol=1e-7):
                return name, len(betas)
    raise SinfusionError(f"{path} was trained with a noise schedule that is neither cosine nor linear.")


def _check_network(weights: dict[str, Tensor], recipe: Recipe, role: Role, path: Path) -> None:
    """SinfusionError unless the weights are finite and exactly those of the network."""
    with torch.device("meta"):
        network = NextNet(role.in_channels, filters=recipe.filters, depth=recipe.depth, frame_offset=role.frame_offset)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if shapes != {name: tuple(value.shape) for name, value in weights.items()}:
        raise SinfusionError(f"{path} holds a network of another shape than that of the released code.")
    if not all(math.isfinite(value.sum().item()) for value in weights.values()):
        raise SinfusionError(f"{path} holds weights that are not finite.")


def _check_fits(run: Run, recipe: Recipe, role: Role) -> None:
    """SinfusionError unless the model can be added to the run."""
    if run.has(role):
        raise SinfusionError(f"{run.path} has a {role.name} already; choose another --out.")
    for name in ("filters", "depth", "dense_kernel", "schedule", "timesteps"):
        ours, new = getattr(run.recipe, name), getattr(recipe, name)
        if ours != new:
            raise SinfusionError(f"the checkpoint has {name} {new}, {run.path} has {ours}; choose another --out.")
