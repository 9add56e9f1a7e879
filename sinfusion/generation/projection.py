"""Patch projection: each frame of a rollout is drawn to the patches of the clip that it resembles.

A rollout's errors add up: what no frame of the clip looks like, the Predictor was not trained on. So each predicted
frame is replaced, wholly or in part, by the mean of what its patches' nearest neighbours in the clip have there, as in
VGPNN (Haim et al. 2022). Patches are several frames deep: they end in the predicted frame and begin in the ones before
it, so that what is chosen moves as the rollout does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops

SIDE = 7  # rows and columns of a patch, as in VGPNN
FIRST_ROUNDS, ROUNDS = 20, 4  # of the search: from a random field; from that of the frame before
SEED = 0  # of the search: its random numbers matter little
VALUES = (-1.0, 1.0)  # their range


class PatchProjection:
    """Projects the frames of one rollout, in order; `begin` takes the frames before them.

    It keeps the last frames and the last fields in memory of its own, always the same, so that a CUDA graph can replay
    it; nothing waits for the device.
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
        self.recent: Tensor  # (B, depth - 1, H, W, 3): the last frames
        self.fields: Tensor  # (B, 1, H', W', 3) int16: where the patches of the last frames were found

    def _whole(self, follows: Tensor) -> Tensor | None:
        """Weights of the clip's patches: infinite where their frames do not follow each other; None where all do."""
        if bool(follows.all()):
            return None
        rows, columns = (size - self.side + 1 for size in self.clip.shape[1:3])
        weight = torch.where(follows, 1.0, torch.inf)[:, None, None]
        return weight.expand(-1, rows, columns).contiguous()

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Start after these frames, each (B, 3, H, W) in [-1, 1], the newest last; at least one."""
        before = [frames[0]] * max(0, self.depth - len(frames)) + list(frames[-self.depth :])
        stack = torch.stack(before, 1).movedim(2, -1)  # (B, depth, H, W, 3)
        self.fields = torch.stack([self._search(query.contiguous(), None) for query in stack])
        self.recent = stack[:, 1:].clone()

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], like the image: the next frame, projected."""
        projected = torch.stack([self._project(frame, b) for b, frame in enumerate(image.movedim(1, -1))])
        if self.depth > 1:
            self.recent.copy_(torch.cat((self.recent, projected[:, None]), 1)[:, 1:])
        return projected.movedim(-1, 1).contiguous(memory_format=torch.channels_last)

    def _project(self, frame: Tensor, sample: int) -> Tensor:
        """(H, W, 3), of one sample of the batch."""
        query = torch.cat((self.recent[sample], frame[None]))
        field = self._search(query, self.fields[sample])
        self.fields[sample].copy_(field)
        # Only the last frames of the patches are wanted.
        found = ops.vote(self.clip[self.depth - 1 :], field, (1, self.side, self.side), mean=True)[0]
        return frame + self.weight * (found - frame)

    def _search(self, query: Tensor, start: Tensor | None) -> Tensor:
        """(1, H', W', 3) int16, of a query (depth, H, W, 3)."""
        patch, rounds = (self.depth, self.side, self.side), FIRST_ROUNDS if start is None else ROUNDS
        return ops.patch_match(query, self.clip, patch, rounds, SEED, start, self.places, value_range=VALUES)[0]


def _in_order(count: int, frame_offset: int, depth: int) -> tuple[Tensor, Tensor]:
    """Frames of a clip as a rollout with this offset sees them: (T,) int64; and (T - depth + 1,) bool, whether `depth`
    frames from here on follow each other. Of an offset of 2: all even frames, then all odd ones."""
    step = abs(frame_offset)
    parts = [torch.arange(first, count, step) for first in range(min(step, count))]
    order = torch.cat([part.flip(0) if frame_offset < 0 else part for part in parts])
    follows = order.unfold(0, depth, 1).diff(dim=1).eq(frame_offset).all(1)
    return order, follows
