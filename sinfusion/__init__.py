"""Models trained on one image or one video: `train`, then `generate`, `extrapolate`, `extend`, `edit` and so on.

import sinfusion
run = sinfusion.train("fish.mp4", "runs/fish", minutes=5)
frames = sinfusion.generate(run, frames=100)
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a clone `kernels/` lies beside `sinfusion/`, installed inside it: let `sinfusion.kernels` be found in both.
if (Path(__file__).parent.parent / "kernels" / "__init__.py").exists():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from .generation.extension import extend
    from .generation.image import edit
    from .generation.loops import loop
    from .generation.upsampling import upsample
    from .generation.video import extrapolate, generate, retarget, stream
    from .media import read_image, read_video, write_video
    from .metrics.evaluation import evaluate
    from .ops import keep_memory
    from .released import import_released
    from .run import load
    from .training.restyling import restyle
    from .training.session import train
    from .tuning.retelling import retell
    from .tuning.session import tune

_HOMES = {
    "train": "training.session",
    "load": "run",
    "generate": "generation.video",
    "extrapolate": "generation.video",
    "upsample": "generation.upsampling",
    "retarget": "generation.video",
    "stream": "generation.video",
    "edit": "generation.image",
    "extend": "generation.extension",
    "loop": "generation.loops",
    "restyle": "training.restyling",
    "tune": "tuning.session",
    "retell": "tuning.retelling",
    "evaluate": "metrics.evaluation",
    "import_released": "released",
    "keep_memory": "ops",
    "read_image": "media",
    "read_video": "media",
    "write_video": "media",
}


def __getattr__(name: str) -> Any:
    """Public names are imported at first use, so that `import sinfusion` stays instant."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in {"ops", "network", "media", "run", "recipe", "metrics", "patches", "closed_form", "linear"}:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'sinfusion' has no attribute {name!r}")


__all__ = [
    "edit",
    "evaluate",
    "extend",
    "extrapolate",
    "generate",
    "import_released",
    "keep_memory",
    "load",
    "loop",
    "read_image",
    "read_video",
    "restyle",
    "retarget",
    "retell",
    "stream",
    "train",
    "tune",
    "upsample",
    "write_video",
]
