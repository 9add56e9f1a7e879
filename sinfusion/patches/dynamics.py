"""The dynamic structure of a video, the speed of its pixels, or the brightness of an image; in a few steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SinfusionError
from ..pixels import to_unit

LUMA = (0.299, 0.587, 0.114)
DIS_MIN_SIDE = 16  # pixels: at half size, a patch of DIS; OpenCV crashes on smaller frames
RAFT_MIN_SIDE, RAFT_MULTIPLE = 128, 8  # pixels; sides are multiples of the latter


def motion(frames: np.ndarray, raft: str | Path | None = None, device: torch.device | str = "cpu") -> np.ndarray:
    """The length of the optical flow of (T, H, W, 3) uint8: (T, H, W) fp32, pixels a frame; the last frame repeats.

    Estimated by OpenCV's DIS; with `raft`, a file with the weights of torchvision's raft_large, by RAFT as in VGPNN.
    """
    if len(frames) < 2:
        raise SinfusionError("a video of one frame has no motion; give a video of at least 2 frames.")
    flow = _dis(frames) if raft is None else _raft(frames, Path(raft), device)
    speed = np.linalg.norm(flow[:, : frames.shape[1], : frames.shape[2]], axis=-1).astype(np.float32)
    return np.concatenate((speed, speed[-1:]))


def _dis(frames: np.ndarray) -> np.ndarray:
    try:
        import cv2
    except ImportError as error:
        raise SinfusionError(
            "optical flow needs OpenCV: pip install opencv-python-headless, or give weights of RAFT (--raft FILE)."
        ) from error
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in _pad(frames, DIS_MIN_SIDE)]
    estimate: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # its threads would compete with ours
    try:
        return np.stack([estimate.calc(a, b, None) for a, b in pairwise(grey)])
    finally:
        cv2.setNumThreads(threads)


def _raft(frames: np.ndarray, weights: Path, device: torch.device | str) -> np.ndarray:
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:  # RuntimeError if it was built for another PyTorch
        raise SinfusionError("RAFT needs the torchvision of this PyTorch: pip install torchvision.") from error
    network: Any = raft_large(weights=None)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except OSError as error:
        raise SinfusionError(f"{weights} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # torch raises several kinds, for other files and for other networks
        raise SinfusionError(f"{weights} does not hold the weights of torchvision's raft_large.") from error
    network.to(device).eval()
    video = to_unit(torch.from_numpy(_pad(frames, RAFT_MIN_SIDE, RAFT_MULTIPLE)))
    flows = []
    with torch.inference_mode():
        for a, b in pairwise(video):
            flow = network(a[None].to(device), b[None].to(device))[-1][0]
            flows.append(flow.movedim(0, -1).cpu().numpy())
    return np.stack(flows)


def _pad(frames: np.ndarray, min_side: int, multiple: int = 1) -> np.ndarray:
    """Frames whose last rows and columns are repeated until each side is a multiple, and at least `min_side`."""
    down, right = (max(min_side, -(-side // multiple) * multiple) - side for side in frames.shape[1:3])
    return np.pad(frames, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")


def brightness(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 -> luma (T, H, W) fp32 in [0, 1]."""
    return (frames @ np.array(LUMA, np.float32) / 255).astype(np.float32)


def quantise(values: np.ndarray, steps: int) -> Tensor:
    """(T, H, W) fp32 with at most `steps` evenly spaced values from 0 to 1: the ranks of the values' k-means clusters.

    This makes two videos comparable whose speeds differ.
    """
    flat = values.ravel().astype(np.float64)
    sample = np.sort(flat[:: max(1, flat.size // 100_000)])
    # Quantiles of the distinct values, so that rare ones count: most of a sketch is black.
    centres = np.unique(np.quantile(np.unique(sample), (np.arange(steps) + 0.5) / steps))
    for _ in range(30):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, sample)
        counts = np.bincount(nearest, minlength=len(centres))
        totals = np.bincount(nearest, weights=sample, minlength=len(centres))
        centres = np.unique(totals[counts > 0] / counts[counts > 0])
    labels = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat).reshape(values.shape)
    return torch.from_numpy((labels / max(1, len(centres) - 1)).astype(np.float32))
