"""Replayed functions give the bits of eager ones: with other arguments and weights, without and with gradients."""

import gc
import weakref

import pytest
import torch

from sinfusion import ops
from sinfusion.network import NextNet
from sinfusion.ops import cpu_graph
from sinfusion.ops.cpu_graph import capturing
from sinfusion.ops.native import cpu

pytestmark = pytest.mark.skipif(not cpu.loaded, reason="there is no library for the CPU")

NETWORKS = {
    "1x1": {"depth": 5, "dense_kernel": 1},
    "3x3": {"depth": 4, "dense_kernel": 3},
    "shallow": {"depth": 2, "dense_kernel": 1, "filters": 4},
    "fp32": {"depth": 3, "dense_kernel": 3, "dtype": torch.float32},
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    network = NextNet(6, frame_offset=True, **{"filters": 8, "dtype": torch.bfloat16, **NETWORKS[request.param]})
    return network.to(memory_format=torch.channels_last)


def batch_of(network, batch=2, size=(9, 12), seed=1):
    torch.manual_seed(seed)
    x = torch.randn(batch, 6, *size).to(network.dtype).to(memory_format=torch.channels_last)
    return x, torch.rand(batch), torch.randint(1, 4, (batch,))


def gradients(network, batch):
    x, time, offset = batch
    out = network(x, time, offset)
    return [out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))]


@pytest.fixture
def replays(monkeypatch):
    """The graphs that were replayed, in order."""
    times = []
    replay = cpu_graph.CpuGraph.replay
    monkeypatch.setattr(cpu_graph.CpuGraph, "replay", lambda graph: (times.append(graph), replay(graph))[1])
    return times


def test_a_network_and_its_gradients_are_those_of_the_eager_one(network, replays):
    expected = [gradients(network, batch_of(network, seed=seed)) for seed in range(4)]
    network.graphed_evaluate = ops.cpu_graphed(network.evaluate, network.parameters())
    for seed in range(4):
        found = gradients(network, batch_of(network, seed=seed))
        assert all(torch.equal(a, b) for a, b in zip(found, expected[seed], strict=True))
    assert len(replays) == 3  # the first call is a warm-up


def test_weights_that_change_in_place_count(network, replays):
    network.graphed_evaluate = ops.cpu_graphed(network.evaluate, network.parameters())
    for _ in range(2):
        gradients(network, batch_of(network))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.1)
            weight.grad = None
    found = gradients(network, batch_of(network))
    network.graphed_evaluate = None
    expected = gradients(network, batch_of(network))
    assert len(replays) == 2 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_shapes_may_change_and_gradients_come_and_go(network, replays):
    function = ops.cpu_graphed(network.evaluate, network.parameters())
    for batch, size, grad in [(2, (9, 12), True)] * 3 + [(1, (9, 12), False)] * 3 + [(2, (8, 7), True)] * 2:
        x, time, offset = batch_of(network, batch, size)
        with torch.set_grad_enabled(grad):
            shifts = network.shifts(time, offset)
            out = function(x, shifts)
            assert torch.equal(out, network.evaluate(x, shifts)) and out.requires_grad == grad
    assert len(replays) == 5


def test_one_shift_serves_all_samples_without_gradients(network, replays):
    function = ops.cpu_graphed(network.evaluate)
    with torch.no_grad():
        for seed in range(3):
            x, time, offset = batch_of(network, 3, seed=seed)
            shifts = network.shifts(time[:1], offset[:1])
            assert torch.equal(function(x, shifts), network.evaluate(x, shifts))
    assert len(replays) == 2


def test_activations_take_each_others_memory():
    weight = torch.randn(8, 8, 1, 1)
    x = torch.randn(1, 8, 16, 16).to(memory_format=torch.channels_last)

    def chain(x):
        for _ in range(10):
            x = ops.dense(x, weight)
        return x

    assert len(cpu_graph.CpuGraph(lambda: chain(x)).pool.blocks) == 2
    deep = cpu_graph.CpuGraph(lambda: chain(x), [weight])
    assert len(deep.pool.blocks) == 10 + 2  # the backward reads all of them, and needs two of its own at a time
    assert torch.equal(deep.replay(), chain(x))


def test_memory_goes_with_the_graph(network):
    graph = []
    function = ops.cpu_graphed(
        lambda x, shifts: (graph.append(capturing() and weakref.ref(capturing())), network.evaluate(x, shifts))[1]
    )
    for size in ((9, 12), (9, 12), (8, 8), (8, 8)):
        x, time, offset = batch_of(network, size=size)
        with torch.no_grad():
            function(x, network.shifts(time, offset))
    gc.collect()
    assert [ref() is None for ref in (graph[1], graph[3])] == [True, False]


