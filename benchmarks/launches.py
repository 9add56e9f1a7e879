"""What a GPU launches in a training step and in an evaluation of the network; needs no GPU.

python benchmarks/launches.py --out OUT.json

The implementations that a GPU runs get tensors on the CPU. Kernels of Triton, of cuDNN and of our CUDA library are
recorded instead of run; each other operator of PyTorch counts as one launch, unless it returns views or new memory.
Arguments of Triton's kernels that do not begin at a multiple of 16 bytes are named. OUT.json keeps earlier tables.
"""

from __future__ import annotations

import collections
import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from machine import commit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinfusion import kernels, ops
from sinfusion.diffusion.samplers import ddim
from sinfusion.generation.reverse_process import ReverseProcess
from sinfusion.network import NextNet
from sinfusion.recipe import FAST, PAPER
from sinfusion.roles import PREDICTOR
from sinfusion.run import Run
from sinfusion.training.trainer import Trainer

RECIPES = {"paper": PAPER, "fast": FAST}
NOTHING = (
    "empty new_empty empty_like empty_strided new_empty_strided lift_fresh _unsafe_view _local_scalar_dense".split()
)
OPERATORS = ("dense", "dense_backward", "depthwise_norm", "depthwise_norm_backward")
NATIVE = ("adam_ema", "ddpm_step", "philox", "sample_crops")  # modules of sinfusion.ops that call the CUDA library


@dataclass(frozen=True)
class Launch:
    kind: str  # "Triton", "cuDNN", "CUDA": our library; "PyTorch"
    name: str  # of the kernel, or of PyTorch's operator
    unaligned: tuple[str, ...] = ()  # arguments of a Triton kernel whose addresses are no multiples of 16


