"""Glow as a terminal distribution: published sizes, inverse, determinant and normalization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scoreflow.models import glow
from scoreflow.processes import sdes
from scoreflow.terminal import families
from scoreflow.terminal.flow import Flow


@pytest.mark.parametrize(
    "shape, resolutions, steps, width, wanted",
    [
        ((32, 32, 3), 3, 32, 512, 44_703_060), ((64, 64, 3), 4, 32, 512, 75_431_940), ((32, 32, 3), 3, 8, 128, 1_739_796),
        ((28, 28, 1), 2, 16, 256, 2_875_044), ((28, 28, 1), 2, 8, 64, 167_012),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_published_sizes_of_the_flow(shape, resolutions, steps, width, wanted):
    module = glow.Glow(resolutions, steps, width)
    with jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape))))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == wanted


def small_flow(shape=(8, 8, 2), resolutions=2, steps=2, width=16, noise=0.05, batch=4):
    """A flow whose parameters were moved off where it begins, and points."""
    module = glow.Glow(resolutions, steps, width)
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    params = module.init(jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(params["params"])
    moved = [
        leaf + noise * jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)
    ]
    return module, {**params, "params": tree.unflatten(moved)}, x


@pytest.mark.slow
def test_the_flow_inverts_and_knows_its_determinant(x64):
    with jax.numpy_rank_promotion("allow"):
        module, params, x = small_flow()
        noise, log_det = jax.jit(module.apply)(params, x)
        back, log_det_back = jax.jit(functools.partial(module.apply, method=glow.Glow.invert))(params, noise)
        np.testing.assert_allclose(back, x, atol=1e-9)
        np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-9)
        assert [part.shape for part in noise] == module.shapes(x.shape)

        def flat(x):
            return jnp.concatenate([part.ravel() for part in module.apply(params, x.reshape(1, 8, 8, 2))[0]])

        jacobian = jax.jit(jax.jacobian(flat))(x[0].ravel())
        assert np.linalg.slogdet(jacobian)[1] == pytest.approx(float(log_det[0]), abs=1e-8)


@pytest.mark.slow
def test_density_of_the_flow_where_it_begins():
    """All actnorms at 0: log p(0) = -d/2 log 2 pi + log sigmoid(2) K sum_l c_l / 2 h_l w_l, for any width."""
    module = glow.Glow(3, 2, 4)
    with jax.numpy_rank_promotion("allow"):
        params = module.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (2, 32, 32, 3)))
        flat = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if "ActNorm" in str(path) else leaf, params["params"]
        )
        forward = lambda p, y: module.apply(p, y)
        distribution = Flow({**params, "params": flat}, 0.0, 1.0, forward, forward, module.shapes)
        assert float(distribution.log_prob(jnp.zeros((1, 32, 32, 3)))[0]) == pytest.approx(-3505.344, abs=2e-2)


@pytest.mark.slow
def test_density_of_a_scaled_flow_integrates_to_one(x64):
    """Importance sampling of an image of 2 x 2: E[p(x) / q(x)] = 1 under a wider Gaussian q."""
    with jax.numpy_rank_promotion("allow"):
        module, params, _ = small_flow((2, 2, 1), resolutions=1, steps=2, width=4)
        forward, inverse = (lambda p, y: module.apply(p, y)), (lambda p, z: module.apply(p, z, method=glow.Glow.invert))
        distribution = Flow(params, 3.0, 0.5, forward, inverse, module.shapes)
        draws = distribution.sample(jax.random.key(0), (20_000, 2, 2, 1))
        flat = np.asarray(draws).reshape(-1, 4)
        wide = multivariate_normal(flat.mean(0), 2.0 * np.cov(flat.T))
        x = wide.rvs(40_000, random_state=0)
        ratio = np.exp(np.asarray(distribution.log_prob(jnp.asarray(x.reshape(-1, 2, 2, 1)))) - wide.logpdf(x))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(x))


def test_a_flow_s_scale_is_that_of_the_data_at_the_horizon():
    process = sdes.vp_linear(horizon=0.5)
    x = np.random.default_rng(0).normal(3.0, 1.7, (64, 4, 4, 1)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        family = families.glow(resolutions=1, steps=1, width=4)
        params = family.fit(jax.random.key(0), lambda key: x, process)
    alpha, variance = float(process.alpha(0.5)), float(process.variance(0.5))
    assert float(params["mean"]) == pytest.approx(alpha * x.mean(), rel=1e-5)
    assert float(params["std"]) == pytest.approx(np.sqrt(alpha**2 * x.var() + variance), rel=1e-5)


def test_a_flow_that_changes_nothing_is_a_normal():
    identity = lambda params, y: ([y[:, :1], y[:, 1:]], jnp.zeros(len(y)))
    flow = Flow(None, 3.0, 0.5, identity, identity, lambda shape: [])
    x = np.random.default_rng(1).normal(3.0, 0.5, (6, 4))
    wanted = multivariate_normal(np.full(4, 3.0), 0.25 * np.eye(4)).logpdf(x)
    np.testing.assert_allclose(flow.log_prob(jnp.asarray(x, jnp.float32)), wanted, rtol=1e-4)


def test_squeeze_and_the_first_batch():
    """Squeeze: channel slowest, as published; after the first batch every channel is standard."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 6, 2))
    np.testing.assert_array_equal(glow.unsqueeze(glow.squeeze(x)), x)
    np.testing.assert_array_equal(glow.squeeze(x)[0, 1, 2, 4:8], x[0, 2:4, 4:6, 1].ravel())
    norm = glow.ActNorm()
    y = 3.0 + 2.0 * x
    (out, _), _ = norm.init_with_output(jax.random.key(0), y)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1.0, atol=1e-5)
