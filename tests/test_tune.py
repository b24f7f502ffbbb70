"""Times of a sampler that are tuned to a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoreflow
from scoreflow import configure, draw, sample
from scoreflow.runs.errors import UserError
from scoreflow.samplers import Adaptive, grids, rules
from scoreflow.samplers import tune as tune_of
from scoreflow.samplers.sampler import sampler
from scoreflow.samplers.tune import Pilot, tune
from tests import tiny
from tests.truth import TOY

PROCESS, T_MIN, VARIANCE = scoreflow.vp_linear(), 1e-2, 0.25
DDIM = rules.affine(scoreflow.processes.transitions.ddim)


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def normal_score(_):
    """The score of x_t for x_0 from N(0, VARIANCE)."""
    return lambda x, t, cond=None: -x / (PROCESS.alpha(t) ** 2 * VARIANCE + PROCESS.variance(t))[:, None]


def tuned(method, score, **options):
    usual = sampler(method, PROCESS, grids.log_snr, t_min=T_MIN, pilot=64, **options)
    keys = jax.random.split(jax.random.key(0), 64)
    x_init = jax.random.normal(jax.random.key(1), (64, 1))
    return usual, tune(usual, score, Pilot(None, keys, x_init))


def test_the_time_between_two_steps_is_the_best_there_is():
    """For x_0 from N(0, v) a step of DDIM is a factor, and so is the flow: the best time is the least of one function."""
    alpha, variance = (lambda t: float(PROCESS.alpha(t))), (lambda t: float(PROCESS.variance(t)))
    total = lambda t: alpha(t) ** 2 * VARIANCE + variance(t)
    denoise = lambda t: alpha(t) * VARIANCE / total(t)

    def step(t, s):
        noise = np.sqrt(variance(s) / variance(t))
        return noise + (alpha(s) - noise * alpha(t)) * denoise(t)

    horizon = float(PROCESS.horizon)
    exact = np.sqrt(total(T_MIN) / total(horizon)) * denoise(T_MIN)
    times = np.linspace(0.02, 0.98, 481)
    apart = np.asarray([abs(step(horizon, t) * step(t, T_MIN) * denoise(T_MIN) - exact) for t in times])
    usual, found = tuned(DDIM, normal_score, steps=2)
    of = lambda t: apart[np.abs(times - t).argmin()]
    assert abs(found.times[1] - times[apart.argmin()]) < 0.005
    np.testing.assert_array_equal(found.times[[0, 2]], usual.grid[jnp.asarray([0, 2])])
    np.testing.assert_allclose(found.after / found.before, apart.min() / of(float(usual.grid[1])), rtol=0.01)


@pytest.mark.parametrize("steps", [4, 8])
def test_other_samples_end_nearer_to_the_ode_too(steps):
    """On a mixture with its exact score; the samples are not the pilot's, and the ODE is solved by another solver."""
    score = lambda _: TOY.score(PROCESS)
    usual, found = tuned(rules.DPM_SOLVER_PP_2M, score, steps=steps)
    assert (np.diff(found.times) < 0).all()
    x_init = jax.random.normal(jax.random.key(7), (2000, 1))
    exact = usual.changed(method=Adaptive(1e-6, 1e-6), pilot=0).draw(score(None), jax.random.key(0), x_init).x

    def distance(grid):
        drawn = usual._replace(grid=grid).draw(score(None), jax.random.key(0), x_init)
        return float(jnp.abs(drawn.x - exact).mean())

    assert distance(jnp.asarray(found.times)) < 0.75 * distance(usual.grid)


def test_a_sampler_that_draws_noise_or_chooses_its_times_is_refused():
    with pytest.raises(UserError, match="pilot = 64: this sampler draws noise"):
        tuned(rules.affine(scoreflow.processes.transitions.ancestral), normal_score, steps=3)
    with pytest.raises(UserError, match="pilot = 64: the adaptive sampler chooses its own times"):
        tuned(Adaptive(), normal_score)


