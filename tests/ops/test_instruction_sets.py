"""Operators whose results are the same to the bit on every instruction set and with any number of threads.

What is computed is the `digest` of each operator's own file of tests.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OPERATORS = ("adam_ema", "ddpm_step", "nearest_patches", "patch_match", "philox", "sample_crops", "vote")
ORDER = ["plain", "avx2", "avx512", "avx512_bf16"]

PRINT_DIGESTS = """
import importlib.util, sys
from sinfusion.ops.native import cpu
for file in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location('digested', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(module.digest())
print(cpu.isa())
"""


def file_of(operator):
    return str(HERE / f"test_{operator}.py")


@functools.cache
def digest_of(operator):
    """The function, of this process."""
    spec = importlib.util.spec_from_file_location(f"digest_of_{operator}", file_of(operator))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.digest


@functools.cache  # importing torch takes longer than all the digests
def digests_when_forced(isa):
    environment = {**os.environ, "SINFUSION_ISA": isa}
    command = [sys.executable, "-c", PRINT_DIGESTS, *map(file_of, OPERATORS)]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *digests, used = result.stdout.split()
    assert ORDER.index(used) <= ORDER.index(isa)
    return dict(zip(OPERATORS, digests, strict=True))


@pytest.mark.parametrize("isa", ORDER)
@pytest.mark.parametrize("operator", OPERATORS)
def test_each_instruction_set_gives_the_same_numbers_when_forced(operator, isa):
    assert digests_when_forced(isa)[operator] == digest_of(operator)()


@pytest.mark.parametrize("operator", OPERATORS)
def test_results_do_not_depend_on_threads_and_repeat(operator, set_threads):
    first = digest_of(operator)()
    for count in (1, 2, 3):
        set_threads(count)
        assert digest_of(operator)() == first
