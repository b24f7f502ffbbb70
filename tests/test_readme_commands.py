"""The README's commands, run one after the other by a person with an empty folder, at toy width."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.test_readme import commands

_MODEL = "--config.model.name=mlp --config.model.width=16 --config.model.depth=1"
_TRAINING = "batch_size=16 warmup=0 steps_per_dispatch=1 log_every=2 validate_every=2 checkpoint_every=2 steps=2"
_SAMPLING = "num=4 batch_size=4 steps=3"
_EVAL = "num_test=8 batch_size=8 draws=1 check=4 num_samples=100 baseline=False features=pixels rtol=1e-2 atol=1e-2"
_PLAN = "steps=2,4 num=300"
_WORDS = {"training": _TRAINING, "sampling": _SAMPLING, "eval": _EVAL, "plan": _PLAN}
SMALL = [*_MODEL.split(), *(f"--config.{section}.{word}" for section, row in _WORDS.items() for word in row.split())]
FITTED = re.compile("digits_bridge.py:(?!glow)")  # nothing to train
NEEDS_DATA = re.compile("cifar10")


def photographs(folder: Path) -> None:
    """Two hundred small images, of which a tenth will be held out."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path):
    photographs(tmp_path / "photos")
    np.save(tmp_path / "table.npy", np.random.default_rng(0).standard_normal((1000, 2)).astype(np.float32))
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {
        "PYTHONPATH": str(tiny.ROOT),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "SCOREFLOW_DATA": str(tmp_path / "data"),
    }
    rows = [row for row in dict.fromkeys(commands("README.md")) if "runs/pair" not in row]
    assert len(rows) > 12
    for row in rows:
        small = [word for word in SMALL if not (FITTED.search(row) and "training.steps=" in word)]
        small = [] if "--mode=compare" in row else small
        given = [word.replace("configs/", f"{tiny.ROOT}/configs/") for word in shlex.split(row)]
        command = [sys.executable, "-m", "scoreflow", *small, *given]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        if NEEDS_DATA.search(row):  # one line that says which file to put where, or that there is no run
            assert result.returncode == 2 and len(re.findall("^error:", result.stderr, re.MULTILINE)) == 1, row
            assert "put it at" in result.stderr or "train first" in result.stderr, result.stderr[-500:]
        else:
            assert result.returncode == 0, f"{row}: {result.stderr[-1500:]}"
    written = {str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    for name in (
        "vp_digits/eval/2/metrics.json",
        "vp_digits/plan/plan.png",
        "compare/compare.html",
        "vp_digits/samples/2-10-inpainted.png",
        "digits_bridge-mixture/eval/0/horizons.png",
        "digits_latent-levels_3/eval/2/reconstructions.png",
        "own_images/samples/2.png",
        "table/samples/2.png",
    ):
        assert f"runs/{name}" in written, sorted(written)
