"""The threads of the CPU's operators: how many, in forked children, beside each other, and by a sanitizer."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sinfusion import ops
from sinfusion.ops.native import cpu

pytestmark = pytest.mark.skipif(not cpu.loaded, reason="there is no library for the CPU")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _threads_are_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    cpu.adapt_threads(True)


def operands(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 32, 37, 53, generator=generator).to(memory_format=torch.channels_last)
    return x, torch.randn(32, 1, 7, 7, generator=generator), torch.randn(32, generator=generator)


def computed(given):
    """Bytes of what the library makes, forward and backward; nothing of PyTorch's computes on more than one thread."""
    x, weight, bias = (value.clone().requires_grad_() for value in given)
    out = ops.depthwise_norm(x, weight, bias, None, bias, bias)
    mixed = ops.dense(out, weight.reshape(32, 49)[:, :32].reshape(32, 32, 1, 1).contiguous(), bias, gelu=True)
    mixed.backward(x.detach())
    return b"".join(value.detach().contiguous().numpy().tobytes() for value in (mixed, x.grad, weight.grad, bias.grad))


def _answer(given, answers):
    torch.set_num_threads(2)
    with ops.torch_alone():
        answers.put(computed(given))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_what_its_parent_did():
    torch.set_num_threads(2)
    given = operands()
    with ops.torch_alone():
        expected = computed(given)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_answer, args=(given, answers))
    process.start()
    try:
        assert answers.get() == expected
    finally:
        process.kill()
        process.join()
    with ops.torch_alone():
        assert computed(given) == expected  # the parent has its threads still


@needs_fork
def test_a_child_of_a_child_computes_too():
    """In a process of its own, whose threads are few."""
    code = (
        "import os, sys, torch\n"
        "from sinfusion import ops\n"
        "torch.set_num_threads(2)\n"
        "keys = torch.arange(9)\n"
        "def drawn(): return ops.normal(keys, 0, 0, (50_000,)).numpy().tobytes()\n"
        "expected = drawn()\n"
        "for depth in range(3):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        _, status = os.waitpid(child, 0)\n"
        "        os._exit(status != 0 or drawn() != expected)\n"
        "    assert drawn() == expected\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_python_threads_that_compute_at_once_get_the_same_bits(at_once):
    given = [operands(seed) for seed in range(3)]
    with ops.torch_alone():
        expected = [computed(one) for one in given]
    wrong = []

    def work(seed):
        torch.set_num_threads(2 + seed)
        wrong.extend(seed for _ in range(10) if computed(given[seed]) != expected[seed])

    at_once(work)
    assert not wrong


@pytest.mark.parametrize("adapt", [True, False])
def test_any_number_of_threads_gives_the_same_bits(adapt):
    cpu.adapt_threads(adapt)
    given, outputs = operands(), set()
    for count in (1, 2, 3, 8, 300):
        torch.set_num_threads(count)
        with ops.torch_alone():
            outputs.update(computed(given) for _ in range(5))
    assert len(outputs) == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc, which is Linux's")
@pytest.mark.parametrize("count", [1, 2])
def test_as_many_threads_are_started_as_are_allowed(count):
    code = (
        "import os, torch\n"
        "from sinfusion import ops\n"
        "from sinfusion.ops.native import cpu\n"
        "cpu.adapt_threads(False)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "for _ in range(3): ops.normal(torch.arange(9), 0, 0, (50_000,))\n"
        "print(len(os.listdir('/proc/self/task')) - before, torch.get_num_threads())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(count)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    started, allowed = map(int, result.stdout.split())
    assert started == allowed - 1 and allowed <= count


def test_denormals_are_zero_on_all_threads_or_on_none():
    """PyTorch sets that for the thread that calls."""
    tiny = torch.full((2**18,), 1e-40)
    torch.set_num_threads(4)
    cpu.adapt_threads(False)
    weight = torch.eye(16).reshape(16, 16, 1, 1).contiguous()
    x = tiny.reshape(1, 16, 128, 128).to(memory_format=torch.channels_last)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        assert all(not ops.dense(x, weight).view(torch.int32).any() for _ in range(20))
    finally:
        torch.set_flush_denormal(False)
    assert all(ops.dense(x, weight).view(torch.int32).all() for _ in range(20))


def test_pytorch_keeps_its_threads_outside():
    torch.set_num_threads(3)
    with ops.torch_alone():
        assert torch.get_num_threads() == 1
        with ops.torch_alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with ops.backend("reference"), ops.torch_alone():
        assert torch.get_num_threads() == 3


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(name, options): tests/cpp/<name>.cpp with the pool of threads, or what the compiler said."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler, and there is no c++")
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs csrc/, and the package is tested without its sources")

    def run(name, *options):
        program = tmp_path_factory.mktemp("threads") / name
        sources = [ROOT / "tests" / "cpp" / f"{name}.cpp", ROOT / "csrc" / "cpu" / "threads.cpp"]
        command = [compiler, "-std=c++17", "-O1", "-g", "-pthread", *options, *map(str, sources), "-o", str(program)]
        return program, subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_the_threads_are_sound_by_a_thread_sanitizer(build):
    program, built = build("threads_stress", "-fsanitize=thread", "-DNO_FORK")
    if built.returncode:
        pytest.skip(f"this compiler has no thread sanitizer: {built.stderr.strip()[-200:]}")
    result = subprocess.run([program, "500"], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert result.stdout == "sound\n" and result.returncode == 0, result.stderr[-3000:]


def test_the_threads_are_sound_with_forks_and_errors(build):
    program, built = build("threads_stress", "-Wall", "-Wextra", "-Werror")
    assert built.returncode == 0, built.stderr
    assert subprocess.run([program, "3000"], capture_output=True, text=True, check=True).stdout == "sound\n"


def test_the_number_of_threads_follows_what_calls_gain(build):
    program, built = build("thread_choice")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
