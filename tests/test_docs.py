"""Every block of Python on a page of the docs runs, in the order of the page; what it computes is known."""

import re

import jax
import matplotlib
import numpy as np
import pytest

from scoreflow import draw
from tests import tiny

DOCS = tiny.ROOT / "docs"
RUN = ("getting_started", "guidance", "extending")  # here
ELSEWHERE = ("library", "methods")  # tests/test_model.py, tests/test_readme.py


def blocks(page: str) -> list[str]:
    """The blocks of Python on a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S)


def run(page: str, instead: dict[str, str] | None = None) -> dict:
    """The names that the blocks of a page leave, with some of its words replaced."""
    code, names = "\n".join(blocks(page)), {}
    for word, other in (instead or {}).items():
        assert code.count(word) == 1, word
        code = code.replace(word, other)
    exec(compile(code, f"{page}.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to write to, no screen, and the ranks that users have."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    with jax.numpy_rank_promotion("allow"):
        yield tmp_path


def test_every_page_with_python_is_run():
    assert {path.stem for path in DOCS.glob("*.md") if blocks(path.stem)} == {*RUN, *ELSEWHERE}


@pytest.mark.slow
def test_the_first_model_is_a_better_density_than_a_gaussian(folder):
    """With fewer steps; a Gaussian with the training points' moments has -2.72 nats."""
    names = run("getting_started", {"steps = 2000": "steps = 600"})
    assert names["samples"].shape == (1000, 2) and (folder / "getting_started.png").exists()
    assert -2.72 < names["logp"].mean() < -1.6
    lines = [line for block in blocks("getting_started") for line in block.splitlines()]
    assert sum(bool(line.strip()) for line in lines) <= 40


def test_guided_samples_have_the_moments_that_the_page_names():
    names = run("guidance")
    assert abs(names["centers"][0]) < 0.1 and abs(names["centers"][1] - 1.0) < 0.05 and names["centers"][3] > 1.2
    assert abs(names["spreads"][1] - 0.4) < 0.04 and names["spreads"][3] < 0.35
    given, pair = names["second"], names["pair"]
    assert abs(given.mean() - 1.2) < 0.15 and abs(given.std() - 0.6) < 0.08
    assert abs(pair.sum(1).mean() - 0.997) < 0.05 and abs((pair[:, 0] - pair[:, 1]).std() - 0.4**0.5) < 0.05


@pytest.mark.slow
def test_the_worked_examples_of_extending_the_library_run(folder, capsys):
    tiny.trained(folder / "runs" / "vp_digits")
    names = run("extending", {"steps = 500": "steps = 100", "EvalOptions()": 'EvalOptions(solver="adaptive")'})
    np.testing.assert_allclose(names["ratio"], 1.0, atol=1e-3)
    assert abs(names["mean"] / names["mean_two"] - 1) < 0.05 and names["spread_two"] < 0.6 * names["spread"]  # t = 0.5
    printed = capsys.readouterr().out
    spreads = [float(each) for each in re.findall(r"standard deviation ([\d.]+) \(exact", printed)]
    np.testing.assert_allclose(spreads, 0.5, atol=0.02)
    shares = [int(each) for each in re.findall(r"class \d: (\d+)% of the power", printed)]
    assert len(shares) == 2 and min(shares) > 20  # of 17 frequencies
    with np.load("tumors.npz") as stored:
        assert stored["train"].shape == (455, 30) and abs(stored["train"].mean()) < 1e-5
    for metrics in (names["results"].metrics, names["metrics"]):
        assert metrics["memorization"]["share_of_close_samples"].value < 0.5
    # had the samples been copies of training examples, all of them would be closer
    experiment, data = names["experiment"], names["experiment"].data
    copies = draw.make_draw(experiment, 200)(names["params"], experiment.key(4), 200).x
    copied = experiment._replace(data=data._replace(train=data.train._replace(x=copies)))
    context = names["evaluation"].context(copied, names["params"])
    assert names["memorization"](context).metrics["memorization"]["share_of_close_samples"].value == 1
    assert list(folder.glob("runs/vp_digits/eval/*/metrics.json"))
