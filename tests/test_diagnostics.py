"""The terms of the ODE's divergence against closed forms: a Gaussian whose score is scaled by k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, divergence, likelihood, terminal
from scoreflow.data import toy
from scoreflow.evaluate import measure
from scoreflow.evaluators.divergence import divergence_metrics
from scoreflow.likelihood import diagnostics
from scoreflow.theory import exact
from tests import tiny
from tests.truth import TOY, gaussian_score, process64, with_score


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
    of_model = run(x)
    np.testing.assert_allclose(of_model.score, -x / variance_of_model(process, 0.95, t)[:, None], rtol=1e-6)
    assert of_model.ok.all()


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
    of_model = jax.jit(
        lambda x: diagnostics.model_score(process, score, prior, x, jnp.full(2, 0.2), rtol=1e-9, atol=1e-9)
    )(x)
    np.testing.assert_allclose(of_model.score[:, 0], slope, rtol=1e-5)


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
    terms = run(jax.random.key(1), x0)
    near(terms.j_sm, j_sm)
    near(terms.j_diff, j_diff)
    near(terms.j_f, j_f)
    assert j_sm + j_diff <= np.sqrt(j_sm * j_f)
    # (6) is (2) with the other score: |S - s|^2 = |S - s1|^2 - 2 (S - s1).(s - s1) + |s - s1|^2
    near(terms.j_gap, j_f - 2 * (j_sm + j_diff) + j_sm)


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
    divergence_of_model = float(jnp.trapezoid(jnp.exp(log_q) * (log_q - solve(x)), x[:, 0]))
    assert divergence_of_model == pytest.approx(kl, rel=2e-4)


@pytest.mark.slow
def test_de_bruijn(x64):
    """int g^2 E |s1|^2 dt is twice the rise of the entropy: 10.8891196 under VE."""
    process = process64("ve")
    true = exact.score_of(process, MIXTURE)
    rise = 2 * by_quadrature(process, 1e-5, lambda x, t: jnp.sum(true(x, t) ** 2, axis=1))
    assert rise == pytest.approx(10.8891196, rel=2e-5)


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
    evaluation = configure.evaluation(config, tmp_path)
    context = evaluation.context(with_score(experiment, scaled(true, 0.95)), None)
    terms = measure(context, evaluation.evaluators, only=("divergence",)).metrics["divergence"]
    assert set(terms) == {"j_sm", "j_diff", "j_ode", "j_f", "j_gap", "kl_end", "kl_from_parts"}
    for name, wanted in (("j_sm", 0.0164316), ("kl_from_parts", 0.0788595)):
        assert abs(terms[name].value - wanted) < 4 * terms[name].stderr < wanted, (name, terms[name])
    assert abs(terms["kl_end"].value) < 1e-4
    assert terms["j_ode"].value == pytest.approx(terms["j_sm"].value + terms["j_diff"].value, rel=1e-5)
    assert terms["j_ode"].value < np.sqrt(terms["j_sm"].value * terms["j_f"].value)


@pytest.mark.slow
def test_images_have_the_gap_alone(tmp_path):
    config = tiny.digits(eval__num_test=8, eval__batch_size=4, eval__rtol=1e-5, eval__atol=1e-5)
    experiment = configure.experiment(config, "digits")
    # the exact score of N(0, c^2) is that of its own ODE model but for the start, so that the gap is nearly 0
    experiment = with_score(experiment, gaussian_score(experiment.model.process, 0.0, 0.6))
    terms = divergence_metrics(configure.evaluation(config, tmp_path).context(experiment, None), 4)
    assert set(terms) == {"j_gap"} and abs(terms["j_gap"].value) < 1e-4
