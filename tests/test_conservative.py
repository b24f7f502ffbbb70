"""Asymmetry of Jacobians, its estimators and its penalty, against matrices whose answer is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, divergence, models
from scoreflow import score as scores
from scoreflow.evaluators.symmetry import symmetry_metrics
from scoreflow.likelihood import diagnostics
from scoreflow.models import mlp as mlp_model
from scoreflow.objectives import conservative, dsm
from scoreflow.processes import sdes
from tests import tiny
from tests.truth import process64, with_score

FORMS = {"a1": divergence.a1, "a2": divergence.a2, "b": divergence.b}
PROBES = {"rademacher": divergence.rademacher, "gaussian": divergence.gaussian, "sphere": divergence.sphere}
SKEW = np.array([[1.0, 2.0], [-0.5, 4.0]])
SEVEN = np.random.default_rng(7).standard_normal((4, 4))
RANDOM_FIELD = np.random.default_rng(1).standard_normal((3, 6, 6)) / 2


def linear(matrix):
    return lambda x: x @ jnp.asarray(matrix, x.dtype).T


def mlp(x):
    """A field on R^6 that is not a gradient."""
    w1, w2, w3 = (jnp.asarray(w, x.dtype) for w in RANDOM_FIELD)
    return jnp.tanh(jnp.sin(x @ w1) @ w2) @ w3


def gradient_field(x):
    """Minus the gradient of an energy of R^6."""
    return -jax.grad(lambda x: jnp.sum(mlp(x) ** 2))(x)


def signs(d):
    return jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=d)))


def every_probe(fn, x, form):
    """The estimate along each sign vector at one x [d], [2^d]."""
    v = signs(len(x))
    return divergence.asymmetry(fn, jnp.broadcast_to(x, v.shape), v[None], form=form).asym


@pytest.mark.parametrize(
    "matrix, asym, share",
    [
        (SKEW, 6.25, 0.1470588),
        (np.array([[0.3, -0.7], [0.7, 0.3]]), 4 * 0.49, 0.49 / 0.58),
        (np.kron(np.eye(3), np.array([[0.3, -0.7], [0.7, 0.3]])), 2 * 6 * 0.49, 0.49 / 0.58),
        (np.array([[-1.0, 0.1], [-0.1, -101.0]]), 0.04, None),
        (SEVEN, 7.3755656, None),
    ],
)
def test_asymmetry_of_a_matrix(x64, matrix, asym, share):
    """|M|^2 - tr M^2, and as a share of |J|^2 |A|^2 / (|S|^2 + |A|^2); each form has that mean over all signs."""
    x = jnp.ones((2, len(matrix)))
    exact = divergence.asymmetry_exact(linear(matrix), x)
    np.testing.assert_allclose(exact.value, x @ matrix.T)
    np.testing.assert_allclose(exact.asym, asym, rtol=1e-7)
    np.testing.assert_allclose(exact.asym, (matrix**2).sum() - np.trace(matrix @ matrix), rtol=1e-10)
    np.testing.assert_allclose(exact.size, (matrix**2).sum())
    if share is not None:
        np.testing.assert_allclose(0.5 * exact.asym / exact.size, share, rtol=1e-6)
    for form in FORMS.values():
        assert float(every_probe(linear(matrix), x[0], form).mean()) == pytest.approx(asym, rel=1e-7)


def test_values_of_single_probes(x64):
    """a in {13.75, -1.25} and b = 6.25 for the first matrix; 0.04 -+ 20 against 0.04 near symmetry."""
    values = lambda matrix, form: np.asarray(every_probe(linear(matrix), jnp.ones(2), form))
    np.testing.assert_allclose(np.sort(values(SKEW, divergence.a1)), [-1.25, -1.25, 13.75, 13.75])
    np.testing.assert_allclose(values(SKEW, divergence.b), 6.25)
    near = np.array([[-1.0, 0.1], [-0.1, -101.0]])
    np.testing.assert_allclose(np.sort(values(near, divergence.a1)), [0.04 - 20, 0.04 - 20, 0.04 + 20, 0.04 + 20])
    np.testing.assert_allclose(values(near, divergence.b), 0.04, rtol=1e-9)


# Variances of one probe by its distribution: forms a and b.
VARIANCES = [
    (SKEW, {"rademacher": (56.25, 0.0), "gaussian": (109.375, 39.0625), "sphere": (35.15625, 0.0)}),
    (
        SEVEN,
        {"rademacher": (44.8463, 12.3676), "gaussian": (81.3742, 52.8426), "sphere": (36.1165, 17.0954)},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("matrix, wanted", VARIANCES)
def test_variance_of_a_probe(x64, probe, matrix, wanted):
    n, d = 200_000, len(matrix)
    v = (
        PROBES[probe](jax.random.key(0), (1, n, d), jnp.float64)
        if probe != "sphere"
        else divergence.sphere(jax.random.key(0), (n, d), jnp.float64)[None]
    )
    np.testing.assert_allclose(np.einsum("ni,nj->ij", v[0], v[0]) / n, np.eye(d), atol=5 * 2 / np.sqrt(n))
    for form, variance in zip((divergence.a1, divergence.b), wanted[probe]):
        estimates = np.asarray(divergence.asymmetry(linear(matrix), jnp.ones((n, d)), v, form=form).asym)
        error = np.sqrt(max(np.mean((estimates - estimates.mean()) ** 4) - estimates.var() ** 2, 0) / n)
        assert abs(estimates.var() - variance) < 4 * error + 1e-4 * variance + 1e-9
        assert (
            abs(estimates.mean() - ((matrix**2).sum() - np.trace(matrix @ matrix)))
            < 4 * estimates.std() / np.sqrt(n) + 1e-9
        )


@pytest.mark.slow
def test_more_probes_divide_the_variance(x64):
    n, k = 50_000, 4
    v = divergence.rademacher(jax.random.key(0), (k, n, 4), jnp.float64)
    estimates = np.asarray(divergence.asymmetry(linear(SEVEN), jnp.ones((n, 4)), v).asym)
    assert estimates.var() == pytest.approx(12.3676 / k, rel=0.05)


def test_a1_is_a2_and_differs_from_b_by_a_commutator(x64):
    x = jax.random.normal(jax.random.key(0), (6,))
    first, second, third = (np.asarray(every_probe(mlp, x, form)) for form in FORMS.values())
    np.testing.assert_allclose(first, second, rtol=1e-10, atol=1e-12)
    jacobian = np.asarray(jax.jacobian(lambda x: mlp(x[None])[0])(x))
    symmetric, skew = (jacobian + jacobian.T) / 2, (jacobian - jacobian.T) / 2
    commutator, v = skew @ symmetric - symmetric @ skew, np.asarray(signs(6))
    np.testing.assert_allclose(first - third, np.einsum("ni,ij,nj->n", v, commutator, v), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(divergence.asymmetry_exact(mlp, x[None]).asym, 2 * (skew**2).sum(), rtol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_fields_have_no_asymmetry_along_any_probe(x64, form):
    x = jax.random.normal(jax.random.key(0), (6,))
    size = divergence.asymmetry_exact(gradient_field, x[None]).size[0]
    assert np.abs(every_probe(gradient_field, x, FORMS[form])).max() < 1e-12 * size


def test_nonlinear_field_in_the_mean(x64):
    """s = (-x1 + c x2^3, -x2): Asym 9 c^2 x2^4, whose mean under N(0, I) is 27 c^2."""
    c, n = 0.3, 200_000
    field = lambda x: jnp.stack([-x[:, 0] + c * x[:, 1] ** 3, -x[:, 1]], axis=1)
    x = jax.random.normal(jax.random.key(0), (n, 2))
    asym = np.asarray(divergence.asymmetry_exact(field, x).asym)
    np.testing.assert_allclose(asym, 9 * c**2 * x[:, 1] ** 4, rtol=1e-10)
    assert abs(asym.mean() - 27 * c**2) < 4 * asym.std() / np.sqrt(n)


def test_transformations_that_leave_or_scale_the_asymmetry(x64):
    """k s: k^2 Asym; s + grad phi: the same; rotated coordinates: the same; s(c x): c^2."""
    x = jax.random.normal(jax.random.key(0), (3, 6))
    asym = lambda fn, x=x: np.asarray(divergence.asymmetry_exact(fn, x).asym)
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    np.testing.assert_allclose(asym(lambda x: 3 * mlp(x)), 9 * asym(mlp), rtol=1e-10)
    np.testing.assert_allclose(asym(lambda x: mlp(x) + gradient_field(x)), asym(mlp), rtol=1e-9)
    np.testing.assert_allclose(asym(lambda x: mlp(x @ q) @ q.T, x @ q.T), asym(mlp), rtol=1e-9)
    np.testing.assert_allclose(asym(lambda x: mlp(2 * x), x / 2), 4 * asym(mlp), rtol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_asymmetry_by_the_matrix(x64, form):
    """Per probe 2 v g^T - v u^T - g v^T for a, w v^T - v w^T with w = u - g for b; both average to 2 (M - M^T)."""
    x, total = jnp.ones((1, 4)), 0.0
    for v in np.asarray(signs(4)):
        value = lambda m, v=v: divergence.asymmetry(linear(m), x, jnp.asarray(v)[None, None], form=FORMS[form]).asym[0]
        gradient = jax.grad(value)(jnp.asarray(SEVEN))
        u, g = SEVEN @ v, SEVEN.T @ v
        w = u - g
        wanted = (
            np.outer(w, v) - np.outer(v, w) if form == "b" else 2 * np.outer(v, g) - np.outer(v, u) - np.outer(g, v)
        )
        np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-10)
        total = total + gradient
    np.testing.assert_allclose(total / 16, 2 * (SEVEN - SEVEN.T), rtol=1e-9, atol=1e-10)
    exactly = jax.grad(lambda m: divergence.asymmetry_exact(linear(m), x).asym[0])(jnp.asarray(SEVEN))
    np.testing.assert_allclose(exactly, 2 * (SEVEN - SEVEN.T), rtol=1e-9)


def test_dropout_with_one_mask_is_symmetric():
    """s = dropout(x, 1/2) has a diagonal Jacobian, so b is 0 for any mask that all products share."""
    import flax.linen as nn

    layer, x = nn.Dropout(0.5, deterministic=False), jnp.ones((5, 8))
    for seed in range(3):
        field = lambda x, seed=seed: layer.apply({}, x, rngs={"dropout": jax.random.key(seed)})
        v = divergence.rademacher(jax.random.key(9), (2, 5, 8))
        np.testing.assert_array_equal(divergence.asymmetry(field, x, v).asym, 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# The penalty.


def batch(process, n=6, d=4):
    x0 = jax.random.normal(jax.random.key(0), (n, d))
    return x0, jnp.linspace(0.1, 0.9, n) * process.horizon


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ve", "vp", "sub_vp", "straight"])
def test_the_penalty_is_the_asymmetry_of_the_noise_predictor(x64, name):
    """For s = M x / sigma it is (2 lambda / d) Asym(M) at every time; in all forms, by all probes, on any process."""
    process = process64(name)
    x0, t = batch(process)
    score = lambda x, t, cond=None: linear(SEVEN)(x) / process.sigma(t)[:, None]
    run = lambda **options: conservative.quasi_conservative(
        process, score, jax.random.key(1), x0, t, coefficient=0.3, **options
    )["asym"]
    np.testing.assert_allclose(run(probe=None), 0.6 / 4 * 7.3755656, rtol=1e-7)
    for probe, form in itertools.product(PROBES.values(), FORMS.values()):
        values = np.asarray(run(probe=probe, num=4000, form=form))
        # the largest variance of one probe is 81.4; 24,000 of them
        assert abs(values.mean() - 0.15 * 7.3755656) < 4 * 0.15 * np.sqrt(81.4 / 24_000)


def test_the_penalty_on_a_fraction_of_the_batch_keeps_its_mean(x64):
    process = process64("ve")
    x0, t = batch(process)
    score = lambda x, t, cond=None: linear(SEVEN)(x) / process.sigma(t)[:, None]
    run = functools.partial(conservative.quasi_conservative, process, score, jax.random.key(1), x0, t, probe=None)
    half, whole = run(fraction=0.5)["asym"], run()["asym"]
    np.testing.assert_allclose(half, [*(2 * whole[:3]), 0, 0, 0], rtol=1e-10)


def test_the_penalty_at_every_third_step_is_three_times_as_large(x64):
    process = process64("ve")
    x0, t = batch(process)
    score = lambda x, t, cond=None: linear(SEVEN)(x) / process.sigma(t)[:, None]
    penalty = functools.partial(conservative.quasi_conservative, process, score, jax.random.key(1), x0, t, every=3)
    always = penalty()["asym"]
    run = jax.jit(lambda step: penalty(step=step)["asym"])
    for step, factor in ((0, 3), (1, 0), (2, 0), (3, 3)):
        np.testing.assert_allclose(run(step), factor * always, rtol=1e-12)


def objective_of(**changes):
    experiment = configure.experiment(tiny.digits(model__dropout=0.3, **changes), "penalty")
    with jax.numpy_rank_promotion("allow"):
        params = jax.jit(lambda: experiment.model.network.init(jax.random.key(0), (1, 8, 8, 1)))()
        leaves, tree = jax.tree.flatten(params)  # away from the zeros of its last layer
        params = tree.unflatten(
            [leaf + 0.05 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
        )
    return experiment, params, {"x": experiment.data.train.x[:8]}


@pytest.mark.slow
def test_a_penalty_with_coefficient_zero_is_the_loss_without_it_bit_for_bit():
    plain, params, data = objective_of()
    with jax.numpy_rank_promotion("allow"):
        for loss in ({"name": "first_order"}, {"name": "high_order", "order": 2}):
            plain, _, _ = objective_of(loss=loss)
            zero, _, _ = objective_of(loss=loss, penalty={"name": "quasi_conservative", "coefficient": 0.0})
            run = lambda e: jax.jit(lambda p: e.objective(p, jax.random.key(1), data, train=True)[1])(params)
            without, with_it = run(plain), run(zero)
            assert with_it.pop("asym") == 0
            for name, value in without.items():
                np.testing.assert_array_equal(with_it[name], value)


@pytest.mark.slow
def test_the_penalty_in_training_comes_every_kth_step_with_k_times_the_weight():
    options = {"name": "quasi_conservative", "coefficient": 0.1}
    each, params, data = objective_of(penalty=options)
    third, _, _ = objective_of(penalty={**options, "every": 3})
    with jax.numpy_rank_promotion("allow"):
        run = lambda e: jax.jit(
            lambda step: e.objective(params, jax.random.key(1), data, train=True, step=step)[1]["asym"]
        )
        always, sometimes = run(each), run(third)
        assert float(always(0)) > 0
        np.testing.assert_allclose([sometimes(i) for i in range(4)], [3 * always(0), 0, 0, 3 * always(3)], rtol=1e-5)
        final = third.objective(params, jax.random.key(1), data, train=False)[1]["asym"]
        np.testing.assert_allclose(
            final, each.objective(params, jax.random.key(1), data, train=False)[1]["asym"], rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "v", "edm"])
def test_a_constrained_score_pays_no_penalty(kind):
    penalty = {"name": "quasi_conservative", "coefficient": 1.0}
    free, params, data = objective_of(penalty=penalty, score__prediction=kind)
    bound, _, _ = objective_of(penalty=penalty, score__prediction=kind, score__energy_power=2)
    with jax.numpy_rank_promotion("allow"):
        run = lambda e: float(jax.jit(lambda p: e.objective(p, jax.random.key(1), data, train=True)[1]["asym"])(params))
        assert run(bound) < 1e-6 * run(free)


def test_symmetric_scores_keep_their_gradient(x64):
    """With s = M x / sigma and M symmetric, the exact penalty and that of form b leave the gradient as it is."""
    process = process64("ve")
    x0, t = batch(process)
    symmetric = jnp.asarray(SEVEN + SEVEN.T)

    def total(m, penalty):
        score = lambda x, t, cond=None: linear(m)(x) / process.sigma(t)[:, None]
        terms = dsm.dsm(process, score, jax.random.key(1), x0, t, extra_terms=penalty)
        return sum(term.mean() for term in terms.values())

    plain = jax.grad(total)(symmetric, None)
    for options in ({"probe": None}, {"num": 2}):
        penalty = functools.partial(conservative.quasi_conservative, coefficient=3.0, **options)
        np.testing.assert_allclose(jax.grad(total)(symmetric, penalty), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["a1", "b"])
def test_operations_of_a_step_with_the_penalty(form):
    """In XLA's count at most 3.7 times a step without it: the forward pass is shared (apart they would be 4 or more)."""
    net = models.network(mlp_model.ResidualMLP(width=64, depth=4))
    process, x0, t = sdes.vp_linear(), jnp.zeros((32, 16)), jnp.full(32, 0.5)

    def operations(penalty):
        def loss(params):
            score = scores.score_fn(process, net.apply, params)
            terms = dsm.dsm(process, score, jax.random.key(1), x0, t, extra_terms=penalty)
            return sum(term.mean() for term in terms.values())

        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    with jax.numpy_rank_promotion("allow"):
        params = net.init(jax.random.key(0), x0.shape)
        penalty = functools.partial(conservative.quasi_conservative, form=FORMS[form])
        ratio = operations(penalty) / operations(None)
    assert 2 < ratio < 3.7, ratio


