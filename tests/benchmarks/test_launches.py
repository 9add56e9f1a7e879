"""benchmarks/launches.py: how many kernels a GPU launches, counted without one; and that they stay few."""

import importlib.util
import json

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SIZE = (32, 48)  # of frames; the number of launches does not depend on it
STEP, EVALUATION = 206, 50


@pytest.fixture(scope="module", params=["paper", "fast"])
def step(request):
    import launches

    return launches.training_step(request.param, SIZE)


@pytest.fixture(scope="module", params=["paper", "fast"])
def evaluation(request):
    import launches

    return launches.evaluation(request.param, SIZE)


def test_a_training_step_launches_few_kernels(step):
    assert len(step) <= STEP


def test_an_evaluation_launches_few_kernels(evaluation):
    assert len(evaluation) <= EVALUATION


def test_kernels_get_activations_and_weights_that_are_aligned(step, evaluation):
    of_single_numbers = {"shift", "values"}
    assert {name for launch in (*step, *evaluation) for name in launch.unaligned} <= of_single_numbers


def test_what_pytorch_launches_is_counted_and_views_are_not():
    import launches

    x = torch.ones(2, 3)
    with launches.stand_in() as recorder, recorder:
        (x.t().contiguous() + x.new_empty(3, 2)[:1]).view(-1).sum()
    assert [(launch.kind, launch.name) for launch in recorder.launches] == [
        ("PyTorch", "clone"), ("PyTorch", "add"), ("PyTorch", "sum"),
    ]  # fmt: skip


def test_the_table_names_the_triton_that_launched(monkeypatch, tmp_path, capsys):
    import launches
    import triton

    monkeypatch.setattr(launches, "training_step", lambda recipe, choice: [launches.Launch("CUDA", "vote")])
    monkeypatch.setattr(launches, "evaluation", lambda recipe, choice: [])
    for _ in range(2):
        launches.main(launches.Settings(tmp_path / "table.json"))
    tables = json.loads((tmp_path / "table.json").read_text())
    assert [table["triton"] for table in tables] == [triton.__version__] * 2
    assert tables[0]["training step, fast"]["names"] == {"CUDA": {"vote": 1}}
    assert f"Triton {triton.__version__}" in capsys.readouterr().out


def test_afterwards_the_cpu_computes_again():
    import launches

    from sinfusion import ops

    x, weight = torch.randn(1, 3, 5, 4), torch.randn(2, 3, 1, 1)
    before = ops.dense(x, weight)
    with launches.stand_in():
        ops.dense(x, weight)
    assert torch.equal(ops.dense(x, weight), before) and not x.is_cuda
