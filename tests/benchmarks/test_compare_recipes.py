"""benchmarks/compare_recipes.py: variants are recipes, clips have frames held out, means are of all rows."""

import json

import numpy as np
import pytest
from compare_recipes import VARIANTS, Settings, main, means, read
from PIL import Image

from sinfusion.recipe import TINY


@pytest.fixture
def folder(tmp_path, clip):
    (tmp_path / "pond").mkdir()
    for i, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / "pond" / f"{i:02}.png")
    return tmp_path / "pond"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_recipe_that_differs_from_tiny(variant):
    changes = {name: value for name, value in VARIANTS[variant].items() if name != "projector"}
    recipe = TINY.replace(**changes)
    assert (recipe == TINY) == (variant == "tiny")


def test_the_frames_from_a_number_on_are_held_out(folder, clip):
    name, known, held = read(f"{folder}:8", (16, 24))
    assert name == "pond" and np.array_equal(known, clip[:8]) and np.array_equal(held, clip[7:])
    _, known, held = read(str(folder), (16, 24))
    assert len(known) == len(clip) and len(held) == 1


def test_means_are_of_the_figures_that_all_rows_of_a_variant_have():
    rows = [
        {"variant": "tiny", "clip": "a", "seed": 0, "change": 1.0, "unseen_db": 2.0},
        {"variant": "tiny", "clip": "b", "seed": 0, "change": 2.0},
        {"variant": "x", "clip": "a", "seed": 1, "change": 4.0},
    ]
    assert means(rows) == [
        {"variant": "tiny", "clip": "mean", "rows": 2, "change": 1.5},
        {"variant": "x", "clip": "mean", "rows": 1, "change": 4.0},
    ]


def test_one_command_measures_variants_on_several_clips_and_seeds(folder, tmp_path, monkeypatch):
    small = {"filters": 4, "depth": 2, "sampling_steps": 1}
    monkeypatch.setattr("compare_recipes.TINY", TINY.replace(**small))
    out = tmp_path / "out.json"
    main(Settings((f"{folder}:8", f"{folder}:12"), "24x16", steps=1, variants=("tiny",), seeds=(0, 1), out=out))
    report = json.loads(out.read_text())
    *trained, mean = report["rows"]
    assert [(row["frames"], row["seed"]) for row in trained] == [(8, 0), (8, 1), (12, 0), (12, 1)]
    assert (mean["variant"], mean["clip"], mean["rows"]) == ("tiny", "mean", 4)
    assert "unseen_db" in trained[0] and "unseen_db" not in trained[-1] and report["commit"]
