"""Rows of numbers: results and their original, its halves, what a run predicts and generates."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.errors import SinfusionError
from sinfusion.generation.upsampling import moved_half_way
from sinfusion.media import write_image, write_video
from sinfusion.metrics import comparison, nnf, nnfdist, nnfdiv, sliced_wasserstein
from sinfusion.metrics.comparison import halves
from sinfusion.metrics.coverage import coverage
from sinfusion.metrics.evaluation import evaluate, result_names
from sinfusion.metrics.fidelity import change, high_frequency, mean_psnr
from sinfusion.metrics.frechet import C3D_LAYERS, INCEPTION_LAYERS
from sinfusion.metrics.run_evaluation import conditional_mean, linear_prediction, sampled
from sinfusion.pixels import to_pixel_values, to_unit
from sinfusion.roles import INTERPOLATOR, PREDICTOR
from sinfusion.run import load


@pytest.fixture(scope="module")
def video_rows(video_run):
    return evaluate(video_run, count=2, steps=2)


@pytest.fixture
def weights(tmp_path):
    """Files of random weights: of Inception and of C3D."""
    files = {}
    for name, layers in (("inception", INCEPTION_LAYERS), ("c3d", C3D_LAYERS)):
        state = {}
        for layer, channels, out, *_ in layers:
            if name == "c3d":
                state |= {f"{layer}.weight": torch.randn(out, channels, 3, 3, 3), f"{layer}.bias": torch.zeros(out)}
            else:
                state[f"{layer}.conv.weight"] = torch.randn(out, channels, 3, 3)
                state |= {f"{layer}.bn.{part}": torch.ones(out) for part in ("weight", "running_var")}
                state |= {f"{layer}.bn.{part}": torch.zeros(out) for part in ("bias", "running_mean")}
        files[name] = tmp_path / f"{name}.pth"
        torch.save(state, files[name])
    return files


def of_kind(rows, *kinds):
    return [row for row in rows if row["kind"] in kinds]


# Results beside their original ---------------------------------------------------------------------------------------


def test_each_result_has_a_row_with_the_figures_of_metrics(clip, texture):
    outputs = texture(9, seed=1)
    _, row, same = evaluate(clip, [outputs, clip])
    field, distance = nnf(outputs, clip)
    assert row["nnfdiv"] == nnfdiv(field) and row["nnfdist"] == nnfdist(distance)
    assert row["swd"] == sliced_wasserstein(outputs, clip, scales=2)
    assert row["change"] == change(outputs) / change(clip) and row["frames"] == 9 and row["size"] == "24x16"
    assert row["coverage"] == coverage(outputs, clip) < 1 == same["coverage"]
    assert same["nnfdist"] == 0 and same["swd"] == [0, 0] and same["change"] == same["high_frequency"] == 1
    assert [row["name"], same["name"]] == ["generated 1", "generated 2"]


def test_drift_is_the_last_quarter_of_a_result_over_its_first(clip):
    fading = np.concatenate((clip[:8], (clip[8:] // 2)))
    row, short = evaluate(clip, [fading, clip[:11]])[1:]
    assert row["high_frequency_drift"] == pytest.approx(high_frequency(fading[9:]) / high_frequency(clip[:3]))
    assert row["change_drift"] == pytest.approx(change(fading[9:]) / change(clip[:3]))
    assert row["coverage_drift"] < 0.9
    assert not [key for key in short if key.endswith("_drift")]


def test_the_self_baseline_is_the_mean_of_either_half_in_time_against_the_other(clip):
    self_baseline, *_ = evaluate(clip, clip)
    one, other = (nnfdist(nnf(*pair)[1]) for pair in ((clip[6:], clip[:6]), (clip[:6], clip[6:])))
    assert self_baseline["kind"] == "self_baseline" and self_baseline["name"] == "first and second half"
    assert self_baseline["nnfdist"] == (one + other) / 2 and self_baseline["frames"] == 6
    assert self_baseline["change"] == change(clip[6:]) / change(clip[:6])


def test_the_halves_of_an_image_and_of_a_very_short_video_are_left_and_right(clip):
    for original in (clip[0, :, :23], clip[:5, :, :23]):
        name, left, right = halves(original)
        assert name == "left and right half"
        assert np.array_equal(left, original[..., :11, :]) and np.array_equal(right, original[..., 12:, :])


def test_images_are_measured_too_without_change(clip, texture):
    self_baseline, one, other = evaluate(clip[0], np.stack((clip[0], texture(1, seed=1)[0])))
    assert one["nnfdist"] == 0 < other["nnfdist"] and one["frames"] == 1
    assert "change" not in one and self_baseline["size"] == "12x16"


def test_a_run_stands_for_the_frames_it_was_trained_on(video_run, image_run, clip):
    assert evaluate(video_run.path, clip[:8]) == evaluate(clip, clip[:8])
    assert evaluate(image_run, clip[1]) == evaluate(clip[0], clip[1])


def test_a_clip_in_which_nothing_moves_has_no_change_to_compare_with(clip):
    rows = evaluate(np.repeat(clip[:1], 6, 0), clip)
    assert all("change" not in row for row in rows)


def test_frames_too_small_for_the_patches_of_sliced_wasserstein_go_without(texture):
    small = texture(6, (6, 40))
    assert evaluate(small, small)[1]["swd"] == []


def test_the_start_and_stop_are_of_the_original_alone(clip, tmp_path):
    write_video(tmp_path / "frames", clip, fps=10)
    self_baseline, row = evaluate(tmp_path / "frames", tmp_path / "frames", start=2, stop=10)
    assert self_baseline["frames"] == 4 and row["frames"] == 12


def test_files_keep_their_own_size_unless_another_is_given(texture, tmp_path):
    write_video(tmp_path / "large", texture(4, (200, 300)), fps=10)
    messages = []
    files = (tmp_path / "large", tmp_path / "large")
    assert evaluate(*files, size=(20, 30), log=messages.append)[1]["size"] == "30x20"
    assert "scaled 300x200 to 30x20" in messages[0]
    assert evaluate(*files, max_side=60, log=messages.append)[1]["size"] == "60x40"


def test_other_sizes_are_compared_pixel_for_pixel_and_that_is_logged(clip):
    messages = []
    _, row = evaluate(clip, clip[:, :, 2:20], log=messages.append)
    assert row["nnfdist"] == 0 and row["size"] == "18x16"
    assert len(messages) == 1 and "is 18x16, the original 24x16" in messages[0] and "--size" in messages[0]


def test_sifid_and_svfid_are_there_where_weights_are(clip, weights):
    _, near, same = evaluate(clip[0], [clip[1, :, ::-1], clip[0]], inception=weights["inception"])
    assert near["sifid"] > 1e-6 > same["sifid"] and "svfid" not in near
    self_baseline, row = evaluate(clip, clip[:7], c3d=weights["c3d"])
    assert row["svfid"] > 0 and self_baseline["svfid"] > 0


def test_the_seed_is_that_of_the_figures(clip, texture):
    outputs = texture(6, seed=1)
    one, again, other = (evaluate(clip, outputs, seed=seed)[1]["swd"] for seed in (3, 3, 4))
    assert one == again != other


def test_results_are_named_by_as_much_of_their_path_as_tells_them_apart():
    assert result_names(["x/a/1.mp4", "x/b/2.mp4"]) == ["1.mp4", "2.mp4"]
    assert result_names(["x/a/1", "x/b/1"]) == ["a/1", "b/1"]
    assert result_names(["x/a/1", "x/b/2"]) == ["a/1", "b/2"] and result_names(["1"]) == ["1"]
    assert result_names(["1.mp4", "1.mp4"]) == ["1.mp4 (1)", "1.mp4 (2)"]


def test_every_result_is_shown_with_its_field_and_all_frames_count_as_progress(clip):
    shown, progress = [], []
    evaluate(clip, [clip, clip[:5]], on_result=lambda *result: shown.append(result), on_progress=progress.append)
    assert [(name, len(outputs), field.shape) for name, outputs, field in shown] == [
        ("generated 1", 12, (10, 14, 22, 3)), ("generated 2", 5, (3, 14, 22, 3)),
    ]  # fmt: skip
    assert [(step.done, step.total) for step in progress] == [(12, 29), (24, 29), (29, 29)]


# Runs ----------------------------------------------------------------------------------------------------------------


def test_the_conditional_mean_of_an_untrained_predictor_is_the_last_frame_and_of_an_interpolator_the_mean_half_way(
    video_run, clip, monkeypatch
):
    moved = moved_half_way(torch.cat([to_unit(torch.from_numpy(part)) for part in (clip[:-2], clip[2:])], 1))
    middle = to_pixel_values(moved).numpy()
    for role, prior_mean in ((PREDICTOR, clip[:-1]), (INTERPOLATOR, middle)):
        untrained = video_run.build(role)
        monkeypatch.setattr(video_run, "denoiser", lambda role, otherwise="", untrained=untrained: untrained)
        sigma_data = video_run.denoiser(role).sigma_data[0] * 127.5
        error = np.sqrt(np.square(conditional_mean(video_run, clip, role) - prior_mean).mean())
        assert error < 0.06 * sigma_data  # that of the noise which is still seen through


def test_a_prediction_sees_the_frames_before_the_last_one_as_far_as_they_are_known(video_run, clip):
    alone, one, all_of_them = (conditional_mean(video_run, clip[5:], earlier=clip[i:5]) for i in (5, 4, 0))
    assert np.array_equal(alone, conditional_mean(video_run, clip[5:]))
    assert np.array_equal(one, all_of_them)  # two previous frames: the last one of them counts
    assert np.array_equal(alone[1:], one[1:]) and not np.array_equal(alone[0], one[0])


def test_a_sampled_frame_is_a_step_of_a_rollout(video_run, clip):
    outputs = sinfusion.generate(video_run, 2, start=3, seed=3)[0, 1]
    assert np.array_equal(sampled(video_run, clip)[3], outputs)


def test_a_video_run_predicts_interpolates_and_generates_from_a_frame_and_from_noise(video_rows, video_run):
    length = len(video_run.frames)
    guesses = of_kind(video_rows, "prediction", "interpolation")
    assert [(row["name"], row["frames"]) for row in guesses] == [
        ("next frame, its own frames", length - 1), ("frame between, its own frames", length - 2),
    ]  # fmt: skip
    assert all(row[key] > 10 for row in guesses for key in ("mean_db", "sample_db", "baseline_db"))
    clip = video_run.frames
    assert guesses[0]["baseline_db"] == mean_psnr(clip[:-1], clip[1:])
    assert guesses[0]["linear_db"] == mean_psnr(linear_prediction(clip, clip), clip[1:]) > guesses[0]["baseline_db"]
    assert "linear_db" not in guesses[1] and guesses[1]["motion_db"] > guesses[1]["baseline_db"]
    assert [row["name"] for row in video_rows[2:]] == [
        "first and second half",
        "from frame 0, seed 0", "from frame 0, seed 1", "from frame 0, mean",
        "from noise, seed 0", "from noise, seed 1", "from noise, mean",
    ]  # fmt: skip
    assert all(row["frames"] == length for row in video_rows[3:])
    json.dumps(video_rows)


def test_the_mean_of_a_run_is_that_of_its_results(video_rows):
    one, other = (row for row in video_rows if row.get("start") == "noise")
    mean = video_rows[-1]
    for figure in ("nnfdiv", "nnfdist", "change", "high_frequency"):
        assert mean[figure] == pytest.approx((one[figure] + other[figure]) / 2)
    assert mean["swd"] == pytest.approx(np.mean([one["swd"], other["swd"]], 0))


def test_a_result_of_a_run_is_what_generate_returns_for_its_seed(video_rows, video_run):
    outputs = sinfusion.generate(video_run, start=0, seed=1, steps=2)
    row = next(row for row in video_rows if row["name"] == "from frame 0, seed 1")
    again = evaluate(video_run, outputs)[1]
    assert {key: row[key] for key in again if key != "name"} == {key: again[key] for key in again if key != "name"}


def test_held_out_frames_are_predicted_too_and_called_so(video_run, texture, tmp_path):
    later = texture(16)[12:] ^ 1  # the texture comes around: without this they would be trained frames
    rows = evaluate(video_run, held_out=later, count=1, steps=1)
    held = [row for row in rows if "held-out" in row["name"]]
    assert [(row["name"], row["frames"]) for row in held] == [
        ("next frame, held-out frames", 3), ("frame between, held-out frames", 2),
    ]  # fmt: skip
    assert held[0]["baseline_db"] == mean_psnr(later[:-1], later[1:])
    write_video(tmp_path / "later", later.repeat(2, 1).repeat(2, 2), fps=10)
    assert len(evaluate(video_run, held_out=tmp_path / "later", start=1, count=1, steps=1)) == len(rows)


def test_a_run_that_only_interpolates_is_measured_by_that(video_run, tmp_path):
    shutil.copytree(video_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("predictor", "projector"))
    rows = evaluate(tmp_path / "run", steps=1)
    assert [row["kind"] for row in rows] == ["interpolation", "self_baseline"]


def test_a_run_without_a_projector_is_measured_from_a_frame_alone(video_run, tmp_path):
    shutil.copytree(video_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("projector", "interpolator"))
    rows = evaluate(tmp_path / "run", count=1, steps=1)
    assert [row["name"] for row in rows[1:]] == ["first and second half", "from frame 0, seed 0"]


def test_an_image_run_is_measured_by_its_samples(image_run, weights):
    rows = evaluate(image_run, count=2, seed=5, inception=weights["inception"])
    assert [row["name"] for row in rows] == ["left and right half", "seed 5", "seed 6", "mean"]
    outputs = sinfusion.generate(image_run, count=2, seed=5)
    assert rows[2]["nnfdist"] == nnfdist(nnf(outputs[1], image_run.frames[0], seed=5)[1])
    assert all(row["sifid"] >= 0 for row in rows)


# Requests that cannot be met -----------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused_before_any_work(clip, video_run, image_run, weights, tmp_path, monkeypatch):
    def no_work(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr("sinfusion.metrics.comparison.nnf", no_work)
    write_image(tmp_path / "one.png", clip[0])
    write_video(tmp_path / "two.mp4", clip[:2], fps=10)
    write_video(tmp_path / "large.mp4", clip.repeat(2, 1).repeat(2, 2), fps=10)
    write_video(tmp_path / "wide.mp4", clip.repeat(2, 2), fps=10)
    for words, given in {
        "one.png is an image": (clip, tmp_path / "one.png"),
        "generated 1 is a video": (clip[0], [clip]),
        "two.mp4 has 2 frame": (clip, tmp_path / "two.mp4"),
        "the original has 2 frame": (clip[:2], clip),
        "missing.mp4 does not exist": (clip, tmp_path / "missing.mp4"),
        "is not a run": (tmp_path / "large.mp4", None),
        "nothing to compare": (clip, []),
        "half of the original is 12x2; each side must be at least 3": (clip[0, :2], clip[0]),
        "uint8": (clip, clip / 2),
    }.items():
        with pytest.raises(SinfusionError, match=words):
            evaluate(*given)
    files = tmp_path / "large.mp4", tmp_path / "wide.mp4"
    for words, given, options in [
        ("wide.mp4 is 48x16, the original 48x32: .*--size", files, {"max_side": 20}),
        ("stay 24x16", (video_run, files), {"size": (20, 30)}),
        ("Inception are for images", (clip, clip), {"inception": weights["inception"]}),
        ("C3D are for videos", (clip[0], clip[0]), {"c3d": weights["c3d"]}),
        ("at least 9 pixels", (clip[0, :, :16], clip[1]), {"inception": weights["inception"]}),
        ("no tensor conv1.weight", (clip, clip), {"c3d": weights["inception"]}),
        ("trained on 12 of its 12 frames, up to number 11", (video_run,), {"held_out": clip}),
        ("size is for generated files", (video_run,), {"size": (8, 12)}),
        ("stop is for generated files and for held_out", (video_run,), {"stop": 3}),
        ("held_out is for the evaluation of a run alone", (clip, clip), {"held_out": clip}),
        ("start is for videos, this is an image", (clip[0], clip[0]), {"start": 1}),
        ("image run", (image_run,), {"held_out": clip}),
        ("count", (video_run,), {"count": 0}),
    ]:
        with pytest.raises(SinfusionError, match=words):
            evaluate(*given, **options)


def test_a_run_that_is_not_trained_yet_says_so(video_run, tmp_path):
    shutil.copytree(video_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("p*or", "interpolator"))
    with pytest.raises(SinfusionError, match="stopped before its predictor was trained; go on with: sinfusion train"):
        evaluate(load(tmp_path / "run"))


def test_evaluate_metrics_and_patches_are_found_in_the_package():
    assert sinfusion.evaluate is evaluate
    assert sinfusion.metrics.nnf is nnf and callable(sinfusion.patches.generate)


def test_what_a_run_generates_is_measured_where_the_run_computes(video_run, monkeypatch):
    asked = []

    def recorded_nnf(*arguments):
        asked.append(arguments[4])
        return nnf(*arguments[:4], "cpu")

    monkeypatch.setattr(comparison, "nnf", recorded_nnf)
    evaluate(video_run.to("cpu"), count=1, steps=1)
    evaluate(video_run.frames, video_run.frames)
    assert asked[:4] == [torch.device("cpu")] * 4 and asked[-1] == "auto"
