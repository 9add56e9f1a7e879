"""benchmarks/report.py: the table and the plot of made-up results, and what it refuses."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from report import BEGIN, END, PANEL, Settings, _heights, limits, main, points, read, times

ROOT = Path(__file__).parents[2]

FACTS = {
    "cpu": "Some CPU", "instruction_sets": "avx2", "threads": 2, "native": "avx2 kernels", "torch": "2.13.0",
    "cuda": "none", "commit": "0123456789abcdef", "device": "cpu",
}  # fmt: skip
LIMITS = {"copy": 1e10, "cached_copy": 4e10, "cache": 10**6, "matrix": 1e12, "arithmetic": 2e11}


def operator(name, seconds, ours="native", batch=1, **work):
    """An entry of bench_ops.py: its name and what it measured."""
    info = {"operator": name, "batch": batch, "size": [36, 64], "ours": ours, "seconds": seconds, "limits": LIMITS}
    info |= {"bytes": 1000, "dense": 0, "depthwise": 0, "elementwise": 0} | work
    return f"bench_ops.py::test_operator[{name}-{batch}]", info


def step(seconds, shares):
    info = {"recipe": "tiny", "batch": 4, "crop": [34, 60], "seconds": seconds, "shares": shares}
    return "bench_training_step.py::test_step_of_tiny", info | {"floor_seconds": 0.001, "limits": LIMITS}


@pytest.fixture
def file(tmp_path):
    """A file of results: (test, figures) pairs, facts of the machine that differ, options that pytest was given."""

    def write(*entries, name="some.json", options="", backend="native", **facts):
        benchmarks = [
            {"name": test.split("::")[1], "fullname": f"benchmarks/{test}", "extra_info": {"backend": backend} | info}
            for test, info in entries
        ]
        result = {"machine_info": FACTS | facts, "options": options, "benchmarks": benchmarks}
        (tmp_path / name).write_text(json.dumps(result))
        return tmp_path / name

    return write


def rows(text):
    """Cells of every row below the head of the table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]


NORM = [
    operator("depthwise_norm forward, 64 channels", {"native": 0.002, "reference": 0.03, "pytorch": 0.003}),
    operator("depthwise_norm forward, 128 channels", {"native": 0.0041, "reference": 0.02, "pytorch": 0.0082}),
]


def test_shapes_of_an_operator_share_a_row_that_names_machine_and_command(file, capsys):
    main(Settings((file(*NORM, options="--device cpu"),)))
    assert rows(capsys.readouterr().out) == [
        [
            "`depthwise_norm` forward, batch 1, 64x36: 64 channels / 128 channels",
            "2 ms / 4.1 ms; 1.5 / 2.0 times as fast as PyTorch; 15 / 4.9 times as fast as the reference",
            "Some CPU, 2 threads, avx2 kernels",
            "`pytest benchmarks/bench_ops.py --device cpu`",
        ]
    ]


def test_a_step_stands_beside_the_reference_and_a_share_beside_its_limit(file, capsys):
    main(Settings((file(step({"ours": 0.05, "reference": 0.1}, {"sample_crops": 0.02, "adam_ema": 0.0031})),)))
    assert [row[:2] for row in rows(capsys.readouterr().out)] == [
        ["whole training step of `tiny`, batch 4, 60x34, against the reference", "2.0 times as fast (50 ms, 100 ms)"],
        ["`sample_crops`, share of that step", "**2%** (must be below 1%)"],
        ["`adam_ema`, share of that step", "0.31%"],
    ]


def test_a_share_below_its_limit_is_not_marked(file, capsys):
    main(Settings((file(step({"ours": 0.05, "reference": 0.1}, {"sample_crops": 0.0099})),)))
    assert rows(capsys.readouterr().out)[1][1] == "0.99% (must be below 1%)"


def test_what_is_not_ours_is_left_out_and_named(file, capsys):
    main(Settings((file(*NORM, operator("gelu forward", {"pytorch": 0.1}, ours="pytorch")),)))
    said = capsys.readouterr()
    assert "gelu" not in said.out and "left out: gelu forward" in said.err


