"""CUDA graphs, without a GPU: what `cuda_graphed` does, with a model of a graph on the CPU.

The model captures the operators that a function calls and calls them again, on the same memory, in a replay. So
whatever a training step or a frame keeps on the host, where no graph would see it change, shows as a wrong number here;
and what a graph cannot capture, such as waiting for a number or a constant from the host, is an error.
"""

import contextlib
import types

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sinfusion import ops
from sinfusion.errors import SinfusionError
from sinfusion.generation import upsampling
from sinfusion.generation import video as rollout
from sinfusion.generation.streaming import copy_to_host_async
from sinfusion.ops import native
from sinfusion.ops.cuda_graph import CudaGraphed, cuda_graphed
from sinfusion.recipe import PAPER, TINY
from sinfusion.roles import IMAGE, INTERPOLATOR, PREDICTOR, PROJECTOR, ROLES
from sinfusion.run import Run
from sinfusion.training import trainer
from sinfusion.training.processes import Processes
from sinfusion.training.trainer import Trainer

CPU = torch.device("cpu")
FORBIDDEN = ("aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::equal")


def storage(value):
    return value.untyped_storage().data_ptr()


class Capture(TorchDispatchMode):
    """All operators called within, to call them again."""

    def __init__(self):
        super().__init__()
        self.calls, self.inside, self.before = [], False, {}

    def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
        name, options = function._schema.name, options or {}
        if name in FORBIDDEN:
            raise RuntimeError(f"{name} while a graph is captured")
        given = [value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor)]
        written = [
            value
            for argument, value in zip(function._schema.arguments, arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and value is not None
        ]
        self.keep(written)
        self.inside = True
        try:
            results = function(*arguments, **options)
        finally:
            self.inside = False
        outputs = [value for value in (results if isinstance(results, tuple | list) else [results])
                if isinstance(value, torch.Tensor)]  # fmt: skip
        is_view = not written and {storage(value) for value in outputs} & {storage(value) for value in given} - {0}
        if not is_view:
            self.calls.append((function, arguments, options, [] if written else outputs))
        return results

    def keep(self, written):
        """A graph that is captured does not run: what is written meanwhile is put back afterwards."""
        for value in written:
            self.before.setdefault(id(value), (value, value.clone()))

    def native(self, function, on, /, **fields):
        """In place of ops.native.run."""
        if not self.inside:
            self.calls.append((RUN, (function, on), fields, []))
        RUN(function, on, **fields)

    def replay(self):
        for function, arguments, options, outputs in self.calls:
            with torch._C._AutoDispatchBelowAutograd():
                results = function(*arguments, **options)
            for kept, value in zip(outputs, results if isinstance(results, tuple | list) else [results], strict=False):
                kept.copy_(value)


RUN = native.run


class ModelOfAGraph:
    def __init__(self):
        self.capture = Capture()

    def replay(self):
        self.capture.replay()


@contextlib.contextmanager
def capture(graph, stream):
    with contextlib.ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (native, *NATIVE_USERS):
            patched.setattr(module, "run", graph.capture.native)
        stack.enter_context(graph.capture)
        yield
    with torch.no_grad():
        for value, before in graph.capture.before.values():
            value.copy_(before)


def native_users():
    import importlib

    names = ("adam_ema", "ddpm_step", "patch_match", "philox", "sample_crops", "vote")
    return [importlib.import_module(f"sinfusion.ops.{name}") for name in names]


NATIVE_USERS = native_users()


class Nothing:
    """A stream."""

    def wait_stream(self, other):
        pass


@pytest.fixture
def graphs(monkeypatch):
    """The model of graphs in place of CUDA's; the functions that were replayed from one."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", ModelOfAGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Nothing())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Nothing())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    reserved = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: next(reserved))
    outputs = []

    def on_cpu(function, device, wanted=True):
        if wanted:
            outputs.append(CudaGraphed(function, device))
        return outputs[-1] if wanted else function

    for module in (trainer, rollout, upsampling):
        monkeypatch.setattr(module, "cuda_graphed", on_cpu)
    monkeypatch.setattr(ops, "cpu_graphed", lambda function, weights=(): function)  # a CPU's own graphs
    # On the CPU it hands out a tensor's own memory, which a graph writes again.
    for module in (rollout, upsampling):
        monkeypatch.setattr(module, "copy_to_host_async", lambda frames: (frame.numpy().copy() for frame in frames))
    return types.SimpleNamespace(outputs=outputs, of=lambda function: on_cpu(function, CPU))


def test_where_no_graphs_are_wanted_the_function_is_itself():
    assert cuda_graphed(abs, torch.device("cuda"), False) is abs


@pytest.mark.skipif(not native.cpu.loaded, reason="there is no library for the CPU")
def test_on_a_cpu_pytorch_computes_on_one_thread_and_the_function_is_just_called():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert cuda_graphed(lambda x: (x * 2, torch.get_num_threads()), CPU)(torch.tensor(3)) == (6, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_first_call_warms_up_the_second_captures_and_all_give_what_the_function_gives(graphs):
    calls = []

    def double(x):
        calls.append(1)
        return x * 2 + 1

    function = graphs.of(double)
    for i in range(4):
        assert torch.equal(function(torch.full((3,), float(i))), torch.full((3,), 2.0 * i + 1))
    assert len(calls) == 2


def test_every_shape_layout_and_dtype_has_a_graph_of_its_own(graphs):
    function = graphs.of(lambda x: x + 1)
    inputs = [torch.rand(2, 3), torch.rand(4, 3), torch.rand(3, 2).t(), torch.rand(2, 3, dtype=torch.float64)]
    for _ in range(3):
        for x in inputs:
            outputs = function(x)
            assert torch.equal(outputs, x + 1) and outputs.dtype == x.dtype
    assert len(function._captured) == 4
    assert function.memory == 4 * 1000


def test_a_graph_reads_and_writes_the_tensors_it_was_captured_with(graphs):
    count, total = torch.zeros(()), torch.zeros(())

    def add():
        total.add_(count * 10)
        count.add_(1)

    function = graphs.of(add)
    for _ in range(5):
        function()
    assert count == 5 and total == 10 * (0 + 1 + 2 + 3 + 4)


def test_a_graph_of_another_gpu_is_made_and_played_with_that_one_as_the_current(graphs, monkeypatch):
    """PyTorch waits for the current GPU, and frees its memory, before a capture; a stream alone does not tell it."""
    second, current, seen = torch.device("cuda", 1), [torch.device("cuda", 0)], []

    @contextlib.contextmanager
    def device(wanted):
        before, current[0] = current[0], wanted
        yield
        current[0] = before

    @contextlib.contextmanager
    def capturing(graph, stream):
        seen.append(("captures", current[0]))
        yield

    class Graph:
        def replay(self):
            seen.append(("plays", current[0]))

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    function = CudaGraphed(lambda x: seen.append(("runs", current[0])), second)
    for _ in range(3):
        function(torch.ones(2))
    assert seen == [(what, second) for what in ("runs", "captures", "runs", "plays", "plays")]
    assert current == [torch.device("cuda", 0)]


def test_what_a_graph_cannot_capture_is_said_with_the_way_out(graphs):
    function = graphs.of(lambda x: x * x.sum().item())
    function(torch.ones(2))
    with pytest.raises(SinfusionError, match=r"could not be captured \(aten::_local_scalar_dense.*--no-graph"):
        function(torch.ones(2))


def test_the_model_of_a_graph_sees_a_number_kept_on_the_host(graphs):
    """The test of the tests below: a step number in Python is frozen in a graph."""
    steps = iter(range(10))
    function = graphs.of(lambda: torch.zeros(()) + next(steps))
    assert [float(function()) for _ in range(4)] == [0, 1, 1, 1]


SMALL = {"filters": 4, "depth": 2, "batch_size": 2, "unconditional_sampling_steps": 2, "sampling_steps": 2}
RECIPES = {
    "tiny": TINY.replace(**SMALL, offset_milestones=(0.3, 0.6)),
    "paper": PAPER.replace(**SMALL, offset_milestones=(0.25, 0.5)),
}
TOTAL = 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_replayed_training_steps_are_the_eager_ones_to_the_bit(role, recipe, precision, graphs, clip, tmp_path):
    models = {role.name: {"steps": TOTAL, "minutes": None, "sigma_data": [0.1, 0.2, 0.3][: 1 + 2 * role.frame_offset]}}
    frames = clip[:1] if role is IMAGE else clip
    run = Run(tmp_path, "image" if role is IMAGE else "video", RECIPES[recipe], frames, 20.0, 3, models)
    states = []
    for wanted in (True, False):
        trained = Trainer(run.to("cpu", precision, wanted), role, TOTAL)
        for _ in range(TOTAL):
            trained.step()
        state = {"losses": trained.losses, "step": trained.counter, **trained.optimizer.parameters}
        states.append(state | {f"average of {name}": value for name, value in trained.optimizer.average.items()})
    assert len(graphs.outputs[0]._captured) == 1
    assert int(states[0]["step"]) == TOTAL and len(set(states[0]["losses"][:TOTAL].tolist())) == TOTAL
    for name in states[1]:
        assert torch.equal(states[0][name], states[1][name]), name


def test_steps_of_several_processes_are_two_graphs_with_the_message_between_them(graphs, clip, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda message: sent.append(message.mul_(2).clone()))
    models = {"predictor": {"steps": TOTAL, "minutes": None, "sigma_data": [0.1, 0.2, 0.3]}}
    run = Run(tmp_path, "video", RECIPES["tiny"], clip, 20.0, 3, models)
    losses = []
    for wanted in (True, False):
        trained = Trainer(run.to("cpu", "fp32", wanted), PREDICTOR, TOTAL, Processes(1, 2))
        for _ in range(TOTAL):
            trained.step()
        losses.append(trained.losses)
    assert torch.equal(*losses)
    assert [len(outputs._captured) for outputs in graphs.outputs] == [0, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(sent[:TOTAL], sent[TOTAL:], strict=True))


@pytest.fixture(scope="module")
def runs(video_run):
    """A run with and without graphs."""
    return [video_run.to("cpu", "fp32", wanted) for wanted in (True, False)]


@pytest.mark.parametrize(
    "change",
    [{}, {"sampler": "heun"}, {"sampler": "ddim"}, {"correction_timesteps": 3, "burn_in_frames": 2}],
    ids=["ancestral", "heun", "ddim", "corrected"],
)
def test_replayed_frames_are_the_eager_ones_to_the_bit(runs, change, graphs):
    outputs = []
    for run in runs:
        run = run.to("cpu", "fp32", run.graph)
        run.recipe = run.recipe.replace(**change)
        outputs.append([
            rollout.generate(run, 6, 2, seed=4),
            rollout.generate(run, 5, 1, (20, 31), start=2, frame_offset=-1),
            upsampling.upsample(run, 4, run.frames[:4]),
            rollout.retarget(run, (18, 30)),
        ])  # fmt: skip
    for replays, plain in zip(*outputs, strict=True):
        assert np.array_equal(replays, plain)
    assert [len(function._captured) for function in graphs.outputs] == [1, 1, 1, 1]


def test_frames_are_delivered_in_order_and_none_is_lost():
    frames = [torch.full((2, 3), i, dtype=torch.uint8) for i in range(5)]
    assert [int(frame[0, 0]) for frame in copy_to_host_async(iter(frames))] == [0, 1, 2, 3, 4]
    assert list(copy_to_host_async(iter([]))) == []


@pytest.mark.gpu
@pytest.mark.parametrize("role", [PREDICTOR, PROJECTOR, INTERPOLATOR], ids=lambda role: role.name)
def test_on_a_gpu_replayed_training_steps_are_the_eager_ones_to_the_bit(role, clip, tmp_path):
    models = {role.name: {"steps": 30, "minutes": None, "sigma_data": [0.1, 0.2, 0.3][: 1 + 2 * role.frame_offset]}}
    recipe = RECIPES["tiny"].replace(filters=32, dense_kernel=3, depth=4)
    run = Run(tmp_path, "video", recipe, clip, 20.0, 3, models)
    trained = []
    for wanted in (True, False):
        trained.append(Trainer(run.to("cuda", "auto", wanted), role, 30))
        for _ in range(30):
            trained[-1].step()
    assert torch.equal(trained[0].losses, trained[1].losses)
    for name, value in trained[0].optimizer.average.items():
        assert torch.equal(value, trained[1].optimizer.average[name]), name


@pytest.mark.gpu
def test_on_a_gpu_replayed_frames_are_the_eager_ones_to_the_bit(video_run):
    with_graphs, plain = (video_run.to("cuda", "auto", wanted) for wanted in (True, False))
    for frames, size in ((12, None), (6, (20, 31))):
        outputs = [rollout.generate(run, frames, 3, size) for run in (with_graphs, plain)]
        assert np.array_equal(*outputs)


def predictor_on_gpu(clip, path, steps):
    models = {"predictor": {"steps": steps, "minutes": None, "sigma_data": [0.1, 0.2, 0.3]}}
    return Run(path, "video", RECIPES["tiny"], clip, 20.0, 3, models).to("cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_thousand_replays_take_no_more_memory(clip, tmp_path):
    run = predictor_on_gpu(clip, tmp_path, 1100)
    trained = Trainer(run, PREDICTOR, 1100)
    for _ in range(100):
        trained.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(1000):
        trained.step()
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
    assert trained.losses.isfinite().all()


@pytest.mark.gpu
def test_on_a_gpu_two_streams_train_what_one_does(clip, tmp_path):
    run = predictor_on_gpu(clip, tmp_path, 20)
    alone = Trainer(run, PREDICTOR, 20)
    for _ in range(20):
        alone.step()
    torch.cuda.synchronize()
    both = [Trainer(run, PREDICTOR, 20) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        for one, stream in zip(both, streams, strict=True):
            with torch.cuda.stream(stream):
                one.step()
    torch.cuda.synchronize()
    assert all(torch.equal(one.losses, alone.losses) for one in both)


@pytest.mark.gpu
def test_on_a_gpu_frames_arrive_as_they_were_made_although_their_memory_is_written_again():
    def outputs():
        memory = torch.empty(64, 256, 256, dtype=torch.uint8, device="cuda")
        for i in range(20):
            yield memory.fill_(i)

    assert [np.unique(frame).tolist() for frame in copy_to_host_async(outputs())] == [[i] for i in range(20)]
