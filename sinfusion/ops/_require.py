"""What is asked of an operator's arguments."""

from __future__ import annotations

from collections.abc import Callable


def require(holds: bool, message: Callable[[], str]) -> None:
    """As torch._check, in a tenth of its time: a small network's step asks for hundreds of things."""
    if not holds:
        raise RuntimeError(message())
