"""Views of a picture: what they show, and that they are functions of seed and step."""

import pytest
import torch

from sinfusion.text.views import draw_views, plain_view, size_of_views


@pytest.fixture
def image():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 36), indexing="ij")
    return torch.stack((rows, columns, (7 * rows).sin() * (9 * columns).cos()))


def test_the_plain_view_is_the_picture(image):
    assert torch.allclose(plain_view().of(image, (24, 36))[0], image, atol=1e-5)


def test_a_box_is_a_part_of_the_picture(image):
    top_right = plain_view((-1.0, 0.0, 0.0, 1.0)).of(image, (12, 18))[0]
    assert torch.allclose(top_right[:, :-1, 1:], image[:, :11, 19:], atol=1e-5)  # the last see across its border


def test_views_are_functions_of_seed_and_step(image):
    views = [draw_views(seed, step, 4).of(image, (24, 36)) for seed, step in ((1, 2), (1, 2), (1, 3), (2, 2))]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2]) and not torch.equal(views[0], views[3])


def test_views_are_parts_mirrored_turned_and_in_other_colours(image):
    places = draw_views(0, 0, 400).places
    x, y = (torch.linalg.vector_norm(places[1:, :2, i], dim=1) / places[1:, 2, 2] for i in (0, 1))
    assert 0.5 < x.median() < 1.1 and 0.5 < y.median() < 1.1 and x.std() > 0.05
    mirrored = (torch.linalg.det(places) < 0).float().mean()
    assert 0.4 < mirrored < 0.6
    grey = (draw_views(0, 0, 400).colours.std(1) < 1e-6).all(1).float().mean()
    assert 0.08 < grey < 0.25


def test_all_places_of_a_picture_have_gradients(image):
    image.requires_grad_()
    draw_views(0, 0, 16).of(image, (24, 36)).sum().backward()
    assert (image.grad.abs().sum(0) > 0).float().mean() > 0.99


def test_what_lies_outside_is_white():
    seen = draw_views(3, 1, 16).of(torch.full((3, 24, 36), -1.0), (24, 36))
    assert seen.max() > 0.8 and seen.min() == -1


def test_a_large_picture_is_made_smaller_before_it_is_looked_at():
    fine = torch.ones(3, 400, 600)
    fine[:, ::2] = -1
    assert plain_view().of(fine, (24, 36))[..., 2:-2, 2:-2].abs().max() < 0.2  # and not stripes


@pytest.mark.parametrize(
    ("size", "views"), [((64, 96), (224, 320)), ((96, 64), (320, 224)), ((50, 50), (224, 224)), ((40, 400), (32, 320))]
)
def test_views_have_about_the_shape_of_the_picture(size, views):
    assert size_of_views(size, 224, 32) == views
