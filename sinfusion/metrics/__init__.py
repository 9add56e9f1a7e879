"""How close generated frames are to their original, and how diverse; `evaluation` measures files and runs."""

from .fidelity import psnr, sliced_wasserstein
from .nearest_neighbors import nnf, nnfdist, nnfdiv

__all__ = ["nnf", "nnfdist", "nnfdiv", "psnr", "sliced_wasserstein"]
