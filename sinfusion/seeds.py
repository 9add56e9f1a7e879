"""Seeds: one range of them everywhere, and keys of the generator for the parts of what one seed makes.

Keys of the generator are 64 bits wide, kept as int64. A seed takes the lower 32 of them, so that the upper are free to
tell apart what is made from one seed; and training, which spreads keys by a product, never reaches a key twice.
"""

from __future__ import annotations

from numbers import Integral

from .errors import SettingError

SEEDS = 2**32


def check_seed(seed: int, count: int = 1) -> int:
    """The seed as a plain int, for `count` samples made from `seed`, `seed` + 1 and so on.

    Raises SettingError for what is no whole number, and where one of these is not from 0 to 2^32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise SettingError(f"{{seed}} must be a whole number, not {seed!r:.40}.")
    seed = int(seed)  # numpy's own would wrap below
    if not 0 <= seed < SEEDS:
        raise SettingError(f"{{seed}} must be from 0 to {SEEDS - 1}, not {seed}.")
    if seed + count > SEEDS:
        raise SettingError(
            f"{{seed}} must be at most {SEEDS - count} for {count} samples, each made from the next seed, not {seed}."
        )
    return seed


def part_key(seed: int, part: int) -> int:
    """The generator's key for a part, below 2^31, of what a seed makes; no two seeds or parts have one in common."""
    return seed | part << 32
