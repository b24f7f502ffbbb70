"""The terms of the ODE's divergence against closed forms: a Gaussian whose score is scaled by k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, divergence, likelihood, terminal
from scoreflow.data import toy
from scoreflow.evaluators import density
from scoreflow.likelihood import diagnostics
from scoreflow.theory import exact
from tests import tiny
from tests.truth import TOY, gaussian_score, process64


def scaled(true, k):
    """k times a score."""
    return lambda x, t, cond=None: k * true(x, t)


def near(values, wanted):
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - wanted) < 4 * error, (np.mean(values), error, wanted)


def variance_of_model(process, k, t):
    """P_t of the ODE model of N(0, 1) under VE with its score scaled by k."""
    spread = lambda t: 1 + process.variance(t)
    return process.prior_std() ** 2 * (spread(t) / spread(process.horizon)) ** k


@pytest.mark.parametrize("probed", [False, True])
def test_the_score_of_the_ode_model(x64, probed):
    """-x / P_t; a linear field has no grad tr, so any probe is exact."""
    process = process64("ve")
    x, t = jnp.array([[0.7, -1.0], [2.0, 0.1], [30.0, 5.0]]), jnp.array([1e-5, 0.3, 0.8])
    score = scaled(gaussian_score(process, 0.0, 1.0), 0.95)
    probe = jnp.ones_like(x) if probed else None
    run = jax.jit(
        lambda x: diagnostics.model_score(process, score, terminal.prior(process), x, t, probe, rtol=1e-9, atol=1e-9)
    )
    found = run(x)
    np.testing.assert_allclose(found.score, -x / variance_of_model(process, 0.95, t)[:, None], rtol=1e-6)
    assert found.ok.all()


def test_the_score_of_the_ode_model_is_the_gradient_of_its_density(x64):
    """On a mixture with a wrong score, against a difference quotient of the likelihood."""
    process = process64("vp")
    score, prior = scaled(TOY.score(process), 0.9), terminal.prior(process)
    x, step = jnp.array([[0.1], [-0.3]]), 1e-4
    density = jax.jit(
        lambda x: (
            likelihood.log_prob(
                process,
                score,
                prior,
                jax.random.key(0),
                x,
                t_min=0.2,
                divergence=divergence.exact,
                rtol=1e-10,
                atol=1e-10,
            ).logp
        )
    )
    slope = (density(x + step) - density(x - step)) / (2 * step)
    found = jax.jit(
        lambda x: diagnostics.model_score(process, score, prior, x, jnp.full(2, 0.2), rtol=1e-9, atol=1e-9)
    )(x)
    np.testing.assert_allclose(found.score[:, 0], slope, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "k, j_sm, j_diff, j_f",
    [(0.95, 0.00978043242, 0.02388006100, 0.1499613556), (0.9, 0.03912172968, 0.08063269359, 0.4617091671)],
)
def test_terms_of_the_divergence(x64, k, j_sm, j_diff, j_f):
    """VE, N(0, 1): (2), (3), (4), and the inequality between them."""
    process = process64("ve")
    true = gaussian_score(process, 0.0, 1.0)
    x0 = jax.random.normal(jax.random.key(0), (4000, 1), jnp.float64)
    run = jax.jit(
        lambda key, x0: diagnostics.kl_terms(
            process, scaled(true, k), terminal.prior(process), key, x0, t_min=1e-9, true_score=true, exact=True
        )
    )
    found = run(jax.random.key(1), x0)
    near(found.j_sm, j_sm)
    near(found.j_diff, j_diff)
    near(found.j_f, j_f)
    assert j_sm + j_diff <= np.sqrt(j_sm * j_f)
    # (6) is (2) with the other score: |S - s|^2 = |S - s1|^2 - 2 (S - s1).(s - s1) + |s - s1|^2
    near(found.j_gap, j_f - 2 * (j_sm + j_diff) + j_sm)


MIXTURE = exact.mixture_log_density(exact.Mixture(*toy.MIXTURES["mixture_1d"]))


def by_quadrature(process, t_min, square):
    """1/2 int g^2 E |square| dt over a fine grid of log-SNR and of x, float64."""
    log_snr = jnp.linspace(process.log_snr(t_min), process.log_snr(process.horizon), 401)
    t = process.inverse_log_snr(log_snr)

    def at(t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = jnp.linspace(-1.4 * alpha - 8 * sigma, 1.6 * alpha + 8 * sigma, 4001)[:, None]
        log_q = jax.vmap(MIXTURE, in_axes=(0, None, None))(x, alpha, sigma)
        value = jnp.exp(log_q) * square(x, jnp.full(len(x), t))
        return 0.5 * sigma**2 * jnp.trapezoid(value, x[:, 0])

    return float(jnp.trapezoid(jax.lax.map(at, t), -log_snr))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, k, kl, j_sm",
    [
        ("vp", 0.95, 0.0788595, 0.0164316),
        ("vp", 0.9, 0.2649399, 0.0657262),
        ("ve", 0.95, 0.0553434, 0.0136114),
        ("ve", 0.9, 0.1909713, 0.0544456),
    ],
)
def test_divergence_of_a_scaled_score_on_the_mixture(x64, name, k, kl, j_sm):
    """J_SM and the divergence of the ODE model at t_min, both by quadrature: the latter is 4 times the former."""
    process, t_min = process64(name), 1e-5
    true = exact.score_of(process, MIXTURE)
    gap = lambda x, t: jnp.sum(((k - 1) * true(x, t)) ** 2, axis=1)
    assert by_quadrature(process, t_min, gap) == pytest.approx(j_sm, rel=1e-4)
    x = jnp.linspace(-1.3, 1.8, 601)[:, None]
    log_q = jax.vmap(MIXTURE, in_axes=(0, None, None))(x, process.alpha(t_min), process.sigma(t_min))
    solve = jax.jit(
        lambda x: likelihood.log_prob(
            process, scaled(true, k), terminal.prior(process), jax.random.key(0), x,
            t_min=t_min, divergence=divergence.exact, rtol=1e-7, atol=1e-7,
        ).logp
    )  # fmt: skip
    found = float(jnp.trapezoid(jnp.exp(log_q) * (log_q - solve(x)), x[:, 0]))
    assert found == pytest.approx(kl, rel=2e-4)


@pytest.mark.slow
def test_de_bruijn(x64):
    """int g^2 E |s1|^2 dt is twice the rise of the entropy: 10.8891196 under VE."""
    process = process64("ve")
    true = exact.score_of(process, MIXTURE)
    found = 2 * by_quadrature(process, 1e-5, lambda x, t: jnp.sum(true(x, t) ** 2, axis=1))
    assert found == pytest.approx(10.8891196, rel=2e-5)


@pytest.mark.slow
def test_probes_leave_no_bias(x64):
    """In the plane, with a score whose Jacobian and third derivatives are not diagonal: the mean over probes of J_F and
    J_gap is what all directions give; a square of one probe's score would not be."""
    process, n = process64("vp"), 4000
    density_of = exact.mixture_log_density(exact.Mixture(*toy.MIXTURES["mixture"]))
    true, prior = exact.score_of(process, density_of), terminal.prior(process)
    turn = jnp.array([[1.0, 0.2], [-0.3, 0.9]])
    wrong = lambda x, t, cond=None: true(x, t) @ turn + 0.1 * jnp.sin(x[:, :1] * x[:, 1:])
    x0 = jnp.asarray(toy.gaussian_mixture(*toy.MIXTURES["mixture"]).sample(np.random.default_rng(0), n))
    options = {"t_min": 1e-2, "true_score": true, "rtol": 1e-4, "atol": 1e-4}
    run = jax.jit(
        lambda key, exactly: diagnostics.kl_terms(process, wrong, prior, key, x0, exact=exactly, **options),
        static_argnums=1,
    )
    key = jax.random.key(0)  # the same times and noise
    whole, probed = run(key, True), run(key, False)
    for name in ("j_diff", "j_f", "j_gap"):
        near(np.asarray(getattr(probed, name) - getattr(whole, name)), 0.0)
    np.testing.assert_allclose(probed.j_sm, whole.j_sm)
    t_noise = np.std(probed.j_gap - whole.j_gap)
    assert t_noise > 0.05 * np.mean(whole.j_gap)  # the probes do matter here