def test_a_run_is_sampled_with_times_that_are_looked_for_once(tmp_path, monkeypatch, capsys):
    """The samples are those of the kept times; other numbers of samples find them again, and so does no other grid."""
    changes = {"sampling__pilot": 6, "sampling__steps": 3, "data__conditional": True}
    _, experiment = tiny.trained(tmp_path, **changes)
    options = sample.SampleOptions(num=5, batch_size=5)
    x = sample.sample(experiment, options, tmp_path)
    assert "mean distance of a sample to the ODE's own" in capsys.readouterr().out
    (kept,) = (tmp_path / "samples" / "times").glob("*/times.npz")
    with np.load(kept) as held:
        times = jnp.asarray(held["arr_0"])
    assert abs(times - experiment.sampler.grid).max() > 0 and times.shape == (4,)

    def refuse(*args, **options):
        raise AssertionError("looked for again")

    monkeypatch.setattr(tune_of, "tune", refuse)
    more = sample.sample(experiment, options._replace(num=8), tmp_path)
    np.testing.assert_array_equal(more[:5], x)
    by_hand = experiment._replace(sampler=experiment.sampler._replace(grid=times, pilot=0))
    plain = sample.sample(by_hand, options, tmp_path)
    np.testing.assert_array_equal(plain, x)
    other = configure.experiment(tiny.digits(**changes | {"sampling__steps": 2}), "tiny")
    with pytest.raises(AssertionError, match="looked for again"):
        sample.sample(other, options, tmp_path)


def test_a_loaded_run_is_sampled_with_the_times_that_its_command_finds(tmp_path):
    _, experiment = tiny.trained(tmp_path, sampling__pilot=6, sampling__steps=3)
    model = scoreflow.load(tmp_path)
    drawn = draw.make_draw(draw.tuned(experiment, model.params), 5)(model.params, jax.random.key(4), 5)
    untuned = draw.make_draw(experiment, 5)(model.params, jax.random.key(4), 5)
    np.testing.assert_array_equal(model.sample(4, 5), drawn.x)
    np.testing.assert_array_equal(model.sample(4, 5, pilot=0), untuned.x)
    assert (drawn.x != untuned.x).any()
    assert model.sample(4, 2, rule=Adaptive()).shape == (2, 8, 8, 1)  # whose times are its own
    with pytest.raises(ValueError, match="pilot = -3 must be 0 or more"):
        model.sample(4, 5, pilot=-3)


@pytest.mark.parametrize("size", [6, 8])
def test_times_are_the_same_on_one_device_and_on_four(size):
    """Six samples cannot be split over four devices, and eight can."""
    usual = sampler(DDIM, PROCESS, grids.log_snr, t_min=T_MIN, pilot=size, steps=3)
    given = tune_of.pilot_of(None, jax.random.key(3), size, scoreflow.prior(PROCESS), (2,))
    assert len(given.x_init.devices()) == len(jax.devices()) == 4
    alone = Pilot(None, jax.random.split(jax.random.split(jax.random.key(3))[0], size), jax.device_get(given.x_init))
    one = tune(usual, normal_score, alone)
    np.testing.assert_allclose(tune(usual, normal_score, given).times, one.times, atol=1e-5)


def test_samples_of_a_pilot_that_are_not_finite_are_refused():
    broken = lambda _: lambda x, t, cond=None: jnp.where(x[:, :1] > 2.0, jnp.nan, -x)
    with pytest.raises(UserError, match="pilot = 64: some of these samples are not finite"):
        tuned(DDIM, broken, steps=3)


