"""CLIP (Radford et al. 2021), from a folder that the user brings: how well images and words go together.

model = load("clip-vit-large-patch14", device)         # transformers' or open_clip's layout, safetensors, never fetched
images, words = model.images(frames), model.words(["a man is skiing"])      # (N, D), (M, D), each of length 1
cosines = images @ words.T                                         # (N, M)

As a guide (`TextModel` of `guide`) it compares views, of any shape, with a text in the sentences of SinDDM, or with a
picture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SinfusionError
from ..extras import check_weights, need, quiet
from ..files import sha256
from . import open_clip_layout
from .views import draw_views, size_of_views

BRING = "bring a folder with a CLIP of transformers or open_clip, such as clip-vit-large-patch14"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training's colours
AT_ONCE = 16  # images in one evaluation without gradients
# SinDDM's, of high resolution: a text is compared with in all of them.
SENTENCES = (
    "photo of {}.", "high quality photo of {}.", "a photo of {}.", "the photo of {}.", "image of {}.",
    "an image of {}.", "high quality image of {}.", "a high quality image of {}.", "the {}.", "a {}.", "{}.", "{}",
    "{}!", "{}...",
)  # fmt: skip


@dataclass(frozen=True)
class ClipModel:
    """Both halves of a CLIP, in fp32."""

    folder: Path
    model: Any  # transformers' CLIPModel
    tokenizer: Any
    mean: Tensor  # (3, 1, 1)
    std: Tensor

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @property
    def side(self) -> int:
        """Height and width of the images that it sees."""
        return int(self.model.config.vision_config.image_size)

    def image_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, D), of length 1, with gradients: of the middle square of each image."""
        height, width = images.shape[-2:]
        scale = self.side / min(height, width)
        size = max(self.side, round(height * scale)), max(self.side, round(width * scale))
        scaled = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        square = scaled[..., top : top + self.side, left : left + self.side]
        pixels = ((square.clamp(-1, 1) + 1) / 2 - self.mean) / self.std
        return F.normalize(_features(self.model.get_image_features(pixel_values=pixels)), dim=-1)

    @property
    def multiple(self) -> int:
        """What both sides of a view are multiples of."""
        return int(self.model.config.vision_config.patch_size)

    def agreement(self, images: Tensor, target: Tensor) -> Tensor:
        """(N,), with gradients: mean cosine of each of the images (N, 3, H, W) in [-1, 1] with what is in a target.

        Their sides are multiples of `multiple`; the positions of patches are interpolated.
        """
        return self._of_views(images) @ target

    def target(self, text: str) -> Tensor:
        """(D,): mean of the features of the text in each sentence."""
        return self.words([sentence.format(text) for sentence in SENTENCES]).mean(0)

    @torch.no_grad()
    def target_of_image(self, image: Tensor) -> Tensor:
        """(D,): mean of the features of views of an image (3, H, W) in [-1, 1]."""
        size = size_of_views((image.shape[1], image.shape[2]), self.side, self.multiple)
        return self._of_views(draw_views(0, 0, AT_ONCE).of(image.to(self.device), size)).mean(0)

    def _of_views(self, images: Tensor) -> Tensor:
        pixels = ((images.clamp(-1, 1) + 1) / 2 - self.mean) / self.std
        features = _features(self.model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True))
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, D), of length 1, some images at a time."""
        parts = images.split(AT_ONCE)
        return torch.cat([self.image_features(part.to(self.device)) for part in parts])

    @torch.no_grad()
    def words(self, texts: list[str]) -> Tensor:
        """(N, D), of length 1. Raises SinfusionError for texts that are longer than CLIP reads."""
        most = int(self.model.config.text_config.max_position_embeddings)
        ids = token_ids(self.tokenizer, texts, most).to(self.device)
        return F.normalize(_features(self.model.get_text_features(input_ids=ids)), dim=-1)


def load(folder: str | Path, device: torch.device | str = "cpu", extra: str = "tune") -> ClipModel:
    """Open a folder of transformers' or open_clip's layout.

    Raises SinfusionError for anything else, and without transformers.

    extra: the one that has transformers, for the sentence that says what to install.
    """
    need(extra, "transformers")
    quiet()
    folder = Path(folder)
    if not folder.is_dir():
        raise SinfusionError(f"{folder} is not a folder; {BRING}.")
    weights = _weights(folder)
    from transformers import CLIPModel, CLIPTokenizer

    try:
        if open_clip_layout.is_open_clip(folder):
            model, colours = open_clip_layout.read(folder)
        else:
            kind = json.loads((folder / "config.json").read_text())["model_type"]
            if kind != "clip":
                raise ValueError(f"it is a {kind}")
            variant = "fp16" if weights.name == "model.fp16.safetensors" else None
            model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, variant=variant)
            file = folder / "preprocessor_config.json"
            colours = json.loads(file.read_text()) if file.is_file() else {}
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        mean, std = (
            torch.tensor(colours.get(name, known)).view(3, 1, 1)
            for name, known in (("image_mean", MEAN), ("image_std", STD))
        )
    except Exception as error:  # a damaged folder can raise anything
        what = f"{type(error).__name__}: {error!s:.80}".splitlines()[0]
        raise SinfusionError(f"{folder} cannot be loaded ({what}); {BRING}.") from error
    model.requires_grad_(False).eval().float().to(device)
    return ClipModel(folder, model, tokenizer, mean.to(device), std.to(device))


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weights."""
    return sha256(_weights(folder))


def _weights(folder: Path) -> Path:
    """The file of the weights. Raises SinfusionError where there is none, or a pickled one."""
    stem = open_clip_layout.WEIGHTS if open_clip_layout.is_open_clip(folder) else "model"
    variant = check_weights(folder, stem, BRING)
    return folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"


def token_ids(tokenizer: Any, texts: list[str], most: int) -> Tensor:
    """(N, most) int64: each text, padded. Raises SinfusionError for texts of more tokens than the model reads."""
    for text in texts:
        length = len(tokenizer([text]).input_ids[0])
        if length > most:
            raise SinfusionError(f"the text {text[:40]!r}... has {length} tokens, the model reads {most}; shorten it.")
    padded = tokenizer(texts, padding="max_length", max_length=most, return_tensors="pt")
    ids: Tensor = padded.input_ids
    return ids


def _features(outputs: Any) -> Tensor:
    """A tensor, which newer versions of transformers wrap."""
    return outputs if isinstance(outputs, Tensor) else outputs.pooler_output  # type: ignore[no-any-return]
