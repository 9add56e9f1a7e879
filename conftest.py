"""What tests and benchmarks have in common: one option."""


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run what is marked slow, too")