# ----------------------------------------------------------------------------------------------------------------------
# Over time.


@pytest.mark.parametrize("num", [0, 64])
def test_asymmetry_over_time_of_a_linear_score(x64, num):
    """s = M x / sigma^2, VE from 0.1 to 3: the time mean of Asym is Asym(M) times that of sigma^-4, 1345.0568 over
    t = k / 10, weighted times that of sigma^-2, 20.240733; NAsym is 0.1470588 and its legacy estimate 0.0448276."""
    process = sdes.ve_geometric(0.1, 3.0)
    t, n = jnp.arange(10) / 10, 2000
    score = lambda x, t, cond=None: linear(SKEW)(x) / process.variance(t)[:, None]
    curves = jax.jit(lambda: diagnostics.symmetry(process, score, jax.random.key(0), jnp.zeros((n, 2)), t, num=num))()
    # a probe of form b has no variance for a matrix of two rows, and |J|^2 has one that 64 of them leave small
    np.testing.assert_allclose(curves.asym.mean(1), 6.25 * 1345.0568, rtol=1e-6)
    np.testing.assert_allclose(curves.weighted.mean(1), 6.25 * 20.240733, rtol=1e-6)
    bias = 0.0 if num == 0 else 0.01  # of a ratio of means
    assert abs(float(curves.nasym.mean()) - 0.1470588) < 0.1470588 * bias + 1e-6
    legacy = np.asarray(curves.legacy).ravel()
    assert abs(legacy.mean() - 0.0448276) < 4 * legacy.std() / np.sqrt(len(legacy))
    np.testing.assert_allclose(np.unique(legacy.round(6)), [-0.1, 0.189655], atol=1e-6)


