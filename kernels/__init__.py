"""Triton kernels; importing this imports no triton."""
