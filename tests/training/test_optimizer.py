"""Adam against its equations, the weight average against its closed form, learning rates by hand."""

import math

import numpy as np
import pytest
import torch

from sinfusion.network import NextNet
from sinfusion.roles import ROLES
from sinfusion.training.optimizer import AdamEma, learning_rates


def step(optimizer, rate, done):
    """One step from the gradients in `grad`, `done` having been made before."""
    given = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in optimizer.parameters.values()]
    loss = sum((p * gradient).sum() for p, gradient in given)
    optimizer.step(optimizer.gradient(loss)[:-1], optimizer.coefficients(np.full(done + 1, rate))[done])


def trained(steps, gamma=3.0, seed=0, rate=0.01):
    """An optimizer after some steps of made-up gradients, and the weights after each."""
    torch.manual_seed(seed)
    network = torch.nn.Linear(4, 3)
    optimizer = AdamEma(network, gamma)
    history = []
    for n in range(steps):
        for p in network.parameters():
            p.grad = torch.randn(p.shape)
        step(optimizer, rate, n)
        history.append(network.weight.detach().clone())
    return network, optimizer, history


def test_the_average_is_the_power_function_of_all_weights_so_far():
    gamma, steps = 3.0, 12
    _, optimizer, history = trained(steps, gamma)
    # Unrolled: weight n counts (1 - decay_n) times all later decays, decay_n = (1 - 1/n)^(gamma + 1).
    decay = [(1 - 1 / n) ** (gamma + 1) for n in range(1, steps + 1)]
    share = [(1 - decay[n]) * math.prod(decay[n + 1 :]) for n in range(steps)]
    assert sum(share) == pytest.approx(1)
    # The product telescopes to (n^(gamma+1) - (n-1)^(gamma+1)) / steps^(gamma+1), a power function of n.
    closed = [(n ** (gamma + 1) - (n - 1) ** (gamma + 1)) / steps ** (gamma + 1) for n in range(1, steps + 1)]
    assert share == pytest.approx(closed)
    expected = sum(s * weight.double() for s, weight in zip(closed, history, strict=True))
    torch.testing.assert_close(optimizer.average["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_gamma_0_is_the_plain_mean():
    _, optimizer, history = trained(7, gamma=0.0)
    torch.testing.assert_close(optimizer.average["weight"], torch.stack(history).mean(0))


def test_steps_are_those_of_adam():
    torch.manual_seed(1)
    network = torch.nn.Linear(4, 3, bias=False)
    weight, first, second = network.weight.detach().double(), 0.0, 0.0
    optimizer = AdamEma(network, 0.0)
    for n in range(1, 6):
        gradient = torch.randn(3, 4)
        network.weight.grad = gradient.clone()
        step(optimizer, 0.01 * n, n - 1)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        weight = weight - 0.01 * n * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
    torch.testing.assert_close(network.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


def test_a_saved_state_goes_on_to_the_bit(tmp_path):
    network, optimizer, _ = trained(5)
    torch.save(optimizer.state(5), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    copy = torch.nn.Linear(4, 3)
    copy.load_state_dict(network.state_dict())
    resumed = AdamEma(copy, 3.0)
    resumed.load(state, {name: value.clone() for name, value in optimizer.average.items()})
    for n in range(5, 9):
        for p, q in zip(network.parameters(), copy.parameters(), strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        step(optimizer, 0.02, n)
        step(resumed, 0.02, n)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), copy.parameters(), strict=True))
    assert all(torch.equal(optimizer.average[name], resumed.average[name]) for name in optimizer.average)


def test_a_loaded_state_is_a_copy():
    _, optimizer, _ = trained(3)
    state, average = optimizer.state(3), optimizer.average
    network, resumed, _ = trained(1, seed=5)
    resumed.load(state, average)
    before = average["weight"].clone()
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    step(resumed, 0.1, 3)
    assert torch.equal(average["weight"], before)
    assert state["weight"]["step"].item() == 3


def test_coefficients_of_later_steps_are_those_of_a_table_of_all():
    optimizer = AdamEma(torch.nn.Linear(2, 2), 16.0)
    rates = np.linspace(1e-3, 1e-4, 50)
    assert torch.equal(optimizer.coefficients(rates)[20:], optimizer.coefficients(rates[20:], 20))


def test_weights_of_any_shape_and_layout_are_updated_in_place_with_their_copies():
    torch.manual_seed(2)
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.Conv2d(6, 6, 7, groups=6), torch.nn.Linear(2, 5))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = AdamEma(network, 3.0, copies=torch.bfloat16)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    layouts = torch.channels_last, torch.contiguous_format, torch.contiguous_format
    for layer, layout in zip(network, layouts, strict=True):
        layer.weight.grad = torch.ones_like(layer.weight).contiguous(memory_format=layout)
    step(optimizer, 0.01, 0)
    for name, p in network.named_parameters():
        moved = 0.01 if name.endswith("weight") else 0.0  # biases had no gradient
        torch.testing.assert_close(p.detach(), before[name] - moved)
        assert torch.equal(optimizer.average[name], p.detach())
        assert torch.equal(optimizer.copies[name], p.detach().bfloat16())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("role", ROLES.values(), ids=lambda role: role.name)
def test_every_weight_and_its_copy_begins_at_a_line_of_the_cache(role):
    network = NextNet(role.in_channels, filters=12, depth=4, frame_offset=role.frame_offset)
    optimizer = AdamEma(network, 3.0, copies=torch.bfloat16)
    for tensors in (optimizer.parameters, optimizer.copies, optimizer.average):
        begin = next(iter(tensors.values())).data_ptr()  # which a GPU's allocator aligns to more than that
        assert all((tensor.data_ptr() - begin) % 128 == 0 for tensor in tensors.values())


def test_what_lies_between_the_weights_stays_zero():
    _, optimizer, _ = trained(5)
    weights = sum(p.numel() for p in optimizer.parameters.values())
    for flat in (optimizer._value, optimizer._average, optimizer._exp_avg, optimizer._exp_avg_sq):
        assert len(flat) > weights and flat.count_nonzero() <= weights


def test_gradients_lie_behind_each_other_in_the_order_of_the_weights_and_then_the_loss():
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(3, 1, 1), torch.nn.Linear(2, 2))
    optimizer = AdamEma(network, 3.0)
    loss = network[1](network[0](torch.randn(2, 2, 5, 5))).square().mean()  # not of the last layer
    expected = torch.autograd.grad(loss, list(network[:2].parameters()), retain_graph=True)
    outputs = optimizer.gradient(loss)
    assert outputs[-1] == loss
    place = 0
    for gradient in expected:  # channels-last
        flat = (gradient.permute(0, 2, 3, 1) if gradient.ndim == 4 else gradient).reshape(-1)
        assert torch.equal(outputs[place : place + len(flat)], flat)
        place += -(-len(flat) // 64) * 64  # each at a multiple of 64
    assert len(outputs[place:-1]) == 128 and not outputs[place:-1].any()
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 2e-3 * 1 / 20),  # the first of 20 steps of warm-up
        (9 / 1000, 2e-3 * 10 / 20 * 0.5 * (1 + math.cos(math.pi * 0.009))),
        (0.5, 1e-3),
        (0.75, 2e-3 * 0.5 * (1 - math.sqrt(0.5))),
        (0.999, 2e-3 * 0.5 * (1 + math.cos(math.pi * 0.999))),
    ],
)
def test_cosine_decay_after_a_warm_up(progress, expected):
    rates = learning_rates(np.arange(1000) / 1000, np.arange(1, 1001) / 1000, 2e-3, "cosine", 0.02, 9.9)
    assert rates[round(progress * 1000)] == pytest.approx(expected)


