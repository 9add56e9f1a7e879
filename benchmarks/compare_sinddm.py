"""Guidance by text beside the authors' code, in one process: the same pictures, the same views, float64.

python benchmarks/compare_sinddm.py --released SINDDM [--fixture OUT]

SINDDM is a checkout of github.com/fallenshock/SinDDM. Two of their files are executed as they are: the reverse process
with its guidance (`SinDDM/models.py`), and the loss (`text2live_util/clip_extractor.py`); what they import besides
PyTorch and NumPy, for drawing and reading, is replaced by nothing. Their reverse process runs, and in each of its steps
our guide is given the clean estimate that theirs has before guidance. The encoder of pictures and the texts are random,
views are ours: theirs are drawn by torchvision. Their loss draws some of the sentences of a text in each step; here it
draws all of them, whose mean ours takes. Without --released, ours is compared with the fixture of the tests.

--fixture: write the authors' outputs to a file, against which the tests compare without their code.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from sinfusion.files import atomic_write
from sinfusion.ops.philox import normal
from sinfusion.text.guide import VIEWS, TextGuide
from sinfusion.text.views import draw_views, size_of_views

FIXTURE = Path(__file__).parent.parent / "tests/text/sinddm.safetensors"
SIZE, TIMESTEPS, STOP, SEEDS = (12, 18), 10, 3, (4, 9)
STRENGTH, FILL, MOMENTUM = 0.3, 0.4, 0.2
SENTENCES, FEATURES = 5, 16
LEAST = 1e-6  # largest difference that is allowed, of values in [-1, 1]


@dataclass
class Settings:
    released: Path | None = None
    fixture: Path | None = None


class RandomModel:
    """A small network of random weights in place of CLIP, float64."""

    side, multiple, device = 12, 4, torch.device("cpu")

    def __init__(self) -> None:
        self.weights = drawn("weights", (FEATURES, 3, 4, 4))
        self.mixing = drawn("mixing", (FEATURES, FEATURES)) / 4
        self.texts = drawn("texts", (SENTENCES, FEATURES))

    def encode(self, images: Tensor) -> Tensor:
        """(N, D) of images (N, 3, H, W) in [-1, 1]."""
        return F.conv2d(images, self.weights, stride=2).tanh().mean((2, 3)) @ self.mixing

    def target(self, text: str) -> Tensor:
        """(D,): mean of the directions of the sentences."""
        return F.normalize(self.texts, dim=1).mean(0)

    def target_of_image(self, image: Tensor) -> Tensor:
        """Not compared."""
        raise NotImplementedError

    def agreement(self, images: Tensor, target: Tensor) -> Tensor:
        """(N,): mean cosine with the sentences."""
        return F.normalize(self.encode(images), dim=1) @ target


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """float64 normals that a name stands for."""
    return normal([sum((i + 1) * 257 * ord(letter) for i, letter in enumerate(name))], 0, 0, shape)[0].double()


def ours(cleans: Tensor) -> Tensor:
    """Guided clean estimates of each step, like cleans (steps, B, 3, H, W)."""
    model = RandomModel()
    guide = TextGuide(model, model.target(""), SEEDS, STRENGTH, FILL, MOMENTUM)
    guide.sigmas = float(STOP), float("inf")
    # A level's number stands for its sigma: both only tell which steps are guided.
    return torch.stack([guide(clean, float(TIMESTEPS - 1 - step), step) for step, clean in enumerate(cleans)])


# The authors' code ----------------------------------------------------------------------------------------------------


class Nothing(types.ModuleType):
    """A module in which every name is there and does nothing."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or (lambda *_, **__: None)


LEFT_OUT = (
    "matplotlib", "matplotlib.pyplot", "torchvision", "torchvision.transforms", "torchvision.utils", "einops",
    "skimage", "clip", "text2live_util", "text2live_util.util", "PIL",
)  # fmt: skip


