"""One-shot tuning beside the authors' code, in one process: the same weights, the same inputs, float64.

python benchmarks/compare_tune_a_video.py --released TUNE_A_VIDEO --diffusers DIFFUSERS_0_11_1 [--fixture OUT]

TUNE_A_VIDEO is a checkout of github.com/showlab/Tune-A-Video, DIFFUSERS_0_11_1 an unpacked wheel of the version of
diffusers that it was written for. Their files are executed as they are, but for where they import from: what they take
from diffusers' attention comes from the old wheel, all else from today's. Compared are a forward, its gradients, five
steps of AdamW, an inversion of 50 steps and sampling with guidance, of a network with the layout of Stable Diffusion
1.x. Its weights are random, also those that start at zero. Without --released, ours alone is measured and printed.

--fixture: write the authors' outputs to a file, against which the tests compare without their code.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn

from sinfusion.errors import SinfusionError
from sinfusion.files import atomic_write
from sinfusion.ops.philox import normal
from sinfusion.tuning.network import TUNED, VideoNetwork
from sinfusion.tuning.sampling import Denoiser, invert, sample, schedulers

# Small, with the layout of Stable Diffusion 1.x: its blocks, its number of transformers, its order of layers.
LAYOUT = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 24, 32, 32), "layers_per_block": 2,
    "attention_head_dim": 2, "cross_attention_dim": 12, "norm_num_groups": 4, "sample_size": 64,
}  # fmt: skip
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip
CLIPS, FRAMES, SIDE, WORDS = 2, 5, 8, 3
GUIDANCE = 12.5
STEPS, INVERSION_STEPS, SAMPLING_STEPS = 5, 50, 10
LEAST = {"forward": 1e-12, "gradients": 1e-9, "training losses": 1e-12, "changes of weights": 1e-9,
         "inversion": 1e-12, "sampling": 1e-9}  # fmt: skip  # relative errors that are allowed

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Settings:
    released: Path | None = None
    diffusers: Path | None = None
    fixture: Path | None = None


# The same numbers for both, on any machine ----------------------------------------------------------------------------


def fill(network: nn.Module) -> None:
    """Random weights in place of all: functions of their names alone."""
    for name, value in network.named_parameters():
        scale = 0.5 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        drawn = drawn_normal(name, value.shape) * scale
        value.data = drawn + (1.0 if value.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0)
        value.requires_grad_(any(part in name for part in TUNED))


def drawn_normal(name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """float64 normals that a name stands for."""
    key = sum((i + 1) * 257 * ord(letter) for i, letter in enumerate(name))
    return normal([key], 0, 0, tuple(shape))[0].double()


def inputs(step: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps, text and what to predict."""
    shape = (CLIPS, 4, FRAMES, SIDE, SIDE)
    timesteps = torch.tensor([7 + 31 * step, 801 - 97 * step])
    text = drawn_normal("text", (CLIPS, WORDS, int(LAYOUT["cross_attention_dim"])))
    return drawn_normal(f"latents {step}", shape), timesteps, text, drawn_normal(f"noise {step}", shape)


# What is compared -----------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """Ours or theirs."""

    unet: nn.Module
    predict: Predict
    invert: Callable[[Tensor, Tensor], Tensor]  # latents, text
    sample: Callable[[Tensor, Tensor], Tensor]  # latents, text of nothing and of something


def outputs(side: Side) -> dict[str, Tensor]:
    """All that is compared of one side."""
    fill(side.unet)
    latents, timesteps, text, target = inputs()
    predicted = side.predict(latents, timesteps, text)
    F.mse_loss(predicted, target).backward()
    values = {"forward": predicted.detach()}
    trained = {name: value for name, value in sorted(side.unet.named_parameters()) if value.grad is not None}
    for name, value in trained.items():
        values[f"gradient.{name}"] = value.grad.detach().clone()
    before = {name: value.detach().clone() for name, value in trained.items()}
    values["training losses"] = _train(side, list(trained.values()))
    values |= {f"change.{name}": value.detach() - before[name] for name, value in trained.items()}
    fill(side.unet)
    with torch.no_grad():
        values["inversion"] = side.invert(latents[:1], text[:1])
        values["sampling"] = side.sample(latents[:1], text)
    return values


