"""The learned dequantization: a change of variables, uniform before training, a bound on the discrete model after."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import logistic

from scoreflow import configure, dequantise, train
from scoreflow.evaluate import evaluate
from scoreflow.experiment import INIT
from scoreflow.models import DEQUANTISER, MAIN, dequantiser
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs.errors import UserError
from scoreflow.step import init_state
from tests import tiny


@pytest.fixture(autouse=True, scope="module")
def ranks():
    """Flax adds a bias [D] to [B, D]."""
    with jax.numpy_rank_promotion("allow"):
        yield


MODULE = dequantiser.DequantisingFlow(couplings=2, channels=8, blocks=1, components=3, context=4)
FLOW = dequantiser.dequantiser(MODULE)


def perturbed(params, scale):
    """Parameters away from the start."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return tree.unflatten([leaf + scale * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)])


def test_logistic_mixtures_against_scipy(x64):
    z, logits = jnp.linspace(-40, 40, 9), jnp.array([0.3, -1.0])
    means, scales, weights = np.array([-1.0, 2.0]), np.array([0.5, 3.0]), np.asarray(jax.nn.softmax(logits))
    wide = lambda row: jnp.broadcast_to(jnp.asarray(row), (9, 2))
    logit, log_slope = dequantiser.logistic_mixture(z, wide(logits), wide(means), wide(np.log(scales)))
    cdf, rest, pdf = (
        (weights * rule(np.asarray(z)[:, None], means, scales)).sum(1)
        for rule in (logistic.cdf, logistic.sf, logistic.pdf)
    )
    np.testing.assert_allclose(logit, np.log(cdf) - np.log(rest), rtol=1e-10)
    np.testing.assert_allclose(log_slope, np.log(pdf / cdf / rest), rtol=1e-9, atol=1e-12)


def test_a_flow_begins_as_uniform_dequantization():
    image = jax.random.randint(jax.random.key(0), (50, 4, 4, 1), 0, 17).astype(jnp.uint8)
    params = FLOW.init(jax.random.key(1), image.shape)
    bins = dequantise.Bins(17)
    point = dequantise.variational(jax.random.key(2), image, bins, flow=functools.partial(FLOW.apply, params))
    np.testing.assert_allclose(point.log_q, 0.0, atol=1e-4)
    np.testing.assert_array_equal(dequantise.quantise(point.x, bins), image)
    place = np.sort(np.asarray((point.x + 1) / bins.size % 1).ravel())
    assert np.abs(place - (np.arange(800) + 0.5) / 800).max() < 1.63 / np.sqrt(800)  # Kolmogorov, 1 in 100


@pytest.mark.slow
def test_the_density_is_that_of_the_change_of_variables(x64):
    """log q(noise) = log-density of z - log |det d noise / d z|, the Jacobian by automatic differentiation."""
    image = jax.random.uniform(jax.random.key(0), (1, 2, 4, 1), minval=-1.0)
    params = perturbed(FLOW.init(jax.random.key(1), image.shape), 0.1)
    z = jax.random.logistic(jax.random.key(2), image.shape)
    run = lambda z: MODULE.apply({"params": params}, z, image)
    jacobian = jax.jacfwd(lambda z: run(z)[0].ravel())(z).reshape(8, 8)
    wanted = logistic.logpdf(np.asarray(z)).sum() - np.linalg.slogdet(jacobian)[1]
    noise, log_density = run(z)
    np.testing.assert_allclose(log_density[0], wanted, rtol=1e-9)
    assert ((noise > 0) & (noise < 1)).all() and abs(wanted) > 0.1


@pytest.mark.slow
def test_the_noise_fills_the_bin_with_mass_one(x64):
    """E[1 / q] over the noise is the volume of its support, 1: with a density of another size it would not be."""
    image = jnp.full((20_000, 2, 2, 1), 0.3)
    params = perturbed(FLOW.init(jax.random.key(1), image.shape), 0.05)
    _, log_q = FLOW.apply(params, jax.random.key(3), image)
    values = np.exp(-np.asarray(log_q))
    assert abs(values.mean() - 1) < 4 * values.std() / np.sqrt(len(values)) and values.std() > 0.05


