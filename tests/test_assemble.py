"""What is configured reaches the part that it is about: experiments from a config against the same made by hand."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import configure, planner
from scoreflow import score as scores
from scoreflow.configure.catalogue import SAMPLERS
from scoreflow.models import LATENT, MIXING
from scoreflow.objectives import conservative, dsm, high_order, times, weights
from scoreflow.objectives.score_matching import score_matching
from scoreflow.processes import sdes, transitions
from scoreflow.runs import checkpoint
from scoreflow.samplers import grids, rules
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def made(**changes):
    config = tiny.digits(model__dropout=0.0, **changes)
    return config, configure.experiment(config, "tiny")


CASES = [
    ({"loss": {"name": "high_order", "order": 3, "power2": 1}}, {"loss": functools.partial(high_order.high_order, order=3, power2=1)}),
    ({"weight": {"name": "edm", "sigma_data": 0.3}}, {"weight": functools.partial(weights.edm_weight, sigma_data=0.3)}),
    ({"sample_times__name": "uniform"}, {"sample_times": times.uniform}),
    ({"penalty__name": "quasi_conservative", "penalty__coefficient": 0.5}, {"penalty": functools.partial(conservative.quasi_conservative, coefficient=0.5)}),
    ({"t_min": 0.1}, {"t_min": 0.1}),
    ({"process__beta_max": 5.0}, {"process": sdes.vp_linear(beta_max=5.0)}),
    ({"score__prediction": "noise"}, {"prediction": scores.NOISE}),
]  # fmt: skip


@pytest.mark.parametrize("changes, by_hand", CASES, ids=lambda case: next(iter(case)))
def test_the_objective_is_the_one_that_is_configured(changes, by_hand):
    """The same loss as that of the parts put together in Python, and not that of the defaults."""
    _, experiment = made(**changes)
    params = experiment.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    parts = {"process": sdes.vp_linear(), "t_min": 1e-5, "loss": dsm.dsm, "weight": weights.likelihood_weight}
    parts |= {"sample_times": times.importance, "penalty": None}
    prediction = by_hand.get("prediction", scores.V)
    parts |= {name: part for name, part in by_hand.items() if name != "prediction"}
    process, apply = parts["process"], experiment.model.network.apply

    def score_of(params, *, train=False, key=None):
        network = functools.partial(apply, train=train, key=key) if train else apply
        return scores.score_fn(process, network, params, prediction)

    ours = score_matching(parts.pop("process"), score_of, experiment.space.encode, **parts)
    batch = {"x": experiment.data.train.x[:8]}
    run = lambda objective: jax.jit(functools.partial(objective, train=True))(params, jax.random.key(2), batch)[0]
    np.testing.assert_allclose(run(experiment.objective), run(ours), rtol=1e-6)
    assert abs(float(run(experiment.objective) / run(made()[1].objective)) - 1) > 1e-3


def test_how_samples_are_drawn_is_what_is_configured():
    _, experiment = made(
        sampler={"name": "heun", "denoise": False}, grid={"name": "karras", "rho": 3.0}, sampling__steps=7,
        sampling__t_min=0.02, sampling__guidance=0.0, data__conditional=True,
    )  # fmt: skip
    sampler = experiment.sampler
    wanted = grids.karras(sdes.vp_linear(), 7, t_min=0.02, rho=3.0)
    np.testing.assert_allclose(sampler.grid, wanted, rtol=1e-6)
    assert sampler.guidance == 0.0 and sampler.run.keywords == {"denoise": False}
    assert sampler.run.args == (rules.HEUN,) and sampler.evaluations == 2 * 2 * 7  # Heun's, with and without labels


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name in transitions.TRANSITIONS])
def test_every_affine_sampler_takes_the_step_of_its_name(name):
    process, grid = sdes.vp_linear(), jnp.array([1.0, 0.6, 0.3])
    ours = SAMPLERS[name].coefficients(process, grid)
    theirs = transitions.TRANSITIONS[name](process, grid[1:], grid[:-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), tuple(ours), tuple(theirs))


def test_the_other_samplers_are_those_of_their_name():
    assert SAMPLERS["heun"] is rules.HEUN and SAMPLERS["dpm_solver_pp_2m"] is rules.DPM_SOLVER_PP_2M
    assert (rules.HEUN.evaluations, rules.DPM_SOLVER_PP_2M.evaluations) == (2, 1)


def test_how_training_goes_is_what_is_configured(tmp_path):
    config, experiment = made(data__flip=True, seed=5, checkpoint="validation")
    options = configure.train_options(config, experiment)
    assert options.flip and experiment.seed == 5 and options.steps == 8 and options.batch_size == 16
    assert configure.evaluation(config).best == configure.sample_options(config).best == "validation"
    assert configure.evaluation(tiny.digits()).best == ""


def test_a_mixed_score_begins_with_the_share_that_is_configured():
    _, experiment = made(score__mixed=True, score__mixed_logit=-1.5)
    np.testing.assert_array_equal(experiment.init(jax.random.key(0))[MIXING]["logits"], -1.5)


def test_a_vae_learns_at_its_own_rate(tmp_path):
    vae = {"vae": {"name": "mlp", "width": 8, "depth": 1, "latents": 2}, "decoder": {"name": "categorical"}}
    latent = {"name": "joint", "learning_rate": 7e-3, "learning_rate_end": 7e-3, "eps": 1e-12, "weight_decay": 0.0}
    config, experiment = made(**vae, latent=latent, init_from="runs/not_read", training__warmup=0)
    rule = configure.train_options(config, experiment).optimizer
    params = experiment.init(jax.random.key(0))
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params)
    moved = jax.tree.leaves(updates[LATENT])
    np.testing.assert_allclose(
        np.concatenate([np.ravel(leaf) for leaf in moved]), -7e-3, rtol=1e-5
    )  # Adam's first step


def test_a_terminal_distribution_is_fitted_before_training():
    """The mean of the mixture's one component is that of the training data."""
    config, experiment = made(terminal={"name": "mixture", "components": 1, "covariance": "diagonal"})
    params = experiment.init(jax.random.key(0))
    fitted = experiment.model.fits["terminal"](params, jax.random.key(1))
    bins = experiment.space.bins
    mean = (experiment.data.train.x.reshape(1437, -1).mean(0) + 0.5) / bins.num_levels * 2 - 1
    np.testing.assert_allclose(np.ravel(fitted["means"]), mean, atol=0.02)


