"""The closed-form Predictor: the next frame as the mean over all that the clip did at places that looked alike.

For a patch of the last frames c and of the next change d, over the clip's own transitions (c_j, d_j),

    E[d | x, c] = sum_j w_j d_j,   log w_j = -|c - c_j|^2 / (2 (h s)^2 D) - |x - centre - d_j|^2 / (2 sigma^2)

with x = next frame + sigma * noise, s the RMS change, D the number of values of c, and the bandwidth h. It is the exact
denoiser of these transitions, with conditions blurred by h s; a network approximates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import SinfusionError
from ..linear import LinearPredictor

BANDWIDTHS = (0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # multiples of the RMS change, to choose from
TRIALS = 4  # transitions that choose it
LEAST_CHANGE = 1e-3  # RMS, where nothing moves


@dataclass(frozen=True)
class ClosedFormPredictor:
    """Transitions of a clip, and how they are looked up. Frames are (..., 3, H, W) floats in [-1, 1]."""

    conditions: Tensor  # (T, H + side - 1, W + side - 1, 3 n): what was seen before each change, edges repeated
    changes: Tensor  # (T H W, 3 side^2) fp32: patches of what then followed, beyond the centre
    previous: int  # n: 1, the last frame; 2, its last change, too
    side: int  # of patches
    neighbours: int
    change: float  # RMS of frame - centre
    spread: float  # RMS of frame - last frame: the unit of bandwidths
    bandwidth: float
    linear: LinearPredictor | None  # predicts the centre; None: the last frame

    @classmethod
    def fit(
        cls,
        frames: Tensor,  # (T, 3, H, W) in [-1, 1]
        previous: int = 2,  # frames to look at: 1 or 2
        linear: bool = False,  # predict what the linear filter leaves, instead of the change
        side: int = 3,  # of patches, odd
        neighbours: int = 64,
        bandwidth: float | None = None,  # None: the best of `BANDWIDTHS` on transitions that are left out in turn
    ) -> ClosedFormPredictor:
        """Takes a clip's transitions; SinfusionError where there are fewer than two (with a bandwidth, one)."""
        least = previous + (2 if bandwidth is None else 1)
        if previous not in (1, 2) or side < 1 or side % 2 == 0 or neighbours < 1:
            raise SinfusionError(
                f"previous is 1 or 2, side odd and neighbours above 0, not {previous}, {side} and {neighbours}."
            )
        if len(frames) < least:
            raise SinfusionError(f"prediction from {previous} frame(s) takes at least {least}, not {len(frames)}.")
        filters = LinearPredictor.fit(frames, previous) if linear else None
        history = _windows(frames, previous)
        following = frames[previous:].float() - _centre(history, filters)
        predictor = cls(
            conditions=_conditions(history, previous, side),
            changes=_patches(following, side),
            previous=previous,
            side=side,
            neighbours=min(neighbours, following.numel() // 3),
            change=_rms(following),
            spread=_rms(frames[previous:].float() - frames[previous - 1 : -1]),
            bandwidth=bandwidth or 1.0,
            linear=filters,
        )
        return predictor if bandwidth is not None else replace(predictor, bandwidth=predictor._best_bandwidth())

    def predict(self, frames: Tensor) -> Tensor:
        """The expected next frame of each of B sequences (B, n or more, 3, H, W), the latest last: (B, 3, H, W)."""
        return self.denoiser(frames).mean()

    def denoiser(self, frames: Tensor, centre_weight: float = 0.0) -> ClosedFormDenoiser:
        """Of what follows B sequences, as of `predict`.

        centre_weight: from 0, where a pixel is the mean of what all patches over it say, to 1, where it is what the one
        around it says.
        """
        history = frames[:, -self.previous :].float()
        query = _conditions(history, self.previous, self.side)
        rows, distance = ops.nearest_patches(query, self.conditions, (1, self.side, self.side), self.neighbours)
        weight = _fold_weight(self.side, centre_weight, query.device)
        centre = _centre(history, self.linear)
        return ClosedFormDenoiser(centre, rows, distance, self.changes, self._of_distance(), weight)

    def _of_distance(self, bandwidth: float | None = None) -> float:
        """What multiplies a squared distance of conditions in a logarithm of weights."""
        values = self.side**2 * 3 * self.previous
        return 0.5 / ((bandwidth or self.bandwidth) * self.spread) ** 2 / values

    def _best_bandwidth(self) -> float:
        """With the least squared error on some of the known transitions, each predicted from all others."""
        count = len(self.conditions)
        a_frame = len(self.changes) // count
        height, width = (size - self.side + 1 for size in self.conditions.shape[1:3])
        weight = _fold_weight(self.side, 0.0, self.changes.device)
        errors = torch.zeros(len(BANDWIDTHS), dtype=torch.float64)
        for n in sorted({round((i + 0.5) * count / TRIALS - 0.5) for i in range(TRIALS)}):
            others = torch.cat((self.conditions[:n], self.conditions[n + 1 :]))
            neighbours = min(self.neighbours, len(self.changes) - a_frame)
            rows, distance = ops.nearest_patches(
                self.conditions[n : n + 1], others, (1, self.side, self.side), neighbours
            )
            rows = torch.where(rows >= n * a_frame, rows + a_frame, rows)
            middle = self.changes.view(count, height, width, 3, -1)[n, ..., self.side**2 // 2].movedim(-1, 0)
            for i, bandwidth in enumerate(BANDWIDTHS):
                found = ops.posterior(rows, distance, self.changes, self._of_distance(bandwidth))
                error = _fold(found, torch.Size((1, 3, height, width)), weight)[0] - middle
                errors[i] += error.double().square().mean().cpu()
        return BANDWIDTHS[int(errors.argmin())]


@dataclass(frozen=True)
class ClosedFormDenoiser:
    """denoise(x, sigma) -> the expected next frame, for `diffusion.samplers.sample`; its neighbours are found."""

    centre: Tensor  # (B, 3, H, W) fp32
    rows: Tensor  # (B H W, k) int32: of `changes`
    distance: Tensor  # (B H W, k) fp32
    changes: Tensor  # (M, 3 side^2) fp32
    of_distance: float  # its factor in a logarithm of weights
    fold_weight: Tensor  # (3 side^2, 1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x: (B, 3, H, W), the next frame + sigma * noise; sigma: (B,) fp32, the same for all."""
        side = math.isqrt(len(self.fold_weight) // 3)
        return self._mean(_patches(x - self.centre, side), 0.5 / float(sigma[0]) ** 2)

    def mean(self) -> Tensor:
        """Where nothing is known of x."""
        return self._mean(None, 0.0)

    def _mean(self, observed: Tensor | None, of_observed: float) -> Tensor:
        found = ops.posterior(self.rows, self.distance, self.changes, self.of_distance, observed, of_observed)
        return self.centre + _fold(found, self.centre.shape, self.fold_weight)


def _windows(frames: Tensor, count: int) -> Tensor:
    """(T - count, count, 3, H, W): what came before each frame of (T, 3, H, W) that has as many before it."""
    return torch.stack([frames[n : len(frames) - count + n] for n in range(count)], 1)


def _rms(values: Tensor) -> float:
    return max(LEAST_CHANGE, math.sqrt(values.double().square().mean().item()))


def _centre(history: Tensor, linear: LinearPredictor | None) -> Tensor:
    """(B, 3, H, W) fp32: what a prediction is the change of, after (B, n, 3, H, W)."""
    return history[:, -1].float() if linear is None else linear.predict(history)


def _padded(images: Tensor, side: int) -> Tensor:
    return F.pad(images, (side // 2,) * 4, mode="replicate")


def _conditions(history: Tensor, previous: int, side: int) -> Tensor:
    """(B, H + side - 1, W + side - 1, 3 previous) fp32, for `ops.nearest_patches`, of (B, previous, 3, H, W)."""
    last = history[:, -1].float()
    seen = last if previous == 1 else torch.cat((last, last - history[:, -2].float()), 1)
    return _padded(seen, side).movedim(1, -1).contiguous()


def _patches(images: Tensor, side: int) -> Tensor:
    """(B H W, 3 side^2): the surroundings of each pixel of (B, 3, H, W), colour by colour."""
    unfolded = F.unfold(_padded(images, side), side)  # (B, 3 side^2, H W)
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])


def _fold_weight(side: int, centre_weight: float, device: torch.device) -> Tensor:
    """(3 side^2, 1): how much each pixel of a patch counts."""
    weight = torch.full((side, side), 1 - centre_weight, device=device)
    weight[side // 2, side // 2] = 1
    return weight.flatten().repeat(3)[:, None]


def _fold(patches: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
    """(B, 3, H, W): the weighted mean of what all patches (B H W, 3 side^2) over a pixel say."""
    batch, _, height, width = shape
    side = math.isqrt(len(weight) // 3)
    canvas, margin = (height + side - 1, width + side - 1), side // 2
    columns = patches.view(batch, height * width, -1).transpose(1, 2) * weight
    total = F.fold(columns, canvas, side)
    weights = F.fold(weight.expand(1, -1, height * width), canvas, side)
    return (total / weights.clamp(min=1e-12))[..., margin : margin + height, margin : margin + width]
