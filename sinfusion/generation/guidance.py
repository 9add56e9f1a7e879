"""Guidance by words or by a picture, as it is asked for: from a text and a model's folder to a guide.

guidance = Guidance("a volcano", "clip-vit-base-patch32")
process = reverse_process(run, IMAGE)
process.guided(guidance.guide(process.steps, seeds, size, run.device))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clip import as_image, as_mask
from ..diffusion.samplers import Step
from ..errors import SettingError
from ..pixels import to_unit
from ..text import clip, labels
from ..text.guide import FILL, STRENGTH, TextGuide, TextModel

STRENGTH_FROM_IMAGE = 0.05  # of a step of a process that begins with an image, which has more guided levels

# Guided are the levels between these shares of all: before, there is no picture yet; after, the denoiser takes away
# what its training image does not have. SinDDM does without the last 3 of 100 steps.
FIRST_GUIDED, LAST_GUIDED = 0.3, 0.85


@dataclass(frozen=True)
class Guidance:
    """What is asked for. Raises SettingError for what makes no sense."""

    text: str | None = None
    text_model: str | Path | None = None  # the folder of a CLIP; None: the stand-in
    style: Any = None  # an image whose looks are wanted, of which `as_image` takes
    where: Any = None  # a mask, of which `as_mask` takes: pixels that may change
    strength: float | None = None
    fill: float | None = None  # None: 0.5

    def __post_init__(self) -> None:
        if self.text is not None and (not isinstance(self.text, str) or not self.text.strip()):
            raise SettingError(f"{{text}} must be some words, not {self.text!r:.40}.")
        if self.text is not None and self.style is not None:
            raise SettingError("{text} and {style} are two guides; give one of them.")
        how = {
            "text_model": self.text_model,
            "text_strength": self.strength,
            "text_fill": self.fill,
            "where": self.where,
        }
        for name in (name for name, value in how.items() if value is not None and not self.wanted):
            raise SettingError(f"{{{name}}} is about guidance by {{text}} or {{style}}; give one of them, too.")
        for name, value, most in (("text_strength", self.strength, 10), ("text_fill", self.fill, 1)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise SettingError(f"{{{name}}} must be from 0 to {most}, not {value!r:.40}.")

    @property
    def wanted(self) -> bool:
        """Whether anything guides."""
        return self.text is not None or self.style is not None

    def guide(
        self,
        steps: Sequence[Step],  # of the reverse process
        seeds: Sequence[int],  # of its images
        size: tuple[int, int],  # (height, width)
        device: torch.device,
        from_noise: bool = True,  # not from an image
    ) -> TextGuide | None:
        """The guide of a reverse process; None where nothing guides. Raises SinfusionError where a model is missing."""
        if not self.wanted:
            return None
        where = None if self.where is None else _mask(self.where, size).to(device)
        model = self.open_model(device)
        usual = STRENGTH if from_noise else STRENGTH_FROM_IMAGE
        strength = usual if self.strength is None else self.strength
        fill = FILL if self.fill is None else self.fill
        guide = TextGuide(model, self._target(model), seeds, strength, fill, where=where)
        guide.sigmas = guided_sigmas(steps, from_noise)
        return guide

    def open_model(self, device: torch.device) -> TextModel:
        """A CLIP, or the stand-in. Raises SinfusionError where there is none."""
        if self.text_model is not None:
            return clip.load(self.text_model, device, "text")
        if labels.installed():
            return labels.load(device=device)
        raise SettingError(
            "{text} needs {text_model}, the folder of a CLIP of transformers such as clip-vit-base-patch32, or the "
            "stand-in for it, which knows a thousand things: pip install 'sinfusion[labels]'."
        )

    def _target(self, model: TextModel) -> Tensor:
        if self.text is not None:
            return model.target(self.text)
        image = torch.from_numpy(as_image(self.style, "the style").copy())
        return model.target_of_image(to_unit(image))


UNGUIDED = Guidance()


def guided_sigmas(steps: Sequence[Step], from_noise: bool = True) -> tuple[float, float]:
    """Lowest and highest noise level that is guided. from_noise: there is no picture in the first ones."""
    sigmas = sorted({step.sigma for step in steps}, reverse=True)
    last = max(0, math.ceil(LAST_GUIDED * len(sigmas)) - 1)
    return sigmas[last], sigmas[min(last, int(FIRST_GUIDED * len(sigmas))) if from_noise else 0]


def _mask(where: Any, size: tuple[int, int]) -> Tensor:
    """(H, W) bool."""
    mask = as_mask(where)
    if mask.shape != size:
        raise SettingError(f"the mask of {{where}} is {mask.shape}, the image {size}: rows and columns must agree.")
    if not mask.any():
        raise SettingError("the mask of {where} is dark everywhere; make it light where pixels may change.")
    return torch.from_numpy(mask.copy())
