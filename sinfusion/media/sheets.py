"""Images for people to look at: contact sheets, two videos side by side, new frames with a border."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray,
    columns: int | None = None,
    max_frames: int = 24,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """(H, W, 3) uint8: evenly spaced frames in a grid, small ones enlarged.

    frames: (H, W, 3) uint8 each, of one size. columns: of the grid; None: as suits the number of frames. max_frames: at
    most so many are shown. labels: a text for each of the frames.
    """
    picks = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int))
    columns = min(len(picks), columns or min(6, int(np.ceil(np.sqrt(len(picks) * 1.2)))))
    shown = [enlarge(frames[i]) for i in picks]
    height, width = shown[0].shape[:2]
    gap, rows = 4, -(-len(shown) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for n, (index, frame) in enumerate(zip(picks, shown, strict=True)):
        top, left = gap + n // columns * (height + gap), gap + n % columns * (width + gap)
        sheet[top : top + height, left : left + width] = _add_label(frame, labels[index]) if labels else frame
    return sheet


def enlarge(frame: np.ndarray, min_longer_side: int = 144) -> np.ndarray:
    """A frame with its pixels repeated, so that its longer side is at least `min_longer_side` pixels."""
    factor = max(1, -(-min_longer_side // max(frame.shape[:2])))
    return frame.repeat(factor, 0).repeat(factor, 1)


def _add_label(frame: np.ndarray, text: str) -> np.ndarray:
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    box = draw.textbbox((3, 2), text)
    draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(0, 0, 0))
    draw.text((3, 2), text, fill=(255, 255, 255))
    return np.asarray(image)


def side_by_side(left: np.ndarray, right: np.ndarray, labels: tuple[str, str] | None = None) -> np.ndarray:
    """(T, H, 2 W + gap, 3) uint8: two videos (T, H, W, 3) side by side, enlarged; the shorter one starts over."""
    pair = []
    for which, video in enumerate((left, right)):
        shown = [enlarge(video[t % len(video)], 256) for t in range(max(len(left), len(right)))]
        pair.append(np.stack([_add_label(frame, labels[which]) for frame in shown] if labels else shown))
    gap = np.full((*pair[0].shape[:2], 4, 3), 255, np.uint8)
    return np.concatenate((pair[0], gap, pair[1]), 2)


def mark_new(frames: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """A copy of frames (T, H, W, 3) with an orange border around those where `is_new`, (T,) bool, is True."""
    marked = frames.copy()
    width = max(1, min(frames.shape[1:3]) // 48)
    for frame in (frame for frame, new in zip(marked, is_new, strict=True) if new):
        for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            frame[edge] = (255, 140, 0)
    return marked
