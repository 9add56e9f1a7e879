"""benchmarks/figures.py: the figures of the documentation have results, of this code or said to be not."""

import json
import re
import subprocess
import types
from pathlib import Path

import figures
import pytest
from figures import BEGIN, END, FIGURES, RESULTS, Figure, Settings, headlines, main, replaced, state, write

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
COMMIT = "0123456789abcdef"


def blocks(text):
    """Name -> what lies between the two comments of a figure."""
    pattern = re.escape(BEGIN).replace(r"\{name\}", r"(?P<name>[\w-]+)") + r"\n(.*?)" + r"<!-- end of (?P=name) -->"
    return {match[1]: match[2] for match in re.finditer(pattern, text, re.DOTALL)}


def test_every_table_of_the_document_is_of_a_results_file():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    written = blocks(text)
    assert list(written) == [figure.name for figure in FIGURES if figure.table and figure.document.startswith("docs")]
    for table in filter(None, written.values()):
        text = text.replace(table, "")
    assert not [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_what_stands_in_a_document_is_what_its_results_say(figure):
    written = blocks((ROOT / figure.document).read_text()).get(figure.name)
    if written:  # else there are no results yet
        assert written == figure.table(ROOT / figure.result), "python benchmarks/figures.py --write"


def test_every_results_file_is_named_by_a_figure_and_in_a_document():
    results = {f"benchmarks/results/{path.name}": path.stem for path in RESULTS.glob("*.json")}
    assert set(results) <= {figure.result for figure in FIGURES}
    text = "".join(path.read_text() for path in DOCUMENTS)
    assert [name for name in results.values() if name not in blocks(text) and f"{name}.json" not in text] == []


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """One figure in a folder of its own; its code is as it was at COMMIT."""
    figure = Figure("some", "some.json", ("true",), 1, lambda path: path.read_text() + "\n", "feed", "doc.md")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "FIGURES", (figure,))
    monkeypatch.setattr(figures, "is_current", lambda commit: commit == COMMIT)
    (tmp_path / "doc.md").write_text(f"before\n{BEGIN.format(name='some')}\nold\n{END.format(name='some')}\nafter\n")

    def result(**content):
        (tmp_path / "some.json").write_text(json.dumps(content))
        return state(figure)

    return types.SimpleNamespace(figure=figure, result=result, doc=tmp_path / "doc.md")


def test_a_result_is_current_stale_or_missing(elsewhere):
    assert state(elsewhere.figure)[0] == "missing"
    assert elsewhere.result(commit=COMMIT) == ("current", "of 0123456")
    assert elsewhere.result(machine_info={"commit": COMMIT})[0] == "current"
    assert elsewhere.result(commit="abcdef0123") == ("stale", "of abcdef0")
    assert elsewhere.result(commit="feed012345")[0] == "current"  # the same results, bit for bit
    assert elsewhere.result() == ("stale", "of no commit")


def test_a_speed_that_was_measured_under_load_is_no_figure(elsewhere):
    assert elsewhere.result(machine_info={"commit": COMMIT}, cores_share=0.7) == ("under load", "70% of the cores")
    assert elsewhere.result(machine_info={"commit": COMMIT}, cores_share=0.95)[0] == "current"


def test_what_is_stale_is_not_written_unless_told_so(elsewhere, capsys):
    before = elsewhere.doc.read_text()
    elsewhere.result(commit="abc")
    assert not write(stale_too=False) and elsewhere.doc.read_text() == before
    assert "not written: some is stale (of abc)" in capsys.readouterr().out
    assert write(stale_too=True)
    assert blocks(elsewhere.doc.read_text()) == {"some": '{"commit": "abc"}\n'}
    assert elsewhere.doc.read_text().startswith("before\n") and elsewhere.doc.read_text().endswith("\nafter\n")


def test_the_list_ends_with_an_error_where_a_figure_is_not_of_this_code(elsewhere, capsys):
    elsewhere.result(commit=COMMIT)
    main(Settings())
    elsewhere.result(commit="abc")
    with pytest.raises(SystemExit) as ended:
        main(Settings())
    assert ended.value.code == 1 and "some          stale" in capsys.readouterr().out


def test_an_unknown_figure_is_refused():
    with pytest.raises(SystemExit, match="there is no figure speeed; there are speed, "):
        main(Settings(run=("speeed",)))


def test_a_figure_is_measured_and_then_written(elsewhere, monkeypatch):
    asked = []
    monkeypatch.setattr(figures.subprocess, "run", lambda words, **_: asked.append(words))
    elsewhere.result(commit=COMMIT)
    main(Settings(run=("some",)))
    assert asked == [["true"]] and blocks(elsewhere.doc.read_text())["some"] == f'{{"commit": "{COMMIT}"}}\n'


@pytest.mark.parametrize("text", ["", "{b}", "{e}\n{b}", "{b}{b}{e}"])
def test_a_document_without_the_two_comments_is_refused(text):
    text = text.format(b=BEGIN.format(name="some"), e=END.format(name="some"))
    with pytest.raises(SystemExit, match="needs the two comments"):
        replaced(text, "some", "")


def test_code_is_current_at_the_commit_that_it_is_of():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *figures.CODE], cwd=ROOT).returncode
    if not head:
        pytest.skip("this is no git checkout")
    assert figures.is_current(head) == (not changed)
    assert not figures.is_current("") and not figures.is_current("0" * 40)


def test_the_headlines_are_those_of_what_was_measured(file, made_up):
    video = {"recipe": "tiny", "size": [36, 64], "frames": 20, "frames_a_second": {"ours": 41.3}}
    step = made_up.step({"ours": 0.05, "reference": 0.1}, {})
    assert headlines(file(step, ("bench_rollout.py::test_video_of_tiny", video))).splitlines() == [
        "- `tiny`, a training step: 50 ms; 2.0 times as fast as the reference (100 ms); 41.3 frames a second of 64x36 "
        "with projection.",
        "- Some CPU, 2 threads, avx2 kernels, commit 0123456; all figures: [docs/benchmarks.md](docs/benchmarks.md).",
    ]
    assert headlines(file()).count("\n") == 1
