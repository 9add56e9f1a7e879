"""The image model that is tuned: a Stable Diffusion, as a folder that the user brings. Nothing is ever fetched.

base = BaseModel(Path("stable-diffusion-v1-4"))        # checked: all parts are there, weights are safetensors
base.fingerprint()                                     # of its weights, so that a run knows its model
network = base.network(seed=0)                         # over clips; the temporal attention is new
text = base.embed(["a man is skiing"])                 # (1, 77, 768)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import SinfusionError
from ..extras import check_weights, need, quiet
from ..files import sha256
from ..pixels import to_uint8, to_unit
from ..text.clip import token_ids
from .network import VideoNetwork, tuned

BRING = (
    "bring Stable Diffusion 1.4 or 1.5 as a folder of diffusers' layout, with unet, vae, text_encoder, tokenizer and "
    "scheduler"
)
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PREDICTED = ("epsilon", "v_prediction")
SCALING = 0.18215  # of latents, where the config of a VAE does not say


@dataclass
class BaseModel:
    """A folder with a Stable Diffusion. Raises SinfusionError for anything else, and without the extra."""

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    variants: dict[str, str | None] = field(init=False)

    def __post_init__(self) -> None:
        need("tune")
        quiet()
        if not self.folder.is_dir():
            raise SinfusionError(f"{self.folder} is not a folder; {BRING}.")
        self.variants = {}
        for part, stem in WEIGHTS.items():
            if not (self.folder / part / "config.json").is_file():
                raise SinfusionError(f"{self.folder} has no {part}/config.json; {BRING}.")
            self.variants[part] = check_weights(self.folder / part, stem, BRING)
            try:
                safe_open(self._weights(part), framework="pt")  # reads where everything is
            except (OSError, SafetensorError) as error:
                raise SinfusionError(f"{self._weights(part)} is damaged ({error!s:.60}); {BRING}.") from error
        if not (self.folder / "tokenizer").is_dir():
            raise SinfusionError(f"{self.folder} has no tokenizer; {BRING}.")
        self._check_unet()

    def _check_unet(self) -> None:
        """SinfusionError for a network that sees something else than latents, a time and a text."""
        config = self.unet_config
        channels = config.get("in_channels", 4), config.get("out_channels", 4)
        more = [
            name for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type") if config.get(name)
        ]
        if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel" or channels != (4, 4) or more:
            raise SinfusionError(
                f"{self.folder / 'unet'} is not that of a Stable Diffusion for text to image "
                f"({', '.join(more) or f'{channels[0]} channels in, {channels[1]} out'}); {BRING}."
            )
        if (predicted := self.schedule.get("prediction_type", "epsilon")) not in PREDICTED:
            raise SinfusionError(f"{self.folder} predicts {predicted!s:.20}, not {' or '.join(PREDICTED)}; {BRING}.")

    # What the files say ----------------------------------------------------------------------------------------------

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """The settings of the network."""
        return self._json("unet/config.json")

    @cached_property
    def schedule(self) -> dict[str, Any]:
        """The settings of the scheduler, of whatever class."""
        return self._json("scheduler/scheduler_config.json")

    @cached_property
    def downscale(self) -> int:
        """Pixels of a frame, each way, that a latent stands for: 8."""
        return int(2 ** (len(self._json("vae/config.json").get("block_out_channels", [0] * 4)) - 1))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("no settings")
        except (OSError, ValueError) as error:
            raise SinfusionError(f"{self.folder / name} is damaged or missing; {BRING}.") from error
        return content

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the weights of each part."""
        return {part: sha256(self._weights(part)) for part in WEIGHTS}

    def _weights(self, part: str) -> Path:
        variant = f".{self.variants[part]}" if self.variants[part] else ""
        return self.folder / part / f"{WEIGHTS[part]}{variant}.safetensors"

    # What they hold --------------------------------------------------------------------------------------------------

    def network(self, seed: int, dtype: torch.dtype = torch.float32) -> VideoNetwork:
        """The network over clips; the new weights are drawn by the seed. Only what is tuned wants gradients.

        dtype: what it computes in, and what it stores of what is not tuned.
        """
        from diffusers import UNet2DConditionModel

        unet = self._load(UNet2DConditionModel, "unet")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU's as well
            network = VideoNetwork(unet)
        network.requires_grad_(False).eval()
        for _, value in tuned(unet):
            value.requires_grad_(True)
        network.compute_in(dtype)  # before it goes to a GPU, where that halves its memory
        return network.to(self.device)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """(N, words, D) fp32: what the network reads of texts. SinfusionError for those that are too long."""
        from transformers import CLIPTextModel, CLIPTokenizer

        tokenizer = self._load(CLIPTokenizer, "tokenizer")
        encoder = self._load(CLIPTextModel, "text_encoder").to(self.device)
        ids = token_ids(tokenizer, texts, int(encoder.config.max_position_embeddings))
        embedded: Tensor = encoder(ids.to(self.device))[0]
        return embedded

    @cached_property
    def vae(self) -> Any:
        """What makes latents of frames and frames of latents, fp32."""
        from diffusers import AutoencoderKL

        return self._load(AutoencoderKL, "vae").to(self.device)

    @property
    def scaling(self) -> float:
        """What latents are multiplied by."""
        return float(self._json("vae/config.json").get("scaling_factor", SCALING))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(T, H, W, 3) uint8 -> mean and standard deviation of the scaled latents, (1, 4, T, h, w) each."""
        found = [self.vae.encode(to_unit(frame[None]).to(self.device)).latent_dist for frame in frames]
        means, deviations = (torch.cat([getattr(one, name) for one in found]) for name in ("mean", "std"))
        return tuple(self.scaling * x.transpose(0, 1)[None] for x in (means, deviations))  # type: ignore[return-value]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (1, 4, T, h, w) -> (T, H, W, 3) uint8 on the CPU."""
        images = latents[0].transpose(0, 1).float() / self.scaling
        return torch.cat([to_uint8(self.vae.decode(image[None]).sample).cpu() for image in images])

    def _load(self, kind: Any, part: str) -> Any:
        """A part of the model by its class."""
        options = {"use_safetensors": True, "variant": self.variants[part]} if part in WEIGHTS else {}
        if part in ("unet", "vae"):
            options["low_cpu_mem_usage"] = False  # which needs accelerate, and saves little
        try:
            loaded = kind.from_pretrained(self.folder / part, local_files_only=True, **options)
        except Exception as error:  # a damaged folder can raise anything
            what = f"{type(error).__name__}: {error!s:.80}".splitlines()[0]
            raise SinfusionError(f"{self.folder / part} cannot be loaded ({what}); {BRING}.") from error
        return loaded.float().requires_grad_(False).eval() if part in WEIGHTS else loaded
