"""The four models as data: what each is conditioned on, and its training crops."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """One model of a run. Its network sees the conditioning frames and the noisy one, in this order."""

    name: str
    conditions: int  # number of conditioning frames; of the Predictor as published: see `Recipe.conditions`
    frame_offset: bool  # the network is conditioned on the frames between condition and target
    continuous: bool  # the network's time is sqrt(alphas_cumprod), not a whole timestep (x0 and noise)
    square_crop: bool  # the released code crops squares, but for the Predictor
    least_frames: int  # the shortest clip it can learn from

    @property
    def in_channels(self) -> int:
        return 3 * (self.conditions + 1)


IMAGE = Role("image", 0, False, False, True, 1)
PREDICTOR = Role("predictor", 1, True, True, False, 2)
PROJECTOR = Role("projector", 0, False, False, True, 1)
INTERPOLATOR = Role("interpolator", 2, False, True, True, 3)

ROLES = {role.name: role for role in (IMAGE, PREDICTOR, PROJECTOR, INTERPOLATOR)}

TASKS = {"generate": (PREDICTOR, PROJECTOR), "upsample": (INTERPOLATOR,)}