def test_what_a_plan_compares():
    """From a config and from Python alike: every named process, and the model's own."""
    config, experiment = made(grid__name="karras", sampling__t_min=0.02, sampler__name="ancestral")
    options = configure.planner_options(config)
    assert options.configured == "vp_linear" and list(options.grids) == ["uniform", "karras"]
    assert options.t_min == 0.02 and options.rule is transitions.ancestral
    assert planner.PlannerOptions().grids.keys() == {"uniform", "log_snr"}


LIBRARY = """
import functools, sys
from pathlib import Path
for name in ("scoreflow.configure", "ml_collections"):
    sys.modules[name] = None  # as if they were not there

import jax, numpy as np, optax
from scoreflow import evaluate, planner, sample, space, train
from scoreflow.data import load
from scoreflow.evaluators.context import EvalOptions
from scoreflow.evaluators.likelihood import likelihood
from scoreflow.experiment import Experiment, Model, ScoreOptions, parameters
from scoreflow.fits import terminal
from scoreflow.latent import decoders
from scoreflow.latent.space import latent_space
from scoreflow.models import TERMINAL, network
from scoreflow.models.mlp import ResidualMLP
from scoreflow.models.vae import MLPVAE, vae
from scoreflow.objectives import conservative, high_order, latent
from scoreflow.objectives.score_matching import score_matching
from scoreflow.processes import sdes
from scoreflow.samplers import grids, rules
from scoreflow.samplers.sampler import sampler
from scoreflow.terminal import families

jax.config.update("jax_numpy_rank_promotion", "allow")
home, line = Path(sys.argv[1]), sys.argv[2]
data, process, t_min = load.digits(), sdes.sub_vp_linear(horizon=0.6), 1e-3
where, family, options, fits = space.pixels(data.shape, 17), families.prior(), ScoreOptions(), {}
if line == "conservative":
    options = ScoreOptions(energy_power=1)
if line == "terminal":
    family = families.gaussian_mixture()
    fits = {TERMINAL: terminal(family, where, process, data.train.x)}
if line == "latent":
    quantiser = space.quantiser(17)
    decoder = decoders.categorical(quantiser.count)
    module = MLPVAE(width=8, depth=1, latents=2, outputs=decoder.outputs(1), shape=data.shape)
    where = space.latents(latent_space(vae(module), decoder, quantiser, data.shape))
net = parameters(network(ResidualMLP(width=16, depth=1)), family=family, latent=where.latent)
model = Model(process, net, t_min, options, family, fits=fits)
parts = {"t_min": t_min}
if line == "orders":
    parts["loss"] = functools.partial(high_order.high_order, order=2)
if line == "quasi_conservative":
    parts["penalty"] = conservative.quasi_conservative
objective = score_matching(process, model.score, where.encode, **parts)
if line == "latent":
    from scoreflow.objectives import times, weights
    objective = latent.joint(where.latent, process, model.score, weight=weights.likelihood_weight,
                             sample_times=times.normal_likelihood, t_min=t_min)
draw = sampler(rules.HEUN, process, grids.log_snr, steps=4, t_min=t_min)
experiment = Experiment(line, 0, data, where, model, objective, draw, {})
state = train.train(experiment, train.TrainOptions(steps=5, batch_size=16, steps_per_dispatch=2, pictures=False), home)
dequantization = "" if line == "latent" else "uniform"
evaluation = evaluate.Evaluation(EvalOptions(num_test=8, batch_size=8, dequantization=dequantization),
                                 {"likelihood": functools.partial(likelihood, draws=1, check=4)})
metrics = evaluate.evaluate(experiment, evaluation, home)
assert np.isfinite(metrics["likelihood"]["bits_per_dim"].value)
assert sample.sample(experiment, sample.SampleOptions(num=4, batch_size=4), home).shape == (4, 8, 8, 1)
if line == "plain":
    rows = planner.plan(experiment, planner.PlannerOptions(accuracy=0.5, steps=(4, 2)), home)
    assert "the model's own" in {row.name for row in rows}
"""


@pytest.mark.slow
@pytest.mark.parametrize("line", ["plain", "orders", "quasi_conservative", "conservative", "latent", "terminal"])
def test_all_lines_of_work_run_without_the_config_package(line, tmp_path):
    """A script trains, evaluates, samples and plans, where neither it nor ml_collections can be imported."""
    command = [sys.executable, "-c", LIBRARY, str(tmp_path / "run"), line]
    result = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") == 5
    assert "--mode=eval" not in result.stdout  # there is no config to go on with
