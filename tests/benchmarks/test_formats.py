"""benchmarks/formats.py: docs/formats.md says what happens to each kind of file, today."""

import formats
import numpy as np
import pytest
from formats import FRAMES, ROWS, File, NotHere, Outcome, Row, differences, largest_error, main, measured, run, written


@pytest.mark.parametrize("one", ROWS, ids=lambda row: row.what)
def test_what_happens_to_a_file_is_what_the_document_says(one):
    try:
        outcome = run(one)
    except NotHere as why:
        pytest.skip(str(why))
    text = written()[one.what]
    escaped = Outcome(formats.escaped(outcome.before), outcome.error, formats.escaped(outcome.after))
    assert escaped.agrees(text), f"python benchmarks/formats.py --write: {escaped.text()}"


def test_the_document_has_the_rows_of_the_script_and_no_others():
    assert [what for what in written() if what not in ("file", "---")] == [row.what for row in ROWS]
    assert len({row.what for row in ROWS}) == len(ROWS)


def test_a_wrong_colour_order_or_number_of_frames_is_seen():
    assert largest_error(FRAMES, FRAMES) == 0
    assert largest_error(np.minimum(FRAMES, 225), FRAMES) == 10
    assert largest_error(FRAMES[::-1], FRAMES) > 10  # the block is elsewhere
    assert largest_error(FRAMES[..., ::-1], FRAMES) > 10


def test_outcomes_may_differ_by_a_level_or_two_and_not_by_more():
    assert Outcome("a", 3.0).agrees(Outcome("a", 5.0).text())
    assert not Outcome("a", 0.0).agrees(Outcome("a", 5.0).text())
    assert not Outcome("a", 0.0).agrees(Outcome("b", 0.0).text())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A document of one's own, of one row that reads and one that needs a program."""

    def still(folder):
        return File(formats.pictures(folder / "a.png", FRAMES[:1]), FRAMES[:1])

    def missing(folder):
        formats.program("no-such-program")

    monkeypatch.setattr(formats, "DOCUMENT", tmp_path / "formats.md")
    monkeypatch.setattr(formats, "ROWS", [Row("Some", "a picture", still), Row("Some", "a rarity", missing)])
    formats.DOCUMENT.write_text(f"before\n{formats.BEGIN}\n| a rarity | kept |\n{formats.END}\nafter\n")
    return formats.DOCUMENT


def test_a_row_that_cannot_be_run_keeps_what_the_document_says(elsewhere):
    main(formats.Settings(write=True))
    text = elsewhere.read_text()
    assert "| a picture | 1 frame, 64x48; colours within 4 levels |\n| a rarity | kept |\n" in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    main(formats.Settings())  # nothing differs


def test_an_outcome_that_the_document_says_otherwise_ends_in_an_error(elsewhere, capsys):
    with pytest.raises(SystemExit) as ended:
        main(formats.Settings())
    assert ended.value.code == 1 and "a picture" in capsys.readouterr().err
    assert len(differences(measured())) == 1
