"""Made-up results of the benchmarks, as pytest-benchmark writes them."""

import json

import pytest

FACTS = {
    "cpu": "Some CPU", "instruction_sets": "avx2", "threads": 2, "native": "avx2 kernels", "torch": "2.13.0",
    "cuda": "none", "commit": "0123456789abcdef", "device": "cpu",
}  # fmt: skip
LIMITS = {"copy": 1e10, "cached_copy": 4e10, "cache": 10**6, "matrix": 1e12, "arithmetic": 2e11}


class MadeUp:
    """Entries of results: a benchmark and what it measured."""

    limits = LIMITS

    @staticmethod
    def operator(name, seconds, ours="native", batch=1, **work):
        info = {"operator": name, "batch": batch, "size": [36, 64], "ours": ours, "seconds": seconds, "limits": LIMITS}
        info |= {"bytes": 1000, "dense": 0, "depthwise": 0, "elementwise": 0} | work
        return f"bench_ops.py::test_operator[{name}-{batch}]", info

    @staticmethod
    def step(seconds, shares):
        info = {"recipe": "tiny", "batch": 4, "crop": [34, 60], "seconds": seconds, "shares": shares}
        return "bench_training_step.py::test_step_of_tiny", info | {"floor_seconds": 0.001, "limits": LIMITS}

    @property
    def norms(self):
        of_64 = {"native": 0.002, "reference": 0.03, "pytorch": 0.003}
        of_128 = {"native": 0.004, "reference": 0.02, "pytorch": 0.008}
        return [
            self.operator(f"depthwise_norm forward, {channels} channels", seconds)
            for channels, seconds in ((64, of_64), (128, of_128))
        ]


@pytest.fixture(scope="session")
def made_up():
    return MadeUp()


@pytest.fixture
def file(tmp_path):
    """A file of results: entries, options that pytest was given, facts of the machine that differ."""

    def write(*entries, name="some.json", options="", backend="native", share=1.0, **facts):
        benchmarks = [
            {"name": test.split("::")[1], "fullname": f"benchmarks/{test}", "extra_info": {"backend": backend} | info}
            for test, info in entries
        ]
        result = {"machine_info": FACTS | facts, "options": options, "cores_share": share, "benchmarks": benchmarks}
        (tmp_path / name).write_text(json.dumps(result))
        return tmp_path / name

    return write