def _train(side: Side, parameters: list[Any]) -> Tensor:
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, weight_decay=1e-2)
    losses = []
    for step in range(STEPS):
        latents, timesteps, text, target = inputs(step)
        loss = F.mse_loss(side.predict(latents, timesteps, text), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def ours() -> Side:
    """This package, on today's diffusers."""
    from diffusers import UNet2DConditionModel

    network = VideoNetwork(UNet2DConditionModel(**LAYOUT)).double()
    network.unet.enable_gradient_checkpointing()
    denoise = Denoiser(network, window=FRAMES)
    forward, inverse = schedulers(SCHEDULER)

    def inverted(latents: Tensor, text: Tensor) -> Tensor:
        levels = invert(denoise, latents, inverse, text, INVERSION_STEPS)
        return torch.cat(list(levels.values()))

    def sampled(latents: Tensor, text: Tensor) -> Tensor:
        forward.set_timesteps(SAMPLING_STEPS)
        levels = {int(forward.timesteps[0]): latents}
        return sample(denoise, levels, forward, text, GUIDANCE, SAMPLING_STEPS)

    return Side(network.unet, network, inverted, sampled)


# The authors' code ----------------------------------------------------------------------------------------------------

# Where things are today.
MOVED = {
    "from diffusers.modeling_utils": "from diffusers.models.modeling_utils",
    "from diffusers.pipeline_utils": "from diffusers.pipelines.pipeline_utils",
    "from diffusers.models.attention import": "from old_diffusers.attention import",
    "from diffusers.models.embeddings import": "from old_diffusers.embeddings import",
    "from ..configuration_utils": "from diffusers.configuration_utils",
    "from ..modeling_utils": "from diffusers.models.modeling_utils",
    "from ..models.embeddings": "from old_diffusers.embeddings",
    "from ..utils": "from diffusers.utils",
}


def execute(name: str, path: Path) -> types.ModuleType:
    """A file as a module, with other import lines."""
    source = path.read_text()
    for before, after in MOVED.items():
        source = source.replace(before, after)
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def theirs(released: Path, wheel: Path) -> Side:
    """The authors' code; it needs einops."""
    from diffusers import DDIMScheduler

    for name in ("decord", "imageio", "torchvision"):  # of their reading and writing of videos
        sys.modules.setdefault(name, types.ModuleType(name))
    for name in ("old_diffusers", "tuneavideo", "tuneavideo.models", "tuneavideo.pipelines"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    for name in ("embeddings", "attention"):
        execute(f"old_diffusers.{name}", wheel / "diffusers" / "models" / f"{name}.py")
    for name in ("resnet", "attention", "unet_blocks", "unet"):
        execute(f"tuneavideo.models.{name}", released / "tuneavideo" / "models" / f"{name}.py")
    util = execute("tuneavideo.util", released / "tuneavideo" / "util.py")
    pipelines = execute("tuneavideo.pipelines.pipeline", released / "tuneavideo/pipelines/pipeline_tuneavideo.py")
    unet = sys.modules["tuneavideo.models.unet"].UNet3DConditionModel(**LAYOUT).double()  # type: ignore[attr-defined]

    class Pipeline(pipelines.TuneAVideoPipeline):  # type: ignore[name-defined,misc]
        """Theirs, with texts and latents in place of the text encoder and the VAE."""

        _execution_device = torch.device("cpu")
        text: Tensor

        def _encode_prompt(self, *_: Any) -> Tensor:
            return self.text

        def decode_latents(self, latents: Tensor) -> Tensor:
            return latents

    pipeline = Pipeline.__new__(Pipeline)
    pipeline.__dict__.update(unet=unet, scheduler=DDIMScheduler(**SCHEDULER, clip_sample=False), vae_scale_factor=8)
    pipeline.__dict__["progress_bar"] = lambda **_: contextlib.nullcontext(types.SimpleNamespace(update=lambda: None))

    def predict(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return unet(latents, timesteps, text).sample  # type: ignore[no-any-return]

    def inverted(latents: Tensor, text: Tensor) -> Tensor:
        util.init_prompt = lambda *_: torch.cat((text, text))
        util.tqdm = iter
        scheduler = DDIMScheduler(**SCHEDULER, clip_sample=False)
        scheduler.set_timesteps(INVERSION_STEPS)
        return torch.cat(util.ddim_inversion(pipeline, scheduler, latents, INVERSION_STEPS))

    def sampled(latents: Tensor, text: Tensor) -> Tensor:
        pipeline.__dict__["text"] = text
        result = pipeline(
            "", FRAMES, SIDE * 8, SIDE * 8, SAMPLING_STEPS, GUIDANCE, latents=latents, output_type="latent"
        )
        return result.videos  # type: ignore[no-any-return]

    return Side(unet, predict, inverted, sampled)


# The comparison -------------------------------------------------------------------------------------------------------


def condensed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the fixture keeps: outputs as they are; of gradients and changes a few products with random tensors."""
    kept: dict[str, Tensor] = {}
    for name, value in values.items():
        if name.startswith(("gradient.", "change.")):
            kept[name] = torch.stack([(value * drawn_normal(f"{i} {name}", value.shape)).sum() for i in range(2)])
        elif name == "inversion":
            kept[name] = value[[1, len(value) // 2, -1]].clone()
        else:
            kept[name] = value
    return kept


def errors(values: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each kind, relative to the largest value of its tensor."""
    if values.keys() != wanted.keys():
        raise SinfusionError(f"not the same tensors: {sorted(values.keys() ^ wanted.keys())}")
    found: dict[str, float] = {}
    kinds = {"gradient": "gradients", "change": "changes of weights"}
    for name, value in values.items():
        kind = kinds.get(name.partition(".")[0], name)
        error = ((value - wanted[name]).abs().max() / wanted[name].abs().max()).item()
        found[kind] = max(found.get(kind, 0.0), error)
    return found


def main(settings: Settings) -> int:
    """Print the errors; 1 where one is larger than allowed."""
    values = outputs(ours())
    print(f"ours: {sum(name.startswith('gradient.') for name in values)} tensors are tuned")
    if settings.released is None or settings.diffusers is None:
        print("losses of five steps:", *(f"{loss:.12f}" for loss in values["training losses"].tolist()))
        return 0
    wanted = outputs(theirs(settings.released, settings.diffusers))
    found = errors(values, wanted)
    for kind, error in found.items():
        print(f"{kind:24} {error:.1e}  (at most {LEAST[kind]:.0e})")
    if settings.fixture:
        with atomic_write(settings.fixture) as temporary:
            save_file({name: value.contiguous() for name, value in condensed(wanted).items()}, temporary)
        print(f"{settings.fixture}: {settings.fixture.stat().st_size / 1000:.0f} kB")
    return int(any(not error <= LEAST[kind] for kind, error in found.items()))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
