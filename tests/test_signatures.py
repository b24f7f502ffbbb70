"""The promised argument names in the promised order, over the whole catalogue; and one name for one thing."""

import ast
import functools
import inspect
from pathlib import Path

import pytest

from scoreflow import dequantise, divergence, likelihood, terminal
from scoreflow.objectives import dsm, times
from scoreflow.processes import sdes, transitions
from scoreflow.samplers import adaptive, grids, rules, sample

PACKAGE = Path(__file__).parent.parent / "scoreflow"


def _positional(fn) -> list[str]:
    fn = fn.func if isinstance(fn, functools.partial) else fn
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]


@pytest.mark.parametrize("fn", [functools.partial(sample, rules.HEUN), adaptive.adaptive])
def test_samplers(fn):
    parameters = inspect.signature(fn).parameters.values()
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["process", "score", "key", "x_init", "grid", "cond"]
    assert {"denoise", "trajectory"} <= {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("fn", [rules.heun, rules.dpm_solver_pp_2m])
def test_rules(fn):
    assert _positional(fn)[:2] == ["field", "x"]


@pytest.mark.parametrize("fn", transitions.TRANSITIONS.values())
def test_transitions(fn):
    assert _positional(fn) == ["process", "s", "t"]


@pytest.mark.parametrize("fn", [times.uniform, times.stratified, times.importance, times.velocity, times.log_normal])
def test_time_laws(fn):
    assert _positional(fn) == ["process", "key", "n"]


@pytest.mark.parametrize("fn", [grids.uniform, grids.log_snr, grids.karras])
def test_grids(fn):
    assert _positional(fn) == ["process", "n"]


def test_single_functions():
    assert _positional(dsm.dsm) == ["process", "score", "key", "x0", "t", "cond"]
    assert _positional(likelihood.log_prob) == ["process", "score", "terminal", "key", "x", "cond"]
    assert _positional(dequantise.uniform) == _positional(dequantise.center) == ["key", "image", "bins"]
    assert _positional(divergence.exact) == _positional(divergence.hutchinson) == ["fn", "x", "probe"]
    assert _positional(terminal.Gaussian.sample) == ["self", "key", "shape"]
    assert _positional(terminal.Gaussian.log_prob) == ["self", "x"]


def test_every_process_gives_every_quantity():
    for cls in (sdes.VP, sdes.SubVP, sdes.VE, sdes.Straight, sdes.LinearSDE):
        for name in ("alpha", "sigma", "variance", "log_alpha", "log_snr", "drift_coeff", "diffusion_sq"):
            assert _positional(getattr(cls, name)) == ["self", "t"]
        assert _positional(cls.reverse_integrals) == ["self", "s", "t"]
        assert _positional(cls.perturb) == ["self", "key", "x0", "t"]


LAYERS = [
    {"errors", "experiment", "caches", "rates"},
    {"sdes", "divergence", "models", "parallel", "metrics", "data", "dequantise", "decoders"},
    {"score", "sample_times", "terminal", "transitions", "report", "checkpoint", "latent", "pieces"},
    {"losses", "samplers", "theory", "best", "workdir"},
    {"likelihood", "diagnostics", "horizon"},
    {"sample"},
    {"evaluate", "plan"},
    {"train"},
    {"build"},
]


def test_imports_point_one_way():
    """A module imports only from layers below its own, or from its own package; losses and samplers never each other."""
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    level["experiment"] = 4  # types only: it names what build makes
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if here == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scoreflow"):
                parts = node.module.split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            for name in names:
                allowed = name == here or level[name] < level[here]
                same_layer = level[name] == level[here] and {name, here} <= {
                    "score", "sample_times", "terminal", "transitions", "report", "checkpoint", "best", "workdir", "metrics", "data", "parallel",
                }  # fmt: skip
                assert allowed or same_layer, f"{path.name} imports {name}"
                assert {here, name} != {"losses", "samplers"}


def test_only_parallel_names_devices_and_only_build_reads_configs():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.name != "parallel.py":
            for word in ("jax.devices", "shard_map", "NamedSharding", "multihost_utils", "jax.distributed"):
                assert word not in text, f"{word} in {path.name}"
        if path.parent.name != "build":
            assert "ml_collections" not in text, path.name


def test_public_functions_have_docstrings():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path.name
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
