import ast
import collections
import graphlib
from pathlib import Path

import pytest

from tests.programs import ROOT, run_module

# Modules and packages of fsdit: each may import itself and those before it. Every other
# module at fsdit/*.py is a program, and nothing imports it.
ORDER = (
    "errors",
    "text",
    "storage",
    "weights",
    "config",
    "checks",
    "randomness",
    "program",
    "events",
    "parallel",
    "data",
    "flow",
    "models",
    "features",
    "sampling",
    "page",
    "evaluation",
    "training",
    "planning",
    "launch",
)
# Networks may import only these, so that their reader needs to know no other package.
FOR_MODELS = ("fsdit.models", "fsdit.config", "fsdit.errors", "fsdit.randomness")
# `fsdit/__init__.py` imports these inside its functions, so that `import fsdit` needs no JAX.
OFFERED = {"fsdit": {"fsdit.sampling.exported"}}
FOR_DATA_PREP = (
    "fsdit.data",
    "fsdit.models.pretrained",
    "fsdit.parallel",
    "fsdit.errors",
    "fsdit.program",
    "fsdit.storage",
    "fsdit.text",
)
SOURCES = sorted([*ROOT.glob("fsdit/**/*.py"), *ROOT.glob("data_prep/**/*.py")])
PROJECT = sorted([*SOURCES, *ROOT.glob("experiments/**/*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def imports(source: str, module: str = "fsdit.here", package: bool = False) -> set[str]:
    """Full names of what a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                drop = node.level - package
                above = ".".join(module.split(".")[: -drop or None])
                base = f"{above}.{base}".rstrip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
            found |= names if base.split(".")[0] not in ("fsdit", "data_prep") else set()
    return found


def imports_of(path: Path) -> set[str]:
    return imports(path.read_text(), module_name(path), path.name == "__init__.py")


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def rank(module: str) -> int:
    """Place of a module in ORDER; programs come last, `fsdit` itself first."""
    parts = module.split(".")
    if len(parts) == 1:
        return -1
    return ORDER.index(parts[1]) if parts[1] in ORDER else len(ORDER)


def pointing_back(module: str, imported: set[str]) -> list[str]:
    """Those imports of a module of fsdit that ORDER forbids."""
    own = rank(module)
    return sorted(
        name
        for name in imported - OFFERED.get(module, set())
        if under(name, "data_prep")
        or under(name, "experiments")
        or under(name, "tests")
        or (under(name, "fsdit") and (rank(name) > own or rank(name) == len(ORDER)))
    )


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "fsdit")], ids=str)
def test_no_import_points_back(path):
    assert pointing_back(module_name(path), imports_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fsdit.flow.path", "from fsdit.training import step"),
        ("fsdit.data.pipeline", "def f():\n    from fsdit.models.dit import FewShotDiT"),
        ("fsdit.parallel.sharding", "from ..data import records"),
        ("fsdit.config", "import fsdit.program"),
        ("fsdit.training.loop", "from fsdit import main"),
        ("fsdit.models.dit", "import data_prep.glyphs"),
    ],
)
def test_an_import_that_points_back_is_found(module, source):
    assert pointing_back(module, imports(source, module))


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count too: they hide a circle and do not undo it."""
    graph = {module_name(path): imports_of(path) & MODULES for path in SOURCES}
    graph["fsdit"] -= OFFERED["fsdit"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.is_relative_to(ROOT / "data_prep")], ids=str
)
def test_data_prep_imports_only_allowed_parts_of_fsdit(path):
    ours = {name for name in imports_of(path) if under(name, "fsdit") and name != "fsdit"}
    assert {n for n in ours if not any(under(n, allowed) for allowed in FOR_DATA_PREP)} == set()


@pytest.mark.parametrize("path", sorted(ROOT.glob("fsdit/models/**/*.py")), ids=str)
def test_models_import_only_allowed_parts_of_fsdit(path):
    ours = {name for name in imports_of(path) if under(name, "fsdit") and name != "fsdit"}
    assert {n for n in ours if not any(under(n, allowed) for allowed in FOR_MODELS)} == set()


def test_nothing_imports_a_launcher():
    others = [path for path in SOURCES if not under(module_name(path), "fsdit.launch")]
    importing = {p for p in others if any(under(name, "fsdit.launch") for name in imports_of(p))}
    assert importing == set()


def test_no_package_has_more_than_ten_modules_side_by_side():
    modules = collections.Counter(
        str(path.parent.relative_to(ROOT))
        for path in PROJECT
        # Recipes and programs are chosen by their names and imported by nothing.
        if path.name != "__init__.py"
        and path.parent != ROOT / "experiments"
        and "program.run(main" not in path.read_text()
    )
    assert {name: n for name, n in modules.items() if n > 10} == {}


def test_no_file_is_longer_than_300_lines():
    tests = (ROOT / "tests").rglob("*.py")
    lines = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in (*PROJECT, *tests)}
    assert {name: n for name, n in lines.items() if n > 300} == {}


def test_every_folder_of_fsdit_is_in_the_order():
    folders = {p.name for p in (ROOT / "fsdit").iterdir() if p.is_dir() and p.name[0] != "_"}
    assert folders <= set(ORDER)
    assert {"data", "flow", "models", "parallel", "training"} <= folders


@pytest.mark.medium
def test_input_workers_need_no_jax():
    done = run_module("tests.data.without_jax", real=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"grain", "fsdit.data.pipeline"} <= loaded
    assert not {"flax", "optax", "tensorflow", "torch"} & loaded


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_imports_torch_or_pickle_or_uses_pmap(path):
    tree = ast.parse(path.read_text())
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {"torch", "pickle", "cloudpickle", "dill", "joblib"}
    words = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    words |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    words |= {name.rsplit(".")[-1] for name in imports_of(path)}
    assert "pmap" not in words


def test_torch_is_reached_in_one_place_only_and_when_it_is_needed():
    """Torch is optional, so it is imported by name, where its absence is reported in one line."""
    named = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("torch", "torch_fidelity")
    }
    assert named == {"fsdit/evaluation/critics/inception.py"}


def test_gradio_is_reached_in_one_place_only():
    """It comes with an extra, so all else has to do without."""
    packages = ("gradio", "fastapi", "uvicorn", "starlette")
    reaching = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(under(name, package) for name in imports_of(path) for package in packages)
    }
    assert reaching == {"fsdit/page/blocks.py"}


def test_tensorflow_is_reached_in_one_place_only():
    reaching = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(
            under(name, package)
            for name in imports_of(path)
            for package in ("tensorflow", "clu.metric_writers", "tensorboard")
        )
    }
    assert reaching == {"fsdit/events.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=str)
def test_no_test_module_is_imported(path):
    """Code that several test modules share has a module of its own."""
    found = imports(path.read_text(), module_name(path))
    assert not [name for name in found if ".test_" in name and name.startswith("tests.")]
