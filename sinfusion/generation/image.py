"""Edits of the image an image run was trained on: sketches, moved parts, inpainting, outpainting."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clip import as_image, as_mask
from ..errors import SettingError, SinfusionError
from ..pixels import check_size, middle, resize, to_uint8, to_unit
from ..roles import IMAGE
from ..run import Run
from .guidance import Guidance
from .reverse_process import reverse_process
from .seam import Seam, SeamPatches
from .video import seeds_of

JUMPS = 3  # where something is kept


def edit(
    run: Run,
    image: np.ndarray,
    mask: np.ndarray | None = None,
    strength: float = 0.5,
    canvas: tuple[int, int] | None = None,
    count: int = 1,
    seed: int = 0,
    steps: int | None = None,
    text: str | None = None,
    text_model: str | Path | None = None,
    text_strength: float | None = None,
    text_fill: float | None = None,
    style: Any = None,
    where: Any = None,
    jumps: int | None = None,
) -> np.ndarray:
    """Make an edited or sketched image look like the training image; (count, H, W, 3) uint8.

    image: (H, W, 3) uint8 or what `as_image` takes, an edited image or a sketch of colour blobs.
    mask: (H, W) bool or what `as_mask` takes, True where the image may change (inpainting); everything else is kept
    to the bit. strength: in (0, 1], where in the reverse process the image enters: small keeps it, 1 makes it anew.
    canvas: (height, width) at least as large as the image, which is put in its middle; what lies around it is made
    (outpainting). text, text_model, text_strength, text_fill, style, where: as for `generate`; text_strength: None:
    0.05; where: None: where the mask lets the image change. jumps: how often each step of the reverse process goes
    back by noise and is taken again, so that what is made meets what is kept (RePaint); each costs as much as the edit
    without; None: 3 where something is kept and nothing guides, else 0.
    """
    if run.kind != "image":
        raise SinfusionError(f"{run.path} is a video run; edit needs a run trained on an image.")
    image = as_image(image, "the edited image")
    height, width = check_size(image.shape[:2])
    if mask is not None:
        mask = as_mask(mask)
        if mask.shape != (height, width):
            raise SinfusionError(f"the mask is {mask.shape}, the image {(height, width)}: rows and columns must agree.")
    guidance, seeds = Guidance(text, text_model, style, where, text_strength, text_fill), seeds_of(run, seed, count)
    change = mask if mask is not None else np.full((height, width), canvas is None)
    if canvas is not None:
        image, change = _on_canvas(image, change, canvas)
    keeps, guides = not change.all(), guidance.wanted and text_strength != 0
    jumps = _jumps(jumps, keeps, guides)
    known_image = to_unit(torch.from_numpy(np.ascontiguousarray(image)).to(run.device))[None]
    known_mask = ~torch.from_numpy(change).to(run.device)[None, None]
    process = reverse_process(run, IMAGE, steps=steps, strength=strength).resampling(jumps)
    if guidance.wanted:
        guidance = guidance if not keeps or where is not None else dataclasses.replace(guidance, where=change)
        guide = guidance.guide(process.steps, seeds.tolist(), change.shape, run.device, from_noise=strength == 1)
        process = process.guided(guide)
    if keeps and not guides:
        process = process.guided(Seam(known_mask[0, 0]))
    images = process(seeds, 0, None, known_image.expand(count, -1, -1, -1), None, known_mask, known_image)
    if keeps and not guides:
        patches = SeamPatches(known_mask[0, 0], to_unit(torch.from_numpy(run.frames).to(run.device)).movedim(1, -1))
        patches.begin(images)
        images = patches(images)
    outputs = to_uint8(images).cpu().numpy()
    return np.where(change[..., None], outputs, image)


def _jumps(jumps: int | None, keeps: bool, guides: bool) -> int:
    """The number of jumps that is asked for, or the usual one. keeps: some pixels; guides: anything, at each step."""
    if jumps is None:
        return JUMPS if keeps and not guides else 0
    if jumps and not keeps:
        raise SettingError("{jumps} is for what is kept; give {mask} or {canvas}, or leave it out.")
    return jumps


def _on_canvas(image: np.ndarray, change: np.ndarray, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask in the middle of a larger canvas; around it the resized image, as colours to begin with."""
    inside = middle((image.shape[0], image.shape[1]), canvas)
    large = resize(image, canvas).copy()
    may_change = np.ones(canvas, bool)
    large[inside], may_change[inside] = image, change
    return large, may_change
