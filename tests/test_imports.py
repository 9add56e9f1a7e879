"""The one-way order of imports in ARCHITECTURE.md, held by parsing them."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sinfusion"

ORDER = [
    {"errors"},
    {"ops"},
    {"media", "schedule", "precision"},
    {"parameterization", "network", "crops", "optimizer", "features"},
    {"roles"},
    {"recipe"},
    {"sampler"},
    {"run", "progress"},
    {"reverse", "released"},
    {"trainer", "rollout", "image_tasks"},
    {"training", "scene"},
    {"patches", "metrics"},
    {"info", "demo", "evaluation"},
    {"cli"},
    {"train", "__main__"},
]


def imported(path):
    """Names of the package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            yield from (name for name in names if name != "__version__")


def test_every_module_has_its_place_in_the_order():
    placed = set().union(*ORDER) | {"__init__"}
    assert {p.stem for p in PACKAGE.glob("*.py")} - placed == set()


def test_modules_import_only_from_earlier_groups():
    rank = {name: i for i, group in enumerate(ORDER) for name in group}
    wrong = [
        f"{path.stem} imports {name}"
        for path in PACKAGE.glob("*.py")
        if path.stem != "__init__"
        for name in imported(path)
        if rank[name] >= rank[path.stem]
    ]
    assert wrong == []


def test_only_ops_imports_the_native_libraries():
    for path in PACKAGE.glob("*.py"):
        assert not {"_cpu", "_cuda", "kernels"} & set(imported(path)), path
