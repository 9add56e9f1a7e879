"""Seeds, and the generator's keys that are derived from them.

A key has 64 bits, held as int64. A seed takes the lower 32, so that the upper ones are free to tell parts of one seed's
output apart; the keys of training samples, which are products of a seed, never meet.
"""

from __future__ import annotations

from numbers import Integral

from .errors import SettingError

SEEDS = 2**32


def check_seed(seed: int, count: int = 1) -> int:
    """The seed as a plain int, for `count` samples with seeds `seed`, `seed` + 1 and so on.

    Raises SettingError for what is no whole number, and where one of the seeds is not from 0 to 2^32 - 1.
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
    """The generator's key of a part, below 2^31, of a seed's output; no two seeds or parts share a key."""
    return seed | part << 32
