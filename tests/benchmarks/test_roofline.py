"""benchmarks/roofline.py: the plot of made-up results."""

import itertools

import pytest
from PIL import Image
from report import Settings, main, read
from roofline import SIZE, label_heights, limits, points


def entries_of(path):
    return read([path])[0].entries


def test_a_point_is_what_is_computed_for_a_byte_and_in_a_second(file, made_up):
    path = file(
        made_up.operator("dense forward 3x3, 64 to 192", {"native": 0.5, "reference": 1.0}, dense=3000),
        made_up.operator("adam_ema", {"native": 0.1}, elementwise=400),
    )
    assert points(entries_of(path)) == [
        ("adam_ema", 0.4, 4000.0),
        ("dense forward 3x3, 64 to 192", 3.0, 6000.0),
    ]


def test_a_roof_is_the_most_that_was_measured(file, made_up):
    faster = made_up.operator("adam_ema", {"native": 0.1}, limits=made_up.limits | {"copy": 3e10})
    found = limits(entries_of(file(made_up.norms[0], faster)))
    assert found.copy == 3e10 and found.matrix == 1e12


def test_the_roofline_is_an_image_with_a_panel_for_each_machine(file, made_up, tmp_path):
    plot = tmp_path / "roofline.png"
    entries = [
        *[(test, info | {"depthwise": 10**7}) for test, info in made_up.norms],
        made_up.operator("dense backward 3x3, 64 to 192", {"native": 0.01}, dense=10**9),
        made_up.operator("sample_crops", {"native": 0.1}, elementwise=3000),
    ]
    main(Settings((file(*entries, name="a.json"),), plot=plot))
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.size == SIZE
        assert len(image.convert("RGB").getcolors(2**24)) > 100  # not an empty sheet
    main(Settings((file(*entries, name="a.json"), file(*entries, name="b.json", cpu="Another")), plot=plot))
    with Image.open(plot) as image:
        assert image.size == (SIZE[0], 2 * SIZE[1])


def test_a_roofline_of_nothing_is_refused(file, made_up, tmp_path):
    with pytest.raises(SystemExit, match="a roofline needs operators of ours"):
        main(Settings((file(made_up.step({"ours": 1, "reference": 2}, {})),), plot=tmp_path / "roofline.png"))
    assert not (tmp_path / "roofline.png").exists()


@pytest.mark.parametrize("wanted", [[0.5] * 3, [0.99, 0.995, 1.0], [0.0, 0.001, 0.8], [i / 99 for i in range(100)]])
def test_labels_stand_apart_inside_the_plot_and_in_order(wanted):
    heights = label_heights(wanted)
    gap = min(0.03, 1 / len(wanted))
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(heights))
    assert heights[-1] <= 1 and heights[0] >= -1e-9
