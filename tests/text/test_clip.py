"""A CLIP as a guide: views of any shape, words in sentences, a picture in place of words."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="needs the extra: pip install 'sinfusion[text]'")

from sinfusion.errors import SinfusionError
from sinfusion.text.clip import SENTENCES, fingerprint, load
from sinfusion.text.views import draw_views


@pytest.fixture(scope="module")
def model(clip_folder):
    return load(clip_folder, extra="text")


def test_agreement_is_the_mean_cosine_with_all_sentences(model):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    pixels = ((images + 1) / 2 - model.mean) / model.std
    ids = model.tokenizer(
        [sentence.format("the man") for sentence in SENTENCES], padding="max_length", max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        outputs = model.model(input_ids=ids.input_ids, pixel_values=pixels)
    wanted = (outputs.image_embeds @ outputs.text_embeds.T).mean(1)
    assert torch.allclose(model.agreement(images, model.target("the man")), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (16, 16)])
def test_views_of_other_shapes_have_gradients_everywhere(model, size):
    images = (torch.rand(2, 3, *size) * 1.8 - 0.9).requires_grad_()
    model.agreement(images, model.target("skiing")).sum().backward()
    assert (images.grad != 0).float().mean() > 0.99


def test_a_picture_stands_for_the_mean_of_its_views(model):
    picture = torch.rand(3, 16, 24) * 2 - 1
    target, seen = model.target_of_image(picture), draw_views(0, 0, 16).of(picture, (16, 24))
    assert target.shape == model.target("the man").shape
    assert model.agreement(seen, target).mean().item() == pytest.approx(target.square().sum().item(), abs=1e-5)


# open_clip's layout: outputs of its own code for random weights (open_clip.safetensors) -------------------------------

OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 522, "width": 12, "heads": 2, "layers": 2},
}


@pytest.fixture
def open_clip(tmp_path, write_tokenizer):
    """open_clip(model_cfg) -> folder, and what its code makes of it."""
    file = load_file(Path(__file__).parent / "open_clip.safetensors")
    weights = {name.removeprefix("weights."): value for name, value in file.items() if name.startswith("weights.")}

    def write(settings):
        folder = tmp_path / "open_clip"
        assert write_tokenizer(folder) == 522
        colours = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": colours}))
        save_file(weights, folder / "open_clip_model.safetensors")
        return folder

    return write, file


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_folder_of_open_clip_gives_what_open_clip_gives(open_clip, activation):
    write, made = open_clip
    model = load(write(OPEN_CLIP | {"quick_gelu": activation == "quick_gelu"}), extra="text")
    seen = model.model.get_image_features(pixel_values=made["images"])
    said = model.model.get_text_features(input_ids=made["ids"])
    for found, name in ((seen, "image"), (said, "text")):
        found = found if isinstance(found, torch.Tensor) else found.pooler_output
        assert torch.allclose(found, made[f"{activation}.{name}_features"], atol=1e-5)
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert len(fingerprint(model.folder)) == 64


def test_the_activation_makes_a_difference(open_clip):
    made = open_clip[1]
    assert not torch.allclose(made["gelu.image_features"], made["quick_gelu.image_features"], atol=1e-3)


def test_another_network_of_open_clip_is_refused(open_clip):
    folder = open_clip[0](OPEN_CLIP | {"vision_cfg": {"timm_model_name": "convnext_base", "image_size": 16}})
    with pytest.raises(SinfusionError, match="another network than CLIP's vision transformer"):
        load(folder, extra="text")
