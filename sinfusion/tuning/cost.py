"""What a tuning takes: arithmetic and memory, counted on tensors without values; time, by the speed of this machine.

cost = Cost.of(base.unet_config, frames=8, size=(64, 64), words=77, dtype=torch.bfloat16)
cost.training_bytes; cost.training_flops / speed(device, dtype)      # of a step
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..errors import SinfusionError, option_name
from .network import VideoNetwork, tuned

# Of the speed of one large matrix product, by what the authors say of an A100, and by what was seen on a CPU core.
EFFICIENCY = {"cuda": (0.2, 0.2), "cpu": (0.13, 0.6)}  # in bf16, in fp32
SIDE = {"cuda": 8192, "cpu": 1024}  # of that product
STATE_BYTES = 16  # of a tuned weight: itself, its gradient, two moments
RESERVE = 1 << 30  # of a GPU: its libraries, the VAE, what is left between blocks of memory


@dataclass(frozen=True)
class Cost:
    """Of one training step, and of one evaluation, on a window of frames."""

    tuned: int  # weights
    weights: int  # all of the network
    training_flops: int
    evaluation_flops: int
    training_bytes: int

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],  # of the unet
        frames: int,
        size: tuple[int, int],  # (height, width) of latents
        words: int,
        dtype: torch.dtype,
    ) -> Cost:
        """Count, with gradient checkpointing."""
        with torch.device("meta"):
            network, inputs = _example(config, frames, size, words)
            activations = _activations(network, inputs)
            network.unet.enable_gradient_checkpointing()
            with FlopCounterMode(display=False) as counter:
                loss = network(*inputs).sum()
                evaluation = counter.get_total_flops()
                loss.backward()
        chosen = [value for value in network.parameters() if value.requires_grad]
        tuned_weights = sum(value.numel() for value in chosen)
        weights = sum(value.numel() for value in network.parameters())
        stored = (weights - tuned_weights) * dtype.itemsize + tuned_weights * STATE_BYTES
        activations = activations * dtype.itemsize // 4
        return cls(tuned_weights, weights, counter.get_total_flops(), evaluation, stored + activations)


def _example(
    config: Mapping[str, Any], frames: int, size: tuple[int, int], words: int
) -> tuple[VideoNetwork, tuple[Tensor, ...]]:
    """The network, wanting gradients of what is tuned, and inputs."""
    from diffusers import UNet2DConditionModel

    network = VideoNetwork(UNet2DConditionModel.from_config(dict(config))).requires_grad_(False)
    for _, value in tuned(network.unet):
        value.requires_grad_(True)
    latents = torch.zeros(1, 4, frames, *size)
    text = torch.zeros(1, words, int(config["cross_attention_dim"]))
    return network, (latents, torch.zeros(1, dtype=torch.int64), text)


def _activations(network: VideoNetwork, inputs: tuple[Tensor, ...]) -> int:
    """Bytes in fp32 that a step with checkpointing keeps: what goes from block to block, the largest block twice."""
    held: dict[int, Tensor] = {}  # by storage, so that none is counted twice
    own = {value.untyped_storage()._cdata for value in network.parameters()}
    sizes: list[int] = []

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            held.setdefault(storage._cdata, value)
        return value

    def begin(*_: Any) -> None:
        starts.append(sum(value.untyped_storage().nbytes() for value in held.values()))

    def end(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(sum(value.untyped_storage().nbytes() for value in held.values()) - starts.pop())
        between.append((output[0] if isinstance(output, tuple) else output).nbytes)

    starts: list[int] = []
    between: list[int] = []
    handles = []
    for module in network.modules():
        if type(module).__name__ in ("ResnetBlock2D", "Transformer2DModel"):
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), _FusedAttention(keep):
        network(*inputs)
    for handle in handles:
        handle.remove()
    return sum(between) + 2 * max(sizes, default=0)


class _FusedAttention(TorchFunctionMode):
    """Attention as a GPU computes it: it keeps what it is given and what it gives, and no products of all with all."""

    def __init__(self, keep: Callable[[Tensor], Tensor]):
        super().__init__()
        self.keep = keep

    def __torch_function__(self, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*given, **(named or {}))
        outputs = torch.empty_like(given[0]).requires_grad_()
        for value in (*given[:3], outputs):
            self.keep(value)
        return outputs


def speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that the network is expected to reach here."""
    side = SIDE[device.type]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return EFFICIENCY[device.type][dtype == torch.float32] * 2 * side**3 / min(seconds)


def check_affordable(device: torch.device, seconds: float, really_on_cpu: bool, needed: int = 0) -> None:
    """SinfusionError where work would take hours that nobody asked for, or more memory than a GPU has."""
    if device.type == "cpu" and not really_on_cpu:
        raise SinfusionError(
            f"this would take about {duration(seconds)} on this CPU, where a GPU takes minutes; to do it all the same: "
            f"{option_name('really_on_cpu')}."
        )
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if needed + RESERVE > total:
            raise SinfusionError(
                f"this needs about {gib(needed + RESERVE)} of memory, {device} has {gib(total)}; lower --frames, "
                "--window or --size."
            )


def duration(seconds: float) -> str:
    """In words: 40 seconds, 12 minutes, 18 hours."""
    for unit, size in (("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= 2 * size or unit == "second":
            count = max(1, round(seconds / size))
            return f"{count} {unit}{'s' * (count != 1)}"
    raise AssertionError


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB"
