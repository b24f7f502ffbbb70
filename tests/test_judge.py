"""Metrics and plans of arrays, without a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

import scoreflow
from scoreflow import configure, data, planner
from scoreflow.data import DataError
from scoreflow.evaluators import features
from scoreflow.processes import sdes
from tests import tiny


def frechet(x, y):
    """By the textbook's formula, with SciPy's matrix root."""
    (a, b), (s, t) = (x.mean(0), y.mean(0)), (np.cov(x.T), np.cov(y.T))
    return np.sum((a - b) ** 2) + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))


@pytest.mark.parametrize("own", [False, True])
def test_the_frechet_distance_is_the_textbooks(own):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 4)), rng.normal(size=(500, 4)) * [1.0, 0.5, 1.0, 2.0] + 0.3
    vectors = (lambda x: np.tanh(x @ np.arange(8.0).reshape(4, 2) / 5)) if own else None
    measured = scoreflow.sample_quality(x, y, **({"features": vectors} if own else {}))
    expected = frechet(vectors(x), vectors(y)) if own else frechet(x, y)
    assert measured["frechet"].value == pytest.approx(expected, rel=1e-6)
    assert measured["frechet"].stderr > 0


def test_images_of_integers_are_judged_as_by_the_evaluation(tmp_path):
    rng = np.random.default_rng(1)
    x, y = (rng.integers(0, 256, (300, 3, 3, 1), np.uint8) for _ in range(2))
    measured = scoreflow.sample_quality(x, y, neighbors=5)
    held = data.Dataset("own", data.Split(y), data.Split(y), 256)
    extract = features.extractor("pixels", held, tmp_path, tmp_path)
    target = features.target("pixels", extract, held, tmp_path)
    expected = features.quality(features.collect(extract, x, target.gaussian.mean), target, 5, extract.score)
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-6)
    assert measured["recall"].value > 0.5


def test_samples_from_the_data_are_near_them():
    x = np.random.default_rng(2).normal(size=(2000, 2))
    measured = scoreflow.sample_quality(x[:1000], x[1000:])
    assert measured["frechet"].value < 0.02 and measured["precision"].value > 0.8 and measured["recall"].value > 0.8


def test_what_cannot_be_compared_is_refused(monkeypatch, tmp_path):
    x = np.zeros((10, 4))
    with pytest.raises(ValueError, match="same shape"):
        scoreflow.sample_quality(x, np.zeros((10, 5)))
    with pytest.raises(ValueError, match="uint8"):
        scoreflow.sample_quality(x, x.astype(np.uint8))
    with pytest.raises(ValueError, match="needs uint8 images"):
        scoreflow.sample_quality(x, x, features="inception")
    with pytest.raises(ValueError, match="'faces' must be"):
        scoreflow.sample_quality(x, x, features="faces")
    monkeypatch.setenv("SCOREFLOW_DATA", str(tmp_path))
    images = np.zeros((10, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="put it at"):
        scoreflow.sample_quality(images, images, features="inception")


@pytest.mark.slow
def test_a_plan_of_arrays_is_that_of_a_run(tmp_path, capsys):
    x = (np.random.default_rng(0).normal(size=(400, 2)) * [1.0, 0.4]).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    config = tiny.digits(data={"name": "arrays", "path": str(tmp_path / "x.npy")})
    experiment = configure.experiment(config, "plane")
    others, process = {"edm": sdes.edm()}, experiment.model.process
    options = planner.PlannerOptions(accuracy=0.2, configured="yours", others=others)
    rows = planner.plan(experiment, options, tmp_path)
    said = capsys.readouterr().out
    made = scoreflow.plan(experiment.data.train.x[:10_000], process, accuracy=0.2, others=others)
    for row, expected in zip(made.rows, rows, strict=True):
        assert row.name == expected.name and row.horizon == pytest.approx(expected.horizon, rel=1e-9)
        for grid, needed in row.grids.items():
            assert needed.steps == expected.grids[grid].steps and needed.promised == expected.grids[grid].promised
    assert "recommended: " in str(made)
    assert str(made).splitlines()[2:] == said.splitlines()[2 + said.startswith("planning") : -1]


def test_a_plan_needs_floats_that_differ():
    with pytest.raises(TypeError, match="must be float"):
        scoreflow.plan(np.zeros((5, 2), np.uint8), scoreflow.vp_linear())
    with pytest.raises(ValueError, match="all 5 training examples are the same"):
        scoreflow.plan(np.zeros((5, 2)), scoreflow.vp_linear())


def test_batches_visit_every_example_once_in_an_epoch():
    x, label = np.arange(60).reshape(20, 3), np.arange(20)
    batches = scoreflow.batches(x, label, size=5, steps=8, seed=3)
    assert len(batches) == 8
    rows = list(batches)
    for epoch in (rows[:4], rows[4:]):
        labels = np.concatenate([batch["label"] for batch in epoch])
        assert sorted(labels) == list(range(20))
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in epoch]), x[labels])
    for i, batch in enumerate(scoreflow.batches(x, size=5, steps=2, seed=3)):
        np.testing.assert_array_equal(batch["x"], data.batch(data.Split(x), 3, i, 5)["x"])
    with pytest.raises(ValueError, match="there must be examples"):
        scoreflow.batches(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="labels must be"):
        scoreflow.batches(x, np.zeros(19, int))


def test_batches_go_into_fit_with_their_length():
    import optax

    x = np.random.default_rng(0).normal(2.0, 1.0, (500, 2)).astype(np.float32)

    def objective(params, key, batch, *, train, step=None):
        loss = jnp.mean((batch["x"] - params[None]) ** 2)
        return loss, {"square": loss}

    batches = scoreflow.batches(x, size=64, steps=400)
    state = scoreflow.fit(objective, jnp.zeros(2), optax.adam(0.05), batches, key=jax.random.key(0), ema_decay=0.9)
    np.testing.assert_allclose(state.ema_params, x.mean(0), atol=0.15)