# ----------------------------------------------------------------------------------------------------------------------
# The command.

SMALL = {"name": "couplings", "couplings": 2, "channels": 4, "blocks": 1, "components": 2, "context": 4, "num_heads": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny score model."""
    folder = tmp_path_factory.mktemp("score")
    config = tiny.digits()
    experiment = configure.experiment(config, "score")
    train.train(experiment, configure.train_options(config, experiment), folder)
    return folder


def on_top(folder, **changes):
    config = tiny.digits(dequantizer=SMALL, init_from=str(folder), eval__dequantization="variational", **changes)
    return config, configure.experiment(config, "flow")


@pytest.mark.slow
def test_training_moves_the_flow_alone_and_evaluation_uses_it(trained, tmp_path):
    config, experiment = on_top(trained, training__optimizer="adamw", training__weight_decay=0.5)
    options = configure.train_options(config, experiment)
    train.train(experiment, options, tmp_path)
    fresh = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    state = checkpoint.restore(workdir.checkpoints(tmp_path), 8, fresh)
    before = workdir.averaged(trained, 8, fresh.params[MAIN])
    jax.tree.map(np.testing.assert_array_equal, state.params[MAIN], before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.ema_params[MAIN], before)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params[DEQUANTISER], fresh.params[DEQUANTISER])
    assert any(jax.tree.leaves(moved))
    metrics = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path)
    assert np.isfinite(metrics["likelihood"]["bits_per_dim"].value)
    # training goes on from a checkpoint of its own, not from the score model again
    train.train(experiment, options._replace(steps=12), tmp_path)
    assert checkpoint.latest(workdir.checkpoints(tmp_path)) == 12


@pytest.mark.slow
def test_a_flow_on_a_score_model_of_another_process_is_refused(trained, tmp_path):
    config, experiment = on_top(trained, process__beta_max=10.0)
    with pytest.raises(UserError, match="was trained with process.beta_max = 20.0, not 10.0"):
        train.train(experiment, configure.train_options(config, experiment), tmp_path)


@pytest.mark.slow
def test_a_trained_flow_comes_closer_to_the_discrete_model(tmp_path):
    """Images of two pixels whose continuous model is N(0, 0.2^2) each, four levels: the cost of uniform noise is known
    by quadrature, that of the best noise is the discrete model's own entropy, and a trained flow gets most of the way.
    """
    levels, std = 4, 0.2
    bins = dequantise.Bins(levels)
    edges = bins.low + bins.size * np.arange(levels + 1)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    normal = lambda x: -0.5 * (x / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    u = 0.5 * (nodes + 1)
    inside = edges[:-1, None] + bins.size * u
    mass = 0.5 * bins.size * (weights * np.exp(normal(inside))).sum(1)
    best = -np.log2(mass)
    uniform = -(0.5 * weights * normal(inside)).sum(1) / np.log(2) - np.log2(bins.size)
    image = np.random.default_rng(0).choice(levels, (1000, 1, 2, 1), p=mass / mass.sum()).astype(np.uint8)
    gap = float(np.mean(uniform[image] - best[image]))
    module = dequantiser.dequantiser(dequantiser.DequantisingFlow(2, 16, 1, 4, 0, 8))
    params, optimizer = module.init(jax.random.key(0), image.shape), optax.adam(3e-3)

    def bits(params, key):
        x, log_q = dequantise.variational(key, image, bins, flow=functools.partial(module.apply, params))
        log_p = (-0.5 * (x / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))).reshape(len(x), -1).sum(1)
        return dequantise.bits_per_dim(log_p, log_q, 2, bins)

    @jax.jit
    def step(params, state, key):
        grads = jax.grad(lambda params: bits(params, key).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    first = np.asarray(bits(params, jax.random.key(1)))
    assert abs(first.mean() - uniform[image].mean()) < 4 * first.std() / np.sqrt(len(first))
    for i in range(200):
        params, state = step(params, state, jax.random.fold_in(jax.random.key(2), i))
    last = np.asarray(bits(params, jax.random.key(3)) - best[image].reshape(1000, 2).mean(1))
    error = last.std() / np.sqrt(len(last))
    assert -4 * error < last.mean() < 0.2 * gap, (last.mean(), error, gap)
