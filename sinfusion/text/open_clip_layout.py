"""A CLIP in open_clip's layout, read as one of transformers: the same network with other names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model"
# Of a tensor outside of the blocks, by name: in open_clip, in transformers.
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("visual.proj", "text_projection")  # open_clip multiplies from the other side
# Of a block's layers.
LAYERS = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def is_open_clip(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read(folder: Path) -> tuple[Any, dict[str, list[float]]]:
    """transformers' CLIPModel, and image_mean and image_std as far as the folder has them.

    Raises anything for other networks than the vision transformers of CLIP, and for damaged files.
    """
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    settings = json.loads((folder / CONFIG).read_text())
    model = CLIPModel(CLIPConfig(**_config(settings["model_cfg"])))
    model.load_state_dict(dict(renamed(load_file(folder / f"{WEIGHTS}.safetensors"))))
    colours = settings.get("preprocess_cfg", {})
    return model, {f"image_{name}": colours[name] for name in ("mean", "std") if name in colours}


def _config(given: dict[str, Any]) -> dict[str, Any]:
    """transformers' settings of both halves; KeyError for what is no CLIP of vision and text transformers."""
    vision, text = given["vision_cfg"], given["text_cfg"]
    if not {"layers", "width", "patch_size"} <= vision.keys() or not isinstance(vision["layers"], int):
        raise ValueError("its images are seen by another network than CLIP's vision transformer")
    activation = "quick_gelu" if given.get("quick_gelu") else "gelu"

    def half(width: int, heads: int, of: dict[str, Any]) -> dict[str, Any]:
        inner = int(width * of.get("mlp_ratio", 4.0))
        sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
        return sizes | {
            "num_hidden_layers": of["layers"],
            "hidden_act": activation,
            "projection_dim": given["embed_dim"],
        }

    seen = half(vision["width"], vision["width"] // vision.get("head_width", 64), vision)
    words = text.get("vocab_size", 49408)
    said = half(text["width"], text["heads"], text)
    said |= {"vocab_size": words, "max_position_embeddings": text.get("context_length", 77)}
    said |= {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    seen |= {"image_size": vision.get("image_size", 224), "patch_size": vision["patch_size"]}
    return {"vision_config": seen, "text_config": said, "projection_dim": given["embed_dim"]}


def renamed(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of transformers, of those of open_clip. Raises KeyError for a name that CLIP has not."""
    for name, tensor in weights.items():
        of, block, rest = name.partition("transformer.resblocks.")
        if not block:
            stem, _, last = name.rpartition(".")
            new = NAMES.get(name) or f"{NAMES[stem]}.{last}"
            yield new, tensor.t().contiguous() if name in TRANSPOSED else tensor
            continue
        number, _, layer = rest.partition(".")
        place = f"{'vision' if of else 'text'}_model.encoder.layers.{number}"
        if layer.startswith("attn.in_proj_"):  # queries, keys and values in one
            for part, one in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{place}.self_attn.{part}_proj.{layer.removeprefix('attn.in_proj_')}", one.clone()
        else:
            stem, _, last = layer.rpartition(".")
            yield f"{place}.{LAYERS[stem]}.{last}", tensor
