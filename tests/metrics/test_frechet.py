"""SIFID and SVFID: Frechet distances in closed form, both networks against plain torch.nn, good and bad weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sinfusion.errors import SinfusionError
from sinfusion.metrics.frechet import (
    c3d_features,
    frechet_distance,
    inception_features,
    load_c3d,
    load_inception,
    sifid,
    svfid,
)


def inception_state():
    """Random weights with the names and shapes of torchvision's inception_v3, and one tensor more."""
    generator = torch.Generator().manual_seed(0)
    state = {"fc.weight": torch.zeros(1000, 2048)}
    for name, channels, out in (("1a", 3, 32), ("2a", 32, 32), ("2b", 32, 64)):
        prefix = f"Conv2d_{name}_3x3"
        state[f"{prefix}.conv.weight"] = torch.randn(out, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
        state[f"{prefix}.bn.weight"] = 1 + 0.2 * torch.randn(out, generator=generator)
        state[f"{prefix}.bn.bias"] = 0.3 * torch.randn(out, generator=generator)
        state[f"{prefix}.bn.running_mean"] = 0.1 * torch.randn(out, generator=generator)
        state[f"{prefix}.bn.running_var"] = 0.5 + torch.rand(out, generator=generator)
        state[f"{prefix}.bn.num_batches_tracked"] = torch.tensor(7)
    return state


def c3d_state():
    """Random weights with the usual names and shapes of C3D, and those of a later layer."""
    generator = torch.Generator().manual_seed(1)
    return {
        "conv1.weight": torch.randn(64, 3, 3, 3, 3, generator=generator) / 9,
        "conv1.bias": torch.randn(64, generator=generator),
        "conv2.weight": torch.randn(128, 64, 3, 3, 3, generator=generator) / 41,
        "conv2.bias": torch.randn(128, generator=generator),
        "conv3a.weight": torch.zeros(256, 128, 3, 3, 3),
    }


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_state(), path)
    return path


@pytest.fixture(scope="module")
def c3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "c3d.safetensors"
    save_file(c3d_state(), path)
    return path


