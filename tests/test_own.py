"""Processes of one's own: from a file by the command line, from f and g, and those that are none."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import scoreflow
from scoreflow import configure, own
from scoreflow.configure import catalogue
from scoreflow.processes import linear, rates, sdes
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids
from tests import tiny

FILE = '''
from __future__ import annotations

import jax.numpy as jnp

from scoreflow.processes import rates, sdes
from scoreflow.types import Positive


def growing(parameters, t):
    low, high = parameters
    return low + high * t**3


def cubic(beta_min: float = 0.1, beta_max: Positive = 40.0, horizon: float = 1.0) -> sdes.VP:
    """VP whose rate grows with the third power of time.

    Args:
      beta_max: what the rate gains until t = 1.
    """
    return sdes.VP(rates.NumericalRate(growing, (beta_min, beta_max)), horizon=horizon)


def endless(rate: float = 1.0):
    return cubic()


def dip(depth: float = 10.0, horizon: float = 1.0):
    return sdes.VP(rates.NumericalRate(lambda d, t: 1 + d * jnp.cos(6 * t), depth), horizon=horizon)
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_sde.py"
    path.write_text(FILE)
    return path


def test_a_process_of_a_file_has_settings_and_is_what_the_file_says(file):
    """int_0^t (low + high u^3) du = low t + high t^4 / 4."""
    words = {"process.name": f"{file}:cubic", "process.beta_max": "30", "process.beta_min": "0.2"}
    config = configure.resolve(ConfigDict(), words)
    assert config.process.to_dict() == {"name": f"{file}:cubic", "beta_min": 0.2, "beta_max": 30.0, "horizon": 1.0}
    t = np.linspace(0.1, 1.0, 5)
    expected = np.exp(-0.5 * (0.2 * t + 30.0 * t**4 / 4))
    np.testing.assert_allclose(configure.process(config).alpha(t), expected, rtol=1e-4)
    again, _ = configure.of_run({"process.name": f"{file}:cubic", "process.beta_max": 30.0})
    assert again.process.beta_max == 30.0 and again.process.beta_min == 0.1


@pytest.mark.parametrize(
    "name, words",
    [
        ("{}:nothing", "my_sde.py has no function nothing"),
        ("{}x.py:cubic", "there is no file"),
        ("{}:endless", "needs an argument `horizon` with a default"),
        ("cubic", "must be one of vp_linear, .*, or a function of your own, as my_file.py:name"),
        ("{}:dip", r"VP at t = 0.\d+: g\^2\(t\) = -.*must not be negative"),
    ],
)
def test_what_is_wrong_with_a_part_is_one_line(name, words, file):
    with pytest.raises(UserError, match=words):
        config = configure.resolve(tiny.digits(), {"process.name": name.format(file)})
        configure.experiment(config, "run")


def test_a_file_that_fails_is_named_with_its_line(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("import math\n\nmath.nothing\n")
    with pytest.raises(UserError, match=re.escape(f"{path} (line 3): AttributeError")):
        own.load(f"{path}:f")


def test_a_part_that_fails_in_use_is_named_with_its_line(tmp_path):
    """One line from the command, and not the traceback of the library around it."""
    (tmp_path / "bad.py").write_text(
        "import scoreflow\nfrom scoreflow.processes import rates, sdes\n\n\n"
        "def rate(p, t):\n    return p * t + missing\n\n\n"
        "def mine(p: float = 1.0, horizon: float = 1.0):\n    return sdes.VP(rates.NumericalRate(rate, p), horizon=horizon)\n"
    )
    flags = ["--config=vp_digits", "--mode=plan", "--config.process.name=bad.py:mine"]
    result = subprocess.run(
        [sys.executable, "-m", "scoreflow", *flags], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert line.endswith("bad.py (line 6): NameError: name 'missing' is not defined")
    assert "Traceback" not in result.stderr


def test_a_file_may_have_classes_and_import_from_its_folder(tmp_path):
    (tmp_path / "helper_of_ours.py").write_text("WIDTH = 3\n")
    source = """
from __future__ import annotations
import flax.linen as nn
from helper_of_ours import WIDTH
class Net(nn.Module):
    width: int = WIDTH
    @nn.compact
    def __call__(self, x, log_snr, cond, train):
        return nn.Dense(x.shape[-1])(nn.Dense(self.width)(x))