@pytest.mark.slow
def test_evaluation_prints_and_draws_the_asymmetry(tmp_path):
    config = tiny.load(tiny.ROOT / "configs" / "vp_checkerboard.py")
    config.eval.update({"num_test": 40, "batch_size": 20})
    experiment = configure.experiment(config, "skew")
    process = experiment.model.process
    score = lambda x, t, cond=None: linear(SKEW)(x) / process.sigma(t)[:, None]
    context = configure.evaluation(config, tmp_path).context(with_score(experiment, score), None)
    metrics, curves = symmetry_metrics(context, 40, 5, 0)
    assert metrics["weighted"].value == pytest.approx(6.25, rel=1e-5)
    assert metrics["nasym"].value == pytest.approx(0.1470588, rel=1e-5)
    np.testing.assert_allclose(curves.t, 1e-5 + (1 - 1e-5) * np.arange(5) / 5)
    np.testing.assert_allclose(curves.values["asym"], 6.25 / process.variance(curves.t), rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# What goes wrong.


def test_cutting_the_inner_product_from_the_gradient_shrinks_a_symmetric_field(x64):
    """With g constant in v.J^T g the mean gradient of `a1` is 2 M - M^T instead of 2 (M - M^T)."""

    def cut(p):
        return divergence.inner(p.g, p.g) - divergence.inner(p.v, p.pull(jax.lax.stop_gradient(p.g)))

    v = signs(4)
    for form, wanted in ((cut, 2 * SEVEN - SEVEN.T), (divergence.a1, 2 * (SEVEN - SEVEN.T))):
        value = lambda m, form=form: jnp.mean(divergence.asymmetry(linear(m), v, v[None], form=form).asym)
        np.testing.assert_allclose(jax.grad(value)(jnp.asarray(SEVEN)), wanted, atol=1e-12)


def test_two_dropout_masks_in_one_estimate_look_like_asymmetry():
    """Dropout of a half has a diagonal Jacobian: 0 with one mask, d on average where u and g see two."""
    d, n = 16, 4000
    x, v = jnp.ones((n, d)), jax.random.rademacher(jax.random.key(0), (n, d), jnp.float32)
    masks = 2.0 * jax.random.bernoulli(jax.random.key(1), 0.5, (2, n, d))
    np.testing.assert_array_equal(divergence.asymmetry(lambda x: masks[0] * x, x, v[None]).asym, 0.0)
    push, pull = (lambda v: masks[0] * v), (lambda v: masks[1] * v)
    estimates = np.asarray(divergence.b(divergence.Products(push, pull, v, pull(v))))
    assert abs(estimates.mean() - d) < 4 * estimates.std() / np.sqrt(n)