def test_operators_that_a_graph_would_leave_out_are_refused():
    x = torch.randn(1, 4, 5, 5).to(memory_format=torch.channels_last)
    weight = torch.randn(4, 4, 1, 1)
    for function, what in (
        (lambda x: ops.dense(x, weight) + 1, r"aten\.add"),
        (lambda x: ops.dense(x.contiguous(), weight), r"aten\.clone"),
        (lambda x: ops.dense(x, weight.double().float()), r"aten\._to_copy"),
        (lambda x: ops.dense(x, weight, torch.zeros(4)), r"aten\.zeros"),
    ):
        graph = ops.cpu_graphed(function)
        graph(x)
        with pytest.raises(RuntimeError, match=f"{what}.* cannot be captured"):
            graph(x)
    double = x.double()
    with pytest.raises(RuntimeError, match=r"dense cannot be captured: x is torch\.float64"):
        cpu_graph.CpuGraph(lambda: ops.dense(double, weight))
    parameters = torch.zeros(4, 1, 7, 7).double(), torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"depthwise_norm cannot be captured: the weight is torch\.float64"):
        cpu_graph.CpuGraph(lambda: ops.depthwise_norm(x, *parameters))


def test_gradients_that_cannot_be_captured_are_refused(network):
    x, time, offset = batch_of(network, 3)
    shifts = network.shifts(time, offset).detach()
    network.evaluate(x, shifts)  # the first call rounds weights
    with pytest.raises(RuntimeError, match="the gradient of a part of an image cannot be captured"):
        cpu_graph.CpuGraph(lambda: network.evaluate(x[:1], shifts[:1]), [x, *network.parameters()])
    with pytest.raises(RuntimeError, match="each sample needs a shift of its own"):
        cpu_graph.CpuGraph(lambda: network.evaluate(x, shifts[:1]), [shifts, *network.parameters()])


@pytest.mark.parametrize("trained", [True, False], ids=["with weights", "alone"])
def test_an_image_has_a_gradient_too(network, replays, trained):
    network.requires_grad_(trained)
    weights = list(network.parameters())
    function = ops.cpu_graphed(network.evaluate, weights)
    for seed in range(3):
        x, time, offset = batch_of(network, seed=seed)
        shifts, x = network.shifts(time, offset).detach(), x.requires_grad_()
        leaves = [x, *weights] if trained else [x]
        found, expected = (
            torch.autograd.grad(evaluate(x, shifts).float().square().sum(), leaves, allow_unused=True)
            for evaluate in (function, network.evaluate)
        )
        assert found[0].dtype == x.dtype
        for one, other in zip(found, expected, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
    assert len(replays) == 2


def test_gradients_that_are_not_wanted_are_not_computed(network, monkeypatch):
    prepared = []
    prepare = cpu.prepare

    def spy(function, **fields):
        prepared.append((function, {name for name, value in fields.items() if value is not None}))
        return prepare(function, **fields)

    monkeypatch.setattr(cpu, "prepare", spy, raising=False)
    x, time, offset = batch_of(network)
    shifts = network.shifts(time, offset).detach()
    network.evaluate(x, shifts)
    cpu_graph.CpuGraph(lambda: network.evaluate(x, shifts), [x])
    backward = [names for function, names in prepared if function.endswith("_backward")]
    assert backward and all("grad_x" in names for names in backward)
    parameters = {"grad_weight", "grad_bias", "grad_gain", "grad_offset", "grad_shift"}
    assert not any(names & parameters for names in backward)


def test_weights_alone_have_gradients_too(network):
    x, time, offset = batch_of(network)
    shifts = network.shifts(time, offset).detach()
    function = ops.cpu_graphed(network.evaluate, network.parameters())
    weight = network.blocks[0].expand.weight
    of_both = [
        torch.autograd.grad(evaluate(x, shifts).float().sum(), weight)[0].clone()
        for evaluate in (network.evaluate, function, function, function)
    ]
    assert all(torch.equal(found, of_both[0]) for found in of_both)


def test_a_backward_after_another_forward_is_refused(network):
    function = ops.cpu_graphed(network.evaluate, network.parameters())
    x, time, offset = batch_of(network)
    outs = [function(x, network.shifts(time, offset)) for _ in range(3)]
    outs[2].float().sum().backward()
    with pytest.raises(RuntimeError, match="replayed before the backward of its last replay"):
        outs[1].float().sum().backward()


def test_a_second_backward_of_the_same_forward_is_refused(network):
    function = ops.cpu_graphed(network.evaluate, network.parameters())
    x, time, offset = batch_of(network)
    for _ in range(3):
        loss = function(x, network.shifts(time, offset)).float().sum()
        loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once for each replay"):
        loss.backward()
    again = function(x, network.shifts(time, offset)).float().sum()
    again.backward()


def test_the_reference_is_never_captured(network, replays):
    function = ops.cpu_graphed(network.evaluate)
    x, time, offset = batch_of(network)
    with torch.no_grad(), ops.backend("reference"):
        for _ in range(3):
            function(x, network.shifts(time, offset))
    assert not replays


def test_threads_do_not_write_to_each_others_memory(network, at_once):
    function = ops.cpu_graphed(network.evaluate)
    wrong = []

    def work(seed):
        with torch.no_grad():
            for _ in range(20):
                x, time, offset = inputs[seed]
                shifts = network.shifts(time, offset)
                if not torch.equal(function(x, shifts), network.evaluate(x, shifts)):
                    wrong.append(seed)

    inputs = [batch_of(network, seed=seed) for seed in range(3)]
    at_once(work)
    assert not wrong
