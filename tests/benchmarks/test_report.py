"""benchmarks/report.py: the table of made-up results, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report import Settings, main, read, table

ROOT = Path(__file__).parents[2]


def rows(text):
    """Cells of every row below the heads of the tables."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if line not in (["what", "figure"], ["---", "---"])]


def test_a_table_names_the_command_the_commit_and_the_machine(file, made_up):
    text = table(read([file(*made_up.norms, options="--device cpu")])[0])
    assert text.startswith(
        "`pytest benchmarks/bench_ops.py --device cpu`, commit 0123456, on Some CPU, 2 threads, avx2 kernels: "
        "instruction sets avx2, torch 2.13.0.\n\n| what | figure |"
    )


def test_results_of_several_files_come_from_the_folder(file, made_up):
    step = made_up.step({"ours": 0.05, "reference": 0.1}, {})
    assert table(read([file(*made_up.norms, step)])[0]).startswith("`pytest benchmarks`, commit")


def test_each_file_has_a_table_of_its_own(file, made_up, capsys):
    main(Settings((file(*made_up.norms, name="a.json"), file(*made_up.norms, name="b.json", device="Some GPU"))))
    out = capsys.readouterr().out
    assert len(rows(out)) == 2 and "on Some CPU, 2 threads, avx2 kernels: " in out and "on Some GPU: " in out


def test_what_is_not_ours_is_left_out_and_named(file, made_up, capsys):
    main(Settings((file(*made_up.norms, made_up.operator("gelu forward", {"pytorch": 0.1}, ours="pytorch")),)))
    out = capsys.readouterr().out
    assert len(rows(out)) == 1 and "left out: gelu forward, of which nothing measured is ours" in out


def test_only_the_batch_that_is_asked_for_is_shown(file, made_up, capsys):
    one, four = (made_up.operator("sample_crops", {"native": 0.1 * batch}, batch=batch) for batch in (1, 4))
    main(Settings((file(one, four),), batch=4))
    assert [row[1] for row in rows(capsys.readouterr().out)] == ["400 ms"]


def test_a_table_says_that_it_was_measured_under_load(file, made_up):
    assert "**Under load: this process got 62% of its cores.**" in table(read([file(*made_up.norms, share=0.62)])[0])
    assert "load" not in table(read([file(*made_up.norms, share=0.95)])[0])


def test_a_file_that_is_not_of_a_benchmark_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"variants": []}')
    with pytest.raises(SystemExit, match=r"other\.json is not of a benchmark"):
        read([tmp_path / "other.json"])


@pytest.mark.parametrize("fact", ["cpu", "threads", "native", "torch", "commit", "device"])
def test_results_without_the_facts_of_their_machine_are_refused(file, made_up, fact):
    with pytest.raises(SystemExit, match=rf"some\.json does not say on what it was measured \(no {fact}\)\."):
        read([file(*made_up.norms, **{fact: ""})])


def test_results_with_no_facts_at_all_are_refused(tmp_path):
    (tmp_path / "bare.json").write_text('{"benchmarks": []}')
    with pytest.raises(SystemExit, match="does not say on what it was measured"):
        read([tmp_path / "bare.json"])


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_run_that_was_not_forced_to_be_native_is_refused(file, made_up, backend):
    with pytest.raises(SystemExit, match=f"ran with the backend {backend}: it may not pass for the native code"):
        read([file(*made_up.norms, backend=backend)])


def test_a_run_that_names_no_backend_is_refused(file, made_up):
    path = file(*made_up.norms)
    path.write_text(path.read_text().replace('"backend": "native", ', ""))
    with pytest.raises(SystemExit, match="ran with no backend named"):
        read([path])


def test_a_run_without_the_native_library_is_refused(file, made_up):
    with pytest.raises(SystemExit, match=r"without native code \(no library\)"):
        read([file(*made_up.norms, native="no library")])


def test_a_rehearsal_is_refused(file, made_up):
    with pytest.raises(SystemExit, match="is a rehearsal"):
        read([file(*made_up.norms, options="--device cpu --quick")])


def test_results_of_different_commits_are_shown_together_only_when_told_so(file, made_up):
    paths = [file(*made_up.norms, name="a.json"), file(*made_up.norms, name="b.json", commit="fedcba9876543210")]
    with pytest.raises(SystemExit, match="different commits \\(0123456, fedcba9\\): pass --mixed-commits"):
        read(paths)
    assert [file.facts["commit"][:7] for file in read(paths, mixed_commits=True)] == ["0123456", "fedcba9"]


@pytest.mark.slow
def test_what_the_benchmarks_of_a_cpu_write_makes_a_table(tmp_path, capsys):
    path = tmp_path / "real.json"
    which = "tiny or test_network or vote or (test_operator and ddpm_step)"
    options = ["--device", "cpu", "--quick", "-k", which, f"--benchmark-json={path}"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "benchmarks", *options],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    with pytest.raises(SystemExit, match="is a rehearsal"):
        main(Settings((path,)))
    result = json.loads(path.read_text())
    assert result["options"] == f"--device cpu --quick -k '{which}'" and 0 < result["cores_share"] <= 1
    path.write_text(json.dumps(result | {"options": "--device cpu"}))
    main(Settings((path,)))
    shown = {what: figure for what, figure in rows(capsys.readouterr().out)}
    assert {
        "whole training step of `tiny`, batch 4, 30x19",
        "`sample_crops`, share of that step",
        "`ddpm_step`, share of one of these evaluations",
        "a video of `tiny` at 32x20, 2 frames",
        "`vote`, 4 frames of 32x20, patches 3x3x3",
        "`ddpm_step`, batch 1, 30x19",
    } <= set(shown)
    for what, figure in shown.items():  # the summary in the terminal says the same
        assert f"{what}:\n    {figure}" in ran.stdout
    assert "these figures prove nothing" in ran.stdout and "core(s), load average" in ran.stdout
