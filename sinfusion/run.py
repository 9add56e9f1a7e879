"""The run folder: everything that was trained and all that is needed to use it or to go on training.

    run.json              format, kind, recipe, frames per second, seed, which models, what trained them, and where
    input.safetensors     the training frames, uint8
    predictor/            a model: step-00001500/ (weights.safetensors, optimizer.pt), log.jsonl, loss.png, preview.png

A checkpoint is a folder written under another name and renamed when whole, so a kill at any moment leaves the last one.
A folder is a run from run.json on, which comes first and is never without a successor: without the frames it holds
nothing yet. Who writes to it holds `writing`; reading needs no leave.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import __version__, console
from . import recipe as recipes
from .checkpoint import checkpoints, last_checkpoint, load_into, newest_weights, save_checkpoint, seconds_used
from .clip import Sound
from .diffusion.denoiser import Denoiser
from .diffusion.parameterization import PARAMETERIZATIONS
from .diffusion.schedule import SCHEDULES
from .errors import SinfusionError
from .files import atomic_write, discard, discard_leftovers, make_folders, remove, sole_writer
from .names import as_path, pasteable
from .network import NextNet
from .precision import choose_device, choose_dtype
from .recipe import Recipe
from .roles import PREDICTOR, ROLES, TASKS, Role

FORMAT = 1  # raised when older code could not read what newer code writes


@dataclass
class Run:
    """A trained, or half-trained, run."""

    path: Path
    kind: str  # "image" or "video"
    recipe: Recipe
    frames: np.ndarray  # (T, H, W, 3) uint8, what it was trained on
    fps: float
    seed: int
    # role name -> planned "steps" (0: not yet known), "minutes", "sigma_data"; "parameterization" if not the recipe's
    models: dict[str, dict[str, Any]]
    source: str = ""
    device: torch.device = field(default_factory=lambda: choose_device("auto"))
    dtype: torch.dtype | None = None  # of the activations; None: what the device is fast at
    graph: bool = True  # replay kernels: from CUDA graphs on a GPU, from recordings on a CPU
    # "device" (cpu, cuda), "precision" (bf16, fp32) and "graph" of its training; None: nobody knows any more
    trained_with: dict[str, Any] | None = None
    sound: Sound | None = None  # of the clip that it was trained on
    # role name -> the checkpoint that was opened last, and its denoiser
    _opened: dict[str, tuple[Path, Denoiser]] = field(init=False, default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training frames."""
        return self.frames.shape[1], self.frames.shape[2]

    def has(self, role: Role) -> bool:
        """Whether a checkpoint of the role exists."""
        return last_checkpoint(self.path / role.name) is not None

    def steps_done(self, name: str) -> int:
        """Of a model, as its last checkpoint has it."""
        checkpoint = last_checkpoint(self.path / name)
        return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0

    def seconds_used(self) -> float:
        """Time that its training has taken, as the newest checkpoint has it."""
        return seconds_used(self.path / name for name in ROLES)

    def finished(self, name: str) -> bool:
        """Whether a model has been trained to its planned end."""
        return 0 < self.models[name]["steps"] <= self.steps_done(name)

    def to(self, device: torch.device | str = "auto", precision: str = "auto", graph: bool = True) -> Run:
        """The same run computing elsewhere or otherwise."""
        chosen = choose_device(device)
        dtype = choose_dtype(precision, chosen)
        return dataclasses.replace(self, device=chosen, dtype=dtype, graph=graph)

    def build(self, role: Role) -> Denoiser:
        """A role's denoiser with untrained weights, on the CPU's default generator seeded from the run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would seed every GPU's as well
            network = NextNet(
                3 * (self.recipe.conditions(role) + 1),
                filters=self.recipe.filters,
                depth=self.recipe.depth,
                dense_kernel=self.recipe.dense_kernel,
                frame_offset=role.frame_offset,
                dtype=self.dtype or choose_dtype("auto", self.device),
            )
        parameterization = self.models[role.name].get("parameterization") or self.recipe.parameterization_of(role)
        if parameterization == "preconditioned":  # start from 'the prior mean is right'
            torch.nn.init.zeros_(network.final.weight)
            torch.nn.init.zeros_(network.final.bias)  # type: ignore[arg-type]  # this convolution has a bias
        return Denoiser(
            network.to(self.device),
            PARAMETERIZATIONS[parameterization],
            SCHEDULES[self.recipe.schedule](self.recipe.timesteps),
            role.continuous,
            tuple(self.models[role.name]["sigma_data"]),
            role.frame_offset,
            changes=role is PREDICTOR,
        )

    def denoiser(self, role: Role, otherwise: str = "") -> Denoiser:
        """A role's trained denoiser, with the averaged weights of its newest checkpoint, ready to sample from.

        Raises SinfusionError where there is none, with what to do; `otherwise` is what would do without it.
        """
        if role.name not in self.models or not self.has(role):
            raise self._missing(role, otherwise)
        checkpoint, denoiser = self._opened.get(role.name, (None, None))
        if denoiser is None or checkpoint != last_checkpoint(self.path / role.name):
            checkpoint, weights = newest_weights(self.path / role.name)
            denoiser = self.build(role)
            prefix = "average." if self.recipe.ema_gamma > 0 else "raw."
            load_into(denoiser.network, weights, prefix, checkpoint)
            cast(NextNet, denoiser.network).lay_out()
            self._opened[role.name] = checkpoint, denoiser
        return denoiser

    def _missing(self, role: Role, otherwise: str) -> SinfusionError:
        """That a model is not there, and what to do."""
        go_on = f"sinfusion train {pasteable(self.path)}"
        rest = f", or {otherwise}" if otherwise else ""
        if role.name in self.models:
            what = f"{self.path} was stopped before its {role.name} was trained; go on with: {go_on}{rest}"
            return SinfusionError(what)
        trained = ", ".join(name for name in self.models if self.has(ROLES[name])) or "nothing"
        task = next((task for task, roles in TASKS.items() if role in roles), None)
        add = f"add it with: {go_on} --tasks {task}" if task else "it is for runs of an image"
        return SinfusionError(f"{self.path} has no trained {role.name} (it has: {trained}); {add}{rest}")

    def save(self, anew: bool = False) -> None:
        """Write run.json, and the frames if they are not there. anew: in place of an earlier run, which is removed."""
        write_run(self.path, self.frames, self.description(), _remove_run if anew else None)

    def save_checkpoint(
        self,
        role: Role,
        step: int,  # steps done
        raw: dict[str, Tensor],
        average: dict[str, Tensor],
        optimizer: dict[str, Any],
        plan: Sequence[Any] = (),  # as `Plan.parse` takes it
        seconds: float = 0.0,  # that the run has used until now
    ) -> Path:
        """Write a checkpoint of a model; older ones are removed."""
        about = {**self.description(), "role": role.name, "step": step, "plan": plan, "seconds": seconds}
        return save_checkpoint(self.path / role.name, step, raw, average, optimizer, about)

    def description(self) -> dict[str, Any]:
        """What run.json holds, and what every weights file carries as metadata."""
        return {
            "format": FORMAT,
            "version": __version__,
            "kind": self.kind,
            "recipe": dataclasses.asdict(self.recipe),
            "fps": self.fps,
            "seed": self.seed,
            "models": self.models,
            "source": self.source,
            "trained_with": self.trained_with,
        } | ({"sound": dataclasses.asdict(self.sound)} if self.sound else {})


def write_run(
    folder: Path, clip: np.ndarray, description: dict[str, Any], remove_earlier: Callable[[Path], None] | None = None
) -> None:
    """Write run.json and, if they are not there, the frames of a run; or both in place of an earlier one."""
    make_folders(folder)
    frames = folder / "input.safetensors"
    with ExitStack() as files:  # run.json gets its name first, and neither before both are written
        if remove_earlier is not None or not frames.exists():
            temporary = files.enter_context(atomic_write(frames))
            save_file({"frames": torch.from_numpy(np.ascontiguousarray(clip))}, temporary)
        temporary = files.enter_context(atomic_write(folder / "run.json"))
        temporary.write_text(json.dumps(description, indent=1))
        if remove_earlier is not None:
            remove_earlier(folder)


def _remove_run(folder: Path) -> None:
    """Remove all of a run but run.json, which stays until another takes its place; the frames last."""
    for name in ROLES:
        for checkpoint in checkpoints(folder / name):
            remove(checkpoint)
        for file in ("plan.jsonl", "log.jsonl", "loss.png", "preview.png"):
            discard(folder / name / file)
    discard(folder / "input.safetensors")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A run folder for this process alone; what a killed one has left in it is removed."""
    with sole_writer(folder):
        discard_leftovers(folder)
        for name in ROLES:
            discard_leftovers(folder / name)
            for old in checkpoints(folder / name)[:-1]:
                remove(old)
        yield


