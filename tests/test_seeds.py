"""Seeds have one range everywhere: on the command line, and in every function that takes one."""

import json

import numpy as np
import pytest

import sinfusion
from sinfusion import metrics, patches
from sinfusion.cli import main
from sinfusion.demo import demo
from sinfusion.errors import SinfusionError
from sinfusion.generation.video import stream
from sinfusion.scene import render
from sinfusion.seeds import SEEDS, check_seed, part_key
from sinfusion.training.batch import sample_seeds


@pytest.fixture
def calls(video_run, image_run, clip, tmp_path):
    """Every function that takes a seed, by name."""
    still, mask = clip[:1].repeat(3, 0), np.eye(16, 24, dtype=bool)
    return {
        "train": lambda seed: sinfusion.train(clip, tmp_path / "new", "tiny", seed=seed, quiet=True),
        "generate": lambda seed: sinfusion.generate(video_run, 1, start=0, seed=seed),
        "generate from an image": lambda seed: sinfusion.generate(image_run, seed=seed),
        "stream": lambda seed: next(stream(video_run, 1, start=0, seed=seed)),
        "extrapolate": lambda seed: sinfusion.extrapolate(video_run, 1, seed=seed),
        "upsample": lambda seed: sinfusion.upsample(video_run, 2, clip[:2], seed=seed),
        "extend": lambda seed: sinfusion.extend(video_run, (16, 30), clip[:1], 1, seed=seed),
        "retarget": lambda seed: sinfusion.retarget(video_run, (16, 24), clip[:1], seed=seed),
        "edit": lambda seed: sinfusion.edit(image_run, clip[0], seed=seed),
        "evaluate": lambda seed: sinfusion.evaluate(clip, clip, seed=seed),
        "evaluate a run": lambda seed: sinfusion.evaluate(video_run, seed=seed),
        "patches.generate": lambda seed: patches.generate(still, seed=seed),
        "patches.retarget": lambda seed: patches.retarget(still, seed=seed),
        "patches.analogy": lambda seed: patches.analogy(clip[0], clip[1], seed=seed),
        "patches.inpaint": lambda seed: patches.inpaint(clip, mask, seed=seed),
        "demo": lambda seed: demo(tmp_path / "demo", seed=seed, log=lambda _: None),
        "render": lambda seed: render(1, seed=seed),
        "nnf": lambda seed: metrics.nnf(clip, clip, seed=seed),
        "sliced_wasserstein": lambda seed: metrics.sliced_wasserstein(clip, clip, scales=1, seed=seed),
    }


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, True, np.True_, 1.0, np.float32(2), "1", ""], ids=repr)
def test_a_seed_that_is_none_is_refused_by_every_function_before_any_work(calls, seed, tmp_path):
    for name, call in calls.items():
        with pytest.raises(SinfusionError, match=r"^seed must be (a whole number|from 0 to 4294967295), not .*\.$"):
            call(seed)
            pytest.fail(name)
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_numpy_are_seeds(video_run, clip, tmp_path, small):
    for kind in (np.int64, np.uint8):
        outputs = sinfusion.generate(video_run, 2, start=0, seed=kind(7))
        assert np.array_equal(outputs, sinfusion.generate(video_run, 2, start=0, seed=7))
    outputs = patches.generate(clip[0], noise=0.1, seed=np.uint32(2**32 - 1))
    assert np.array_equal(outputs, patches.generate(clip[0], noise=0.1, seed=2**32 - 1))
    recipe = small.replace(predictor_steps=1, projector_steps=1)
    run = sinfusion.train(clip, tmp_path / "run", recipe, seed=np.int64(3), quiet=True)
    assert json.loads((run.path / "run.json").read_text())["seed"] == 3 and type(run.seed) is int


def test_the_last_of_several_samples_has_a_seed_too(video_run, image_run, clip, tmp_path):
    last = SEEDS - 1
    assert len(sinfusion.generate(video_run, 1, count=2, start=0, seed=last - 1)) == 2
    for call in (
        lambda: sinfusion.generate(video_run, 1, count=2, start=0, seed=last),
        lambda: sinfusion.generate(image_run, count=2, seed=last),
        lambda: sinfusion.edit(image_run, clip[0], count=2, seed=last),
        lambda: sinfusion.evaluate(video_run, count=2, seed=last),
        lambda: patches.generate(clip[0], count=2, seed=last),
        lambda: demo(tmp_path / "demo", seed=last),  # its second video is made from seed + 1
    ):
        with pytest.raises(SinfusionError, match="seed must be at most 4294967294 for 2 samples"):
            call()


def test_the_command_line_says_the_name_that_it_has_there(video_run, image_run, capsys, tmp_path):
    image = tmp_path / "image.png"
    sinfusion.media.write_image(image, image_run.frames[0])
    for words in (
        ("generate", video_run.path, "--count", "2"), ("edit", image_run.path, image, "--count", "2"),
        ("evaluate", video_run.path, "--count", "2"), ("patches", "generate", image, "--count", "2"),
        ("demo", "--out", tmp_path / "demo"),
    ):  # fmt: skip
        assert main([*map(str, words), "--seed", "4294967295"]) == 2
        assert "error: --seed must be at most 4294967294 for 2 samples" in capsys.readouterr().err
        assert main([*map(str, words), "--seed", "-1"]) == 2
        assert "error: --seed must be from 0 to 4294967295, not -1." in capsys.readouterr().err


def test_keys_of_training_and_of_parts_are_never_those_of_another_seed_within_the_range():
    model = 15
    largest = (SEEDS - 1) * 16 + model
    assert largest * 1_000_003 + 1_000_000 < 2**62  # nothing wraps: a product and a sum below the factor tell apart
    first, second = (sample_seeds(seed, range(1_000_000 - 3, 1_000_000)) for seed in (largest, largest - 1))
    assert not set(first.tolist()) & set(second.tolist())
    keys = {part_key(seed, part) for seed in (0, 1, SEEDS - 1) for part in (0, 1, 2**31 - 1)}
    assert len(keys) == 9 and all(0 <= key < 2**63 for key in keys)


def test_a_checked_seed_is_a_plain_int():
    assert type(check_seed(np.int16(5))) is int and check_seed(SEEDS - 1) == SEEDS - 1
