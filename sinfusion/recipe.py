"""Every setting of a training and of its sampling, as one typed record; three presets.

A comment above a field is its help on the command line. `paper` is the published method, `fast` the default on a
GPU, `tiny` the default on a CPU.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from .errors import SettingError
from .roles import PROJECTOR, Role

LEAST_CROP, LARGE_CROP = 32, 0.95  # pixels a side of a crop, or this share of a frame that is hardly larger

PIXELS_A_BLOCK = {1: 6, 3: 10}  # of the receptive field, by the kernel of the dense convolutions


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; the defaults are those of `paper`."""

    # Name of the preset that this recipe came from.
    name: str = "paper"

    # Channels of every block of the network; even, at least 4.
    filters: int = 64
    # Number of ConvNeXt blocks, at least 2; each widens the receptive field by 10 pixels (6 with 1x1 convolutions).
    depth: int = 16
    # Kernel size of the dense convolutions: 3 as released, 1 as in ConvNeXt (9 times cheaper).
    dense_kernel: Literal[1, 3] = 3

    # What the network predicts; `published` is `noise` for the Predictor and `x0` for the other models.
    parameterization: Literal["published", "x0", "noise", "preconditioned"] = "published"
    # Noise schedule of x0 and noise prediction.
    schedule: Literal["linear", "cosine"] = "cosine"
    # Timesteps of the noise schedule.
    timesteps: int = 50
    # Training sigmas of conditional models (preconditioned): mean of log(sigma / sigma_data).
    log_sigma_mean: float = 0.0
    # Training sigmas of conditional models (preconditioned): standard deviation of log(sigma / sigma_data).
    log_sigma_std: float = 1.2
    # Training sigmas of unconditional models (preconditioned): mean of log(sigma / sigma_data).
    unconditional_log_sigma_mean: float = 0.0
    # Training sigmas of unconditional models (preconditioned): standard deviation of log(sigma / sigma_data).
    unconditional_log_sigma_std: float = 1.4
    # Share of the training samples at sigma_max, where conditional models learn the conditional mean.
    sigma_max_share: float = 0.0
    # Highest sigma of sampling for conditional models (preconditioned), in units of sigma_data.
    sigma_max: float = 20.0
    # Lowest sigma of sampling for conditional models (preconditioned), in units of sigma_data.
    sigma_min: float = 0.05
    # Highest sigma of sampling for unconditional models (preconditioned), in units of sigma_data.
    unconditional_sigma_max: float = 30.0
    # Lowest sigma of sampling for unconditional models (preconditioned), in units of sigma_data.
    unconditional_sigma_min: float = 0.02

    # Sampler; ddpm and ancestral are the same method, so are ddim and euler.
    sampler: Literal["ddpm", "ddim", "euler", "heun", "ancestral"] = "ddpm"
    # Sampling steps of conditional models, a network evaluation each (heun: two each, less one).
    sampling_steps: int = 50
    # Sampling steps of unconditional models, a network evaluation each (heun: two each, less one).
    unconditional_sampling_steps: int = 50
    # Sampling steps of the Interpolator: with fewer it is nearer to the mean; 0: as of the other conditional models.
    interpolator_sampling_steps: int = 0
    # Frames left out at the beginning of a video whose first frame the Projector generates.
    burn_in_frames: int = 0
    # Timesteps, of 50, to which each predicted frame is noised for the Projector to correct; 0 turns that off.
    correction_timesteps: int = 3
    # Sampling steps of the Projector's correction (preconditioned); other models take one a timestep.
    correction_steps: int = 3
    # Weight of each predicted frame's projection to the clip's patches; 0 turns that off.
    projection_weight: float = 0.0
    # Frames of these patches: with one, each frame is projected by itself.
    projection_depth: int = 3
    # Error of these patches, in units of the change between frames, at which only half of the weight is left.
    projection_tolerance: float = 3.0
    # Width in pixels of the border where things come into view as in the clip, or, where none do, stay in view and come
    # back, with projection; 0: neither.
    border: int = 0

    # Training samples a step.
    batch_size: int = 1
    # Peak learning rate of Adam.
    learning_rate: float = 2e-4
    # Fraction of the training over which the learning rate rises linearly.
    warmup: float = 0.0
    # Learning rate schedule. cosine: to zero at the end; step: a tenth from step 100,000 of the steps below on.
    decay: Literal["cosine", "step"] = "step"
    # Exponent of the power-function average of the weights: larger averages over less; 0 samples from raw weights.
    ema_gamma: float = 0.0
    # Last frames that the Predictor sees: 1 as published; from 2 on it sees which way and how fast things move.
    previous_frames: int = 1
    # Share of the Predictor's training samples that lack the second of its previous frames; twice that, the third.
    condition_dropout: float = 0.1
    # Noise on the changes between previous frames in training, in units of that on the last frame.
    change_noise: float = 0.5
    # White noise on the Predictor's condition in training: largest standard deviation, in units of sigma_data.
    white_condition_noise: float = 0.0
    # Coarse noise, of some pixels' width, on that condition in training: largest deviation, in units of sigma_data.
    coarse_condition_noise: float = 0.0
    # Crop size of conditional models as a fraction of the frame; at least 32 pixels.
    crop: float = 0.95
    # Crop size of unconditional models as a fraction of the frame: they learn the layout; at least 32 pixels.
    unconditional_crop: float = 0.95
    # Longer side of the Projector's frames at most, in receptive fields; it learns from squares of them. 0: as it is.
    projector_span: float = 0.0
    # Square crops of the shorter side for all models but the Predictor, as published.
    square_crops: bool = True
    # Train the Interpolator on every three neighbouring frames, not only those with an odd one in the middle.
    every_triple: bool = False
    # The Interpolator sees both neighbours moved to the moment between them, along what moves.
    motion_compensation: bool = False
    # Weight of what the Interpolator makes; the rest is of the mean of what it sees.
    interpolator_weight: float = 1.0
    # Share of the Interpolator's samples at half the size, where things move as far as between the frames to be filled.
    half_size_share: float = 0.0
    # Largest distance in frames between the Predictor's condition and its target.
    max_frame_offset: int = 3
    # Fractions of the Predictor's training at which frame offsets up to 2, 3, ... join in.
    offset_milestones: tuple[float, ...] = (0.375, 0.75)

    # Training steps of the image model.
    image_steps: int = 50_000
    # Training steps of the Predictor.
    predictor_steps: int = 200_000
    # Training steps of the Projector.
    projector_steps: int = 100_000
    # Training steps of the Interpolator.
    interpolator_steps: int = 50_000

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Recipe).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise SettingError(
                    f"{{{name}}} must be one of {', '.join(map(str, get_args(kind)))}, not {value!r:.40}."
                )
            if not _is(value, kind):
                what = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
                raise SettingError(f"{{{name}}} must be {what.get(kind, 'numbers')}, not {value!r:.40}.")
            least, most = _LIMITS.get(name, (-math.inf, math.inf))
            if kind in (int, float) and not least <= value <= most:
                bound = f"at least {least:g}" if value < least else f"at most {most:g}"
                raise SettingError(f"{{{name}}} must be {bound}, not {value!r:.40}.")
        if self.filters % 2:
            raise SettingError(f"{{filters}} must be even, not {self.filters}.")
        for name in ("crop", "unconditional_crop"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingError(f"{{{name}}} must be above 0 and at most 1, not {getattr(self, name)}.")
        self._check_sigmas()
        self._check_offsets()

    def _check_sigmas(self) -> None:
        """SettingError for sigmas and timesteps that do not fit together."""
        for kind in ("", "unconditional_"):
            bottom, top = getattr(self, f"{kind}sigma_min"), getattr(self, f"{kind}sigma_max")
            if bottom >= top:
                raise SettingError(
                    f"{{{kind}sigma_min}} ({bottom:g}) must be below {{{kind}sigma_max}} ({top:g}): sampling goes "
                    "from the top down."
                )
        if self.parameterization != "preconditioned" and self.correction_timesteps > self.timesteps:
            raise SettingError(
                f"{{correction_timesteps}} must be at most {{timesteps}}, {self.timesteps}, not "
                f"{self.correction_timesteps}."
            )

    def _check_offsets(self) -> None:
        """SettingError for a curriculum that could not go as the settings say."""
        milestones = self.offset_milestones
        if any(not 0 <= milestone < 1 for milestone in milestones) or list(milestones) != sorted(milestones):
            words = " ".join(f"{milestone:g}" for milestone in milestones)
            raise SettingError(f"{{offset_milestones}} must rise, from 0 on and below 1, not {words}.")
        if self.max_frame_offset > 1 + len(milestones):
            raise SettingError(
                f"{{max_frame_offset}} {self.max_frame_offset} needs {self.max_frame_offset - 1} "
                f"{{offset_milestones}}, one for each offset from 2 on, not {len(milestones)}."
            )

    def parameterization_of(self, role: Role) -> str:
        """x0, noise or preconditioned."""
        if self.parameterization == "published":
            return "noise" if role.name == "predictor" else "x0"
        return self.parameterization

    def conditions(self, role: Role) -> int:
        """Number of frames that the network of a role is conditioned on."""
        return self.previous_frames if role.name == "predictor" else role.conditions

    def sampling_steps_of(self, role: Role) -> int:
        """Sampling steps of a role."""
        if role.name == "interpolator" and self.interpolator_sampling_steps:
            return self.interpolator_sampling_steps
        return self.sampling_steps if role.conditions else self.unconditional_sampling_steps

    def steps(self, role: Role) -> int:
        """Training steps of a role when no time budget is given."""
        return int(getattr(self, f"{role.name}_steps"))

    def largest_offset(self, progress: np.ndarray) -> np.ndarray:
        """The largest frame offset in play at each progress in [0, 1] of the Predictor's training; int64."""
        reached = np.add.outer(progress, -np.array(self.offset_milestones)) >= 0
        return np.minimum(1 + reached.sum(-1), self.max_frame_offset)

    def offsets(self) -> tuple[int, ...]:
        """Frame offsets that a Predictor trained to the end knows."""
        largest = int(self.largest_offset(np.ones(1))[0])
        return tuple(k for k in range(-largest, largest + 1) if k)

    def frame_size(self, role: Role, height: int, width: int) -> tuple[int, int]:
        """Height and width of the frames that a role learns from, of a clip of this height and width."""
        if role is not PROJECTOR or self.projector_span == 0:
            return height, width
        longer = max(height, width)
        longest = math.ceil(max(self.projector_span * self.receptive, LEAST_CROP * longer / min(height, width)))
        if longest >= longer:
            return height, width
        return round(height * longest / longer), round(width * longest / longer)

    def crop_size(self, role: Role, height: int, width: int) -> tuple[int, int]:
        """Height and width of the training crops of a role, of a clip of this height and width."""
        height, width = self.frame_size(role, height, width)
        reduced = role is PROJECTOR and self.projector_span > 0
        if reduced or (role.square_crop and self.square_crops):
            height = width = min(height, width)
        share = self.crop if role.conditions else self.unconditional_crop
        height, width = (max(int(share * side), min(LEAST_CROP, int(LARGE_CROP * side))) for side in (height, width))
        return max(1, height), max(1, width)

    @property
    def receptive(self) -> int:
        """Pixels across that decide a pixel of the network's output: its receptive field."""
        return 1 + self.depth * PIXELS_A_BLOCK[self.dense_kernel]

    def with_receptive(self, pixels: int) -> Recipe:
        """A copy of the depth whose receptive field is nearest to so many pixels across."""
        least, most = (1 + depth * PIXELS_A_BLOCK[self.dense_kernel] for depth in _LIMITS["depth"])
        if isinstance(pixels, bool) or not isinstance(pixels, Integral) or not least <= pixels <= most:
            raise SettingError(f"{{receptive}} must be a whole number from {least:g} to {most:g}, not {pixels!r:.40}.")
        return self.replace(depth=round((int(pixels) - 1) / PIXELS_A_BLOCK[self.dense_kernel]))

    def replace(self, **settings: Any) -> Recipe:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **settings)


