"""Densities of a model by the multistep rule, as evaluation computes them: nodes, classes, latents and what is kept."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from scoreflow import configure, divergence
from scoreflow import gaussian as gaussians
from scoreflow.evaluators import density
from scoreflow.evaluators.likelihood import likelihood
from scoreflow.likelihood import nodes, pilot
from scoreflow.metrics import Estimate
from scoreflow.processes import sdes
from scoreflow.runs import parallel
from tests import tiny
from tests.normal import ENTROPY, STD, context_of
from tests.test_latent_training import untrained
from tests.truth import with_score


def test_the_entropy_is_found_in_few_evaluations(gaussian, tmp_path):
    """The data are normal and the score is exact, so that the fewest nodes do, and they leave no error."""
    experiment, evaluation = gaussian
    context = context_of(experiment, evaluation, solver="multistep", num_test=500)._replace(folder=tmp_path)
    metrics = likelihood(context, draws=1, check=60).metrics["likelihood"]
    assert abs(metrics["nats"].value - ENTROPY) < 4 * metrics["nats"].stderr
    assert metrics["likelihood_nfe"] == 8 and abs(metrics["solver_error"].value) < 2e-3
    tight = likelihood(
        context_of(experiment, evaluation, solver="adaptive", rtol=1e-5, atol=1e-5, num_test=500), draws=1, check=1
    )
    apart = metrics["nats"].value - tight.metrics["likelihood"]["nats"].value
    assert abs(apart) < 0.1 * metrics["nats"].stderr
    assert metrics["pilot_nfe"] == (3 * 49 * 32 + (97 + 2 * 8) * 120) / 500


def test_nodes_are_measured_on_more_examples_than_chose_them(gaussian):
    for size, measured in ((32, 120), (100, 200)):
        _, chosen = density.choose(context_of(*gaussian, solver="multistep", num_test=100, pilot=size))
        assert chosen.pilot == 3 * 49 * size + (97 + 2 * 8) * measured  # twice 8 nodes, of order 2 and 3


def test_chosen_nodes_are_kept_and_chosen_again_where_they_are_damaged(gaussian, tmp_path, monkeypatch, capfd):
    experiment, evaluation = gaussian
    context = context_of(experiment, evaluation, solver="multistep", num_test=100)._replace(folder=tmp_path)
    x, keys = np.asarray(experiment.data.test.x[:8]), jax.random.split(jax.random.key(0), 8)
    first = density.make_log_prob(context).solve("first", keys, x)
    choose, file = density._choose, tmp_path / "nodes.npz"
    monkeypatch.setattr(density, "_choose", lambda *args: pytest.fail("chosen again"))
    np.testing.assert_array_equal(density.make_log_prob(context).solve("second", keys, x).logp, first.logp)
    times = []
    monkeypatch.setattr(density, "_choose", lambda *args: times.append(0) or choose(*args))
    whole = dict(np.load(file))
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(density.make_log_prob(context).solve("third", keys, x).logp, first.logp)
    assert "nodes.npz is damaged: it is made again" in "".join(capfd.readouterr()) and len(times) == 1
    np.savez(file, **{name: value for name, value in whole.items() if name != "t"})
    density.make_log_prob(context)
    np.savez(file, **whole | {"version": 0})  # of another version
    density.make_log_prob(context)
    assert len(times) == 3


def test_several_processes_keep_no_choice_in_one_file(gaussian, tmp_path, monkeypatch):
    """Each chooses for itself, the first one, too."""
    monkeypatch.setattr(density.parallel, "processes", lambda: (0, 2))
    context = context_of(*gaussian)._replace(folder=tmp_path)
    made = density._kept(context, "nodes", density.Chosen, lambda: "chosen")
    assert made == "chosen" and not list(tmp_path.iterdir())


def test_where_no_nodes_are_good_enough_it_is_said(gaussian, capfd, monkeypatch):
    experiment, evaluation = gaussian
    monkeypatch.setattr(nodes, "COUNTS", (8, 12))
    monkeypatch.setattr(pilot, "mean_estimate", lambda values: Estimate(9.0, 9.0))
    context = context_of(experiment, evaluation, solver="multistep", num_test=100)
    x, keys = np.asarray(experiment.data.test.x[:8]), jax.random.split(jax.random.key(0), 8)
    assert set(density.make_log_prob(context).solve("any", keys, x).nfe.tolist()) == {nodes.PILOT}
    assert "12 nodes miss the error asked for, on 120 training examples; 49 are used" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"solver": "multistep", "rtol": 1e-5, "clock": "log_snr"},
            "eval.rtol = 1e-05, eval.clock = log_snr; .*adaptive",
        ),
        ({"solver": "adaptive", "error": 0.02}, "eval.error = 0.02; .*multistep"),
        ({"solver": "adaptive", "rtol": 1e-2}, None),
    ],
)
def test_settings_of_the_other_solver_are_named(gaussian, options, words, capfd, monkeypatch):
    experiment, evaluation = gaussian
    for name in ("_adaptive", "_multistep"):
        monkeypatch.setattr(density, name, lambda context: None)
    density.make_log_prob(context_of(experiment, evaluation, **options))
    said = capfd.readouterr().err
    assert said == "" if words is None else re.search(f"not used: {words}", said)


def test_with_labels_each_class_is_exact_in_few_evaluations(tmp_path):
    """Two classes with means and spreads of their own and the exact score of each: their Gaussians leave nothing."""
    means, spread = jnp.asarray([[-1.0, 0.5], [2.0, 0.0]]), jnp.asarray([0.3, 0.8])
    label = np.arange(3000) % 2
    x = means[label] + spread[label, None] * np.random.default_rng(0).standard_normal((3000, 2)).astype(np.float32)
    np.savez(tmp_path / "own.npz", train=x[:2000], train_label=label[:2000], test=x[2000:], test_label=label[2000:])
    config = tiny.digits(
        data__name="arrays", data__path=str(tmp_path / "own.npz"), data__conditional=True, eval__solver="multistep",
        eval__divergence="exact", eval__batch_size=500, eval__num_test=500,
    )  # fmt: skip
    experiment = configure.experiment(config, "own")
    process = experiment.model.process

    def score(x, t, cond=None):
        alpha, variance = sdes.expand(process.alpha(t), x), sdes.expand(process.variance(t), x)
        return -(x - alpha * means[cond]) / (alpha**2 * sdes.expand(spread[cond], x) ** 2 + variance)

    context = context_of(with_score(experiment, score), configure.evaluation(config, tmp_path))
    metrics = likelihood(context, draws=1, check=60).metrics["likelihood"]
    entropy = np.log(2 * np.pi * np.e) + 2 * np.log(np.asarray(spread)).mean()  # given the class
    assert metrics["likelihood_nfe"] == 8 and abs(metrics["solver_error"].value) < 2e-3
    assert metrics["nats"].value == pytest.approx(entropy, abs=4 * metrics["nats"].stderr)


@pytest.mark.slow
@jax.numpy_rank_promotion("allow")
def test_latents_have_the_density_that_the_adaptive_solver_finds(tmp_path):
    experiment, params, _ = untrained("digits_latent", "levels_1")
    found = {}
    for solver in ("adaptive", "multistep"):
        evaluation = configure.evaluation(tiny.digits(), tmp_path)
        options = {"solver": solver, "num_test": 40, "rtol": 1e-5, "atol": 1e-5, "error": 0.02}
        evaluation = evaluation._replace(options=evaluation.options._replace(**options, dequantization=""))
        found[solver] = likelihood(evaluation.context(experiment, params), draws=1, check=20).metrics["likelihood"]
    one, other = (found[solver]["bits_per_dim"] for solver in ("adaptive", "multistep"))
    assert abs(one.value - other.value) < 0.1 * one.stderr
    assert found["multistep"]["likelihood_nfe"] < found["adaptive"]["likelihood_nfe"]


def test_of_many_dimensions_a_few_directions_are_kept(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 12)) * np.arange(12, 0, -1)
    rows = lambda: iter([(x, None)])
    monkeypatch.setattr(gaussians, "FULL", 12)
    assert gaussians.fit(rows, 12).basis.shape == (12, 12)
    monkeypatch.setattr(gaussians, "FULL", 11)
    monkeypatch.setattr(gaussians, "RANK", 3)
    few = gaussians.fit(rows, 12)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    np.testing.assert_allclose(few.variances[0], values[:3], rtol=1e-3)
    assert float(few.rest[0]) == pytest.approx(values[3:].mean(), rel=1e-3)


def test_the_probe_has_less_noise_than_on_the_whole_trace(gaussian):
    """Of correlated normal data with the exact score nothing is left to it; the axes are turned here."""
    experiment, evaluation = gaussian
    turn = np.asarray([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]], np.float32)
    process, covariance = experiment.model.process, turn @ np.diag(STD**2).astype(np.float32) @ turn.T

    def score(x, t, cond=None):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        return -jnp.linalg.solve(alpha**2 * covariance[None] + variance * jnp.eye(2)[None], x[..., None])[..., 0]

    data = experiment.data
    train, test = (split._replace(x=split.x @ turn.T) for split in (data.train, data.test))
    model = with_score(experiment._replace(data=data._replace(train=train, test=test)), score)
    noise = {}
    for solver in ("adaptive", "multistep"):
        context = context_of(model, evaluation, solver=solver, num_test=100, divergence=divergence.hutchinson)
        solve, examples = density.make_log_prob(context).solve, context.examples()
        draws = [
            solve(f"{i}", jax.random.split(jax.random.key(i), 100), examples.x, examples.cond).logp for i in range(6)
        ]
        noise[solver] = np.std(draws, axis=0).mean()
    assert noise["multistep"] < 0.1 * noise["adaptive"]


@pytest.mark.slow
@jax.numpy_rank_promotion("allow")
def test_densities_of_a_bfloat16_network_are_those_in_float32(tmp_path):
    scored = {}
    for dtype in ("float32", "bfloat16"):
        model = {"name": "unet", "channels": 8, "multipliers": (1,), "dtype": dtype}
        config = tiny.digits(model=model, eval__draws=1, eval__solver="multistep", eval__pilot=2)
        experiment = configure.experiment(config, "tiny")
        params = experiment.model.init(jax.random.key(0), experiment.space.shape)
        params = jax.tree.map(lambda leaf: leaf + 0.02, params)
        scored[dtype] = likelihood(configure.evaluation(config, tmp_path).context(experiment, params), draws=1, check=2)
    one, other = (scored[dtype].metrics["likelihood"]["bits_per_dim"] for dtype in scored)
    assert one == other
    said = {dtype: any("in float32" in note for note in scored[dtype].tables[0].notes) for dtype in scored}
    assert said == {"float32": False, "bfloat16": True}


def test_densities_do_not_depend_on_the_order_the_batch_or_the_number_of_devices(gaussian, monkeypatch):
    experiment, evaluation = gaussian
    context = context_of(experiment, evaluation, solver="multistep", num_test=100)
    small = context._replace(options=context.options._replace(batch_size=4))
    chosen = density.choose(context)
    for one, other in zip(chosen[1], density.choose(small)[1]):  # the pilot measures as many examples, and so chooses
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(density, "choose", lambda *args: chosen)
    x, keys = np.asarray(experiment.data.test.x[:12]), jax.random.split(jax.random.key(0), 12)
    order = np.random.default_rng(0).permutation(12)
    first = density.make_log_prob(context).solve("first", keys, x).logp
    np.testing.assert_allclose(
        density.make_log_prob(context).solve("order", keys[order], x[order]).logp, first[order], rtol=1e-5
    )
    np.testing.assert_allclose(density.make_log_prob(small).solve("small", keys, x).logp, first, rtol=1e-5)
    monkeypatch.setattr(parallel, "mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
    np.testing.assert_allclose(density.make_log_prob(context).solve("one", keys, x).logp, first, rtol=1e-5)
