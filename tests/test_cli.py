"""The command as a person runs it: wrong arguments, a kill at any moment, a full disk, two processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TINY = """
from tests import tiny
def get_config():
    return tiny.digits({changes})
"""


def _environment(**extra):
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **extra}


def _config(folder: Path, **changes) -> Path:
    path = folder / "tiny.py"
    path.write_text(TINY.format(changes=", ".join(f"{k}={v!r}" for k, v in changes.items())))
    return path


def _command(*args):
    return [sys.executable, str(ROOT / "main.py"), *map(str, args)]


def _run(*args, cwd, timeout=300, **environment):
    return subprocess.run(
        _command(*args), cwd=cwd, env=_environment(**environment), capture_output=True, text=True, timeout=timeout
    )


def _complaint(result) -> str:
    """The one line of an error; there must be no traceback."""
    assert "Traceback" not in result.stderr, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr[-2000:]
    return lines[0]


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "--config is missing"),
        (["--config=configs/none.py"], "none.py"),
        (["--config=configs/vp_digits.py", "--mode=fly"], "mode"),
        (["--config=configs/vp_digits.py", "--stepz=3"], "stepz"),
        (["--config=vp_digit"], "no shipped config of that name; these are: cifar10_processes, "),
        (["--config=digits_processes:ve_quadratic"], "ve_quadratic must be one of vp_linear, vp_constant"),
        (
            ["--config=configs/vp_digits.py", "--config.training.lr=1"],
            "error: training.lr is not a known setting; the nearest are training.learning_rate, training.learn",
        ),
        (
            ["--config=configs/vp_digits.py", "--config.loss.order=3"],
            'loss.order: first_order has no setting "order"; high_order has',
        ),
        (
            ["--config=configs/vp_digits.py", "--config.training.steps=many"],
            "training.steps = 'many' must be a whole number, 0 or above",
        ),
        (
            ["--config=configs/vp_digits.py", "--config.training.steps"],
            "training.steps = 'True' must be a whole number",
        ),
        (["--config=configs/vp_digits.py", "train"], "train is not a flag"),
    ],
)
def test_wrong_flags_end_in_one_line_and_2(args, words, tmp_path):
    args = [a.replace("configs/", f"{ROOT}/configs/") for a in args]
    result = _run(*args, cwd=tmp_path)
    assert result.returncode == 2 and words in _complaint(result)
    assert not list(tmp_path.iterdir())


def test_a_shipped_config_is_shown_by_its_name_from_another_folder(tmp_path):
    said = ["--config.loss.name=high_order", "--config.loss.order=3", "--config.process.name=ve_geometric"]
    result = _run("--config=vp_digits", "--mode=show", *said, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {match[2]: (match[1], match[3]) for match in re.finditer(r"^(\*?) *([\w.]+) = (\S+)", result.stdout, re.M)}
    assert rows["training.steps"] == ("*", "2800") and rows["process.sigma_max"] == ("", "50.0")
    assert rows["loss.order"] == ("*", "3") and "process.beta_max" not in rows
    assert "Number of optimizer steps; 0 only fits what needs no steps." in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mode, changes, words",
    [
        ("train", {"data__name": "cifar10", "data__dir": "here"}, "put it at"),
        ("train", {"training__batch_size": 0}, "training.batch_size = 0 must be"),
        ("eval", {}, "train first"),
        ("sample", {}, "train first"),
    ],
)
def test_bad_input_leaves_nothing_behind(mode, changes, words, tmp_path):
    config = _config(tmp_path, **changes)
    result = _run(
        f"--config={config}", f"--mode={mode}", "--workdir=run", cwd=tmp_path, HTTPS_PROXY="http://127.0.0.1:9"
    )
    assert result.returncode == 2 and words in _complaint(result)
    assert not list((tmp_path / "run").rglob("*.npy")) and not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run through the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    config = _config(folder)
    result = _run(f"--config={config}", "--workdir=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, config, result


def test_a_run_is_used_with_its_own_settings(trained):
    """Without a config file; and with one that has changed since, which counts only where it says how a run is used."""
    folder, config, _ = trained
    alone = _run("--workdir=run", "--mode=sample", "--config.sampling.num=3", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    assert np.load(folder / "run" / "samples" / "8-3.npy").shape == (3, 8, 8, 1)
    other = folder / "other.py"
    other.write_text(TINY.format(changes="model__width=24, sampling__num=5, training__batch_size=8"))
    result = _run(f"--config={other}", "--workdir=run", "--mode=sample", cwd=folder)
    assert result.returncode == 0, result.stderr
    words = "WARNING: the settings of the run in run are used where"
    assert words in result.stderr and "model.width = 16, not 24" in result.stderr
    assert np.load(folder / "run" / "samples" / "8-5.npy").shape == (5, 8, 8, 1)
    refused = _run("--workdir=run", "--mode=sample", "--config.model.width=24", cwd=folder)
    assert refused.returncode == 2 and "model.width = 16, not 24" in _complaint(refused)
    nothing = _run("--workdir=nowhere", "--mode=eval", cwd=folder)
    assert nothing.returncode == 2 and "--workdir=nowhere holds no trained run yet" in _complaint(nothing)
    assert not (folder / "nowhere").exists()


def test_training_ends_by_naming_the_samples_and_the_next_command(trained):
    folder, _, result = trained
    assert "samples: run/samples/8.png" in result.stdout
    next_command = re.search(r"next: +\S+ \S*main.py (.*)", result.stdout).group(1)
    assert "--mode=eval" in next_command and "--workdir=run" in next_command
    assert re.search(r"first step after [\d.]+ s", result.stdout)
    assert json.loads((folder / "run" / "config.json").read_text())["config"]["model"]["width"] == 16


def test_eval_prints_what_it_writes(trained):
    folder, config, _ = trained
    solver = "--config.eval.solver=multistep"
    result = _run(f"--config={config}", "--workdir=run", "--mode=eval", solver, cwd=folder)
    assert result.returncode == 0, result.stderr
    written = json.loads((folder / "run" / "eval" / "8" / "metrics.json").read_text())
    bits = written["likelihood"]["bits_per_dim"]
    assert f"{bits['value']:.4g} ± {bits['stderr']:.2g}" in result.stdout
    for words in ("solver error", "likelihood nfe", "pilot nfe", "uniform bits per dim", "frechet", "test data"):
        assert words in result.stdout
    assert written["samples"]["model"]["samples"] == 100 and written["likelihood"]["likelihood_examples"] == 12
    prior, integral = written["likelihood"]["prior_term"], written["likelihood"]["integral_term"]
    assert bits["value"] == pytest.approx(prior + integral + np.log2(17 / 2), abs=1e-4)


@pytest.mark.slow
def test_sampling_writes_levels_and_a_picture(trained):
    folder, config, _ = trained
    result = _run(f"--config={config}", "--workdir=run", "--mode=sample", "--config.sampling.num=10", cwd=folder)
    assert result.returncode == 0, result.stderr
    x = np.load(folder / "run" / "samples" / "8-10.npy")
    assert x.shape == (10, 8, 8, 1) and x.dtype == np.uint8 and x.max() <= 16
    assert (folder / "run" / "samples" / "8-10.png").stat().st_size > 500
    result = _run(
        f"--config={config}", "--workdir=run", "--mode=sample", "--config.sampling.inpaint=bottom",
        "--config.sampling.num=4", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    original, kept, filled = (
        np.load(folder / "run" / "samples" / "8-4-inpainted.npy").reshape(4, 3, 8, 8, 1).swapaxes(0, 1)
    )
    np.testing.assert_array_equal(kept[:, :4], original[:, :4])
    assert not kept[:, 4:].any()
    assert np.abs(filled[:, :4].astype(int) - original[:, :4].astype(int)).max() <= 1


def test_a_folder_of_another_config_is_refused(trained):
    folder, config, _ = trained
    before = sorted(p.name for p in (folder / "run" / "checkpoints").iterdir())
    result = _run(f"--config={config}", "--workdir=run", "--config.model.width=32", cwd=folder)
    assert result.returncode == 2 and "model.width = 16, not 32" in _complaint(result)
    assert sorted(p.name for p in (folder / "run" / "checkpoints").iterdir()) == before


# Section and name of settings as version 0.1.0 wrote them, by today's.
_OLD_NAMES = {
    ("data", "num_levels"): ("data", "levels"),
    ("data", "centered"): ("data", "centred"),
    ("data", "dequantization"): ("data", "dequantisation"),
    ("data", "binarized"): ("data", "binarised"),
    ("score", "prediction"): ("score", "kind"),
    ("score", "sigma_data"): ("score", "data_rms"),
    ("training", "optimizer"): ("training", "optimiser"),
    ("training", "grad_accum"): ("training", "accumulate"),
    ("training", "fsdp"): ("training", "split_state"),
    ("eval", "dequantization"): ("eval", "dequantisation"),
    ("eval", "neighbors"): ("eval", "neighbours"),
    ("sample_times", "name"): ("times", "name"),
    ("dequantizer", "name"): ("dequantiser", "name"),
}
_NEW_SINCE = [("data", "bits"), ("score", "energy_power"), ("training", "skip"), ("model", "dtype"), ("latent", "name")]


@pytest.mark.slow
def test_the_folder_of_an_old_run_opens(trained):
    """Its `config.json` has the names of an older version, and lacks what that version did not have."""
    folder, config, _ = trained
    old = folder / "old"
    shutil.copytree(folder / "run", old, ignore=shutil.ignore_patterns("eval", "samples"))
    content = json.loads((old / "config.json").read_text())
    today = content["config"]
    for (section, name), (old_section, old_name) in _OLD_NAMES.items():
        today.setdefault(old_section, {})[old_name] = today[section].pop(name)
    for section, name in _NEW_SINCE:
        del today[section][name]
    (old / "config.json").write_text(json.dumps(content))
    result = _run(f"--config={config}", "--workdir=old", "--mode=sample", "--config.sampling.num=3", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert np.load(old / "samples" / "8-3.npy").shape == (3, 8, 8, 1)
    assert json.loads((old / "config.json").read_text()) == content  # only training writes it
    result = _run(f"--config={config}", "--workdir=old", "--config.score.prediction=noise", cwd=folder)
    assert result.returncode == 2 and "score.prediction = 'v', not 'noise'" in _complaint(result)
    result = _run(f"--config={config}", "--workdir=old", "--config.score.energy_power=2", cwd=folder)
    assert result.returncode == 2 and "score.energy_power = 0, not 2" in _complaint(result)
    result = _run(f"--config={config}", "--workdir=old", cwd=folder)
    assert result.returncode == 0 and "step 8 is there already" in result.stdout
    written, new = (json.loads((folder / name / "config.json").read_text())["config"] for name in ("old", "run"))
    assert written == new


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(trained):
    folder, config, _ = trained
    newest = folder / "run" / "checkpoints" / "8"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-20])
    try:
        result = _run(f"--config={config}", "--workdir=run", "--mode=sample", "--config.sampling.num=2", cwd=folder)
    finally:
        victim.write_bytes(whole)
    assert result.returncode == 0
    assert "WARNING: checkpoint run/checkpoints/8 is damaged" in result.stderr
    assert (folder / "run" / "samples" / "6-2.npy").exists()


_LIMITED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path):
    """A quota on the size of files stands in for the disk: checkpoints no longer fit, small files still do."""
    config = _config(tmp_path, model__width=256)
    result = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(ROOT / "main.py"), f"--config={config}", "--workdir=run"],
        cwd=tmp_path, env=_environment(XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_ENABLE_COMPILATION_CACHE="false"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr[-2000:]
    assert "could not be written" in _complaint(result) and "run/checkpoints/2" in _complaint(result)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.sha256.json"))


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_resumes_to_the_same_end(tmp_path):
    """SIGKILL after random delays, some inside a save, until the run is through; the end equals an undisturbed run."""
    rng = np.random.default_rng(0)
    config = _config(
        tmp_path, training__steps=40, training__checkpoint_every=1, training__log_every=1, training__keep=2
    )
    calm = _run(f"--config={config}", "--workdir=calm", cwd=tmp_path)
    assert calm.returncode == 0, calm.stderr
    kills = 0
    for attempt in range(12):
        process = subprocess.Popen(
            _command(f"--config={config}", "--workdir=wild"), cwd=tmp_path, env=_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        checkpoints = tmp_path / "wild" / "checkpoints"
        seals = len(list(checkpoints.glob("*.sha256.json"))) if checkpoints.exists() else 0
        deadline = time.monotonic() + 120
        target = rng.integers(1, 12)
        newest = max([int(p.name.split(".")[0]) for p in checkpoints.glob("*.sha256.json")], default=0) if seals else 0
        while process.poll() is None and time.monotonic() < deadline and attempt < 11:
            steps = [int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()] if checkpoints.exists() else []
            if max(steps, default=0) >= newest + target:
                time.sleep(rng.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        errors = process.communicate(timeout=240)[1]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors[-2000:]
    assert kills >= 2 and process.returncode == 0
    losses = [
        [
            (r["step"], r["loss"])
            for r in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        ]
        for name in ("calm", "wild")
    ]
    assert losses[0] == losses[1]
    pictures = [(tmp_path / name / "samples" / "40.png").read_bytes() for name in ("calm", "wild")]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_planning_needs_no_training_and_starts_no_run(tmp_path):
    result = _run(
        f"--config={ROOT}/configs/vp_checkerboard.py", "--mode=plan", "--workdir=run",
        "--config.plan.accuracy=0.2", "--config.plan.steps=(10,50)", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "recommended:" in result.stdout and "vp_linear *" in result.stdout and "Warning" not in result.stderr
    written = json.loads((tmp_path / "run" / "plan" / "plan.json").read_text())
    assert written["data"] == "checkerboard" and written["dimensions"] == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan"]  # so a run can still begin there


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The README's command in two processes of two devices each, which divide the state: the losses and the metrics of
    one process of one device."""
    model = {"name": "mlp", "width": 64, "depth": 2, "dropout": 0.1, "dtype": "float32"}
    config = _config(tmp_path, model=model)
    alone = _run(f"--config={config}", "--workdir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for mode in ("train", "eval"):
        processes = [
            subprocess.Popen(
                _command(f"--config={config}", "--workdir=pair", f"--mode={mode}", "--config.training.fsdp=True"),
                cwd=tmp_path,
                env=_environment(
                    XLA_FLAGS="--xla_force_host_platform_device_count=2",
                    SCOREFLOW_COORDINATOR=f"127.0.0.1:{port}", SCOREFLOW_PROCESSES="2", SCOREFLOW_PROCESS_ID=str(i),
                ),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for i in range(2)
        ]  # fmt: skip
        results = [process.communicate(timeout=300) for process in processes]
        assert [p.returncode for p in processes] == [0, 0], results
        port += 1
    assert "bits per dim" in results[0][0] and "bits per dim" not in results[1][0]  # only one process speaks
    losses = [
        [
            r["loss"]
            for r in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        ]
        for name in ("alone", "pair")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    (path,) = tmp_path.glob("pair/eval/*/metrics.json")
    together = json.loads(path.read_text())
    single = _run(  # with statistics of its own, which are not sums over processes
        f"--config={config}", "--workdir=pair", "--mode=eval", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    assert single.returncode == 0, single.stderr
    alone = json.loads(path.read_text())
    for name in ("frechet", "kernel", "precision"):
        for who in ("model", "test_data"):
            wanted = alone["samples"][who][name]["value"]
            assert together["samples"][who][name]["value"] == pytest.approx(wanted, rel=1e-9), (name, who)
    assert together["likelihood"]["bits_per_dim"]["value"] == pytest.approx(
        alone["likelihood"]["bits_per_dim"]["value"], rel=1e-5
    )
