"""Which implementation of an operator runs: the native one where it can, unless a backend is forced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..errors import SinfusionError

BACKENDS = ("auto", "native", "reference")

Implementation = Callable[..., Any]  # of an operator's NamedTuple and flags

_forced: ContextVar[str | None] = ContextVar("sinfusion_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force `reference` or `native` inside a with block; `auto` undoes SINFUSION_BACKEND."""
    if name not in BACKENDS:
        raise SinfusionError(f"backend must be one of {', '.join(BACKENDS)}, not {name!r}.")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def chosen_backend() -> str:
    """The backend that is chosen here: by `backend`, else by SINFUSION_BACKEND."""
    chosen = _forced.get() or os.environ.get("SINFUSION_BACKEND", "auto")
    if chosen not in BACKENDS:
        raise SinfusionError(f"SINFUSION_BACKEND must be one of {', '.join(BACKENDS)}, not {chosen!r}.")
    return chosen


def use_native(operator: str, reasons: list[str]) -> bool:
    """Whether the native implementation runs; `reasons` say why it cannot, SinfusionError if it is forced then."""
    chosen = chosen_backend()
    if chosen == "native" and reasons:
        raise SinfusionError(f"the native {operator} cannot run here: {'; '.join(reasons)}.")
    return chosen != "reference" and not reasons


def native_or_reference(
    operator: str,
    native: Implementation,
    reference: Implementation,
    unsupported: Callable[[Any], list[str]],  # why the native implementation cannot run; empty where it can
    check: Callable[[Any], None] | None = None,  # of the arguments, before anything else looks at them
) -> Implementation:
    """The implementation of an operator on a device."""

    def implementation(a: Any, *flags: bool) -> Any:
        if check is not None:
            check(a)
        return (native if use_native(operator, unsupported(a)) else reference)(a, *flags)

    return implementation
