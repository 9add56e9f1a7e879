"""An operator's arguments are declared once, as a NamedTuple: its public function, its schema and every implementation
are made of that.

    class Scale(NamedTuple):
        x: Tensor  # (N,)
        factor: float = 1.0

    @takes(Scale)
    def scale(a: Scale) -> Tensor: ...       # scale(x, factor=2.0)
    define("scale", Scale, "Tensor")
    implement("scale", Scale, reference=_reference, cpu=_native, cuda=_native, fake=_fake)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from .dispatch import Implementation

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")

# How a schema calls a field's type.
_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    float: "float",
    Sequence[int]: "int[]",
    Sequence[float]: "float[]",
    tuple[float, float]: "float[]",
    torch.dtype: "ScalarType",
}

_library = torch.library.Library("sinfusion", "DEF")  # lives as long as the process


def takes(declaration: Callable[P, A]) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """Makes a function of a NamedTuple one of its fields, with the same names, order and defaults."""

    def decorate(function: Callable[[A], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def public(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(declaration(*args, **kwargs))

        signature = inspect.signature(declaration)
        parameters = [  # annotations as they are written
            p.replace(annotation=getattr(p.annotation, "__forward_arg__", p.annotation))
            for p in signature.parameters.values()
        ]
        returned = inspect.signature(function).return_annotation
        cast(Any, public).__signature__ = signature.replace(parameters=parameters, return_annotation=returned)
        return public

    return decorate


def schema(name: str, declaration: Any, returns: str, written: Sequence[str], flags: Sequence[str]) -> str:
    """What PyTorch has to know of an operator."""
    types = get_type_hints(declaration)
    fields = [(field, _SCHEMA_TYPES[types[field]]) for field in declaration._fields] + [
        (flag, "bool") for flag in flags
    ]
    for letter, field in zip("abcdefgh", written, strict=False):
        position = declaration._fields.index(field)
        fields[position] = field, fields[position][1].replace("Tensor", f"Tensor({letter}!)")
    return f"{name}({', '.join(f'{kind} {field}' for field, kind in fields)}) -> {returns}"


def define(
    name: str,
    declaration: Any,  # the NamedTuple
    returns: str,  # as a schema says it
    written: Sequence[str] = (),  # fields that are changed in place
    flags: Sequence[str] = (),  # booleans behind the fields, which implementations take as further arguments
) -> None:
    """Defines torch.ops.sinfusion.<name>."""
    _library.define(schema(name, declaration, returns, written, flags))


def implement(
    name: str,
    declaration: Any,
    *,
    reference: Implementation,
    cpu: Implementation,
    cuda: Implementation,
    fake: Implementation,
) -> None:
    """Registers what runs; implementations take the NamedTuple, then the flags."""
    count = len(declaration._fields)
    make = functools.partial(tuple.__new__, declaration)  # `_make` without its check of the number

    def positional(implementation: Implementation) -> Implementation:
        return lambda *values: implementation(make(values[:count]), *values[count:])

    _library.impl(name, positional(reference), "CompositeExplicitAutograd")
    _library.impl(name, positional(cpu), "CPU")
    _library.impl(name, positional(cuda), "CUDA")
    torch.library.register_fake(f"sinfusion::{name}", positional(fake), lib=_library)


def register_backward(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Registers an operator's derivative, as torch.library.register_autograd takes it."""
    torch.library.register_autograd(f"sinfusion::{name}", backward, setup_context=setup_context, lib=_library)
