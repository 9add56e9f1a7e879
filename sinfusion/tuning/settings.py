"""Settings of a tuning, and the two sets of them that were published. What they have in common is constant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import SettingError

WEIGHT_DECAY, LARGEST_GRADIENT = 1e-2, 1.0  # of AdamW; norm that gradients are clipped to
GUIDANCE, SAMPLING_STEPS = 12.5, 50
LEAST_SIDE = 64  # pixels of a frame


@dataclass(frozen=True)
class Settings:
    """How a model is tuned. Raises SettingError for what makes no sense."""

    recipe: str
    frames: int  # of the clip that the model learns
    spread: bool  # evenly over the clip, or its first ones
    steps: int
    size: tuple[int, int] = (512, 512)  # (height, width), whatever the shape of the clip
    learning_rate: float = 3e-5
    window: int = 24  # frames that the network sees at once

    def __post_init__(self) -> None:
        for name, least, most in (("frames", 2, 10_000), ("steps", 1, 10**8), ("window", 2, 10_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
                raise SettingError(f"{{{name}}} must be a whole number from {least} to {most}, not {value!r:.40}.")
        if not isinstance(self.learning_rate, Real) or not 0 < self.learning_rate < 1:
            raise SettingError(f"{{learning_rate}} must be above 0 and below 1, not {self.learning_rate!r:.40}.")
        if any(not isinstance(side, Integral) or side < LEAST_SIDE or side % 8 for side in self.size):
            raise SettingError(
                f"{{size}} must be multiples of 8, at least {LEAST_SIDE}, not {self.size[1]}x{self.size[0]}."
            )

    def replace(self, **changes: Any) -> Settings:
        """With other values; those that are None stay."""
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **given)

    def pick(self, count: int) -> list[int]:
        """Which of the frames of a clip are learnt."""
        kept = min(self.frames, count)
        if not self.spread or kept < 2:
            return list(range(kept))
        return [round(i * (count - 1) / (kept - 1)) for i in range(kept)]


RECIPES = {
    "paper": Settings("paper", frames=8, spread=True, steps=300),  # as the authors' slides have it
    "released": Settings("released", frames=24, spread=False, steps=500),  # as their code does
}
