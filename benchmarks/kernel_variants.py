"""The Triton kernels that a training step and a reverse step launch, as they launch them: a function a kernel file."""

from __future__ import annotations

from ahead_of_time import Variant


def depthwise_norm(channels: int, activation: str) -> dict[str, Variant]:
    """activation: "*bf16" or "*fp32". The network's first block, of 3, 6 or 9 channels, has no norm."""
    from sinfusion.kernels import depthwise_norm as module

    norm = channels > 9
    numbers = {"height": "i32", "width": "i32", "pixels": "i32", "eps": "fp32"}
    given = numbers | {name: activation for name in ("x", "out", "u", "du", "grad")}
    without_norm = dict.fromkeys(("gain", "offset", "u", "mean", "rstd"))
    constants = {"C": channels, "FLIP": False, "STEPS": module.STEPS, "BAND": module.BAND}

    def variant(kernel, types, width=channels, **changed):
        options = module.launch_options(width)
        of_kernel = {n: v for n, v in (constants | options | changed).items() if n in kernel.arg_names}
        types = {n: types.get(n, "*fp32") for n in kernel.arg_names if n not in of_kernel}
        return Variant(kernel, types, of_kernel, {n: v for n, v in options.items() if n not in of_kernel})

    forward = given if norm else given | without_norm
    variants = {
        "convolve, forward": variant(module.convolve, forward),
        "convolve, gradient of x": variant(
            module.convolve, given | without_norm | dict.fromkeys(("bias", "shift")), FLIP=True
        ),
        "norm_backward": variant(module.norm_backward, given if norm else given | without_norm | {"du": None}),
        "weight_gradient": variant(module.weight_gradient, given, min(channels, module.GRADIENT_CHANNELS)),
    }
    if norm:  # a reverse step keeps nothing
        variants["convolve, inference"] = variant(module.convolve, given | dict.fromkeys(("u", "mean", "rstd")))
    return variants