def execute(name: str, path: Path) -> types.ModuleType:
    """A file as a module."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def theirs(released: Path) -> tuple[Tensor, Tensor]:
    """Clean estimates before and after guidance of each step of their reverse process, (steps, B, 3, H, W) each."""
    before = {name: sys.modules.get(name) for name in LEFT_OUT}
    sys.modules.update({name: Nothing(name) for name in LEFT_OUT})
    try:
        sys.modules["SinDDM"] = Nothing("SinDDM")
        execute("SinDDM.functions", released / "SinDDM" / "functions.py")
        models = execute("SinDDM.models", released / "SinDDM" / "models.py")
        extractor = execute("clip_extractor", released / "text2live_util" / "clip_extractor.py")
        models.plt.__dict__["rcParams"] = {}
        return _guided(models, _their_loss(extractor))
    finally:
        sys.modules.update({name: module for name, module in before.items() if module is not None})


def _their_loss(extractor: types.ModuleType) -> Any:
    """Their ClipExtractor with our views and encoder, which takes all sentences."""
    model = RandomModel()
    extractor.__dict__["np"] = types.SimpleNamespace(random=types.SimpleNamespace(randint=lambda _, high: high - 1))
    extractor.__dict__["torch"] = types.SimpleNamespace(randint=lambda count, _: torch.arange(count))

    class Extractor(extractor.ClipExtractor):  # type: ignore[name-defined,misc]
        """Theirs; `step` counts from 0, and pictures come in the order of their seeds."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.text_criterion, self.step, self.seeds = extractor.cosine_loss, -1, iter(())

        def calculate_clip_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.step, self.seeds = self.step + 1, iter(SEEDS)
            return super().calculate_clip_loss(outputs, targets)  # type: ignore[no-any-return]

        def get_image_embedding(self, x: Tensor, aug: bool = True) -> Tensor:
            size = size_of_views((x.shape[2], x.shape[3]), model.side, model.multiple)
            return model.encode(draw_views(next(self.seeds), self.step, VIEWS).of(2 * x[0] - 1, size))

    return Extractor()


def _guided(models: types.ModuleType, loss: Any) -> tuple[Tensor, Tensor]:
    strength = torch.nn.Parameter(torch.full((), 0.8, dtype=torch.float64))  # theirs changes no leaves in place

    def denoise(x: Tensor, t: Tensor, scale: int) -> Tensor:
        return strength * x + 0.2 * x.roll(1, 3) + 0.1 * torch.sin(9 * x + t[0] / 3)

    process = models.MultiScaleGaussianDiffusion(
        torch.nn.Module(), n_scales=2, scale_factor=1.4, image_sizes=[SIZE[::-1]] * 2, timesteps=TIMESTEPS,
        scale_losses=[1.0, 1.0], reblurring=False, device=torch.device("cpu"), results_folder="",
    )  # fmt: skip
    process.denoise_fn.forward = denoise
    process = process.double()
    process.clip_guided_sampling, process.guidance_sub_iters, process.stop_guidance = True, [0, 1], STOP
    process.quantile, process.clip_strength, process.llambda = 1 - FILL, STRENGTH, MOMENTUM
    process.clip_model, process.text_embedds_hr = loss, RandomModel().texts
    models.noise_like = lambda shape, *_: drawn(f"noise {len(cleans)}", tuple(shape))
    cleans, guided = [], []
    x = drawn("start", (len(SEEDS), 3, *SIZE))
    for step in reversed(range(TIMESTEPS)):
        t = torch.full((len(SEEDS),), step)
        with torch.no_grad():
            clean = process.predict_start_from_noise(x, t, 1, denoise(x, t, 1))[0].clamp(-1, 1)
        cleans.append(clean)
        x = process.p_sample(x, t, 1)
        guided.append(process.x_recon_prev.clone() if step >= STOP else clean)
    return torch.stack(cleans), torch.stack(guided)


# The comparison -------------------------------------------------------------------------------------------------------


def main(settings: Settings) -> int:
    """Print the errors; 1 where one is larger than allowed."""
    if settings.released is not None:
        cleans, wanted = theirs(settings.released)
    else:
        cleans, wanted = load_file(FIXTURE).values()
    error, moved = (ours(cleans) - wanted).abs().amax((1, 2, 3, 4)), (wanted - cleans).square().mean().sqrt()
    print("largest difference, step by step:", *(f"{value:.1e}" for value in error.tolist()))
    print(f"of pixels that guidance moves by {moved:.2f} (RMS); at most {LEAST:.0e}")
    if settings.fixture:
        with atomic_write(settings.fixture) as temporary:
            save_file({"cleans": cleans.contiguous(), "guided": wanted.contiguous()}, temporary)
        print(f"{settings.fixture}: {settings.fixture.stat().st_size / 1000:.0f} kB")
    return int(not np.all(error.numpy() <= LEAST))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