# Smallest and largest value of a setting; what lies beyond is a typing error or a damaged file.
_LIMITS: dict[str, tuple[float, float]] = {
    "filters": (4, 4096),
    "depth": (2, 256),
    "timesteps": (2, 100_000),
    "log_sigma_std": (0, 20),
    "unconditional_log_sigma_std": (0, 20),
    "log_sigma_mean": (-20, 20),
    "unconditional_log_sigma_mean": (-20, 20),
    "sigma_max_share": (0, 1),
    "sigma_max": (1e-6, 1e6),
    "sigma_min": (1e-6, 1e6),
    "unconditional_sigma_max": (1e-6, 1e6),
    "unconditional_sigma_min": (1e-6, 1e6),
    "sampling_steps": (1, 4000),
    "unconditional_sampling_steps": (1, 4000),
    "interpolator_sampling_steps": (0, 4000),
    "interpolator_weight": (0, 1),
    "burn_in_frames": (0, 1000),
    "correction_timesteps": (0, 50),
    "correction_steps": (1, 4000),
    "projection_weight": (0, 1),
    "projection_depth": (1, 8),
    "projection_tolerance": (0, 1000),
    "border": (0, 10_000),
    "batch_size": (1, 1_000_000),
    "learning_rate": (0, 1e9),
    "warmup": (0, 1),
    "ema_gamma": (0, 1e6),
    "previous_frames": (1, 3),
    "condition_dropout": (0, 0.5),
    "half_size_share": (0, 1),
    "change_noise": (0, 1000),
    "white_condition_noise": (0, 1000),
    "coarse_condition_noise": (0, 1000),
    "projector_span": (0, 1000),
    "crop": (0, 1),
    "unconditional_crop": (0, 1),
    "max_frame_offset": (1, 1000),
    "image_steps": (1, 99_999_999),
    "predictor_steps": (1, 99_999_999),
    "projector_steps": (1, 99_999_999),
    "interpolator_steps": (1, 99_999_999),
}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value, perhaps from a damaged file, is of the kind that a setting declares."""
    if kind in (int, float):
        number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        return number and -math.inf < value < math.inf
    if kind in (bool, str):
        return isinstance(value, kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, float) for item in value)
    return True


PAPER = Recipe()

FAST = Recipe(
    name="fast",
    parameterization="preconditioned",
    sampler="ancestral",
    sampling_steps=10,
    unconditional_sampling_steps=25,
    interpolator_sampling_steps=1,
    batch_size=4,
    learning_rate=1e-3,
    log_sigma_mean=-0.75,
    sigma_max_share=0.4,
    previous_frames=2,
    white_condition_noise=1.0,
    coarse_condition_noise=1.0,
    burn_in_frames=4,
    correction_timesteps=0,
    projection_weight=1.0,
    projection_tolerance=1.7,
    border=7,
    crop=0.5,
    projector_span=1.25,
    warmup=0.02,
    decay="cosine",
    ema_gamma=16.0,
    square_crops=False,
    every_triple=True,
    motion_compensation=True,
    interpolator_weight=0.3,
    half_size_share=0.9,
    offset_milestones=(0.4, 0.6),
    image_steps=5_000,
    predictor_steps=10_000,
    projector_steps=4_000,
    interpolator_steps=5_000,
)

TINY = FAST.replace(
    name="tiny",
    filters=32,
    depth=12,
    dense_kernel=1,
    learning_rate=2e-3,
)

RECIPES = {"paper": PAPER, "fast": FAST, "tiny": TINY}


def from_dict(settings: dict[str, Any]) -> Recipe:
    """A recipe from its JSON form, perhaps of another version.

    An unknown setting is left out. A missing one gets the default of `Recipe`: the default of a new setting is what was
    done before there was one.
    """
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    known = {name: value for name, value in settings.items() if name in SETTINGS}
    if "crop" in known:  # once, of all models
        known = {"unconditional_crop": known["crop"]} | known
    known = {**dataclasses.asdict(Recipe()), **known}
    return Recipe(**{**known, **_as_they_worked(known)})


# Settings that had other names in earlier versions.
RENAMED = {
    "free_level_mean": "unconditional_log_sigma_mean",
    "free_level_std": "unconditional_log_sigma_std",
    "free_level_top": "unconditional_sigma_max",
    "free_level_bottom": "unconditional_sigma_min",
    "level_mean": "log_sigma_mean",
    "level_std": "log_sigma_std",
    "level_top_share": "sigma_max_share",
    "level_top": "sigma_max",
    "level_bottom": "sigma_min",
    "free_sampling_steps": "unconditional_sampling_steps",
    "hidden_frames": "burn_in_frames",
    "condition_noise": "white_condition_noise",
    "condition_drift": "coarse_condition_noise",
}


def _as_they_worked(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that were once allowed in any combination, as they worked then."""
    milestones = tuple(sorted(max(0.0, milestone) for milestone in settings["offset_milestones"] if milestone < 1))
    changed = {
        "offset_milestones": milestones,
        "max_frame_offset": min(settings["max_frame_offset"], 1 + len(milestones)),
    }
    if settings["parameterization"] != "preconditioned":
        changed["correction_timesteps"] = min(settings["correction_timesteps"], settings["timesteps"])
    return changed


def differences(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Of a recipe's JSON form: settings that no longer exist, and new ones that it lacks."""
    names = {RENAMED.get(name, name) for name in settings}
    return sorted(names - SETTINGS), sorted(SETTINGS - names)


SETTINGS = frozenset(field.name for field in dataclasses.fields(Recipe))
