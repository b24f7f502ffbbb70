"""The wheel that `pip install .` makes: what is in it, and its command run from another folder."""

import functools
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """(the wheel, names of its files, folder it is unpacked to), built from a copy of the sources without a network."""
    pytest.importorskip("setuptools", minversion="70.1")  # which builds wheels by itself
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tiny.ROOT / name, source)
    for name in ("scoreflow", "configs"):
        shutil.copytree(tiny.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}"]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("scoreflow-*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
        return path, archive.namelist(), folder / "unpacked"


def run(unpacked, *arguments, cwd, code="from scoreflow.cli import command; command()"):
    """The `scoreflow` command of the unpacked wheel."""
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment | {"PYTHONPATH": str(unpacked)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_wheel_has_every_module_every_config_and_the_command(wheel):
    _, names, unpacked = wheel
    modules = {str(path.relative_to(tiny.ROOT)) for path in (tiny.ROOT / "scoreflow").rglob("*.py")}
    configs = {f"scoreflow/configs/{path.name}" for path in (tiny.ROOT / "configs").glob("*.py")}
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == modules | configs | {"scoreflow/py.typed", "scoreflow/comparison/page.html"}
    (entry_points,) = unpacked.glob("scoreflow-*.dist-info/entry_points.txt")
    assert re.search(r"^\[console_scripts\]\nscoreflow = scoreflow\.cli:command$", entry_points.read_text(), re.M)


def test_the_installed_command_finds_shipped_configs_from_another_folder(wheel, tmp_path):
    _, _, unpacked = wheel
    where = run(unpacked, cwd=tmp_path, code="import scoreflow; print(scoreflow.__file__)")
    assert where.stdout.startswith(str(unpacked)), where.stdout + where.stderr
    shown = run(unpacked, "--config=vp_digits", "--mode=show", "--config.seed=5", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for row in (r"^\* +training\.steps = 2800 +Number", r"^\* +seed = 5 ", r"^ +process\.name = 'vp_linear' "):
        assert re.search(row, shown.stdout, re.M), shown.stdout
    assert not list(tmp_path.iterdir())


def test_a_config_of_ones_own_may_begin_with_a_shipped_one(wheel, tmp_path):
    _, _, unpacked = wheel
    (tmp_path / "mine.py").write_text(
        "from configs import digits_orders\n\n\ndef get_config(order='2'):\n    config = digits_orders.get_config(order)\n"
        "    config.seed = 3\n    return config\n"
    )
    shown = run(unpacked, "--config=mine.py:3", "--mode=show", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"seed = 3 ", shown.stdout) and re.search(r"loss\.order = 3 ", shown.stdout)
    wrong = run(unpacked, "--config=vp_digit", "--mode=show", cwd=tmp_path)
    assert wrong.returncode == 2 and "these are: cifar10_processes, digits_bridge" in wrong.stderr


def test_the_wheel_trains_from_an_empty_environment(wheel, tmp_path):
    """With the dependencies that it names, and nothing of this checkout; left out where there is no package index."""
    path, _, _ = wheel
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    run = functools.partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    run([sys.executable, "-m", "venv", "empty"], check=True)
    if run(["empty/bin/python", "-m", "pip", "download", "-q", "--no-deps", "absl-py"]).returncode:
        pytest.skip("the package index cannot be reached")
    installed = run(["empty/bin/python", "-m", "pip", "install", "-q", str(path)])
    assert installed.returncode == 0, installed.stderr
    sizes = ["training.steps=2", "training.warmup=0", "model.name=mlp", "model.width=8", "sampling.num=4"]
    flags = [f"--config.{word}" for word in (*sizes, "sampling.steps=3")]
    trained = run(["empty/bin/scoreflow", "--config=vp_digits", *flags])
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs" / "vp_digits" / "samples" / "2.png").is_file()
