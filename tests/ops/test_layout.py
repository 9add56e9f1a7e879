"""Inputs that are two tensors."""

import torch

from sinfusion import ops


def test_joined_channels_are_those_of_both_and_so_are_the_gradients():
    x, skip = (torch.randn(2, c, 5, 7).to(memory_format=torch.channels_last).requires_grad_() for c in (3, 4))
    both = ops.joined(x, skip)
    assert torch.equal(both, torch.cat((x, skip), 1)) and both.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(both)
    of_x, of_skip = torch.autograd.grad(both, (x, skip), grad)
    assert torch.equal(torch.cat((of_x, of_skip), 1), grad)
    assert all(g.is_contiguous(memory_format=torch.channels_last) for g in (of_x, of_skip))
