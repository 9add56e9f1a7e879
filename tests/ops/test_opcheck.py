"""Every operator registered as PyTorch wants it, on the CPU and on a GPU: schema, fake, autograd, dispatch."""

import pytest
import torch

from sinfusion import ops
from sinfusion.ops.dense import Dense
from sinfusion.ops.depthwise_norm import DepthwiseNorm
from sinfusion.ops.patch_match import PatchMatch

ON = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def last(*shape, device, dtype=torch.float32, channels_last=True):
    value = torch.randn(*shape).to(device, dtype)
    return value.contiguous(memory_format=torch.channels_last) if channels_last and value.ndim == 4 else value


def depthwise_norm(device):
    x, skip = (last(2, channels, 9, 11, device=device).requires_grad_() for channels in (5, 3))
    weights = [last(*shape, device=device).requires_grad_() for shape in ((8, 1, 7, 7), (8,), (2, 8), (8,), (8,))]
    return *DepthwiseNorm(x, *weights, skip=skip), True


def dense(device):
    x, weight = last(2, 8, 5, 7, device=device).requires_grad_(), last(12, 12, 3, 3, device=device).requires_grad_()
    skip = last(2, 4, 5, 7, device=device).requires_grad_()
    bias = last(12, device=device).requires_grad_()
    return *Dense(x, weight, bias, gelu=True, skip=skip), True


def sample_crops(device):
    frames = torch.randint(0, 255, (5, 12, 14, 3), dtype=torch.uint8, device=device)
    places = torch.tensor([[2, 1, 2], [3, 0, 4]], device=device)
    around = torch.tensor([[1], [4]], device=device)
    seeds, step = torch.tensor([1, 2], device=device), torch.tensor(5, device=device)
    coarse_noise = last(2, 3, 3, 4, device=device, channels_last=False)
    coefficients = last(2, 10, device=device)
    return frames, places, around, coefficients, coarse_noise, seeds, step, [1, 2], False, [9, 8], torch.bfloat16


def ddpm_step(device):
    x, output, prior_mean = (last(2, 3, 5, 7, device=device) for _ in range(3))
    seeds, counter = torch.tensor([1, 2], device=device), torch.tensor(5, device=device)
    inputs = last(2, 6, 5, 7, device=device, dtype=torch.bfloat16)
    return x, output, prior_mean, last(9, device=device), seeds, 3, counter, inputs, None, None, None


def adam_ema(device):
    value, first, second, average, gradient = (last(37, device=device) for _ in range(5))
    return value, first, second.square(), average, value.bfloat16(), gradient, last(3, device=device), [0.9, 0.99], 1e-8


def patch_match(device):
    query, key = (last(3, 9, 10, 3, device=device, channels_last=False) for _ in range(2))
    return PatchMatch(query, key, [3, 3, 3], rounds=2, seed=5, strides=[2, 1])


def vote(device):
    value = last(3, 9, 10, 3, device=device, channels_last=False)
    return value, ops.patch_match(value, value, (3, 3, 3))[0], [3, 3, 3], True, None, [1, 3, 1]


def nearest_patches(device):
    query, key = (last(2, 9, 10, 3, device=device, channels_last=False) for _ in range(2))
    return query, key, [1, 3, 3], 5


def posterior(device):
    rows, distance = ops.nearest_patches(*nearest_patches(device))
    return rows, distance, last(112, 9, device=device), 0.5, last(112, 9, device=device), 0.1


OPERATORS = [
    depthwise_norm, dense, sample_crops, ddpm_step, adam_ema, patch_match, vote, nearest_patches, posterior
]  # fmt: skip
ON_THE_CPU_ALONE = [nearest_patches, posterior]  # native


@ON
@pytest.mark.parametrize("arguments", OPERATORS, ids=lambda f: f.__name__)
def test_opcheck(arguments, device):
    torch.manual_seed(0)
    operator = getattr(torch.ops.sinfusion, arguments.__name__).default
    with ops.backend("auto" if device == "cuda" and arguments in ON_THE_CPU_ALONE else "native"):
        torch.library.opcheck(operator, tuple(arguments(device)), raise_exception=True)


def test_no_operator_is_left_out():
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "sinfusion" in name}
    checked = {f.__name__ for f in OPERATORS}
    assert names - {f"{name}_backward" for name in checked} == checked
