"""The network over clips, beyond what the parity with the authors' code shows."""

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'sinfusion[tune]'")

from sinfusion.tuning.base_model import BaseModel
from sinfusion.tuning.cost import Cost, duration
from sinfusion.tuning.network import tuned

# Of Stable Diffusion 1.x, where it is not diffusers' default.
LARGE = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


@pytest.fixture(scope="module")
def base(stable_diffusion):
    return BaseModel(stable_diffusion)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 3, 8, 8, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 16, 12, generator=generator),
    )


def test_clips_of_a_batch_do_not_see_each_other(base, inputs):
    network = base.network(0)
    latents, timesteps, text = inputs
    with torch.no_grad():
        both = network(*inputs)
        for i in range(2):
            alone = network(latents[i : i + 1], timesteps[i : i + 1], text[i : i + 1])
            assert torch.allclose(alone[0], both[i], atol=1e-5)


def test_later_frames_change_earlier_ones_but_not_by_attention_alone(base, inputs):
    """Attention over space looks back; the norms and the attention over time look everywhere."""
    network, (latents, *others) = base.network(0), inputs
    changed = latents.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        assert not torch.allclose(network(latents, *others)[:, :, 0], network(changed, *others)[:, :, 0], atol=1e-4)


def test_gradient_checkpointing_changes_nothing(base, inputs):
    gradients = []
    for checkpointing in (False, True):
        network = base.network(0)
        if checkpointing:
            network.unet.enable_gradient_checkpointing()
        network(*inputs).square().mean().backward()
        gradients.append({name: value.grad for name, value in tuned(network.unet)})
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())
    assert all(value.grad is None for value in network.parameters() if not value.requires_grad)


def test_bf16_stores_what_is_not_tuned_in_half_and_computes_as_autocast_does(base, inputs):
    network = base.network(0, torch.bfloat16)
    stored = {value.dtype for value in network.parameters() if value.requires_grad}
    assert stored == {torch.float32} and network.unet.conv_in.weight.dtype == torch.bfloat16
    with torch.no_grad():
        exact, half = base.network(0)(*inputs), network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = base.network(0)(*inputs)
    assert half.dtype == torch.float32 and torch.equal(half, autocast)
    assert 0 < (half - exact).abs().max() < 0.1 * exact.abs().max()


def test_new_weights_are_those_of_the_seed_and_no_generator_is_left_changed(base):
    before = torch.random.get_rng_state()
    one, same, other = (dict(base.network(seed).unet.named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = next(name for name in one if name.endswith("attn_temp.to_q.weight"))
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert not one[name.replace("to_q", "to_out.0")].any()


def test_the_cost_of_a_large_model_is_that_of_the_published_one():
    cost = Cost.of(LARGE, 8, (64, 64), 77, torch.bfloat16)
    assert (cost.tuned, cost.weights) == (74_354_880, 909_120_004)
    assert cost.evaluation_flops == pytest.approx(7.82e12, rel=0.01)
    assert 2.5 < cost.training_flops / cost.evaluation_flops < 3.5
    stored = 2 * (cost.weights - cost.tuned) + 16 * cost.tuned
    assert stored < cost.training_bytes < 2 * stored


def test_durations_in_words():
    assert [duration(s) for s in (0.2, 90, 130, 7300, 65_000)] == [
        "1 second", "90 seconds", "2 minutes", "2 hours", "18 hours"
    ]  # fmt: skip
