"""What tests of Triton kernels share: Triton's interpreter, and CUDA graphs of kernels."""

import json
import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def interpreted():
    """interpreted(file, ...): what a test file prints, as JSON, when it runs as a program in Triton's interpreter."""

    def run(*arguments):
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture
def assert_replays():
    """assert_replays(step, x): a CUDA graph of `step` gives its results for other values in x too."""

    def check(step, x):
        step()  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = step()
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))

    return check
