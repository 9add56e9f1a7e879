"""No function takes more than eight arguments, but public entry points and kernels that a GPU launches."""

import ast
from pathlib import Path

import sinfusion
from sinfusion import patches

ROOT = Path(__file__).parent.parent
MOST = 8
PUBLIC = {*sinfusion.__all__, *patches.__all__}


def functions():
    for folder in ("sinfusion", "kernels", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield path.relative_to(ROOT), node


def parameters(node):
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def is_launched(path, node):
    return path.parts[0] == "kernels" and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_function_takes_more_than_eight_arguments():
    long = {(str(path), node.name) for path, node in functions() if len(parameters(node)) > MOST
            and node.name not in PUBLIC and not is_launched(path, node)}  # fmt: skip
    assert long == set()


def test_the_check_sees_functions_with_many_arguments():
    found = {node.name for _, node in functions() if len(parameters(node)) > MOST}
    assert {"train", "evaluate", "convolve"} <= found
