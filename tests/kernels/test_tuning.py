"""The choice among candidates, with a clock that says what a test wants; and once with a GPU's."""

import json

import pytest
import torch
from sinfusion.kernels import tuning

import sinfusion

GPU = torch.device("cuda", 0)


class Clock:
    """Candidates take the seconds a test says; counts what runs and what is measured, in order."""

    def __init__(self, **seconds):
        self.seconds, self.ran, self.measured = seconds, [], []
        self.candidates = {name: lambda name=name: self.run(name) for name in seconds}

    def run(self, name):
        self.ran.append(name)
        if self.seconds[name] is None:
            raise RuntimeError("out of resources")

    def timer(self, run, device):
        run()
        name = self.ran[-1]

        def measure():
            self.measured.append(name)
            value = self.seconds[name]
            return value[self.measured.count(name) - 1] if isinstance(value, list) else value

        return measure

    def choose(self, operator="convolution", key=((1, 64, 9, 9), "bf16"), default=None):
        return tuning.choose(operator, key, self.candidates, GPU, self.timer, default)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A GPU as far as tuning can see, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SINFUSION_TUNING", raising=False)
    monkeypatch.setattr(tuning, "_choices", {})
    monkeypatch.setattr(tuning, "_machine", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return tmp_path / "sinfusion" / "tuning.json"


def forget(monkeypatch):
    monkeypatch.setattr(tuning, "_choices", {})


def test_the_fastest_candidate_is_chosen():
    assert Clock(cudnn=3.0, triton=2.0, other=2.5).choose() == "triton"


@pytest.mark.parametrize(("seconds", "chosen"), [(0.96, "cudnn"), (0.94, "triton")])
def test_the_default_stays_unless_another_is_five_percent_faster(seconds, chosen):
    assert Clock(cudnn=1.0, triton=seconds).choose() == chosen


@pytest.mark.parametrize(("seconds", "chosen"), [(0.96, "ours"), (0.94, "cudnn")])
def test_another_default_than_the_first_stays_as_well(seconds, chosen):
    assert Clock(cudnn=seconds, ours=1.0).choose(default="ours") == chosen


def test_a_default_that_fails_gives_way_to_the_first():
    assert Clock(cudnn=1.0, ours=None, triton=0.96).choose(default="ours") == "cudnn"


def test_a_default_is_held_to_the_results_of_the_first():
    right = torch.ones(4)
    candidates = {"cudnn": lambda: right, "ours": lambda: 2 * right}
    assert tuning.choose("convolution", ("wrong",), candidates, GPU, lambda run, device: lambda: 1.0, "ours") == "cudnn"


def test_where_nothing_can_be_measured_the_default_runs(monkeypatch):
    monkeypatch.setenv("SINFUSION_TUNING", "0")
    assert Clock(cudnn=1.0, ours=9.0).choose(default="ours") == "ours"


def test_medians_decide_and_rounds_are_interleaved():
    once_fast = [2.0, 2.0, 2.0, 0.1, 2.0, 2.0, 2.0, 2.0]
    slow_twice = [9.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0]  # the first is warming up
    clock = Clock(cudnn=once_fast, triton=slow_twice)
    assert clock.choose() == "triton"
    assert clock.measured[2:] == ["cudnn", "triton"] * tuning.ROUNDS


def test_a_candidate_that_raises_is_out():
    clock = Clock(cudnn=3.0, large=None, small=2.0)
    assert clock.choose() == "small" and "large" not in clock.measured


def test_where_the_default_raises_another_serves():
    assert Clock(cudnn=None, large=None, small=2.0, other=3.0).choose() == "small"


def test_where_all_candidates_raise_it_is_an_error():
    with pytest.raises(RuntimeError, match="out of resources"):
        Clock(cudnn=None, triton=None).choose()


def of_results(**results):
    """The choice among candidates that get faster from one to the next, and give these results."""
    seconds = iter(range(len(results), 0, -1))
    taken = dict(zip(results, seconds, strict=True))
    name_of = {}

    def timer(run, device):
        return lambda: float(taken[name_of[id(run)]])

    candidates = {name: lambda value=value: value for name, value in results.items()}
    name_of.update((id(run), name) for name, run in candidates.items())
    return tuning.choose("convolution", (str(results),), candidates, GPU, timer)


def test_a_fast_candidate_whose_results_are_others_is_out():
    right = torch.linspace(-1, 1, 50)
    rounded, wrong, broken = right.bfloat16(), right.flip(0), torch.full_like(right, float("nan"))
    assert of_results(cudnn=right, triton=rounded) == "triton"
    assert of_results(cudnn=right, triton=rounded, wrong=wrong, broken=broken) == "triton"


def test_each_of_several_results_is_compared_but_those_that_one_candidate_leaves_out():
    right, wrong = torch.linspace(-1, 1, 50), torch.zeros(50)
    assert of_results(cudnn=(right, right), triton=(right, None)) == "triton"
    assert of_results(cudnn=(right, right), triton=(right, wrong)) == "cudnn"


def test_a_choice_is_made_once_in_a_process_and_once_for_all_processes(machine, monkeypatch):
    assert Clock(cudnn=3.0, triton=2.0).choose() == "triton"
    again = Clock(cudnn=1.0, triton=2.0)
    assert again.choose() == "triton" and not again.ran
    assert json.loads(machine.read_text()) == {"a GPU": {"convolution ((1, 64, 9, 9), 'bf16')": "triton"}}
    forget(monkeypatch)
    assert again.choose() == "triton" and not again.ran
    assert [path.name for path in machine.parent.iterdir()] == ["tuning.json"]


def test_other_operators_keys_and_machines_have_choices_of_their_own(monkeypatch):
    Clock(cudnn=3.0, triton=2.0).choose()
    assert Clock(cudnn=1.0, triton=2.0).choose(operator="gelu") == "cudnn"
    assert Clock(cudnn=1.0, triton=2.0).choose(key=((2, 64, 9, 9), "bf16")) == "cudnn"
    monkeypatch.setattr(tuning, "_machine", lambda device: "another GPU")
    assert Clock(cudnn=1.0, triton=2.0).choose() == "cudnn"


def test_choices_of_other_processes_are_kept_when_one_is_written(machine, monkeypatch):
    Clock(cudnn=3.0, triton=2.0).choose()
    monkeypatch.setattr(tuning, "_choices", {"a GPU": {}})  # a process that read the file before
    Clock(cudnn=3.0, triton=2.0).choose(operator="gelu")
    assert len(json.loads(machine.read_text())["a GPU"]) == 2


def test_a_stored_name_that_is_no_candidate_is_measured_anew(monkeypatch):
    Clock(cudnn=3.0, triton=2.0).choose()
    forget(monkeypatch)
    assert Clock(cudnn=3.0, renamed=2.0).choose() == "renamed"


@pytest.mark.parametrize("content", ["{", "[]", '{"a GPU": 3}', '"text"', '{"a GPU": {"convolution": 7}}'])
def test_a_damaged_file_is_no_error_and_is_replaced(content, machine):
    machine.parent.mkdir()
    machine.write_text(content)
    assert Clock(cudnn=3.0, triton=2.0).choose() == "triton"
    assert "triton" in json.loads(machine.read_text())["a GPU"].values()


def test_an_unwritable_folder_is_no_error(machine):
    machine.parent.write_text("a file where the folder should be")
    clock = Clock(cudnn=3.0, triton=2.0)
    assert clock.choose() == "triton" and clock.choose() == "triton"


def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def switched_off(monkeypatch):
    monkeypatch.setenv("SINFUSION_TUNING", "0")


def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("where", [capturing, switched_off, without_gpu])
def test_where_nothing_can_be_measured_the_stored_choice_or_the_default_is_taken(where, machine, monkeypatch):
    with monkeypatch.context() as patch:
        where(patch)
        clock = Clock(cudnn=3.0, triton=2.0)
        assert clock.choose() == "cudnn" and not clock.ran and not machine.exists()
    assert clock.choose() == "triton"  # the default was not remembered
    where(monkeypatch)
    assert Clock(cudnn=3.0, triton=2.0).choose() == "triton"


def test_a_single_candidate_is_not_measured():
    clock = Clock(cudnn=3.0)
    assert clock.choose() == "cudnn" and not clock.ran


def test_a_machine_is_known_by_its_gpu_and_its_versions(monkeypatch):
    monkeypatch.undo()
    name = tuning._machine(torch.device("cpu"))
    assert name.startswith(f"no GPU, sinfusion {sinfusion.__version__}, torch {torch.__version__}, triton ")
    assert "cudnn" in name


@pytest.mark.gpu
def test_on_a_gpu_less_work_is_chosen(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("SINFUSION_TUNING", "1")
    few, many = torch.ones(1 << 10, device="cuda"), torch.ones(1 << 26, device="cuda")
    candidates = {"many": lambda: many.exp_(), "few": lambda: few.exp_()}
    candidates = {name: lambda work=work: (work(), None)[1] for name, work in candidates.items()}
    assert tuning._fastest(candidates, GPU, tuning._gpu_timer, default="many") == "few"
    assert torch.cuda.get_device_name() in tuning._machine(GPU)
