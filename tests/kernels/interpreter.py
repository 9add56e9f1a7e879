"""Triton's interpreter with bf16 as a GPU has it, and without what takes half of its time.

For processes that run kernels in it.
"""

import dataclasses
import types

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def prepare():
    repair_bf16()
    repair_indices()
    patch_the_language_once()
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def patch_the_language_once():
    """The interpreter replaces all of triton.language at every call of a kernel or of a function by one."""
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        if id(function.__globals__) not in patched:
            patched.add(id(function.__globals__))
            patch(function)
        return types.SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once


def repair_indices():
    """Triton 3.6 takes the bounds of a loop from arrays of one number, which numpy refuses since 2.4."""
    patch = interpreter._patch_lang_tensor

    def with_indices(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = with_indices


def repair_bf16():
    """The interpreter truncates where a GPU rounds, and multiplies matrices of bits."""
    convert, multiply = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding(data, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, mode)

    def widening(self, a, b, *rest):
        a, b = (self.create_fp_ext(v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b))
        return multiply(self, a, b, *rest)

    interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = rounding, widening
