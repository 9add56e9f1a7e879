"""The linear filter: the best that convolutions of the last frames can say of the next one, by least squares.

The baseline that a trained Predictor has to beat, in a second and without training:

    predictor = LinearPredictor.fit(frames, previous=2)
    after = predictor.predict(frames[None, -2:])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SinfusionError

LEAST_SHARE = 1e-10  # of the largest eigenvalue: directions that the clip hardly has get no weight


@dataclass(frozen=True)
class LinearPredictor:
    """The next change of a frame as a filter of its surroundings and, of two frames, of those of its last change.

    All frames are (..., 3, H, W) floats in [-1, 1]; a filter fits frames of any size.
    """

    filters: tuple[Tensor, ...]  # entry n - 1 is of n previous frames: (3, 3 n, taps, taps) fp32
    biases: tuple[Tensor, ...]  # (3,) fp32 each

    @classmethod
    def fit(cls, frames: Tensor, previous: int = 2, taps: int = 3) -> LinearPredictor:
        """The filters with the least squared error on a clip (T, 3, H, W), of 1 to `previous` frames.

        previous: 1, the last frame; 2, its last change, too. taps: sides of the filters, odd.
        Raises SinfusionError where the clip is shorter than previous + 1.
        """
        if previous not in (1, 2) or taps < 1 or taps % 2 == 0:
            raise SinfusionError(f"previous is 1 or 2 and taps are odd, not {previous} and {taps}.")
        if len(frames) <= previous:
            raise SinfusionError(
                f"a linear filter of {previous} frame(s) takes at least {previous + 1} to fit, not {len(frames)}."
            )
        solutions = [_least_squares(frames, n, taps) for n in range(1, previous + 1)]
        filters, biases = zip(*solutions, strict=True)
        return cls(filters, biases)

    @property
    def previous(self) -> int:
        """How many frames it looks at, at most."""
        return len(self.filters)

    def predict(self, frames: Tensor) -> Tensor:
        """The frame after each of B sequences (B, n, 3, H, W), the latest last: (B, 3, H, W) fp32, not clamped.

        Of a single frame the filter of one frame tells; frames before those that it looks at do not matter.
        """
        count = min(frames.shape[1], self.previous)
        filters, bias = (of[count - 1].to(frames.device) for of in (self.filters, self.biases))
        inputs = _inputs(frames.float(), count)
        return frames[:, -1].float() + F.conv2d(_padded(inputs, filters.shape[-1]), filters, bias)

    def predict_all(self, frames: Tensor) -> Tensor:
        """Each frame of a sequence (T, 3, H, W) but the first, from those before it: (T - 1, 3, H, W) fp32."""
        predicted = [self.predict(frames[None, :1])] if len(frames) > 1 else []
        for n in range(2, len(frames)):
            predicted.append(self.predict(frames[None, max(0, n - self.previous) : n]))
        return torch.cat(predicted) if predicted else frames.new_zeros(0, *frames.shape[1:])


def _inputs(frames: Tensor, count: int) -> Tensor:
    """(B, 3 count, H, W) from (B, n, 3, H, W): the last frame, and its change from the one before."""
    last = frames[:, -1]
    return last if count == 1 else torch.cat((last, last - frames[:, -2]), 1)


def _padded(images: Tensor, taps: int) -> Tensor:
    return F.pad(images, (taps // 2,) * 4, mode="replicate")


def _least_squares(frames: Tensor, count: int, taps: int) -> tuple[Tensor, Tensor]:
    """Filter and bias of `count` previous frames, by the normal equations, which need the memory of one frame."""
    size = 3 * count * taps**2 + 1
    gram = torch.zeros(size, size, dtype=torch.float64, device=frames.device)
    product = gram.new_zeros(size, 3)
    for n in range(count, len(frames)):
        window = frames[n - count : n + 1].double()
        surroundings = F.unfold(_padded(_inputs(window[None, :-1], count), taps), taps)[0]  # (3 count taps^2, H W)
        rows = torch.cat((surroundings, torch.ones_like(surroundings[:1])))
        gram += rows @ rows.T
        product += rows @ (window[-1] - window[-2]).flatten(1).T
    solution = (torch.linalg.pinv(gram, rtol=LEAST_SHARE, hermitian=True) @ product).T.float()
    return solution[:, :-1].reshape(3, -1, taps, taps).contiguous(), solution[:, -1].contiguous()
