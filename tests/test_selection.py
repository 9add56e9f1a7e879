"""Which tests run, and in which order."""

from pathlib import Path

TESTS = Path(__file__).parent


def test_every_word_of_the_order_is_in_the_path_of_a_test_file(words_of_the_order):
    paths = [path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")]
    assert [word for word in words_of_the_order if not any(word in path for path in paths)] == []


def test_every_file_has_tests_that_are_not_slow(request):
    items = request.session.items
    assert {item.path for item in items} == {item.path for item in items if not item.get_closest_marker("slow")}