def load(
    path: str | Path,
    device: torch.device | str = "auto",
    precision: str = "auto",
    graph: bool = True,
    log: Callable[[str], None] = console.log,
) -> Run:
    """Open a run folder.

    device: auto, cpu, cuda, or cuda:1 of several GPUs. precision: auto, bf16, fp32. graph: replay kernels instead of
    calling each. log: told where the recipe is of a version with other settings than this one.
    Raises SinfusionError for a folder that is not a run, is damaged, or was written by a newer version.
    """
    folder = as_path(path)
    if not (folder / "run.json").is_file():
        raise SinfusionError(_no_run(folder))
    if not (folder / "input.safetensors").is_file():
        raise SinfusionError(
            f"{folder} was stopped before it began; begin again with: sinfusion train INPUT --out {pasteable(folder)} "
            "--overwrite"
        )
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if description["kind"] == "tuned":
            raise SinfusionError(
                f"it is a tuned model; make videos with: sinfusion retell {pasteable(folder)} --prompt ..."
            )
        if description["format"] != FORMAT:
            raise SinfusionError(
                f"it has format {description['format']!r:.40}, this sinfusion reads format {FORMAT}; "
                "use the version that wrote it."
            )
        run = Run(
            path=folder,
            kind=str(description["kind"]),
            recipe=recipes.from_dict(description["recipe"]),
            frames=load_file(folder / "input.safetensors")["frames"].numpy(),
            fps=float(description["fps"]),
            seed=int(description["seed"]),
            models={ROLES[name].name: _model(model) for name, model in description["models"].items()},
            source=str(description["source"]),
            trained_with=_trained_with(description.get("trained_with")),
            sound=_sound(description.get("sound")),
        )
        frames = run.frames
        if run.kind not in ("image", "video"):
            raise ValueError(f"kind {run.kind:.40}")
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
            raise ValueError(f"frames {frames.shape} {frames.dtype}")
        if not 0 < run.fps < 1e6 or abs(run.seed) >= 2**58:
            raise ValueError(f"fps {run.fps} or seed {run.seed}")
    except SinfusionError as error:
        raise SinfusionError(f"{folder} cannot be used: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
            SafetensorError) as error:  # fmt: skip
        raise SinfusionError(f"{folder} is damaged: {type(error).__name__}: {error!s:.100}") from error
    _log_differences(run, description, log)
    return run.to(device, precision, graph)


