"""A model of one's own: short, without a config, and a better density of its data than a Gaussian."""

import ast
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import make_moons

from experiments import own_process
from tests import tiny

SOURCE = (tiny.ROOT / "docs" / "own_model.py").read_text()
NUMBERS = r"^{} +(-?[\d.]+) ± ([\d.]+)$"


def densities(printed: str) -> list[tuple[float, float]]:
    """Mean and standard error of the log-density under the model, and under the Gaussian."""
    rows = [re.search(NUMBERS.format(name), printed, re.MULTILINE) for name in ("ODE model", "Gaussian")]
    return [(float(row[1]), float(row[2])) for row in rows]


def code_lines(source: str) -> int:
    """Lines of a file without blank ones, comments and docstrings."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(i not in docs and not re.match(r" *(#|$)", line) for i, line in enumerate(source.splitlines(), 1))


def test_a_model_of_ones_own_has_at_most_forty_lines():
    assert code_lines('"""Doc."""\n\nimport os\n\n\ndef f(x):\n    """Doc."""\n    # why\n    return x\n') == 3
    assert code_lines(SOURCE) <= 40


def test_the_script_of_forty_lines_samples_its_data_and_scores_them(capsys):
    """With a twentieth of the steps: points near the circle, and a log-likelihood not far below the entropy's -0.95."""
    exec(compile(SOURCE.replace("= 3000, 1e-3", "= 150, 1e-3"), "own_model.py", "exec"), {"__name__": "own_model"})
    printed = capsys.readouterr().out
    radius, logp = (float(re.search(rf"{words} (-?[\d.]+) ±", printed)[1]) for words in ("radius", "likelihood"))
    assert abs(radius - 1.0) < 0.35 and -3.0 < logp < -0.8


@pytest.mark.parametrize("name", ["experiments/own_process", "experiments/common", "docs/own_model"])
def test_a_model_of_ones_own_needs_no_config(name):
    tree = ast.parse((tiny.ROOT / f"{name}.py").read_text())
    modules = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {f"{getattr(node, 'module', '')}.{alias.name}".strip(".") for node in modules for alias in node.names}
    assert {"scoreflow.train", "scoreflow.runs.report"} & names
    assert not [name for name in names if name.startswith(("scoreflow.configure", "ml_collections", "configs"))]


def test_a_model_of_ones_own_is_trained_scored_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_process", "--fast", f"--out={tmp_path}"])
    own_process.main()
    (ours, error), (gaussian, _) = densities(capsys.readouterr().out)
    assert -4 < ours < -0.9 and 0 < error < 0.2 and -2.1 < gaussian < -1.7
    assert (tmp_path / "samples.png").exists() and (tmp_path / "report.txt").exists()


@pytest.mark.slow
def test_a_model_of_ones_own_is_a_better_density_than_a_gaussian(tmp_path):
    """By half a nat at least, and within 0.2 of the density that the points are drawn from, known by quadrature."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.own_process", f"--out={tmp_path}"]
    result = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    (ours, _), (gaussian, _) = densities(result.stdout)
    assert gaussian + 0.5 < ours
    angles = np.linspace(0, np.pi, 2000)
    moon = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    curves = np.concatenate([moon, np.array([1.0, 0.5]) - moon])
    held_out = make_moons(4000, noise=0.1, random_state=0)[0][3600:]
    square = ((held_out[:, None] - curves) ** 2).sum(-1)
    exact = np.log(np.mean(np.exp(-0.5 * square / 0.1**2) / (2 * np.pi * 0.1**2), axis=1)).mean()
    assert exact == pytest.approx(-0.998, abs=2e-3) and ours == pytest.approx(exact, abs=0.2)
