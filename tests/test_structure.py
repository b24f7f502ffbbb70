"""The shape of the code: who imports whom, who may name a device or a config, and what every name comes with."""

import ast
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import scoreflow
from scoreflow.evaluators.context import Context
from scoreflow.experiment import Experiment
from tests import tiny

PACKAGE = Path(scoreflow.__file__).parent
# From below to above: a module imports from its own package and from layers before its own, so that objectives and
# samplers never import each other.
LAYERS = [
    {"types"},
    {"runs"},
    {"own"},
    {"settings"},
    {"data"},
    {"metrics"},
    {"processes", "divergence", "dequantise", "gaussian"},
    {"models", "score", "augment"},
    {"latent", "terminal"},
    {"space"},
    {"theory"},
    {"objectives", "samplers"},
    {"optimizers"},
    {"likelihood"},
    {"adapt", "trained"},
    {"densities"},
    {"experiment"},
    {"fits", "draw", "step"},
    {"evaluators"},
    {"begin", "finish"},
    {"dispatch"},
    {"comparison"},
    {"train", "evaluate", "sample", "planner", "compare"},
    {"configure", "judge"},
    {"cli", "model"},
    {"__main__", "__init__"},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def entry(path: Path) -> str:
    """The top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports, by dotted name without `scoreflow.`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "scoreflow":
            stem = node.module.partition(".")[2]
            names |= {f"{stem}.{alias.name}".strip(".") for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("scoreflow.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = entry(path)
    if here == "__init__":
        return
    for name in imported(ast.parse(path.read_text())):
        other = name.split(".")[0]
        assert other == here or LEVEL[other] < LEVEL[here], f"{here} imports {name}"


def test_modules_import_each_other_in_no_circle():
    """Over all modules, imports inside functions included."""
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
    }
    edges = {}
    for name, path in modules.items():
        targets = set()
        for target in imported(ast.parse(path.read_text())):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                targets.add(target)
        edges[name] = targets
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_only_the_command_line_and_load_import_configure_and_only_configure_reads_configs():
    for path in FILES:
        text = path.read_text()
        if entry(path) not in ("configure", "cli", "model"):
            assert not any(name.split(".")[0] == "configure" for name in imported(ast.parse(text))), path
        if entry(path) != "configure":
            assert "import ml_collections" not in text and "from ml_collections" not in text, path


def test_configure_is_short_and_computes_nothing():
    files = list((PACKAGE / "configure").glob("*.py"))
    assert sum(len(path.read_text().splitlines()) for path in files) < 900
    for path in files:
        text = path.read_text()
        assert not re.search(r"import jax|import numpy|import optax", text), f"{path.name} computes something"


def test_there_is_one_loop_over_a_grid():
    for path in (PACKAGE / "samplers").glob("*.py"):
        loops = re.findall(r"\b(?:scan|while_loop|fori_loop)\(", path.read_text())
        assert len(loops) == (path.name == "loop.py"), path.name


@pytest.mark.parametrize("folder", ["benchmarks", "experiments", "docs", "configs"])
def test_what_scripts_import_is_there(folder):
    """Every `from scoreflow... import name`, also of scripts that are not run by a test."""
    for path in (tiny.ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scoreflow"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    there = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert there, f"{path.name}: {node.module} has no {alias.name}"


def test_only_parallel_names_devices():
    for path in FILES:
        if path.name != "parallel.py":
            for word in ("jax.devices", "shard_map", "NamedSharding", "multihost_utils", "jax.distributed"):
                assert word not in path.read_text(), f"{word} in {path.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_have_docstrings_and_return_annotations(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path.name
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node in tree.body and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"
            assert node.returns is not None, f"{path.name}: {node.name} has no return annotation"
        if isinstance(node, ast.ClassDef) and node in tree.body and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_files_and_functions_are_short():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{path.name} has {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (
                    (node.end_lineno or 0)
                    - node.body[min(bool(ast.get_docstring(node)), len(node.body) - 1)].lineno
                    + 1
                )
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines below its docstring"


def test_an_experiment_is_a_handful_of_typed_things():
    assert len(Experiment._fields) <= 8
    assert len(Context._fields) <= 8


def test_every_package_of_the_tree_is_shipped():
    shipped = set(re.findall(r'^  "(scoreflow[\w.]*)",$', (tiny.ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    packages = {"scoreflow", "scoreflow.configs"}
    packages |= {f"scoreflow.{info.name}" for info in pkgutil.walk_packages([str(PACKAGE)]) if info.ispkg}
    assert shipped == packages


def test_private_words_are_gone():
    """The field's words (docs/architecture.md), in names: none of these is bound anywhere in the package."""
    private = {"found", "law", "laws", "within", "also", "data_rms", "split_state", "optimiser", "centred"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            bound = {node.arg} if isinstance(node, ast.arg) else set()
            bound |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
            assert not bound & private, f"{path.name}: {bound & private}"


def test_every_module_imports_alone():
    for info in pkgutil.walk_packages([str(PACKAGE)], "scoreflow."):
        importlib.import_module(info.name)
