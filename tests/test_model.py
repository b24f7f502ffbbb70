"""Models from a run's folder and from functions of one's own, with arrays in and out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import scoreflow
from scoreflow import draw, terminal
from scoreflow import samplers as samplers_of
from scoreflow import score as scores
from scoreflow.likelihood import ode
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids, rules
from scoreflow.samplers import sampler as samplers
from tests import tiny
from tests.truth import PROCESSES, gaussian_score

STD = 0.6


def functions(process):
    """The same model of N(0, STD^2 I) as a score, as noise, as v, as a velocity, as EDM's output and as a denoiser."""
    score = gaussian_score(process, 0.0, STD**2)
    at = lambda f, t, x: f(t).reshape(-1, *[1] * (x.ndim - 1))

    def noise(x, t):
        return -at(process.sigma, t, x) * score(x, t)

    def v(x, t):
        clean = (x - at(process.sigma, t, x) * noise(x, t)) / at(process.alpha, t, x)
        return at(process.alpha, t, x) * noise(x, t) - at(process.sigma, t, x) * clean

    def velocity(x, t):
        return noise(x, t) - (x - at(process.sigma, t, x) * noise(x, t)) / at(process.alpha, t, x)

    def edm(x, t):  # F of table 1 with sigma_data = STD: 0, since its skip is the denoiser of N(0, STD^2 I)
        return jnp.zeros_like(x)

    def denoiser(z, sigma, width=STD):  # the third argument has a default, and is not for labels
        square = sigma.reshape(-1, *[1] * (z.ndim - 1)) ** 2
        return width**2 * z / (width**2 + square)

    make, options = scoreflow.Model, {"terminal": terminal.Gaussian(width(process, process.horizon))}
    return {
        "score": make.from_score(lambda x, t: score(x, t), process, (2,), **options),
        "noise": make.from_prediction(noise, process, (2,), **options),
        "v": make.from_prediction(v, process, (2,), prediction="v", **options),
        "velocity": make.from_prediction(velocity, process, (2,), prediction="velocity", **options),
        "edm": make.from_prediction(edm, process, (2,), prediction="edm", sigma_data=STD, **options),
        "denoiser": make.from_denoiser(denoiser, process, (2,), **options),
    }


def width(process, t):
    """The standard deviation of x_t."""
    return float(np.hypot(float(process.alpha(t)) * STD, float(process.sigma(t))))


@pytest.mark.parametrize(
    "name, kind",
    [
        *((name, kind) for name in ("vp", "edm") for kind in ("score", "noise", "denoiser")),
        ("vp", "v"),
        ("straight", "velocity"),
        ("edm", "edm"),
    ],
)
def test_a_function_of_any_kind_gives_the_same_densities_and_samples(name, kind):
    process = PROCESSES[name]
    model = functions(process)[kind]
    x = np.asarray([[0.2, 0.9], [-0.4, 0.5], [1.3, 1.1]], np.float32)
    wanted = norm(0.0, width(process, model.t_min)).logpdf(x).sum(1)
    np.testing.assert_allclose(model.log_prob(x, tolerance=1e-6), wanted, atol=1e-3)
    np.testing.assert_allclose(
        model.score(x, 0.3), gaussian_score(process, 0.0, STD**2)(x, jnp.full(3, 0.3)), rtol=1e-3
    )
    drawn = model.sample(jax.random.key(0), 2000, rule=rules.HEUN, steps=30)
    assert drawn.shape == (2000, 2) and abs(drawn.mean()) < 4 * STD / np.sqrt(4000)
    assert drawn.std() == pytest.approx(STD, rel=0.06)


def test_a_sample_depends_on_its_key_and_number_alone():
    model = functions(PROCESSES["vp"])["score"]
    many, few = (model.sample(jax.random.key(1), num, batch_size=size, steps=5) for num, size in ((7, 3), (4, 4)))
    np.testing.assert_allclose(many[:4], few, rtol=1e-6)


def test_images_of_integers_have_bits_per_dim_and_are_drawn_as_levels():
    """A uniform density over [-1, 1] is log2(levels) bits; so is nearly a wide Gaussian's at its middle, by its density."""
    process, levels = PROCESSES["vp"], 8
    model = scoreflow.Model.from_score(
        gaussian_score(process, 0.0, 1.0), process, (2, 2, 1), num_levels=levels, t_min=1e-3
    )
    images = np.full((3, 2, 2, 1), 4, np.uint8)
    bits = model.bits_per_dim(images, tolerance=1e-6)
    low, high = (norm(0.0, 1.0).logpdf(x) for x in (0.25, 0.0))
    expected = [-(logp + np.log(2.0 / levels)) / np.log(2.0) for logp in (high, low)]
    assert np.all(bits > expected[0] - 1e-2) and np.all(bits < expected[1] + 1e-2)
    drawn = model.sample(jax.random.key(0), 20, steps=5)
    assert drawn.dtype == np.uint8 and drawn.shape == (20, 2, 2, 1) and drawn.max() < levels
    for wrong in (images + 8, images.astype(np.float32)):
        with pytest.raises(ValueError, match="integers from 0 to 7"):
            model.bits_per_dim(wrong)
    with pytest.raises(TypeError, match="x is uint8, and a density needs float data; .*call bits_per_dim"):
        model.log_prob(images)
    with pytest.raises(ValueError, match="and these are from 12 to 12"):
        model.bits_per_dim(images + 8)
    with pytest.raises(ValueError, match="give num_levels=256"):
        functions(process)["score"].bits_per_dim(images)


