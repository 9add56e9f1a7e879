"""LPIPS: the distance of the package's own code, of which nothing is run; and its place in evaluations of images."""

import importlib.machinery
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from sinfusion.cli import main
from sinfusion.errors import SinfusionError
from sinfusion.media import write_image
from sinfusion.metrics import perceptual
from sinfusion.metrics.evaluation import evaluate
from sinfusion.metrics.perceptual import LEAST_SIDE, Lpips, load_lpips, to_others
from sinfusion.pixels import to_unit

SHAPES = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
INSTALLED = importlib.util.find_spec("stlpips_pytorch") is not None


@pytest.fixture
def weights():
    """Random ones, by the names of the package."""
    torch.manual_seed(0)
    found = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for layer, ((name, _), (out, channels, side)) in enumerate(zip(perceptual.CONVOLUTIONS, SHAPES, strict=True)):
        found[f"net.{name}.weight"] = torch.randn(out, channels, side, side) / (side * channels**0.5)
        found |= {f"net.{name}.bias": torch.zeros(out), f"lin{layer}.model.1.weight": torch.rand(1, out, 1, 1)}
    return found


@pytest.fixture
def package(weights, tmp_path, monkeypatch):
    """A package with these weights, as if it were installed."""
    (tmp_path / "site" / perceptual.WEIGHTS).parent.mkdir(parents=True)
    torch.save(weights, tmp_path / "site" / perceptual.WEIGHTS)
    spec = importlib.machinery.ModuleSpec("stlpips_pytorch", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "site")]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "stlpips_pytorch" else find(name))


@pytest.fixture
def images(texture):
    return [texture(1, (24, 30), seed=seed)[0] for seed in range(3)]


def test_an_image_is_at_no_distance_from_itself_and_nearer_to_a_like_one(weights, images):
    lpips, (image, other, _) = Lpips(weights), images
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    assert to_others(lpips, [image, image]) == [0, 0]
    assert 0 < to_others(lpips, [image, noisy])[0] < 0.5 * to_others(lpips, [image, other])[0]


def test_the_mean_of_all_is_that_of_all_pairs(weights, images):
    lpips = Lpips(weights)
    pairs = [to_others(lpips, [images[i], images[j]])[0] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert to_others(lpips, images) == pytest.approx([(pairs[0] + pairs[1]) / 2, (pairs[0] + pairs[2]) / 2,
                                                      (pairs[1] + pairs[2]) / 2])  # fmt: skip
    assert np.mean(to_others(lpips, images)) == pytest.approx(np.mean(pairs))


def test_the_smallest_image_that_is_taken_has_a_distance(weights):
    smallest = np.random.default_rng(0).integers(0, 256, (2, LEAST_SIDE, LEAST_SIDE, 3), dtype=np.uint8)
    assert to_others(Lpips(weights), smallest)[0] > 0
    with pytest.raises(RuntimeError):
        to_others(Lpips(weights), smallest[:, 1:])


@pytest.mark.skipif(not INSTALLED, reason="needs the extra: pip install 'sinfusion[lpips]'")
def test_it_is_the_distance_of_the_packages_own_code(texture, monkeypatch):
    for name in ("torchvision", "torchsummary", "IPython"):  # imported there, and not used by this network
        stub = types.ModuleType(name)
        stub.models, stub.summary, stub.embed = types.ModuleType("models"), None, None
        monkeypatch.setitem(sys.modules, name, stub)
    with monkeypatch.context() as loading:
        for name in [name for name in sys.modules if name.startswith("stlpips_pytorch")]:
            loading.delitem(sys.modules, name)
        from stlpips_pytorch.stlpips import LPIPS
    theirs = LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    images = [texture(1, (40, 57), seed=seed)[0] for seed in (1, 2)]
    with torch.no_grad():
        expected = theirs(*(to_unit(torch.from_numpy(image))[None] for image in images)).item()
    assert to_others(load_lpips(), images)[0] == pytest.approx(expected, rel=1e-5)


# In evaluations ------------------------------------------------------------------------------------------------------


def test_results_have_their_distance_to_the_others(package, weights, images, texture):
    original = texture(1, (24, 30), seed=9)[0]
    rows = evaluate(original, images, lpips=True)
    assert [row["lpips"] for row in rows[1:]] == pytest.approx(to_others(Lpips(weights), images))
    assert "lpips" not in rows[0] and not any("lpips" in row for row in evaluate(original, images))


def test_the_command_shows_it(package, images, tmp_path, capsys):
    for i, image in enumerate(images):
        write_image(tmp_path / f"{i}.png", image)
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    assert main(["evaluate", *files, "--lpips"]) == 0
    printed = capsys.readouterr().out
    assert " LPIPS " in printed and "the mean perceptual distance to the other results" in printed


def test_without_the_package_a_sentence_says_what_to_install(images, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "stlpips_pytorch" else find(name))
    with pytest.raises(SinfusionError, match=r"this needs stlpips_pytorch: pip install 'sinfusion\[lpips\]'"):
        evaluate(images[0], images[1:], lpips=True)


def test_what_has_no_diversity_is_refused(package, images, clip, texture, image_run, video_run):
    for original, results, message in (
        (clip, [clip, clip], "lpips is for images; leave it out for videos"),
        (images[0], [images[1]], "let there be two or more of them"),
        (images[0], [images[1], images[2][:, 1:]], "results of one size"),
        (clip[0], [clip[1], clip[2]], "the results are 24x16; for lpips each side must be at least 21"),
    ):
        with pytest.raises(SinfusionError, match=message):
            evaluate(original, results, lpips=True)
    with pytest.raises(SinfusionError, match="two or more"):
        evaluate(image_run, count=1, lpips=True)
    with pytest.raises(SinfusionError, match="lpips is for images"):
        evaluate(video_run, lpips=True)


def test_samples_of_a_run_are_measured_too(package, image_run, monkeypatch):
    monkeypatch.setattr("sinfusion.metrics.evaluation.LEAST_SIDE", 1)
    monkeypatch.setattr("sinfusion.metrics.comparison.to_others", lambda _, images: [0.25, 0.5, 0.75][: len(images)])
    rows = evaluate(image_run, count=3, steps=1, lpips=True)
    assert [row.get("lpips") for row in rows] == [None, 0.25, 0.5, 0.75, 0.5]