def test_only_the_batch_that_is_asked_for_is_shown(file, capsys):
    path = file(operator("sample_crops", {"native": 0.1}), operator("sample_crops", {"native": 0.3}, batch=4))
    main(Settings((path,), batch=4))
    assert [row[1] for row in rows(capsys.readouterr().out)] == ["300 ms"]


def test_files_that_are_not_of_a_benchmark_are_left_out_and_named(file, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"variants": []}')
    main(Settings((tmp_path / "other.json", file(*NORM))))
    said = capsys.readouterr()
    assert len(rows(said.out)) == 1 and "other.json is not of a benchmark" in said.err


@pytest.mark.parametrize("fact", ["cpu", "threads", "native", "torch", "commit", "device"])
def test_results_without_the_facts_of_their_machine_are_refused(file, fact):
    with pytest.raises(SystemExit, match=rf"some\.json does not say on what it was measured \(no {fact}\)\."):
        read([file(*NORM, **{fact: ""})], mixed_commits=False)


def test_results_with_no_facts_at_all_are_refused(tmp_path):
    (tmp_path / "bare.json").write_text('{"benchmarks": []}')
    with pytest.raises(SystemExit, match="does not say on what it was measured"):
        read([tmp_path / "bare.json"], mixed_commits=False)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_run_that_was_not_forced_to_be_native_is_refused(file, backend):
    with pytest.raises(SystemExit, match=f"ran with the backend {backend}: it may not pass for the native code"):
        read([file(*NORM, backend=backend)], mixed_commits=False)


def test_a_run_that_names_no_backend_is_refused(file):
    path = file(*NORM)
    path.write_text(path.read_text().replace('"backend": "native", ', ""))
    with pytest.raises(SystemExit, match="ran with no backend named"):
        read([path], mixed_commits=False)


def test_a_run_without_the_native_library_is_refused(file):
    with pytest.raises(SystemExit, match=r"without native code \(sinfusion._cpu is not there\)"):
        read([file(*NORM, native="sinfusion._cpu is not there")], mixed_commits=False)


def test_a_rehearsal_is_refused(file):
    with pytest.raises(SystemExit, match="is a rehearsal"):
        read([file(*NORM, options="--device cpu --quick")], mixed_commits=False)


def test_the_same_benchmark_twice_on_a_machine_is_refused(file):
    with pytest.raises(SystemExit, match=r"is in .*a\.json and in .*b\.json: name one of them"):
        read([file(*NORM, name="a.json"), file(*NORM, name="b.json")], mixed_commits=False)


def test_results_of_different_commits_share_a_table_only_when_told_so_and_each_is_named(file, capsys):
    paths = (file(NORM[0], name="a.json"), file(NORM[1], name="b.json", commit="fedcba9876543210"))
    with pytest.raises(SystemExit, match="different commits \\(0123456, fedcba9\\): pass --mixed-commits"):
        main(Settings(paths))
    main(Settings(paths, mixed_commits=True))
    assert [row[2] for row in rows(capsys.readouterr().out)] == [
        "Some CPU, 2 threads, avx2 kernels, at 0123456",
        "Some CPU, 2 threads, avx2 kernels, at fedcba9",
    ]


def test_every_machine_has_rows_and_a_name_of_its_own(file, capsys):
    main(Settings((
        file(*NORM, name="a.json"),
        file(*NORM, name="b.json", native="avx512 kernels"),
        file(*NORM, name="c.json", torch="2.6.0"),
        file(*NORM, name="d.json", device="Some GPU"),
    )))  # fmt: skip
    out = capsys.readouterr().out
    named = ["Some CPU, 2 threads, avx2 kernels", "Some CPU, 2 threads, avx512 kernels",
             "Some CPU, 2 threads, avx2 kernels (2)", "Some GPU"]  # fmt: skip
    assert [row[2] for row in rows(out)] == named
    assert "- Some CPU, 2 threads, avx2 kernels (2): instruction sets avx2, torch 2.6.0, commit 0123456789abcdef" in out


