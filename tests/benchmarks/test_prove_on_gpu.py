"""benchmarks/prove_on_gpu.py without a GPU: what it runs, what it skips, and what its summary says."""

import json
import sys
import tarfile

import prove_on_gpu
import pytest
from floors import Limits
from prove_on_gpu import Step, figures, main, parse, table


def summary(out):
    return json.loads((out / "summary.json").read_text())


def runs(code):
    """A step of one command."""
    return lambda place: iter([[sys.executable, "-c", code]])


def test_without_a_gpu_what_needs_one_is_skipped_and_the_summary_says_why(tmp_path):
    assert main(["--out", str(tmp_path), "--device", "cpu", "--quick", "--steps", "tests,sanitizer"]) == 0
    assert [(step["step"], step["result"], step["why"]) for step in summary(tmp_path)["steps"]] == [
        ("tests", "skipped", "needs a GPU"),
        ("sanitizer", "skipped", "needs a GPU"),
    ]
    assert summary(tmp_path)["rehearsal"]
    text = (tmp_path / "summary.md").read_text()
    assert "| tests | skipped | 0 | needs a GPU |" in text and "prove nothing" in text


@pytest.mark.slow
def test_the_operators_are_measured_on_a_cpu_too(tmp_path):
    assert main(["--out", str(tmp_path), "--device", "cpu", "--quick", "--steps", "ops,dense"]) == 0
    measured = {row["what"].split(",")[0] for row in summary(tmp_path)["figures"]}
    assert {
        "depthwise_norm forward",
        "dense forward 3x3",
        "gelu backward",
        "sample_crops",
        "ddpm_step",
        "adam_ema",
    } <= measured
    assert all(row["measured"] > 0 for row in summary(tmp_path)["figures"])
    with tarfile.open(tmp_path / "details.tar.gz") as archive:
        assert {"details/ops.log", "details/ops.json", "details/dense.json"} <= set(archive.getnames())


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(prove_on_gpu, "STEPS", {
        "broken": Step(runs("print('so it goes'); raise SystemExit(3)"), 60),
        "slow": Step(runs("import time; time.sleep(3600)"), 0.01),
        "missing": Step(lambda place: iter([["no-such-program"]]), 1),
        "good": Step(runs("pass"), 60),
    })  # fmt: skip
    assert main(["--out", str(tmp_path), "--device", "cpu"]) == 1
    results = {step["step"]: (step["result"], step["why"]) for step in summary(tmp_path)["steps"]}
    assert results["broken"] == ("failed", "exit code 3, see its log")
    assert results["slow"] == ("failed", "took too long")
    assert results["missing"][0] == "failed" and "no-such-program" in results["missing"][1]
    assert results["good"] == ("ok", "")
    with tarfile.open(tmp_path / "details.tar.gz") as archive:
        assert b"so it goes" in archive.extractfile("details/broken.log").read()


def test_an_unknown_step_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(["--out", str(tmp_path), "--steps", "ops,everything"])
    assert "there is no step everything; there are build, tests" in capsys.readouterr().err


LIMITS = Limits(copy=4e12, cached_copy=8e12, cache=3e7, matrix=8e14, arithmetic=6e13)._asdict()


def training(recipe, batch, seconds):
    return {"recipe": recipe, "batch": batch, "seconds": seconds, "floor_seconds": 0.001, "steps": 14_000}


def operator(name, seconds, share, **work):
    """Where a share of 1 is the floor."""
    info = {"operator": name, "batch": 4, "ours": "native", "seconds": {"native": seconds}, "limits": LIMITS}
    return (
        info
        | {
            "bytes": 0,
            "dense": 0,
            "depthwise": 0,
            "elementwise": 0,
            "shares": dict.fromkeys(("floor", *share), 1.0) | share,
        }
        | work
    )


@pytest.fixture
def details(tmp_path):
    """Figures that every benchmark left."""
    left = {
        "training": [
            training("paper", 1, {"graph": 0.002, "eager": 0.01, "released": 0.03}),
            training("fast", 4, {"graph": 0.015, "eager": 0.02, "released": 0.09}),
            {"seconds": {"released in Lightning": 0.018}},
        ],
        "rollout": [
            {"recipe": "paper", "batch": 1, "frames_a_second": {"graph": 30.0, "eager": 9.0}, "floor_seconds": 0.01},
            {"recipe": "fast", "batch": 1, "frames_a_second": {"graph": 90.0, "eager": 9.0}, "floor_seconds": 0.002},
        ],
        "ops": [
            operator("adam_ema", 5e-5, {"bandwidth": 0.8, "matrix": 0.0}, bytes=160_000_000),
            operator("ddpm_step", 5e-6, {"bandwidth": 0.1, "matrix": 0.0}, bytes=1_000_000),
        ],
        "dense": [
            operator("dense forward", 1e-4, {"bandwidth": 0.1, "matrix": 0.4}, bytes=2 * 10**7, dense=3 * 10**10),
        ],
    }  # fmt: skip
    for name, infos in left.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"benchmarks": [{"extra_info": info} for info in infos]}))
    return tmp_path


def test_each_figure_is_held_against_what_it_must_be(details):
    met = {row["what"].split(" (")[0]: (row["measured"], row["met"]) for row in figures(details)}
    assert met["training step of paper, batch 1"] == (2.0, True)
    assert met["training step: released / ours"] == (pytest.approx(15), True)
    assert met["training step: released in Lightning / ours"] == (pytest.approx(9), False)
    assert met["all steps of fast"] == (pytest.approx(3.5), False)
    assert met["rollout of paper, 1 at once"] == (30.0, True)
    assert met["rollout of fast, 1 at once"] == (90.0, False)
    assert met["adam_ema, batch 4"] == (80.0, True)
    assert met["ddpm_step, batch 4"] == (10.0, None)  # too small to be limited by memory
    assert met["dense forward, batch 4"] == (40.0, False)


def test_the_table_judges_what_was_measured_on_a_gpu_alone(details):
    rows = figures(details)
    assert "| at most 2.5 | 2 ms | 1 | met |" in table([], rows, {}, judged=True)
    assert "**missed**" in table([], rows, {}, judged=True)
    assert "met" not in table([], rows, {}, judged=False)


def test_a_benchmark_that_was_stopped_leaves_no_figures(details):
    for name in ("ops", "dense"):
        (details / f"{name}.json").write_text("")
    assert {row["unit"] for row in figures(details)} == {"ms", "minutes", "times", "frames/s"}