def test_labels_reach_the_function():
    process = PROCESSES["vp"]
    means = jnp.asarray([-1.0, 2.0])

    def score(x, t, label):
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        return -(x - alpha * means[label][:, None]) / (alpha**2 * 0.01 + variance)

    model = scoreflow.Model.from_score(score, process, (1,), num_classes=2)
    drawn = model.sample(jax.random.key(0), 40, np.arange(40) % 2, steps=20)
    np.testing.assert_allclose(drawn[:, 0].reshape(-1, 2).mean(0), means, atol=0.1)
    np.testing.assert_array_equal(model.sample(0, 40, np.arange(40) % 2, steps=20), drawn)  # a key by its seed
    with pytest.raises(ValueError, match="made without num_classes"):
        functions(process)["score"].sample(jax.random.key(0), 2, 1)
    for wrong in (2, -1, [0.0, 1.0], [0, 1, 0], np.eye(2)):
        with pytest.raises(ValueError, match=r"labels must be \[2\] integers from 0 to 1"):
            model.sample(0, 2, wrong)
    with pytest.raises(ValueError, match="labels are missing"):
        model.log_prob(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="third argument, label, which is for labels: give num_classes"):
        scoreflow.Model.from_score(score, process, (1,))
    with pytest.raises(ValueError, match="has no third argument"):
        scoreflow.Model.from_score(lambda x, t: -x, process, (1,), num_classes=2)
    with pytest.raises(ValueError, match="x has the shape"):
        model.score(np.zeros((3, 2)), 0.1)


@pytest.mark.parametrize(
    "fn, words",
    [
        (lambda x, t: np.asarray(x), "traced: jax.numpy in the place of numpy"),
        (lambda x, t: -x if t[0] > 0 else x, "no `if` on values"),
        (lambda x, t: -x / t, r"fails when it is given x \[3, 8, 8, 1\] and a time or noise level for each example"),
        (lambda x, t: -x.reshape(3, -1), r"gives \[3, 64\] for x \[3, 8, 8, 1\]"),
        (lambda x, t: (x, t), "gives tuple"),
        (lambda x: -x, "fails when it is given"),
    ],
)
def test_functions_that_cannot_work_are_refused_in_one_line(fn, words):
    with pytest.raises((TypeError, ValueError), match=words):
        scoreflow.Model.from_score(fn, scoreflow.vp_linear(), (8, 8, 1))


def test_names_and_processes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="'eps' must be one of noise, x0, v, velocity"):
        scoreflow.Model.from_prediction(lambda x, t: x, scoreflow.vp_linear(), (2,), prediction="eps")
    with pytest.raises(TypeError, match="such as scoreflow.vp_linear()"):
        scoreflow.Model.from_score(lambda x, t: -x, scoreflow.vp_linear, (2,))


DIM = 20
CENTERS = np.where(np.arange(DIM) % 2, 1.0, -1.0) * np.array([[1.0], [-1.0]])
SPREAD = 0.5


def of_two(z, sigma):
    """The exact denoiser of a mixture of two Gaussians."""
    variance = SPREAD**2 + sigma[:, None] ** 2
    away = z[:, None] - CENTERS[None]
    share = jax.nn.softmax(-0.5 * jnp.sum(away**2, axis=-1) / variance, axis=1)
    return z - sigma[:, None] ** 2 / variance * jnp.sum(share[..., None] * away, axis=1)


def density_of_two(x):
    return np.logaddexp(*(norm(c, SPREAD).logpdf(x).sum(1) for c in CENTERS)) - np.log(2.0)