def test_a_decay_by_steps_drops_to_a_tenth_and_no_warm_up_starts_at_the_peak():
    at = np.arange(200_001) / 200_000
    rates = learning_rates(at[:-1], at[1:], 2e-4, "step", 0.0, 100_000 / 200_000)
    assert rates[0] == rates[99_999] == 2e-4
    assert rates[100_000] == rates[199_999] == pytest.approx(2e-5)
    assert learning_rates(at[-2:-1], at[-1:], 2e-4, "step", 0.0, 100_000 / 50_000) == 2e-4  # it never gets there


def test_on_a_gpu_weights_lie_as_kernels_read_them_and_gradients_are_written_where_the_step_reads_them(monkeypatch):
    torch.manual_seed(0)
    networks = [NextNet(3, filters=8, depth=4) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    x, time = torch.randn(1, 3, 9, 9), torch.ones(1)
    on_cpu = AdamEma(networks[0], 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        on_gpu = AdamEma(networks[1], 1.0)
    losses = [network(x, time).square().mean() for network in networks]
    gradients, in_place = on_cpu.gradient(losses[0]), on_gpu.gradient(losses[1])
    assert in_place is on_gpu.gradient((on_gpu.parameters["final.bias"] * 0).sum())  # overwritten
    assert not in_place.any()
    in_place = on_gpu.gradient(networks[1](x, time).square().mean())
    taps = on_gpu.parameters["blocks.1.depthwise.weight"]
    assert taps.permute(2, 3, 1, 0).is_contiguous() and taps.shape == (8, 1, 7, 7)
    for name, value in on_cpu._views(gradients[:-1]).items():
        assert torch.equal(on_gpu.gradients[name], value), name
        assert on_gpu.gradients[name].stride() == on_gpu.parameters[name].stride()
    assert in_place[-1] == losses[0].detach()
    state = [optimizer.state(0)["blocks.1.depthwise.weight"]["exp_avg"] for optimizer in (on_cpu, on_gpu)]
    assert state[0].shape == state[1].shape == (8, 1, 7, 7)
