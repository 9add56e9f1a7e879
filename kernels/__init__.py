"""Triton kernels; importing this imports no triton.

depthwise_norm: depthwise 7x7 + shift + LayerNorm, forward and backward
dense: convolutions 3x3 and 1x1 with bias, GELU and residual, forward and backward
gelu: bias, GELU and residual after a convolution that cuDNN makes, forward and backward
pointwise: 1x1 convolutions of two tensors, forward and backward
embedding: what is added for time and frame offset, forward and backward
loss: the mean squared error and its gradient
reduce: sums of the partial sums that the others leave
tuning: which of several implementations runs, by measurement
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

OLDEST = (3, 3)  # of Triton: before, kernels took no tuples


@functools.cache
def why_not() -> str:
    """Why Triton's kernels cannot run on this machine's GPU; empty where nothing speaks against it."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is older than {'.'.join(map(str, OLDEST))}, which comes with PyTorch 2.7"
    if sys.platform == "linux":  # Triton compiles a small C extension at the first launch
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "Triton needs a C compiler (install gcc, or name one in CC)"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "Triton needs Python.h (install the package python3-dev)"
    return ""
