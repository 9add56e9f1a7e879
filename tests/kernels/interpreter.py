"""Triton's interpreter with bf16 as a GPU has it. The interpreter itself truncates, and multiplies matrices of bits."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def repair_bf16():
    convert, multiply = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding(data, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, mode)

    def widening(self, a, b, *rest):
        a, b = (self.create_fp_ext(v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b))
        return multiply(self, a, b, *rest)

    interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = rounding, widening
