"""The command with which a run ends: it can be copied, and does what it says."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scoreflow import finish
from tests import tiny

TINY = """
from tests import tiny
def get_config():
    config = tiny.digits(training__pictures=False)
    config.eval.update({"likelihood": False, "num_samples": 0})
    return config
"""


def run(words, folder):
    """Runs a command in a folder; what it prints."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment = {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.ROOT)}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("program", [["-m", "scoreflow"], [str(tiny.ROOT / "main.py")]], ids=["module", "script"])
def test_the_next_command_runs_as_it_is_printed(tmp_path, program):
    """From a folder without main.py, and with a space in the name of the run."""
    (tmp_path / "tiny.py").write_text(TINY)
    printed = run([sys.executable, *program, "--config=tiny.py", "--workdir=my runs/a"], tmp_path)
    (line,) = (line for line in printed.splitlines() if line.startswith("next:"))
    words = shlex.split(line.removeprefix("next:"))
    assert words[:-2] == [sys.executable, *program] and "--workdir=my runs/a" in words
    run(words, tmp_path)
    assert (tmp_path / "my runs" / "a" / "eval" / "8" / "metrics.json").exists()


@pytest.mark.parametrize(
    "started, words",
    [
        (["python3", "main.py"], "python3 main.py"),
        (["/my env/python", "/my code/main.py"], "'/my env/python' '/my code/main.py'"),
        (["python", "/site-packages/scoreflow/__main__.py"], "python -m scoreflow"),
        (["python", "my_own_training.py"], "python -m scoreflow"),
    ],
)
def test_the_next_command_is_started_as_this_one(monkeypatch, started, words):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", started[1:])
    assert finish.command() == words


@pytest.mark.parametrize("there", [True, False])
def test_the_next_command_of_an_installed_package_is_its_own(monkeypatch, tmp_path, there):
    """By its name where that is on the path, and else as it was called."""
    script = tmp_path / "bin" / "scoreflow"
    script.parent.mkdir()
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(script.parent if there else Path(tmp_path)))
    assert finish.command() == ("scoreflow" if there else str(script))