def test_the_readme_keeps_everything_but_what_lies_between_the_comments(file, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        main(Settings((file(*NORM),), readme))
    table = capsys.readouterr().out
    table = table[: len(table) // 2]
    assert readme.read_text() == f"before\n{BEGIN}\n{table}{END}\nafter\n" and "2 ms / 4.1 ms" in table


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_the_two_comments_is_refused_and_stays(file, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(SystemExit, match="needs the two comments"):
        main(Settings((file(*NORM),), readme))
    assert readme.read_text() == text


def test_the_readme_has_the_two_comments():
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == 1 and text.index(BEGIN) < text.index(END)


def test_a_point_is_what_is_computed_for_a_byte_and_in_a_second(file):
    path = file(
        operator("dense forward 3x3, 64 to 192", {"native": 0.5, "reference": 1.0}, dense=3000),
        operator("adam_ema", {"native": 0.1}, elementwise=400),
    )
    assert points(read([path], False)) == [
        ("adam_ema", 0.4, 4000.0),
        ("dense forward 3x3, 64 to 192", 3.0, 6000.0),
    ]


def test_a_roof_is_the_most_that_was_measured(file):
    entries = read([file(NORM[0], operator("adam_ema", {"native": 0.1}, limits=LIMITS | {"copy": 3e10}))], False)
    assert limits(entries).copy == 3e10 and limits(entries).matrix == 1e12


def test_the_roofline_is_an_image_with_a_panel_for_each_machine(file, tmp_path):
    plot = tmp_path / "roofline.png"
    entries = [
        *[(test, info | {"depthwise": 10**7}) for test, info in NORM],
        operator("dense backward 3x3, 64 to 192", {"native": 0.01}, dense=10**9),
        operator("sample_crops", {"native": 0.1}, elementwise=3000),
    ]
    main(Settings((file(*entries, name="a.json"),), plot=plot))
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.size == PANEL
        assert len(image.convert("RGB").getcolors(2**24)) > 100  # not an empty sheet
    main(Settings((file(*entries, name="a.json"), file(*entries, name="b.json", cpu="Another")), plot=plot))
    with Image.open(plot) as image:
        assert image.size == (PANEL[0], 2 * PANEL[1])


def test_a_roofline_of_nothing_is_refused(file, tmp_path):
    with pytest.raises(SystemExit, match="a roofline needs operators of ours"):
        main(Settings((file(step({"ours": 1, "reference": 2}, {})),), plot=tmp_path / "roofline.png"))
    assert not (tmp_path / "roofline.png").exists()


@pytest.mark.parametrize("wanted", [[0.5] * 3, [0.99, 0.995, 1.0], [0.0, 0.001, 0.8], [i / 99 for i in range(100)]])
def test_labels_stand_apart_inside_the_plot_and_in_order(wanted):
    heights = _heights(wanted)
    gap = min(0.03, 1 / len(wanted))
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(heights))
    assert heights[-1] <= 1 and heights[0] >= -1e-9


def test_ratios_have_two_digits():
    assert [times(ratio) for ratio in (0.83, 2.46, 12.3, 118.7)] == ["0.8", "2.5", "12", "119"]


@pytest.mark.slow
def test_what_the_benchmarks_of_a_cpu_write_makes_a_table(tmp_path, capsys):
    path = tmp_path / "real.json"
    which = "tiny or small or (test_operator and ddpm_step)"
    files = [f"benchmarks/bench_{name}.py" for name in ("ops", "training_step", "rollout")]
    options = ["--device", "cpu", "--quick", f"--benchmark-json={path}"]
    subprocess.run([sys.executable, "-m", "pytest", "-q", *files, "-k", which, *options], cwd=ROOT, check=True)
    with pytest.raises(SystemExit, match="is a rehearsal"):
        main(Settings((path,)))
    result = json.loads(path.read_text())
    assert result["options"] == "--device cpu --quick"
    path.write_text(json.dumps(result | {"options": "--device cpu"}))
    main(Settings((path,)))
    whats = [row[0] for row in rows(capsys.readouterr().out)]
    assert "whole training step of `tiny`, batch 4, 30x19, against the reference" in whats
    assert "`sample_crops`, share of that step" in whats and "`ddpm_step`, share of one of these evaluations" in whats
    assert "a video of `tiny` at 32x20, 2 frames, and by the reference" in whats
    assert "`ddpm_step`, batch 1, 30x19" in whats