class Recorder(TorchDispatchMode):
    """Appends to `launches` what would be launched inside the with block, by this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function._schema.name.split("::")[1]
        if function.namespace == "sinfusion":
            return function(*arguments, **(named or {}))
        if name in ("convolution", "convolution_backward"):
            self.launches.append(Launch("cuDNN", name))
            return _convolution(*arguments) if name == "convolution" else _convolution_backward(*arguments)
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:
                return function.decompose(*arguments, **(named or {}))
        if not function.is_view and name not in NOTHING:
            self.launches.append(Launch("PyTorch", name))
        return function(*arguments, **(named or {}))

    def inside(self, implementation: Callable[..., Any]) -> Callable[..., Any]:
        """An implementation of an operator, to which PyTorch passes no modes."""

        def recorded(*arguments: Any) -> Any:
            with self:
                return implementation(*arguments)

        return recorded

    def triton(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        pairs = zip(kernel.arg_names, arguments, strict=False)
        tensors = ((name, part) for name, value in pairs for part in (value if isinstance(value, tuple) else (value,)))
        unaligned = (name for name, value in tensors if isinstance(value, Tensor) and value.data_ptr() % 16)
        self.launches.append(Launch("Triton", kernel.__name__, tuple(unaligned)))

    def cuda(self, function: str, on: Tensor, /, **fields: Any) -> None:
        before = list(self.launches)
        for name in ("out", "input", "target"):  # numbers that PyTorch goes on with have to be numbers
            if isinstance(fields.get(name), Tensor):
                fields[name].zero_()
        self.launches[:] = [*before, Launch("CUDA", function)]


def _convolution(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return ops.layout.empty_like(x, len(weight))


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    of_x, of_weight, _ = rest[-1]
    return torch.empty_like(x) if of_x else None, torch.empty_like(weight) if of_weight else None, None


@contextmanager
def stand_in(choice: str = "triton") -> Iterator[Recorder]:
    """Inside the with block tensors on the CPU are treated as those of a GPU of compute capability 9.0.

    choice: the beginning of the candidate's name that is chosen for a layer, where it has such a candidate.
    """
    from sinfusion.kernels import tuning
    from triton.runtime.jit import JITFunction

    def choose(operator: str, key: Any, candidates: dict[str, Any], device: torch.device, default: str) -> str:
        return next((name for name in candidates if name.startswith(choice)), next(iter(candidates)))

    recorder = Recorder()
    with ExitStack() as patches:
        for target, name, value in (
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (kernels, "why_not", lambda: ""),
            (Tensor, "is_cuda", True),
            (tuning, "choose", choose),
            (JITFunction, "run", lambda kernel, *a, **named: recorder.triton(kernel, *a, **named)),
            *((importlib.import_module(f"sinfusion.ops.{module}"), "run", recorder.cuda) for module in NATIVE),
        ):
            patches.enter_context(mock.patch.object(target, name, value))
        patches.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # operators are overridden
        library = torch.library.Library("sinfusion", "IMPL")
        patches.callback(library._destroy)
        for operator in OPERATORS:
            module = importlib.import_module(f"sinfusion.ops.{operator.removesuffix('_backward')}")
            declaration = getattr(module, "".join(word.title() for word in operator.split("_")))
            implementation = module.on_gpu_backward if operator.endswith("_backward") else module.on_gpu
            library.impl(
                operator, recorder.inside(_positional(implementation, declaration)), "CPU", allow_override=True
            )
        yield recorder


def _positional(implementation: Callable[..., Any], declaration: Any) -> Callable[..., Any]:
    count = len(declaration._fields)
    return lambda *values: implementation(declaration._make(values[:count]), *values[count:])


def _run(recipe: str, size: tuple[int, int]) -> Run:
    frames = np.random.default_rng(0).integers(256, size=(6, *size, 3), dtype=np.uint8)
    models = {"predictor": {"steps": 1000, "minutes": None, "sigma_data": [0.1, 0.2, 0.3]}}
    return Run(Path("nowhere"), "video", RECIPES[recipe], frames, 20.0, 0, models).to("cpu", "bf16", graph=False)


def training_step(recipe: str, size: tuple[int, int] = (144, 256), choice: str = "triton") -> list[Launch]:
    """Of a Predictor in training, of frames of a size; not its first, in which tables are made."""
    with stand_in(choice) as recorder:
        trainer = Trainer(_run(recipe, size), PREDICTOR, 1000)
        trainer.step()
        with recorder:
            recorder.launches.clear()
            trainer.step()
    return recorder.launches


def evaluation(recipe: str, size: tuple[int, int] = (144, 256), choice: str = "triton") -> list[Launch]:
    """From one step of a reverse process to the next."""
    run = _run(recipe, size)
    with stand_in(choice) as recorder:
        denoiser = run.build(PREDICTOR)
        cast(NextNet, denoiser.network).lay_out()  # as a run opens it
        conditions = run.recipe.conditions(PREDICTOR)
        process = ReverseProcess(denoiser, ddim(np.array([3.0, 2.0, 1.0, 0.0])), conditions, 1, graph=False)
        arguments = torch.arange(1), 0, torch.zeros(1, 3 * conditions, *size)
        process(*arguments)
        with recorder:
            recorder.launches.clear()
            process(*arguments)
    ends = [i for i, launch in enumerate(recorder.launches) if launch.name == "ddpm_step"]
    return recorder.launches[ends[1] + 1 : ends[2] + 1]


def summary(launches: list[Launch]) -> dict[str, Any]:
    """How many, of which kind, of which name; and how many had unaligned pointers, by kernel and argument."""
    names: dict[str, dict[str, int]] = {}
    for (kind, name), count in collections.Counter((each.kind, each.name) for each in launches).most_common():
        names.setdefault(kind, {})[name] = count
    unaligned = collections.Counter(f"{each.name}: {name}" for each in launches for name in each.unaligned)
    return {
        "launches": len(launches),
        "kinds": {kind: sum(counts.values()) for kind, counts in names.items()},
        "names": names,
        "unaligned": dict(unaligned),
    }


@dataclass
class Settings:
    out: Path | None = None  # JSON, to which the table is added
    choice: str = "triton"  # of the candidates for a convolution: the beginning of its name


def main(settings: Settings) -> None:
    """Count, print, write."""
    import triton

    print(f"As Triton {triton.__version__} launches them.")
    table = {}
    for recipe in RECIPES:
        table[f"training step, {recipe}"] = summary(training_step(recipe, choice=settings.choice))
        table[f"evaluation, {recipe}"] = summary(evaluation(recipe, choice=settings.choice))
    for what, row in table.items():
        kinds = (f"{count} {kind}" for kind, count in row["kinds"].items())
        print(f"{what}: {row['launches']} launches", *kinds, sep=", ")
        for kind, counts in row["names"].items():
            print(f"  {kind}:", ", ".join(f"{count} {name}" for name, count in counts.items()))
        if row["unaligned"]:
            print("  unaligned:", ", ".join(f"{count} {name}" for name, count in row["unaligned"].items()))
    if settings.out:
        rows = json.loads(settings.out.read_text()) if settings.out.exists() else []
        about = {"command": f"python benchmarks/launches.py --choice {settings.choice}", "commit": commit()}
        about["triton"] = triton.__version__
        settings.out.write_text(json.dumps([*rows, about | table], indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
