"""The lines of `sinfusion info`: versions, the device, which native code is active and why; a summary of a run."""

from __future__ import annotations

import platform

import av
import torch

from . import __version__, ops
from .precision import choose_device, choose_dtype
from .run import Run
from .training.capacity import shortfall


def describe() -> list[str]:
    """Versions, the device and the native code, in seven lines."""
    device = choose_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    dtype = str(choose_dtype("auto", device)).removeprefix("torch.")
    native = ops.status()
    h264 = "with H.264" if "libx264" in av.codecs_available else "without H.264: MP4 cannot be written"
    return [
        f"sinfusion   {__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}",
        f"device      {device} ({name}), {dtype} activations",
        f"threads     {_threads()}",
        f"C++         {native['cpu']}",
        f"CUDA        {native['cuda']}" + ("" if torch.cuda.is_available() else "; PyTorch sees no GPU"),
        f"Triton      {native['triton']}" + ("" if device.type == "cuda" else "; used on a GPU only"),
        f"video       PyAV {av.__version__} {h264}",
    ]


def _threads() -> str:
    count, native = torch.get_num_threads(), ops.status()
    if "kernels" not in native["cpu"]:
        return f"{count} of PyTorch's (OpenMP: {native['openmp']})"
    fewer = ", fewer while the machine is busy" if count > 1 else ""
    return f"{count} of the C++ kernels' own{fewer}; for PyTorch OpenMP: {native['openmp']}"


def describe_run(run: Run) -> list[str]:
    """The frames, the recipe and the training of a run, in three lines; a fourth if it was trained too little."""
    height, width = run.size
    what = "an image" if run.kind == "image" else f"{len(run.frames)} frames, {run.fps:g} a second,"
    frames = run.recipe.previous_frames
    seen = f"{frames} previous frames, " if run.kind == "video" and frames > 1 else ""
    models = []
    for name, model in run.models.items():
        models.append(f"{name} {run.steps_done(name)} of {model['steps'] or '?'} steps")
    return [
        f"run         {run.path}: {run.kind} run of {run.source}, {what} {width}x{height}",
        f"recipe      {run.recipe.name}: depth {run.recipe.depth}, {run.recipe.filters} filters, {seen}seed {run.seed}",
        f"trained     {', '.join(models)}",
        *filter(None, [shortfall(run)]),
    ]