"""
    (tmp_path / "net.py").write_text(source)
    words = {"model.name": f"{tmp_path / 'net.py'}:Net", "model.width": "5"}
    config = configure.resolve(tiny.digits(), words)
    experiment = configure.experiment(config, "run")
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(experiment.init(jax.random.key(0))))
    assert shapes == [(1,), (1, 5), (5,), (5, 1)]


def test_a_process_whose_values_are_traced_is_not_checked():
    value = jax.jit(lambda a: scoreflow.linear_sde(lambda t: -a * (1 + 0 * t), 1.0).alpha(0.5))(2.0)
    assert float(value) == pytest.approx(np.exp(-1.0), rel=1e-5)


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates_with_a_process_of_a_file(file, tmp_path):
    def command(*flags, folder=tmp_path):
        arguments = [sys.executable, str(tiny.ROOT / "main.py"), f"--workdir={tmp_path / 'run'}", *flags]
        result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    small = ("training.steps=4", "training.warmup=1", "model.name=mlp", "eval.num_samples=0", "eval.num_test=8")
    flags = [f"--config.{each}" for each in small]
    command(f"--config={tiny.ROOT}/configs/vp_digits.py", "--config.process.name=my_sde.py:cubic", *flags)
    (tmp_path / "elsewhere").mkdir()
    assert "bits per dim" in command("--mode=eval", folder=tmp_path / "elsewhere")
    moved = file.rename(tmp_path / "moved.py")
    command("--mode=sample", "--config.sampling.num=2", f"--config.process.name={moved}:cubic")


# --- from f and g, and what is no process -----------------------------------------------------------------------------


def test_drift_and_diffusion_alone_make_a_process(x64):
    """dx = -a x dt + b dw has alpha = exp(-a t) and sigma^2 = b^2 (1 - exp(-2 a t)) / (2 a)."""
    process, t = scoreflow.linear_sde(-0.7, lambda t: 1.3 + 0 * t, horizon=2.0), np.linspace(0.1, 2.0, 5)
    np.testing.assert_allclose(process.alpha(t), np.exp(-0.7 * t), rtol=1e-10)
    np.testing.assert_allclose(process.variance(t), 1.3**2 * (1 - np.exp(-1.4 * t)) / 1.4, rtol=1e-10)
    with pytest.raises(ValueError, match="alpha"):
        scoreflow.linear_sde(lambda t: -1000.0 * t, 1.0, horizon=2.0)


def test_a_rate_without_an_end_is_inverted_beyond_one(x64):
    """int_0^t (1 + u) du = t + t^2 / 2, so t = sqrt(1 + 2 area) - 1; also with gradients, through the bisection too."""
    rate = rates.NumericalRate(lambda a, t: a + t, 1.0)
    area = np.array([0.0, 0.3, 5.0, 4000.0])
    np.testing.assert_allclose(rate.inverse(area), np.sqrt(1 + 2 * area) - 1, atol=1e-9)
    process = sdes.VP(rates.NumericalRate(lambda a, t: a + 0 * t, 0.7), horizon=6.0)
    grid = np.asarray(grids.log_snr(process, 8, t_min=1e-3))
    assert grid[0] == pytest.approx(6.0) and (np.diff(grid) < 0).all()
    np.testing.assert_allclose(grid, grids.log_snr(sdes.vp_constant(0.7, 0.7, horizon=6.0), 8, t_min=1e-3), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda a: rates.NumericalRate(lambda a, t: a + t, a).inverse(jnp.asarray(5.0)))(1.0))


@rates.pytree
class Flipped(sdes.VP):
    """VP with the sign of its drift wrong."""

    drift_coeff = lambda self, t: 0.5 * self.beta(t)


@rates.pytree
class Tripled(sdes.VP):
    """VP with three times its g^2."""

    diffusion_sq = lambda self, t: 3.0 * self.beta(t)


@pytest.mark.parametrize(
    "process, words",
    [
        (sdes.VP(rates.LinearRate(-1.0, 20.0)), r"at t = 0.001: g\^2\(t\) = -0.98: it must not be negative"),
        (sdes.vp_linear(horizon=-1.0), "has the horizon -1.0"),
        (sdes.LinearSDE(rates.LinearRate(800.0, 0.0), rates.LinearRate(1.0, 0.0)), r"alpha\(t\) = 0: .*end earlier"),
        (sdes.VP(rates.NumericalRate(lambda p, t: 1 + 0 * t, None, upto=1.0), horizon=2.0), "inverse_log_snr"),
        (sdes.VP(rates.NumericalRate(lambda p, t: jnp.where(t < 0.53, 1.0, 20.0), None)), "too rough"),
        (Flipped(rates.LinearRate(0.1, 20.0)), r"f\(t\) = 0.*not d log alpha / dt"),
        (Tripled(rates.LinearRate(0.1, 20.0)), r"g\^2\(t\) = .*not -sigma\^2 d log_snr / dt"),
    ],
)
def test_processes_that_are_none_are_refused(process, words):
    for use in (
        lambda: linear.check(process),
        lambda: scoreflow.Model.from_score(lambda x, t: -x, process, (2,)),
        lambda: scoreflow.score_matching(process, lambda params: lambda x, t: -x, lambda params, key, x: x, t_min=1e-3),
    ):
        with pytest.raises(ValueError, match=words):
            use()


@pytest.mark.parametrize("name", catalogue.PROCESSES)
def test_every_named_process_passes(name):
    linear.check(catalogue.PROCESSES[name]())


def test_the_page_shows_the_file_that_its_commands_use():
    code = (tiny.ROOT / "docs" / "my_sde.py").read_text().partition('extending.md."""\n\n')[2]
    assert code and f"```python\n{code}```" in (tiny.ROOT / "docs" / "extending.md").read_text()
