"""A program that uses the library keeps what is its own: plots, random numbers, the allocator of its process."""

import os
import subprocess
import sys

import pytest
import torch

from sinfusion import ops
from sinfusion.cli import main
from sinfusion.cli.evaluate import draw
from sinfusion.network import NextNet
from sinfusion.roles import PREDICTOR, ROLES
from sinfusion.training.logger import TrainingLogger

IMPORTS = """
import sys
import matplotlib
matplotlib.use("svg")
import torch
torch.manual_seed(3)
before = torch.random.get_rng_state()
import sinfusion
for name in sinfusion.__all__:
    getattr(sinfusion, name)
import sinfusion.cli, sinfusion.demo
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert "matplotlib.pyplot" not in sys.modules
assert torch.equal(torch.random.get_rng_state(), before)
assert not torch.cuda.is_initialized()
"""


def test_an_import_of_everything_changes_neither_plots_nor_random_numbers():
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_images_of_figures_leave_the_programs_backend_as_it_is(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setattr(matplotlib, "use", lambda *_: pytest.fail("matplotlib.use"))
    logger = TrainingLogger(tmp_path / "run", "predictor", 0, 2, quiet=True)
    for step in range(2):
        logger.step(step, torch.tensor(0.5), 1e-3)
    logger.close(True)
    row = {"kind": "result", "name": "a", "nnfdiv": 0.4, "nnfdist": 1.0}
    for ending in ("png", "pdf", "svg"):
        draw([row, {**row, "kind": "self_baseline", "nnfdist": 2.0}], tmp_path / f"plot.{ending}")
        assert (tmp_path / f"plot.{ending}").stat().st_size > 1000
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_untrained_weights_are_those_of_the_seed_and_no_generator_is_left_changed(role, video_run, monkeypatch):
    run = video_run.to("cpu", "fp32")
    run.models = {role.name: {"steps": 1, "minutes": None, "sigma_data": [0.1]}}
    torch.manual_seed(run.seed)
    settings = {"filters": run.recipe.filters, "depth": run.recipe.depth, "dense_kernel": run.recipe.dense_kernel}
    wanted = NextNet(3 * (run.recipe.conditions(role) + 1), **settings, frame_offset=role.frame_offset).state_dict()
    for kind in ("cuda", "mps", "xpu"):
        monkeypatch.setattr(f"torch.{kind}.manual_seed", lambda *_: pytest.fail("a generator of another device"))
        if kind != "mps":
            monkeypatch.setattr(f"torch.{kind}.manual_seed_all", lambda *_: pytest.fail("generators of all devices"))
    before = torch.random.get_rng_state()
    outputs = run.build(role).network.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(outputs[name], value) for name, value in wanted.items() if not name.startswith("final."))


@pytest.fixture
def kept(monkeypatch):
    """How often this process was told to keep its memory."""
    calls = []
    monkeypatch.setattr(ops, "keep_memory", lambda: calls.append(1))
    return calls


def test_the_library_leaves_the_allocator_alone(kept, video_run):
    video_run.to("cpu").build(PREDICTOR)
    assert not kept


def test_the_command_line_keeps_memory_where_it_runs_a_network_on_a_cpu(kept, video_run, tmp_path):
    assert (
        main(["generate", str(video_run.path), "--frames", "1", "--out", str(tmp_path / "a.gif"), "--device", "cpu"])
        == 0
    )
    assert kept


def test_a_program_can_ask_for_it(monkeypatch):
    import sinfusion
    from sinfusion.ops import native

    asked = []
    monkeypatch.setattr(native.cpu, "module", type("Module", (), {"keep_memory": lambda: asked.append(1)}))
    sinfusion.keep_memory()
    assert asked == [1]


@pytest.mark.parametrize(
    "statement", ["import sinfusion.train", "import importlib; importlib.import_module('sinfusion.train')"]
)
def test_importing_the_module_behind_the_train_command_hides_no_function(statement):
    program = (
        f"import sinfusion\n{statement}\nfrom sinfusion.training.session import train\nassert sinfusion.train is train"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