def _no_run(path: Path) -> str:
    """What to say of a path that is not a run folder, and where the next run is."""
    above = next((folder for folder in path.absolute().parents[:3] if (folder / "run.json").is_file()), None)
    if above is not None and path.exists():
        return f"{path} is a part of a run; give the folder of the run: {pasteable(above)}"
    if path.is_file():
        return f"{path} is a file, not a run folder; train on it first: sinfusion train {pasteable(path)}"
    inside = sorted(path.glob("*/run.json")) if path.is_dir() else []
    if inside:
        several = f"holds {len(inside)} runs; give one of them" if len(inside) > 1 else "holds a run; give that"
        return f"{path} is not a run folder but {several}: {pasteable(inside[0].parent)}"
    what = "is not a run folder (it has no run.json)" if path.exists() else "does not exist"
    return f"{path} {what}; train one with: sinfusion train INPUT --out {pasteable(path)}"


def _log_differences(run: Run, description: dict[str, Any], log: Callable[[str], None]) -> None:
    """One line where the recipe was written by a version with other settings."""
    gone, new = recipes.differences(description["recipe"])
    if not gone and not new:
        return
    wrote = description.get("version")
    parts = [f"it had {name}, which is gone: left out" for name in gone]
    parts += [f"{name} is new: {getattr(run.recipe, name)}" for name in new]
    log(
        f"{run.path} was written by {f'sinfusion {wrote!s:.20}' if wrote else 'an earlier sinfusion'}, this is "
        f"{__version__}; of its recipe, {', '.join(parts)}"
    )


def _trained_with(stored: Any) -> dict[str, Any] | None:
    """What run.json says of the arithmetic, checked; None of a run that is older than that."""
    if stored is None:
        return None
    kept = {"device": stored["device"], "precision": stored["precision"], "graph": stored["graph"]}
    if kept["device"] not in ("cpu", "cuda") or kept["precision"] not in ("bf16", "fp32"):
        raise ValueError(f"trained with {kept}")
    if not isinstance(kept["graph"], bool):
        raise ValueError(f"trained with {kept}")
    return kept


def _sound(stored: Any) -> Sound | None:
    """What run.json says of the sound of the clip, checked; None where there is none."""
    if stored is None:
        return None
    start, stop = float(stored["start"]), float(stored["stop"])
    if not -1e9 < start < stop < 1e9:
        raise ValueError(f"sound from {start} to {stop}")
    return Sound(str(stored["path"]), start, stop, int(stored["bytes"]), bool(stored["in_step"]))


def _model(stored: dict[str, Any]) -> dict[str, Any]:
    """A model's entry in run.json, checked."""
    sigma_data = stored["sigma_data"] if "sigma_data" in stored else stored["spreads"]  # as it was called before
    model = {"steps": stored["steps"], "minutes": stored["minutes"], "sigma_data": [float(s) for s in sigma_data]}
    steps, minutes = model["steps"], model["minutes"]
    if not isinstance(steps, int) or not 0 <= steps < 10**8:
        raise ValueError(f"steps {steps}")
    if not (steps > 0 if minutes is None else 0 < minutes < 1e9):
        raise ValueError(f"minutes {minutes}")
    if not model["sigma_data"] or not all(0 < s < 1e3 for s in model["sigma_data"]):
        raise ValueError(f"sigma_data {model['sigma_data']}")
    if "parameterization" in stored:  # of a model that was not trained by the run's recipe
        if stored["parameterization"] not in PARAMETERIZATIONS:
            raise ValueError(f"parameterization {stored['parameterization']}")
        model["parameterization"] = stored["parameterization"]
    if "since" in stored:  # seconds that the run had used when the model was given its minutes
        model["since"] = float(stored["since"])
        if not 0 <= model["since"] < 1e11:
            raise ValueError(f"since {model['since']}")
    if "further" in stored:  # steps from which the model, once finished, is trained further
        model["further"] = int(stored["further"])
    return model
