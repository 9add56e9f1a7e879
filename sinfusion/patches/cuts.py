"""How long a clip's loop is, and a first version of it: each place jumps back in time where that shows least.

Frame u of the clip is followed by frame u + 1, but at a cut, where frame s + N - 1 is followed by frame s: a loop of N
frames. One cut for the whole frame is a video texture (Schoedl et al. 2000); with a cut for each place (Liao et al.
2013) most places find a moment at which they look alike, and not all of them jump at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pixels import mean_around

LEAST_LENGTH = 4  # frames of a loop
# Shares of the clip's length, between which a loop's is unless the clip repeats itself. In a longer one there are few
# moments to choose from, and all places jump at once.
LEAST_SHARE, MOST_SHARE = 0.5, 0.67
REPEATS = 0.1  # a clip repeats itself after n frames that differ by this share of the change from frame to frame
RADIUS = 2  # pixels around a place that have a say in its first cut
CUT_WEIGHT = 2.0  # of what shows at a cut, beside what shows between neighbours with different cuts
SWEEPS = 10  # over all cuts, each moving to the best for its neighbours' (iterated conditional modes)
FADE = 8  # frames before and after a cut that blend into what is on its other side


def choose_length(clip: Tensor) -> int:
    """The number of frames after which a clip (T, H, W, C) goes on best from its own frames.

    The shortest after which it repeats itself; else, of half to two thirds of the clip's, where cuts show least for the
    length.
    """
    least, most = (max(LEAST_LENGTH, int(share * len(clip))) for share in (LEAST_SHARE, MOST_SHARE))
    change = float(_differences(clip, 1).mean())
    for length in range(LEAST_LENGTH, least):
        if float(_differences(clip, length).mean()) < REPEATS * change:
            return length

    def shows(length: int) -> float:
        return float(_box(_at_cuts(_differences(clip, length))).amin(0).mean()) / length

    return min(range(least, min(most + 1, len(clip))), key=shows, default=len(clip))


def cut_loop(clip: Tensor, frames: int) -> Tensor:
    """(frames, H, W, C): a loop of a clip (T, H, W, C), T at least `frames`, with the cut of each place blended."""
    if frames == len(clip):
        return clip
    return _blended(clip, frames, _choose_cuts(_differences(clip, frames)))


def _differences(clip: Tensor, length: int) -> Tensor:
    """(T - length, H, W): the mean squared difference of frames u and u + length."""
    return (clip[length:] - clip[:-length]).square().mean(-1)


def _at_cuts(differences: Tensor) -> Tensor:
    """(S + 1, H, W) from (S, H, W): what shows at a cut s, the difference of the frames on its sides, s - 1 and s."""
    padded = torch.cat((differences[:1], differences, differences[-1:]))
    return (padded[1:] + padded[:-1]) / 2


def _box(costs: Tensor) -> Tensor:
    """(S, H, W): means of the places around."""
    return mean_around(costs[:, None], 2 * RADIUS + 1)[:, 0]


def _choose_cuts(differences: Tensor) -> Tensor:
    """(H, W) int64: the cut of each place, from 0 to S, of the differences (S, H, W) that a cut jumps over.

    Neighbours whose cuts are s and s' show different frames from one to the other; what shows is the sum of differences
    between.
    """
    at_cuts = _at_cuts(differences)
    until = F.pad(differences.cumsum(0), (0, 0, 0, 0, 1, 0))  # (S + 1, H, W)
    cuts = _box(at_cuts).argmin(0)
    rows, columns = (torch.arange(side, device=cuts.device) for side in cuts.shape)
    odd = (rows[:, None] + columns) % 2 == 1
    for sweep in range(2 * SWEEPS):
        cost = CUT_WEIGHT * at_cuts
        for axis in (0, 1):
            for step in (-1, 1):
                cost += _between(until, cuts, axis, step)
        cuts = torch.where(odd == (sweep % 2 == 1), cost.argmin(0), cuts)
    return cuts


def _between(until: Tensor, cuts: Tensor, axis: int, step: int) -> Tensor:
    """(S + 1, H, W): what shows between each place, were it cut at s, and its neighbour, which is cut as it is."""
    size = cuts.shape[axis]
    neighbour = (torch.arange(size, device=cuts.device) + step).clamp(0, size - 1)
    theirs = cuts.index_select(axis, neighbour)[None]
    total = torch.zeros_like(until)
    for places in (until, until.index_select(axis + 1, neighbour)):
        total += (places - places.gather(0, theirs)).abs()
    total.select(axis + 1, 0 if step < 0 else size - 1).zero_()  # they have no neighbour there
    return total


def _blended(clip: Tensor, frames: int, cuts: Tensor) -> Tensor:
    """(frames, H, W, C): the loop of these cuts, blended on both sides of each with the frames that it leaves out."""
    fade = min(FADE, frames // 2)
    since = (torch.arange(frames, device=cuts.device)[:, None, None] - cuts) % frames  # frames after the place's cut
    shown = cuts + since

    def at(index: Tensor) -> Tensor:
        return clip.gather(0, index.clamp(0, len(clip) - 1)[..., None].expand(-1, -1, -1, clip.shape[3]))

    looped = at(shown)
    for other, distance in ((shown + frames, since), (shown - frames, frames - 1 - since)):
        there = (other >= 0) & (other < len(clip))
        share = (0.5 * (1 - (distance + 0.5) / fade)).clamp(min=0) * there
        looped = looped + share[..., None] * (at(other) - looped)
    return looped
