"""depthwise_norm beside PyTorch's own convolution and layer norm in bf16, interleaved in one process.

pytest benchmarks/bench_ops.py --benchmark-json=benchmarks/results/ops.json
"""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from sinfusion import ops


def pytorch(x, weight, bias, shift, gain, offset):
    """What a user would write without the operator."""
    u = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=3, groups=x.shape[1]) + shift[:, :, None, None].to(x)
    normed = F.layer_norm(u.permute(0, 2, 3, 1), (x.shape[1],), gain.to(x), offset.to(x), 1e-5)
    return normed.permute(0, 3, 1, 2)


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("channels", [64, 128])
def test_depthwise_norm_against_pytorch(benchmark, channels, what):
    x = torch.randn(1, channels, 136, 243).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    leaves = [
        torch.randn(s, requires_grad=True) for s in ((channels, 1, 7, 7), (channels,), (1, channels), (channels,))
    ]
    leaves.append(torch.zeros(channels, requires_grad=True))
    grad = torch.randn_like(x)
    times = {"ours": [], "pytorch": []}

    def round_of_both():
        for name, function in (("ours", ops.depthwise_norm), ("pytorch", pytorch)):
            before = time.perf_counter()
            out = function(x, *leaves)
            middle = time.perf_counter()
            out.backward(grad)
            after = time.perf_counter()
            times[name].append(middle - before if what == "forward" else after - middle)

    benchmark.pedantic(round_of_both, rounds=9, warmup_rounds=2)
    medians = {name: float(torch.tensor(values).median()) for name, values in times.items()}
    benchmark.extra_info.update(
        ours_seconds=medians["ours"], pytorch_seconds=medians["pytorch"], ratio=medians["pytorch"] / medians["ours"]
    )
    print(f"\n{what} {channels} channels: ours {medians['ours'] * 1e3:.2f} ms, PyTorch "
          f"{medians['pytorch'] * 1e3:.2f} ms, {benchmark.extra_info['ratio']:.1f} times as fast")  # fmt: skip
