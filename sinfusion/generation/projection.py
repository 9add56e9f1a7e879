"""Patch projection: each frame of a rollout is drawn to the patches of the clip that it resembles.

A rollout's errors add up: what no frame of the clip looks like, the Predictor was not trained on. So each predicted
frame is replaced, wholly or in part, by the mean of what its patches' nearest neighbours in the clip have there, as in
VGPNN (Haim et al. 2022). Patches are several frames deep: they end in the predicted frame and begin in the ones before
it, so that what is chosen moves as the rollout does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops

SIDE = 7  # rows and columns of a patch, as in VGPNN
FIRST_ROUNDS, ROUNDS = 20, 4  # of the search: from a random field; from that of the frame before
SEED = 0  # of the search: its random numbers matter little
VALUES = (-1.0, 1.0)  # their range


class PatchProjection:
    """Projects the frames of one rollout, in order; `begin` takes the frames before them.

    It keeps the last fields in memory of its own, always the same, so that a CUDA graph can replay it; nothing waits
    for the device.
    """

    def __init__(
        self,
        clip: Tensor,  # (T, H, W, 3) in [-1, 1]: where patches come from
        weight: float,  # in (0, 1]: of the projected frame, the rest is the predicted one
        depth: int = 3,  # frames of a patch
        frame_offset: int = 1,  # of the rollout: patches have frames so far apart
    ):
        self.weight, self.depth = weight, min(depth, -(-len(clip) // abs(frame_offset)))
        self.side = min(SIDE, *clip.shape[1:3])
        order, follows = _in_order(len(clip), frame_offset, self.depth)
        self.clip = clip[order.to(clip.device)].contiguous()
        self.places = self._whole(follows.to(clip.device))
        self.fields: Tensor  # (B, 1, H', W', 3) int16: where the patches of the last frames were found

    def _whole(self, follows: Tensor) -> Tensor | None:
        """Weights of the clip's patches: infinite where their frames do not follow each other; None where all do."""
        if bool(follows.all()):
            return None
        rows, columns = (size - self.side + 1 for size in self.clip.shape[1:3])
        weight = torch.where(follows, 1.0, torch.inf)[:, None, None]
        return weight.expand(-1, rows, columns).contiguous()

    def begin(self, previous: Tensor) -> None:
        """Start after these frames, (B, 3 m, H, W) in [-1, 1], the last one first; at least one."""
        missing = max(0, self.depth - previous.shape[1] // 3)
        queries = _videos(torch.cat([previous, *[previous[:, -3:]] * missing], 1)[:, : 3 * self.depth])
        self.fields = torch.stack([self._search(query, None) for query in queries])

    def __call__(self, image: Tensor, previous: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], like the image: the next frame after `previous`, projected.

        previous: (B, 3 m, H, W) in [-1, 1], the last frame first; m is at least `depth - 1`.
        """
        queries = _videos(torch.cat((image, previous[:, : 3 * self.depth - 3]), 1))
        projected = torch.stack([self._project(query, b) for b, query in enumerate(queries)])
        return projected.movedim(-1, 1).contiguous(memory_format=torch.channels_last)

    def _project(self, query: Tensor, sample: int) -> Tensor:
        """(H, W, 3): the last frame of a query (depth, H, W, 3), projected; of one sample of the batch."""
        field = self._search(query, self.fields[sample])
        self.fields[sample].copy_(field)
        # Only the last frames of the patches are wanted.
        found = ops.vote(self.clip[self.depth - 1 :], field, (1, self.side, self.side), mean=True)[0]
        return query[-1] + self.weight * (found - query[-1])

    def _search(self, query: Tensor, start: Tensor | None) -> Tensor:
        """(1, H', W', 3) int16, of a query (depth, H, W, 3)."""
        patch, rounds = (self.depth, self.side, self.side), FIRST_ROUNDS if start is None else ROUNDS
        return ops.patch_match(query, self.clip, patch, rounds, SEED, start, self.places, value_range=VALUES)[0]


def _videos(frames: Tensor) -> Tensor:
    """(B, n, H, W, 3), the last frame last, from (B, 3 n, H, W), the last frame first."""
    return frames.unflatten(1, (-1, 3)).flip(1).movedim(2, -1).contiguous()


def _in_order(count: int, frame_offset: int, depth: int) -> tuple[Tensor, Tensor]:
    """Frames of a clip as a rollout with this offset sees them: (T,) int64; and (T - depth + 1,) bool, whether `depth`
    frames from here on follow each other. Of an offset of 2: all even frames, then all odd ones."""
    step = abs(frame_offset)
    parts = [torch.arange(first, count, step) for first in range(min(step, count))]
    order = torch.cat([part.flip(0) if frame_offset < 0 else part for part in parts])
    follows = order.unfold(0, depth, 1).diff(dim=1).eq(frame_offset).all(1)
    return order, follows
