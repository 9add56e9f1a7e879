"""The authors' released code as it trains and samples, from a checkout that is first on the path.

It needs einops and matplotlib. Stand-ins take the place of what is missing of pytorch_lightning, torchvision and cv2:
training_step and sample use a LightningModule's device and `log`, and nothing else of the three.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import time
import types
from collections.abc import Callable, Iterator

import torch
from floors import Network
from torch import Tensor, nn


class _Module(nn.Module):
    """What LightningModule is to the released code outside of Lightning's Trainer."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


@functools.cache
def missing() -> list[str]:
    """What cannot be imported of what their training in Lightning needs."""
    return [name for name in ("pytorch_lightning", "torchvision", "cv2") if not _imports(name)]


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # two installed packages need not fit each other
        return False
    return True


def _predictor(network: Network, device: torch.device) -> nn.Module:
    return _diffusion("conditional_diffusion", "ConditionalDiffusion", network, device)


def _projector(network: Network, device: torch.device) -> nn.Module:
    return _diffusion("diffusion", "Diffusion", network._replace(in_channels=3), device)


def _diffusion(module: str, kind: str, network: Network, device: torch.device) -> nn.Module:
    """As main.py makes it."""
    for name in [*missing(), *["torchvision.transforms"] * ("torchvision" in missing())]:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].LightningModule = _Module  # type: ignore[attr-defined]
    model = importlib.import_module("models.nextnet").NextNet(
        network.in_channels, depth=network.depth, filters_per_layer=network.filters,
        frame_conditioned=network.in_channels == 6,
    )  # fmt: skip
    create = getattr(importlib.import_module(f"diffusion.{module}"), kind)
    outputs: nn.Module = create(model, training_target="noise", noise_schedule="cosine", timesteps=50)
    outputs.log = lambda *_, **__: None  # type: ignore[assignment]  # there is no logger
    return outputs.to(device)


def training_step(network: Network, crop: tuple[int, int], device: torch.device) -> Callable[[], None]:
    """Their Predictor's training_step, backward and Adam on one batch that is on the device already.

    What Lightning and the data loader do in every step besides is left out, in their favour.
    """
    module = _predictor(network, device).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=module.initial_lr)  # as configure_optimizers makes it
    batch = {name: 2 * torch.rand(1, 3, *crop, device=device) - 1 for name in ("IMG", "CONDITION_IMG")}
    batch["FRAME"] = torch.ones(1, dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    return step


def seconds_in_lightning(
    network: Network, frames: Tensor, crop: tuple[int, int], device: torch.device, steps: int
) -> float:
    """Seconds a step of their Predictor's training takes in Lightning's Trainer, with their data set and loader.

    frames (T, 3, H, W) in [0, 1]. The first half of the steps warms up; their logger, checkpoints and progress bar are
    left out, in their favour.
    """
    import pytorch_lightning as lightning

    module = _predictor(network, device)
    data = importlib.import_module("datasets.frameset").FrameSet(frames=frames, crop_size=crop)
    times: list[float] = []

    class Watch(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *_: object) -> None:
            if len(times) < 2 and trainer.global_step in (steps // 2, steps):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter())

    trainer = lightning.Trainer(
        max_steps=steps, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    with _old_schedulers():
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=1, num_workers=4, shuffle=True))
    return (times[1] - times[0]) / (steps - steps // 2)


@contextlib.contextmanager
def _old_schedulers() -> Iterator[None]:
    """They pass `verbose` to MultiStepLR, which newer versions of PyTorch do not know."""
    scheduler = torch.optim.lr_scheduler.MultiStepLR
    torch.optim.lr_scheduler.MultiStepLR = lambda *a, verbose, **k: scheduler(*a, **k)  # type: ignore
    try:
        yield
    finally:
        torch.optim.lr_scheduler.MultiStepLR = scheduler  # type: ignore[misc]


def next_frame(network: Network, size: tuple[int, int], batch: int, device: torch.device) -> Callable[[], Tensor]:
    """A frame of their generate_video: 50 evaluations of the Predictor, 3 of the Projector."""
    predictor = _predictor(network, device).eval()
    projector = _projector(network, device).eval()
    image = 2 * torch.rand(batch, 3, *size, device=device) - 1

    def frame() -> Tensor:
        outputs = projector.q_sample(predictor.sample(condition=image, frame_diff=1), 3)
        corrected: Tensor = projector.sample(custom_initial_img=outputs, custom_timesteps=3)
        return corrected

    return frame