@jax.numpy_rank_promotion("allow")
def test_data_prepare_a_model_for_densities_in_few_evaluations():
    """Errors are those against the mixture's density; a tenth of its standard error over 1,000 examples is 0.01."""
    rng = np.random.default_rng(0)
    draw = lambda n: CENTERS[rng.integers(2, size=n)] + SPREAD * rng.normal(size=(n, DIM))
    model = scoreflow.Model.from_denoiser(of_two, scoreflow.edm(horizon=400.0), (DIM,))
    prepared, x = model.with_data(draw(1000)), draw(200)
    wanted = density_of_two(x)
    assert prepared.prepared.evaluations <= 24
    exact = prepared.log_prob(x, exact_divergence=True)
    assert abs(np.mean(exact - wanted)) < 0.02 and np.std(exact - wanted) < 0.15
    adaptive = prepared.log_prob(x, exact_divergence=True, tolerance=1e-6)
    np.testing.assert_allclose(adaptive, model.log_prob(x, exact_divergence=True, tolerance=1e-6), atol=1e-4)


@jax.numpy_rank_promotion("allow")
def test_several_probes_give_a_mean_with_its_standard_error():
    model = scoreflow.Model.from_denoiser(of_two, scoreflow.edm(horizon=400.0), (DIM,))
    x = CENTERS[np.arange(200) % 2] + SPREAD * np.random.default_rng(1).normal(size=(200, DIM))
    mean, error = model.log_prob_and_error(x, probes=6)
    apart = mean - model.log_prob(x, exact_divergence=True)
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(200)
    assert 0.6 < np.mean(error**2) / np.mean(apart**2) < 1.6  # the squared error is the variance, on average
    averaged = model.log_prob(x, probes=6, key=1) - (mean - apart)
    assert 0.6 < np.mean(averaged**2) / np.mean(apart**2) < 1.6  # and so are as many probes with another key
    with pytest.raises(ValueError, match="2 or more"):
        model.log_prob_and_error(x, probes=1)


def test_the_bound_of_gaussian_data_is_their_density():
    """A perfect score leaves no gap: -log p of N(0, (STD^2 + sigma(t_min)^2) I) on average."""
    process = PROCESSES["vp"]
    model = functions(process)["score"]
    x = np.asarray(STD * jax.random.normal(jax.random.key(0), (100, 2)))
    wanted = -norm(0.0, STD).logpdf(x).sum(1)
    totals = model.bound(x, num_times=200)
    assert abs(np.mean(totals - wanted)) < 4 * np.std(totals - wanted) / 10


def test_times_without_noise_are_refused():
    process = PROCESSES["vp"]
    for t_min in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="t_min"):
            scoreflow.Model.from_score(gaussian_score(process, 0.0, 1.0), process, (2,), t_min=t_min)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load") / "run"
    with jax.numpy_rank_promotion("allow"):
        return folder, *tiny.trained(folder)


@jax.numpy_rank_promotion("allow")
def test_a_run_is_loaded_with_its_score_its_space_and_its_labels(run):
    folder, _, experiment = run
    model = scoreflow.load(folder)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    score = experiment.model.score(model.params)
    np.testing.assert_allclose(model.score(x, 0.2), score(jnp.asarray(x), jnp.full(3, 0.2)), rtol=1e-4, atol=1e-5)
    expected = ode.log_prob(
        model.process, score, experiment.model.terminal(model.params), jax.random.split(jax.random.key(3), 3),
        jnp.asarray(x), t_min=model.t_min, rtol=1e-4, atol=1e-4,
    ).logp  # fmt: skip
    np.testing.assert_allclose(model.log_prob(x, key=jax.random.key(3)), expected, rtol=1e-3)
    assert model.sample(jax.random.key(0), 3, steps=4).dtype == np.uint8
    assert np.isfinite(model.bits_per_dim(experiment.data.test.x[:3], tolerance=1e-2)).all()
    alpha, sigma = float(model.process.alpha(0.2)), float(model.process.sigma(0.2))
    np.testing.assert_allclose(
        model.denoise(x, 0.2), (x + sigma**2 * model.score(x, 0.2)) / alpha, rtol=1e-3, atol=1e-3
    )


@jax.numpy_rank_promotion("allow")
def test_a_loaded_run_is_sampled_as_the_run_says(tmp_path):
    """Its samples are those of `--mode=sample` from the same key, and single choices leave the others as they are."""
    config, experiment = tiny.trained(
        tmp_path, sampler__name="heun", grid__name="uniform", sampling__steps=5, sampling__t_min=0.01,
        process__horizon=0.8, data__conditional=True, sampling__guidance=1.5,
        training__label_dropout=0.2,
    )  # fmt: skip
    model, labels = scoreflow.load(tmp_path), np.arange(6) % 10
    drawn = draw.make_draw(experiment, 6)(model.params, jax.random.key(4), 6)
    np.testing.assert_array_equal(model.sample(4, 6, labels), drawn.x)
    made = samplers.sampler(rules.HEUN, model.process, grids.uniform, steps=3, t_min=0.01, guidance=1.5)
    other = experiment._replace(sampler=made)
    drawn = draw.make_draw(other, 6)(model.params, jax.random.key(4), 6)
    np.testing.assert_array_equal(model.sample(4, 6, labels, steps=3), drawn.x)
    assert (model.sample(4, 6, labels, guidance=1e6) != model.sample(4, 6, labels)).any()
    with pytest.raises(ValueError, match="guidance needs labels"):
        model.sample(4, 6, guidance=2.0)


