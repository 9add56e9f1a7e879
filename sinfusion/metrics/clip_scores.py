"""How well frames go together and with a text, by CLIP (Radford et al. 2021), as published for videos of tuned models.

scores(model, frames, "a man is skiing")       # {"clip_frames": 92.4, "clip_text": 27.6}, 100 times cosines
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..pixels import to_unit
from ..text.clip import ClipModel


def scores(model: ClipModel, pixels: np.ndarray, prompt: str | None = None) -> dict[str, float]:
    """Of frames (T, H, W, 3) or an image (H, W, 3) uint8: 100 times the mean cosine of CLIP's features.

    "clip_frames" is that of all pairs of different frames (videos alone), "clip_text" that of all frames with the
    prompt (where there is one).
    """
    frames = pixels if pixels.ndim == 4 else pixels[None]
    features = model.images(to_unit(torch.from_numpy(np.ascontiguousarray(frames)))).double()
    found, count = {}, len(features)
    if count > 1:
        cosines = features @ features.T
        found["clip_frames"] = 100 * ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item()
    if prompt is not None:
        found["clip_text"] = 100 * (features @ model.words([prompt]).double().T).mean().item()
    return found


def recorded_prompt(file: Path) -> str | None:
    """What `sinfusion retell` was told to make a file of, by the record beside it; None where there is none."""
    for record in sorted(file.parent.glob("*.json")):
        try:
            content: Any = json.loads(record.read_text(encoding="utf-8"))
            if content["command"] == "retell" and file.name in content["files"]:
                return str(content["arguments"]["prompt"][content["files"].index(file.name)])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # of something else
    return None
