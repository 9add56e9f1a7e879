"""A CLIP as a guide: views of any shape, words in sentences, a picture in place of words."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra: pip install 'sinfusion[text]'")

from sinfusion.text.clip import SENTENCES, load
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