def noisy(frames, deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def gaussian(size, rank, seed):
    """A random mean and covariance of the given rank, float64."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T


def test_between_gaussians_with_diagonal_covariances_the_distance_is_the_sum_over_the_axes():
    means = torch.tensor([[0.0, 1.0, -2.0], [1.0, 1.0, 2.0]])
    deviations = torch.tensor([[1.0, 0.5, 3.0], [2.0, 0.5, 0.0]])
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    covariances = [d.square().diag() for d in deviations]
    assert frechet_distance(means[0], covariances[0], means[1], covariances[1]) == pytest.approx(expected.item())


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_scaling_a_gaussian_by_s_moves_it_by_s_minus_one_times_its_deviations(scale):
    mean, covariance = gaussian(6, 6, 0)
    expected = (scale - 1) ** 2 * (covariance.trace() + mean.square().sum())
    distance = frechet_distance(mean, covariance, scale * mean, scale**2 * covariance)
    assert distance == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(5, 5), (5, 2), (1, 5)])
def test_the_distance_is_that_of_the_eigenvalues_of_the_product_of_any_two_covariances(rank_a, rank_b):
    (mean_a, a), (mean_b, b) = gaussian(5, rank_a, 1), gaussian(5, rank_b, 2)
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * roots
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 40, 64])
def test_a_gaussian_is_at_distance_zero_from_itself_even_with_a_singular_covariance(rank):
    mean, covariance = gaussian(64, rank, 3)
    assert frechet_distance(mean, covariance, mean, covariance) <= 1e-12 * covariance.trace().item()


def test_inception_features_are_those_of_the_same_layers_built_of_torch_nn(inception):
    state = inception_state()
    layers = []
    for name, channels, out, stride, padding in (("1a", 3, 32, 2, 0), ("2a", 32, 32, 1, 0), ("2b", 32, 64, 1, 1)):
        convolution = nn.Conv2d(channels, out, 3, stride, padding, bias=False)
        norm = nn.BatchNorm2d(out, eps=0.001)
        prefix = f"Conv2d_{name}_3x3."
        convolution.load_state_dict({"weight": state[f"{prefix}conv.weight"]})
        norm.load_state_dict(
            {k.removeprefix(f"{prefix}bn."): v for k, v in state.items() if k.startswith(f"{prefix}bn")}
        )
        layers += [convolution, norm, nn.ReLU()]
    images = torch.rand(2, 3, 21, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = nn.Sequential(*layers).eval()(images)
    features = inception_features(images, load_inception(inception))
    assert features.shape == (2, 64, 8, 12)
    torch.testing.assert_close(features, expected)


def test_c3d_features_are_those_of_the_same_layers_built_of_torch_nn(c3d):
    state = c3d_state()
    first, second = nn.Conv3d(3, 64, 3, padding=1), nn.Conv3d(64, 128, 3, padding=1)
    first.load_state_dict({part: state[f"conv1.{part}"] for part in ("weight", "bias")})
    second.load_state_dict({part: state[f"conv2.{part}"] for part in ("weight", "bias")})
    network = nn.Sequential(first, nn.ReLU(), nn.MaxPool3d((1, 2, 2)), second, nn.ReLU())
    clips = torch.rand(1, 3, 5, 10, 13, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = network(clips * 127.5)
    features = c3d_features(clips, load_c3d(c3d))
    assert features.shape == (1, 128, 5, 5, 6)
    torch.testing.assert_close(features, expected)


def test_sifid_is_the_frechet_distance_of_the_features_of_all_positions(inception, texture):
    a, b = texture(1, (24, 32))[0], texture(1, (20, 40), seed=1)[0]
    weights = load_inception(inception)
    moments = []
    for image in (a, b):
        unit = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        samples = inception_features(unit, weights)[0].flatten(1).double()
        moments += [samples.mean(1), samples.cov()]
    assert sifid(a, b, inception) == pytest.approx(frechet_distance(*moments), rel=1e-6)


def test_svfid_is_the_frechet_distance_of_the_features_of_all_positions_of_the_whole_clip(c3d, texture):
    a, b = texture(21, (12, 16)), texture(10, (16, 12), seed=1)  # more frames than go through the network at once
    weights = load_c3d(c3d)
    moments = []
    for video in (a, b):
        unit = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        samples = c3d_features(unit, weights)[0].flatten(1).double()
        moments += [samples.mean(1), samples.cov()]
    assert svfid(a, b, c3d) == pytest.approx(frechet_distance(*moments), rel=1e-6)


def test_sifid_of_an_image_with_itself_is_zero_and_grows_with_noise(inception, texture):
    image = texture(1, (32, 32))[0]
    distances = [sifid(noisy(image, deviation), image, inception) for deviation in (0, 4, 16)]
    assert distances[0] < 1e-9 < distances[1] < distances[2]


def test_svfid_of_a_video_with_itself_is_zero_and_grows_with_noise(c3d, texture):
    video = texture(6, (16, 16))
    distances = [svfid(noisy(video, deviation), video, c3d) for deviation in (0, 4, 16)]
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_svfid_tells_the_frames_in_another_order_from_the_video(c3d, texture):
    video = texture(12, (16, 16), step=2)
    shuffled = video[np.random.default_rng(0).permutation(12)]
    assert svfid(shuffled, video, c3d) > 1


def test_sifid_of_several_images_is_the_mean_over_them(inception, texture):
    several = texture(3, (24, 24), step=5)
    one = texture(1, (24, 24), seed=1)[0]
    each = [sifid(image, one, inception) for image in several]
    assert sifid(several, one, inception) == pytest.approx(np.mean(each))
    assert sifid(several, several, inception) < 1e-9


def test_names_of_torch_save_and_safetensors_files_load_alike(inception, tmp_path):
    save_file(inception_state(), tmp_path / "inception.safetensors")
    one, other = load_inception(inception), load_inception(tmp_path / "inception.safetensors")
    assert one.keys() == other.keys() and len(one) == 15
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_missing_tensor_or_a_wrong_shape_is_named(tmp_path, texture):
    video = texture(4, (16, 16))
    state = c3d_state()
    del state["conv2.bias"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(SinfusionError, match=r"short\.pt has no tensor conv2\.bias; give a state dict of C3D\."):
        svfid(video, video, tmp_path / "short.pt")
    torch.save(c3d_state() | {"conv1.weight": torch.zeros(64, 1, 3, 3, 3)}, tmp_path / "grey.pt")
    with pytest.raises(
        SinfusionError, match=r"conv1\.weight in .*grey\.pt is \(64, 1, 3, 3, 3\); .* \(64, 3, 3, 3, 3\)"
    ):
        svfid(video, video, tmp_path / "grey.pt")
    torch.save(c3d_state(), tmp_path / "c3d.pt")
    with pytest.raises(
        SinfusionError, match=r"no tensor Conv2d_1a_3x3\.conv\.weight; give a state dict of Inception v3"
    ):
        sifid(video, video, tmp_path / "c3d.pt")


@pytest.mark.parametrize("name", ["nowhere.pth", "noise.pth", "noise.safetensors", "list.pth", "code.pth"])
def test_a_file_that_holds_no_weights_is_refused_in_one_sentence(name, tmp_path, texture):
    path = tmp_path / name
    if name.startswith("noise"):
        path.write_bytes(b"not weights at all" * 10)
    elif name == "list.pth":
        torch.save([torch.zeros(3)], path)
    elif name == "code.pth":
        torch.save({"conv1.weight": print}, path)
    with pytest.raises(SinfusionError) as refusal:
        sifid(texture(1)[0], texture(1)[0], path)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("generated", "original", "message"),
    [
        (np.zeros((8, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8), "generated must be 9x9 .* not 16x8"),
        (np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 2.0), "original must be uint8.* float64"),
        (np.zeros(16, np.uint8), np.zeros((16, 16, 3), np.uint8), r"generated must be .* not \(16,\)"),
        (np.zeros((3, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8), "each of the 3 images, not 2"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(generated, original, message, inception):
    with pytest.raises(SinfusionError, match=message):
        sifid(generated, original, inception)