def test_a_function_of_ones_own_is_sampled_with_tuned_times():
    """The distance to the exact flow of N(0, v), which scales x, falls."""
    model = scoreflow.Model.from_score(normal_score(None), PROCESS, (1,), t_min=T_MIN)
    few = {"rule": DDIM, "steps": 3}
    exact = model.sample(0, 200, rule=Adaptive(1e-6, 1e-6))
    apart = [np.abs(model.sample(0, 200, **few, pilot=pilot) - exact).mean() for pilot in (0, 32)]
    assert apart[1] < 0.8 * apart[0]
    np.testing.assert_array_equal(model.sample(0, 5, **few, pilot=32), model.sample(0, 200, **few, pilot=32)[:5])


def test_times_with_labels_are_not_those_without():
    """A model that takes labels or none is sampled after one as if the other had never been asked for."""

    def score(x, t, label=None):
        mean = 0.0 if label is None else 2.0 * label[:, None].astype(jnp.float32)
        alpha = PROCESS.alpha(t)[:, None]
        return -(x - alpha * mean) / (alpha**2 * VARIANCE + PROCESS.variance(t)[:, None])

    make = lambda: scoreflow.Model.from_score(score, PROCESS, (1,), t_min=T_MIN, num_classes=2)
    used, few = make(), {"rule": DDIM, "steps": 3, "pilot": 16}
    used.sample(0, 4, **few)
    np.testing.assert_array_equal(used.sample(0, 4, [0, 1, 0, 1], **few), make().sample(0, 4, [0, 1, 0, 1], **few))


def test_times_with_guidance_are_those_of_the_score_that_it_leads_to():
    """A narrow class in wide data: guidance of 2 goes twice the way from the one score to the other."""
    normal = lambda x, t, v: -x / (PROCESS.alpha(t) ** 2 * v + PROCESS.variance(t))[:, None]

    def score(x, t, label=None):
        return normal(x, t, 0.5 if label is None else 0.05)

    given = tune_of.pilot_of(None, jax.random.key(3), 64, scoreflow.prior(PROCESS), (1,), num_classes=1)
    usual = sampler(DDIM, PROCESS, grids.log_snr, t_min=T_MIN, pilot=64, steps=4)
    few = {"iterations": 5}  # rounding grows with their number
    guided = tune(usual._replace(guidance=2.0), lambda _: score, given, **few)
    same = tune(usual, lambda _: lambda x, t, label: 2.0 * score(x, t, label) - score(x, t), given, **few)
    plain = tune(usual, lambda _: score, given, **few)
    np.testing.assert_allclose(guided.times, same.times, atol=1e-3)
    np.testing.assert_allclose((guided.before, guided.after), (same.before, same.after), rtol=1e-3)
    assert abs(guided.times - plain.times).max() > 1e-2 and guided.evaluations == 2 * same.evaluations


def test_times_in_a_latent_space_are_those_of_its_own_ode():
    """Samples in the space of the latents end nearer to the ODE there, and are then decoded as ever."""
    from tests.test_latent_training import untrained

    changes = {"sampler__name": "dpm_solver_pp_2m", "sampling__pilot": 16, "sampling__steps": 3}
    experiment, params, _ = untrained("digits_latent", "levels_1", **changes)
    found = draw.tuned(experiment, params)
    assert experiment.space.shape != experiment.data.train.x.shape[1:]
    score, noise = experiment.model.score(params), jax.random.normal(jax.random.key(9), (200, *experiment.space.shape))
    fine = experiment.sampler.changed(method=Adaptive(1e-6, 1e-6), pilot=0).draw(score, jax.random.key(0), noise).x
    ends = [each.sampler.draw(score, jax.random.key(0), noise).x for each in (experiment, found)]
    before, after = (float(jnp.sqrt(jnp.mean((x - fine) ** 2))) for x in ends)
    assert after < 0.9 * before
    drawn = draw.make_draw(found, 5)(params, jax.random.key(4), 5)
    assert drawn.x.shape == (5, *experiment.data.train.x.shape[1:])
    assert (drawn.x != draw.make_draw(experiment, 5)(params, jax.random.key(4), 5).x).any()