def test_an_adaptive_sampler_follows_the_known_flow():
    """The flow of N(0, STD^2 I) scales x by the ratio of the standard deviations, and the last step denoises."""
    model = functions(PROCESSES["vp"])["score"]
    process = model.process
    x = model.sample(0, 50, rule=samplers_of.Adaptive(rtol=1e-6, atol=1e-6))
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(0), i), 3)[0])(jnp.arange(50))
    begin = jax.vmap(lambda key: model.terminal_of(None).sample(key, (1, 2))[0])(keys)
    shrunk = width(process, model.t_min) / width(process, process.horizon)
    denoised = float(process.alpha(model.t_min)) * STD**2 / width(process, model.t_min) ** 2
    np.testing.assert_allclose(x, begin * shrunk * denoised, rtol=1e-4, atol=1e-5)


def test_samples_that_are_not_finite_are_counted():
    """A score that is NaN where x is large: those of the samples that come there, and no others."""
    model = scoreflow.Model.from_score(
        lambda x, t: jnp.where(x > 1.2, jnp.nan, -x), scoreflow.vp_linear(), (1,), num_levels=0
    )
    with pytest.warns(UserWarning, match="of 50 samples are not finite") as said:
        x = model.sample(0, 50)
    assert str(said[0].message).startswith(f"{np.isnan(x).sum()} of 50") and 0 < np.isnan(x).sum() < 25


def test_a_run_that_never_went_without_labels_asks_for_them(tmp_path):
    with jax.numpy_rank_promotion("allow"):
        tiny.trained(tmp_path, data__conditional=True)
        model = scoreflow.load(tmp_path)
        with pytest.raises(ValueError, match="labels are missing"):
            model.sample(0, 2)
        assert len(model.sample(0, 2, cond=3)) == 2


def test_the_sampler_of_a_gaussian_needs_data_and_is_exact_for_them():
    model = functions(PROCESSES["vp"])["score"]
    with pytest.raises(ValueError, match="needs the Gaussian of the data"):
        model.sample(0, 4, rule=samplers_of.GaussianMultistep())
    x = STD * np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    prepared = model.with_data(x)
    few, many = (prepared.sample(0, 50, rule=samplers_of.GaussianMultistep(), steps=k) for k in (1, 30))
    np.testing.assert_allclose(few, many, rtol=0.02, atol=0.02)  # up to the Gaussian that was fitted


def test_folders_without_a_run_are_one_line(tmp_path, run):
    with pytest.raises(UserError, match="holds no run"):
        scoreflow.load(tmp_path)
    with pytest.raises(UserError, match="keeps no best checkpoint by frechet"):
        scoreflow.load(run[0], checkpoint="frechet")


def test_public_names_are_those_of_their_modules():
    assert {"Model", "load", "fit", "log_prob", "vp_linear", "network"} <= set(scoreflow.__all__)
    for name in scoreflow.__all__:
        assert getattr(scoreflow, name) is not None
        assert name == "__version__" or getattr(scoreflow, name).__doc__
    assert scoreflow.score_fn is scores.score_fn
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scoreflow.nothing
    assert set(scoreflow.__all__) <= set(dir(scoreflow))


@jax.numpy_rank_promotion("allow")
def test_the_page_on_models_in_python_runs(run):
    """Its blocks in their order, with a tiny run in the place of its own; the entropy of its mixture is known."""
    blocks = re.findall(r"```python\n(.*?)```", (tiny.ROOT / "docs" / "library.md").read_text(), re.S)
    names: dict = {}
    for block in blocks:
        exec(block.replace("runs/vp_digits", str(run[0])), names)
    assert names["images"].shape == (16, 8, 8, 1) and names["bits"].shape == (16,)
    centers, spread, points = np.asarray(names["centers"]), names["spread"], names["points"]
    density = np.mean([norm(c, spread).pdf(points).prod(1) for c in centers], axis=0)
    np.testing.assert_allclose(names["logp"], np.log(density), atol=0.02)
    nearest = np.linalg.norm(points[:, None] - centers, axis=-1).argmin(1)
    assert abs(nearest.mean() - 0.5) < 4 * 0.5 / np.sqrt(500)


def test_a_model_is_shown_in_one_line():
    model = functions(PROCESSES["vp"])["score"]
    assert repr(model) == "Model(VP, shape=(2,), t_min=0.001, 0 parameters)"
