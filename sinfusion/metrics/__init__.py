"""How close generated frames are to their original, and how diverse: `similarity`, `frechet`; `evaluation` of runs."""

from .similarity import nnf, nnfdist, nnfdiv, psnr, sliced_wasserstein

__all__ = ["nnf", "nnfdist", "nnfdiv", "psnr", "sliced_wasserstein"]