@pytest.mark.slow
def test_evaluation_prints_the_terms_of_the_divergence(tmp_path):
    """`eval.diagnose` on data of known density, with their score times 0.95 in the network's place."""
    config = tiny.load(tiny.ROOT / "configs" / "vp_checkerboard.py")
    config.data.name = "mixture_1d"
    config.eval.update({"diagnose": 2000, "num_test": 2000, "batch_size": 2000, "rtol": 1e-4, "atol": 1e-4})
    experiment = configure.experiment(config, "mixture")
    true = exact.score_of(experiment.model.process, experiment.data.log_density)
    experiment = experiment._replace(score=lambda params, **_: scaled(true, 0.95))
    plan = configure.evaluation(config, tmp_path)
    found = density.diagnostic_metrics(experiment, plan, None)
    assert set(found) == {"j_sm", "j_diff", "j_ode", "j_f", "j_gap", "kl_end", "kl_from_parts"}
    for name, wanted in (("j_sm", 0.0164316), ("kl_from_parts", 0.0788595)):
        assert abs(found[name].value - wanted) < 4 * found[name].stderr < wanted, (name, found[name])
    assert abs(found["kl_end"].value) < 1e-4
    assert found["j_ode"].value == pytest.approx(found["j_sm"].value + found["j_diff"].value, rel=1e-5)
    assert found["j_ode"].value < np.sqrt(found["j_sm"].value * found["j_f"].value)


@pytest.mark.slow
def test_images_have_the_gap_alone(tmp_path):
    config = tiny.digits(eval__diagnose=4, eval__num_test=8, eval__batch_size=4)
    experiment = configure.experiment(config, "digits")
    # the exact score of N(0, c^2) is that of its own ODE model but for the start, so that the gap is nearly 0
    experiment = experiment._replace(score=lambda params, **_: gaussian_score(experiment.model.process, 0.0, 0.6))
    plan = configure.evaluation(config, tmp_path)
    found = density.diagnostic_metrics(experiment, plan._replace(rtol=1e-5, atol=1e-5), None)
    assert set(found) == {"j_gap"} and abs(found["j_gap"].value) < 1e-4
