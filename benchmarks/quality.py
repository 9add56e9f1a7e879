"""How good what a Predictor makes is, beside its clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sinfusion.metrics.fidelity import change, high_frequency, mean_psnr
from sinfusion.metrics.run_evaluation import conditional_mean
from sinfusion.run import Run

LAST = 15  # frames of a rollout that are looked at apart


def above_repeating(run: Run, frames: np.ndarray, earlier: np.ndarray | None = None) -> float:
    """dB by which the conditional mean predicts the frames better than repeating the one before does."""
    return mean_psnr(conditional_mean(run, frames, earlier=earlier), frames[1:]) - mean_psnr(frames[:-1], frames[1:])


def predictions(run: Run, known: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """On the transitions it was trained on; and on those after them, if there are any."""
    unseen = {"unseen_db": above_repeating(run, held, known[:-1])} if len(held) > 1 else {}
    return {"trained_db": above_repeating(run, known)} | unseen


def rollouts(videos: np.ndarray | Sequence[np.ndarray], known: np.ndarray) -> dict[str, float]:
    """Change between frames (RMS) and high-frequency RMS (frame minus its 3x3 mean) of videos, relative to the clip's;
    whole and of their last frames."""
    videos = np.asarray(videos)
    last = videos[:, -LAST:]
    return {
        "change": float(np.mean([change(video) for video in videos])) / change(known),
        "change_last": float(np.mean([change(video) for video in last])) / change(known),
        "high_frequency": high_frequency(videos) / high_frequency(known),
        "high_frequency_last": high_frequency(last) / high_frequency(known),
    }
