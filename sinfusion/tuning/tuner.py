"""The loop that tunes a model on its clip. Step n is a pure function of the weights, the seed and n."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SinfusionError
from ..ops.philox import normal, uniform_bits
from ..training.logger import TrainingLogger
from ..training.trainer import Stopped
from .base_model import BaseModel
from .network import tuned
from .sampling import Denoiser, invert, sample, schedulers
from .settings import LARGEST_GRADIENT, WEIGHT_DECAY
from .tuned_run import TunedRun

CHECKPOINT_SECONDS = 120.0
LATENTS, NOISE, TIMES, WINDOWS = range(4)  # streams of random numbers
PREVIEW_STEPS = 10  # of inversion and of sampling, for a look in between


class Tuner:
    """A model being tuned, or tuned and used."""

    def __init__(self, run: TunedRun, base: BaseModel, text: Tensor, empty: Tensor):
        self.run, self.base, self.text, self.empty = run, base, text, empty
        self.mean, self.deviation = base.encode(torch.from_numpy(run.frames))  # (1, 4, T, h, w)
        self.network = base.network(run.seed, run.dtype)
        self.network.unet.enable_gradient_checkpointing()
        self.parameters = [value for _, value in tuned(self.network.unet)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=run.settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self.denoise = Denoiser(self.network, run.settings.window)
        self.forward, self.inverse = schedulers(base.schedule)
        self.alphas: Tensor = self.forward.alphas_cumprod.to(run.device)
        self.done = run.restore(self.network, self.optimizer)

    # One step ---------------------------------------------------------------------------------------------------------

    def step(self) -> Tensor:
        """The next step; returns its loss."""
        loss = self.loss(self.done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_GRADIENT)
        self.optimizer.step()
        self.done += 1
        return loss.detach()

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the noise that is predicted, or of what the model predicts in its place."""
        latents = self.latents(step)
        if (count := latents.shape[2]) > self.run.settings.window:
            first = self._whole_number(WINDOWS, step, count - self.run.settings.window + 1)
            latents = latents[:, :, first : first + self.run.settings.window]
        noise = self._normal(NOISE, step, latents.shape)
        timestep = self._whole_number(TIMES, step, len(self.alphas))
        signal, amount = self.alphas[timestep].sqrt(), (1 - self.alphas[timestep]).sqrt()
        noisy = signal * latents + amount * noise
        target = noise if self.forward.config.prediction_type == "epsilon" else signal * noise - amount * latents
        return F.mse_loss(self.denoise(noisy, timestep, self.text), target)

    def latents(self, step: int) -> Tensor:
        """(1, 4, T, h, w): the clip, which the VAE samples anew in each step."""
        return self.mean + self.deviation * self._normal(LATENTS, step, self.mean.shape)

    def _normal(self, stream: int, step: int, shape: torch.Size) -> Tensor:
        return normal([self.run.seed], stream, step, shape[1:], self.run.device)

    def _whole_number(self, stream: int, step: int, below: int) -> int:
        return int(uniform_bits([self.run.seed], stream, step, 1)) * below >> 32

    # All steps --------------------------------------------------------------------------------------------------------

    def train(self, logger: TrainingLogger, should_stop: Callable[[], bool]) -> None:
        """Tune to the end, then save. Raises Stopped after a save when `should_stop()`."""
        saved_at, settings = time.monotonic(), self.run.settings
        while self.done < settings.steps:
            loss = self.step()
            mean = logger.step(self.done - 1, loss, settings.learning_rate)
            if mean is not None and not np.isfinite(mean):
                raise SinfusionError(
                    f"the loss stopped being finite by step {self.done}; the last good checkpoint is kept: lower "
                    f"--learning-rate (now {settings.learning_rate}) or use --precision fp32."
                )
            if should_stop():
                self.save()
                raise Stopped
            if mean is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                with logger.attempt("a checkpoint"):
                    self.save()
                saved_at = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write a checkpoint of the steps done."""
        self.run.save_checkpoint(self.done, self.network, self.optimizer)

    def preview(self) -> np.ndarray:
        """(T, H, W, 3) uint8: the clip told in its own words, in few steps."""
        levels = invert(self.denoise, self.latents(self.done), self.inverse, self.empty, PREVIEW_STEPS)
        texts = torch.cat((self.empty, self.text))
        latents = sample(self.denoise, levels, self.forward, texts, steps=PREVIEW_STEPS)
        return self.base.decode(latents).numpy()
