"""benchmarks/machine.py: the facts of a machine, on any of them."""

import subprocess

import machine
import pytest

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 avx512f avx512_bf16 amx_tile\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm\nCPU part\t: 0xd0c\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    def write(text):
        monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)

    return write


def test_an_x86_cpu_names_itself_and_the_instruction_sets_that_matter(cpuinfo):
    cpuinfo(X86)
    assert machine.cpu() == {"cpu": "Some CPU", "instruction_sets": "avx2, avx512f, avx512_bf16, amx_tile"}


def test_an_arm_cpu_has_features_and_no_name(cpuinfo, monkeypatch):
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    cpuinfo(ARM)
    assert machine.cpu() == {"cpu": "aarch64", "instruction_sets": "asimd"}


def test_a_system_that_does_not_say_is_unknown_not_without(cpuinfo):
    cpuinfo(None)
    assert machine.cpu()["instruction_sets"] == "unknown"
    cpuinfo(X86.replace("avx2 avx512f avx512_bf16 amx_tile", ""))
    assert machine.cpu()["instruction_sets"] == "none"


def test_settings_of_threads_memory_and_kernels_are_told(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("SINFUSION_ISA", "avx2")
    monkeypatch.setenv("UNRELATED", "1")
    settings = machine.machine()["settings"].split(", ")
    assert {"OMP_PROC_BIND=close", "SINFUSION_ISA=avx2"} <= set(settings) and "UNRELATED=1" not in settings


def test_a_commit_says_that_its_code_was_changed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    (tmp_path / "sinfusion").mkdir()
    (tmp_path / "sinfusion" / "code.py").write_text("1")
    (tmp_path / "README.md").write_text("1")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "benchmarks" / "machine.py"))
    git("init", "-q")
    git("add", "README.md", "sinfusion")
    git("commit", "-q", "-m", "one")
    head = machine.commit()
    assert len(head) == 40
    (tmp_path / "README.md").write_text("2")
    assert machine.commit() == head
    (tmp_path / "sinfusion" / "code.py").write_text("2")
    assert machine.commit() == f"{head}-with-changes"
