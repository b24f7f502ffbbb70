"""What a model of one's own refuses, and what it warns of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoreflow
from scoreflow import configure, train
from scoreflow.evaluators.likelihood import likelihood
from scoreflow.runs.errors import UserError
from scoreflow.samplers import rules
from tests.test_latent_training import config_of

PROCESS = scoreflow.vp_linear()


@pytest.fixture
def model():
    return scoreflow.Model.from_score(lambda x, t: -x, PROCESS, (2,))


@pytest.mark.parametrize(
    "key, error, words",
    [
        (2**32, ValueError, "the seed 4294967296 must be from 0 to below 2\\*\\*32"),  # JAX would take it for 0
        (-1, ValueError, "the seed -1"),
        ("a", TypeError, "key = 'a' must be a seed, or a PRNG key"),
        (1.5, TypeError, "key = 1.5 must be a seed"),
        (None, TypeError, "key = None must be a seed"),
    ],
)
def test_what_is_no_key_is_refused(model, key, error, words):
    with pytest.raises(error, match=words):
        model.sample(key, 2)
    with pytest.raises(error, match=words):
        scoreflow.fit(lambda *a, **k: None, {}, None, [], key=key)


def test_a_seed_and_its_key_are_the_same(model):
    drawn = [model.sample(key, 2, steps=3) for key in (7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7))]
    for each in drawn[1:]:
        np.testing.assert_array_equal(each, drawn[0])


@pytest.mark.parametrize(
    "choice, words",
    [
        ({"rule": "heun"}, "rule = 'heun' must be one of scoreflow.samplers, such as samplers.rules.HEUN"),
        ({"grid": "log_snr"}, "grid = 'log_snr' must be a function of scoreflow.samplers.grids"),
        ({"steps": 2.5}, "2.5 must be a whole number"),
    ],
)
def test_a_sampler_that_is_none_is_named(model, choice, words):
    with pytest.raises(TypeError, match=words):
        model.sample(0, 2, **choice)


@pytest.mark.parametrize("t", [-0.1, 1.5, np.nan, [0.1, 0.2, 0.3]])
def test_times_outside_the_process_are_refused(model, t):
    with pytest.raises(ValueError, match=r"t must be a number or \[2\] of them, from 0 to the horizon 1"):
        model.score(np.zeros((2, 2)), t)


def test_a_tolerance_and_data_that_say_nothing_are_refused(model):
    for tolerance in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="tolerance = .* must be above 0"):
            model.log_prob(np.zeros((1, 2)), tolerance=tolerance)
    for data in (np.full((50, 2), np.nan), np.zeros((1, 2))):
        with pytest.raises(ValueError, match="the data must be finite, and two or more"):
            model.with_data(data)


def test_whole_numbers_are_points_of_a_continuous_model(model):
    np.testing.assert_array_equal(model.log_prob([[0, 0], [1, 1]]), model.log_prob([[0.0, 0.0], [1.0, 1.0]]))


def test_a_score_that_is_not_finite_is_said():
    broken = scoreflow.Model.from_score(lambda x, t: x * jnp.nan, PROCESS, (2,))
    with pytest.warns(UserWarning, match="3 of 3 densities are not finite"):
        broken.log_prob(np.zeros((3, 2)))
    with pytest.warns(UserWarning, match="3 of 3 bounds are not finite"):
        broken.bound(np.zeros((3, 2)))
    with pytest.warns(UserWarning, match="3 of 3 samples are not finite"):
        broken.sample(0, 3, rule=rules.HEUN, steps=3)
    with pytest.warns(UserWarning, match="1 of 2 results are not finite: .* no noise at this time"):
        scoreflow.Model.from_denoiser(lambda z, sigma: z, PROCESS, (2,)).score(np.ones((2, 2)), [0.0, 0.5])


def test_other_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="prediction = None must be one of"):
        scoreflow.Model.from_prediction(lambda x, t: x, PROCESS, (2,), prediction=None)
    with pytest.raises(TypeError, match="no `if` on values .*traced array"):
        scoreflow.Model.from_score(lambda x, t: x if t[0] > 0 else -x, PROCESS, (2,))
    with pytest.raises(TypeError, match="process is 'edm'; it must be a process"):
        scoreflow.plan(np.random.default_rng(0).normal(size=(10, 2)), "edm")
    with pytest.raises(ValueError, match="accuracy = 0.0 must be above 0"):
        scoreflow.plan(np.random.default_rng(0).normal(size=(10, 2)), PROCESS, accuracy=0.0)
    with pytest.raises(ValueError, match="samples and data must be finite"):
        scoreflow.sample_quality(np.full((200, 2), np.nan), np.zeros((200, 2)))


@pytest.mark.parametrize(
    "batches, options, error, words",
    [
        (np.zeros((3, 4, 2)), {}, TypeError, 'a batch must be a mapping such as {"x": array}, not ndarray'),
        ([{"x": np.zeros((10, 2))}], {"grad_accum": 3}, ValueError, "grad_accum = 3 does not divide a batch of 10"),
    ],
)
def test_batches_that_cannot_be_used_are_named(batches, options, error, words):
    import optax

    objective = lambda params, key, batch, *, train, step=None: (params, {})
    with pytest.raises(error, match=words):
        scoreflow.fit(objective, jnp.zeros(()), optax.adam(0.1), batches, key=0, **options)


@pytest.mark.parametrize(
    "drift, diffusion, words",
    [
        (-1.0, lambda t: 1.0 if t > 0.5 else 2.0, "diffusion, a function of an array of times, fails: The truth value"),
        (lambda x, t: -x, 1.0, "drift, a function of an array of times, fails: .*missing 1 required"),
        (-1.0, lambda t: jnp.ones((2, 3)), r"diffusion gives an array \[2, 3\] for t \["),
    ],
)
def test_rates_that_are_none_are_named(drift, diffusion, words):
    with pytest.raises(ValueError, match=words):
        scoreflow.linear_sde(drift, diffusion)


def test_images_of_a_latent_run_have_the_bound_of_its_evaluation(tmp_path):
    """Paired over images: what is left is the noise of the latents and the probes."""
    with jax.numpy_rank_promotion("allow"):
        config = config_of("digits_vae", "levels", training__steps=4, training__pictures=False)
        experiment = configure.experiment(config, "latent")
        train.train(experiment, configure.train_options(config, experiment), tmp_path)
        model, images = scoreflow.load(tmp_path), experiment.data.test.x[:120]
        ours = np.mean([model.bits_per_dim(images, key=key, tolerance=1e-3) for key in range(4)], axis=0)
        evaluation = configure.evaluation(config)
        options = evaluation.options._replace(solver="adaptive", num_test=120, dequantization="")
        context = evaluation._replace(options=options).context(experiment, model.params)
        theirs = likelihood(context, draws=4, check=4).examples["bits_per_dim"]
        assert model.sample(0, 2, steps=2).shape == (2, 8, 8, 1)
    apart = ours - theirs
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(120) and np.corrcoef(ours, theirs)[0, 1] > 0.5
    with pytest.raises(ValueError, match=r"images have the shape \(2, 4, 4, 1\); it must be \[B, 8, 8, 1\]"):
        model.bits_per_dim(images[:2, :4, :4])
    with pytest.raises(ValueError, match="images must be integers from 0 to 16"):
        model.bits_per_dim(images / 16.0)


def test_a_checkpoint_that_no_run_keeps_is_refused(tmp_path):
    with pytest.raises(UserError, match="checkpoint = 'best' must be newest, validation, frechet"):
        scoreflow.load(tmp_path, "best")
