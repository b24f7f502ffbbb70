"""Latent models through their config: what each part learns from, what is kept, and what is measured of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from scoreflow import configure, sample, train
from scoreflow.evaluate import evaluate, measure
from scoreflow.evaluators.latent import latent_metrics
from scoreflow.experiment import EVALUATE, INIT, READ
from scoreflow.latent import kl
from scoreflow.models import LATENT, MAIN, MIXING, vae
from scoreflow.models.vae import normal_log_prob
from scoreflow.runs import checkpoint, workdir
from scoreflow.runs.best import Best
from scoreflow.step import init_state
from tests import tiny


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def config_of(stem: str, variant: str, **changes):
    """A config of the digits in latent space at a size that trains in seconds."""
    config = tiny.load(tiny.ROOT / "configs" / f"{stem}.py", variant)
    config.vae.update({"name": "mlp", "width": 16, "depth": 1, "latents": 6, "dtype": "float32"})
    config.model.update({"name": "mlp", "width": 16, "depth": 1, "dropout": 0.0, "dtype": "float32"})
    small = tiny.digits()
    config.training.update({k: v for k, v in small.training.items() if k not in ("optimizer", "learning_rate", "eps")})
    config.sampling.update({k: small.sampling[k] for k in ("num", "batch_size")})
    for name in ("draws", "num_test", "batch_size", "check", "num_samples", "baseline", "features"):
        config.eval[name] = small.eval[name]
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        if isinstance(value, dict):
            config[key].update(value)
        else:
            (config[section] if section else config)[key] = value
    return config


def untrained(stem, variant, **changes):
    """(experiment, parameters before training, a batch)."""
    experiment = configure.experiment(config_of(stem, variant, **changes), variant)
    params = experiment.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    return experiment, params, {"x": experiment.data.train.x[:8], "label": experiment.data.train.label[:8]}


def same(one, two) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two))


def size_of(tree) -> float:
    """Largest absolute value in a tree."""
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", ["levels", "binary"])
def test_what_a_vae_alone_is_validated_by_is_its_bound(variant):
    """-log p(x|z) + log q(z|x) - log N(z; 0, I), by hand from the parts; and two groups of keys agree in the mean."""
    experiment, params, batch = untrained("digits_vae", variant)
    key = jax.random.key(3)
    loss, terms = experiment.objective(params, key, batch, train=False)
    key_quantise, key_infer = jax.random.split(key)
    latent = experiment.space.latent
    encoded = latent.infer(params[LATENT], key_infer, latent.quantiser.quantise(key_quantise, batch["x"]))
    by_hand = encoded.reconstruction + (encoded.top.log_q - normal_log_prob(encoded.top.z)).sum(1)
    assert float(loss) == pytest.approx(float(by_hand.mean()), rel=1e-5)
    assert set(params) == {LATENT}


@pytest.mark.slow
def test_groups_and_scales_share_the_divergence(tmp_path):
    """Of a hierarchical VAE: by group they add up, in training and in evaluation; balance favors those that say much."""
    deep = {"name": "hierarchical", "channels": 4, "multipliers": (1, 1), "scales": 2, "per_scale": 2, "latents": 2}
    deep |= {"cells": 1, "outer_cells": 1, "inverted": False, "pad": 0, "dtype": "float32"}
    config = config_of("digits_vae", "levels", vae=deep)
    experiment = configure.experiment(config, "deep")
    params = experiment.init(jax.random.key(0))
    batch = {"x": experiment.data.train.x[:8]}
    run = jax.jit(lambda step: experiment.objective(params, jax.random.key(0), batch, train=True, step=step))
    loss, terms = run(jnp.asarray(0))
    shares = [float(terms[f"divergence_{g}"]) for g in (1, 2, 3, 4)]
    assert sum(shares) == pytest.approx(float(terms["divergence"]), rel=1e-4)
    divergences = jnp.asarray(shares)[None]
    factors = kl.balance(divergences, jnp.asarray(experiment.space.latent.sizes))
    weighted = float(loss - terms["reconstruction"]) / 0.01
    assert weighted == pytest.approx(float((divergences @ factors)[0]), rel=0.02)
    metrics = latent_metrics(configure.evaluation(config).context(experiment, params, tmp_path))
    total = sum(metrics[f"divergence_of_group_{g}"].value for g in (1, 2, 3, 4))
    assert total == pytest.approx(metrics["normal_divergence"].value, rel=1e-4)


def test_the_coefficient_of_the_divergence_grows_and_groups_are_balanced():
    """At the first step the loss is reconstruction + 0.01 KL for one group, halfway 0.505, at the end of the ramp 1."""
    experiment, params, batch = untrained("digits_vae", "levels")
    for step, share in ((0, 0.01), (250, 0.505), (500, 1.0), (10_000, 1.0)):
        loss, terms = experiment.objective(params, jax.random.key(0), batch, train=True, step=jnp.asarray(step))
        assert float(loss) == pytest.approx(float(terms["reconstruction"] + share * terms["divergence"]), rel=1e-5)


def gradients(experiment, params, batch):
    """Of the training loss."""
    return jax.jit(
        jax.grad(lambda p: experiment.objective(p, jax.random.key(5), batch, train=True, step=jnp.asarray(300))[0])
    )(params)


@pytest.mark.slow
def test_the_vae_learns_from_the_bound_whatever_the_prior_learns_from():
    """Algorithms 1 and 2 move encoder and decoder alike, and the prior differently; 3 shares its times with the prior."""
    slopes = {i: gradients(*untrained("digits_latent", f"levels_{i}")) for i in (1, 2, 3)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), slopes[1][LATENT], slopes[2][LATENT]
    )
    apart = lambda i, j, group: size_of(jax.tree.map(jnp.subtract, slopes[i][group], slopes[j][group]))
    assert apart(1, 2, MAIN) > 1e-3 and apart(2, 3, MAIN) > 1e-3
    assert apart(1, 3, LATENT) > 1e-3
    assert all(size_of(grads[MIXING]["active"]) == 0.0 for grads in slopes.values())
    assert all(size_of(grads[MIXING]["logits"]) > 0.0 for grads in slopes.values())


@pytest.mark.slow
def test_the_coefficient_does_not_reach_the_prior():
    """The published code multiplies the prior's loss by it in its first algorithm; here it is the VAE's alone."""
    experiment, params, batch = untrained("digits_latent", "levels_1")
    early, late = (
        jax.grad(
            lambda p, s=step: experiment.objective(p, jax.random.key(5), batch, train=True, step=jnp.asarray(s))[0]
        )(params)
        for step in (0, 10_000)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), early[MAIN], late[MAIN])
    assert size_of(jax.tree.map(jnp.subtract, early[LATENT], late[LATENT])) > 1e-3


def test_a_closed_entropy_changes_the_loss_and_not_the_gradient():
    experiments = [untrained("digits_latent", "levels_1", latent__closed_entropy=closed) for closed in (False, True)]
    losses_, grads = [], []
    for experiment, params, batch in experiments:
        losses_.append(float(experiment.objective(params, jax.random.key(5), batch, train=False)[0]))
        grads.append(gradients(experiment, params, batch))
    assert abs(losses_[0] - losses_[1]) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *grads)


@pytest.mark.slow
def test_on_frozen_latents_the_vae_has_no_gradient_and_the_loss_is_that_of_any_data():
    """With order 2 and the penalty on asymmetry, too; an energy's score of latents is its gradient."""
    changes = {"penalty": {"name": "quasi_conservative"}, "loss": {"name": "high_order", "order": 2}}
    experiment, params, batch = untrained("digits_latent", "levels_frozen", **changes)
    grads = gradients(experiment, params, batch)
    assert size_of(grads[LATENT]) == 0.0 < size_of(grads[MAIN])
    _, terms = experiment.objective(params, jax.random.key(5), batch, train=True)
    assert {"order1", "order2", "asym"} <= terms.keys() and all(np.isfinite(term) for term in terms.values())
    energetic, params, _ = untrained("digits_latent", "levels_frozen", score__mixed=False, score__energy_power=2)
    x, t = jax.random.normal(jax.random.key(0), (3, 6)), jnp.array([0.1, 0.5, 0.9])
    slope = jax.jit(jax.grad(lambda x: energetic.model.energy(params)(x, t).sum()))(x)
    np.testing.assert_allclose(energetic.model.score(params)(x, t), -slope, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_bound_in_evaluation_is_that_of_its_terms():
    """Latents as examples, with log q(z|x) - log p(x|z) where the noise's density stands, each by hand.

    Both draws are of one reading of the binary digits.
    """
    config = config_of("digits_latent", "binary_1")
    experiment = configure.experiment(config, "latent")
    params = experiment.init(jax.random.key(0))
    context = configure.evaluation(config).context(experiment, params)
    quantiser = experiment.space.latent.quantiser
    levels = quantiser.quantise(experiment.key(READ), experiment.data.test.x[:12])
    by_hand = vae.vae(vae.MLPVAE(outputs=1, shape=(8, 8, 1), width=16, depth=1, latents=6))
    assert experiment.space.bins is None and context.unit == "nats"
    for draw in (0, 1):
        examples = context.examples(draw)
        key, _ = jax.random.split(jax.random.fold_in(experiment.key(EVALUATE), draw))
        for i, key_one in enumerate(jax.random.split(key, 12)):
            x = levels[i : i + 1].astype(jnp.float32)
            inferred = by_hand.infer(params[LATENT], key_one, 2 * x - 1)
            log_lik = jnp.sum(x * jax.nn.log_sigmoid(inferred.out) + (1 - x) * jax.nn.log_sigmoid(-inferred.out))
            np.testing.assert_allclose(examples.x[i], inferred.top.z[0], rtol=1e-4, atol=1e-4)
            assert float(examples.log_q[i]) == pytest.approx(float(inferred.top.log_q.sum() - log_lik), rel=1e-4)
        np.testing.assert_allclose(context.in_unit(np.full(12, -2.0), examples.log_q), examples.log_q + 2.0)


@pytest.mark.slow
def test_the_cross_entropy_is_what_the_score_model_adds_to_the_bound(tmp_path):
    """In bits/dim: the bound is it and the mean of log q(z|x) - log p(x|z), by the ODE and by the SDE's bound alike."""
    config = config_of("digits_latent", "levels_1")
    config.eval.update({"draws": 1, "bound_times": 3, "num_test": 12, "batch_size": 12})
    experiment = configure.experiment(config, "latent")
    evaluation = configure.evaluation(config)
    context = evaluation.context(experiment, experiment.init(jax.random.key(0)))
    metrics = measure(context, evaluation.evaluators, only=("likelihood", "bound")).metrics["likelihood"]
    others = context.examples().log_q.mean() / (64 * np.log(2.0))
    assert metrics["bits_per_dim"].value == pytest.approx(metrics["cross_entropy"].value + others, rel=1e-6)
    assert metrics["bound"].value == pytest.approx(metrics["bound_cross_entropy"].value + others, rel=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# From end to end, in folders.


def run(folder, stem, variant, **changes):
    """Trains in a folder; (experiment, config, state as saved)."""
    config = config_of(stem, variant, **changes)
    experiment = configure.experiment(config, f"configs/{stem}.py:{variant}")
    options = configure.train_options(config, experiment)
    train.train(experiment, options, folder)
    template = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    state = checkpoint.restore(workdir.checkpoints(folder), workdir.newest(folder), template)
    return experiment, config, state


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """The folder of a VAE trained for some steps, and its parameters."""
    folder = tmp_path_factory.mktemp("first")
    with jax.numpy_rank_promotion("allow"):
        _, _, state = run(folder, "digits_vae", "levels")
    return folder, state.ema_params[LATENT]


@pytest.mark.slow
def test_stage_two_begins_with_the_vae_of_stage_one(first_stage, tmp_path, capsys):
    """Frozen it stays, bit for bit; jointly trained it moves, and is used as it is, not averaged."""
    folder, vae = first_stage
    experiment, config, state = run(tmp_path / "frozen", "digits_latent", "levels_frozen", init_from=str(folder))
    same(state.params[LATENT], vae)
    assert "beginning with the averaged parameters" in capsys.readouterr().out
    _, _, joint = run(tmp_path / "joint", "digits_latent", "levels_1", init_from=str(folder))
    assert size_of(jax.tree.map(jnp.subtract, joint.params[LATENT], vae)) > 0
    same(joint.params[LATENT], joint.ema_params[LATENT])
    assert size_of(jax.tree.map(jnp.subtract, joint.params[MAIN], joint.ema_params[MAIN])) > 0
    # and a third run from the second takes all of it
    _, _, again = run(tmp_path / "again", "digits_latent", "levels_frozen", init_from=str(tmp_path / "joint"))
    same(again.params[LATENT], joint.ema_params[LATENT])
    config.eval.update({"bound_times": 5, "symmetry": 4, "symmetry_times": 3, "tolerances": 4, "rtols": (1e-2,)})
    metrics = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path / "frozen")
    terms, bits = metrics["latent"], metrics["likelihood"]["bits_per_dim"]
    assert 0 < bits.value < 20 and metrics["likelihood"]["likelihood_failed"] == 0
    z = experiment.space.encode(joint.params | {LATENT: vae}, experiment.key(5), experiment.data.train.x[:1000])
    assert terms["channels"] == 6 and terms["largest_distance"] == pytest.approx(pdist(z).max(), rel=1e-4)
    # the process ends at N(0, I), so the SDE's bound is no better than the VAE's reconstruction less the entropy allows
    assert np.isfinite(metrics["likelihood"]["bound"].value) and "symmetry" in metrics
    assert (tmp_path / "frozen" / "eval" / "8" / "reconstructions.png").exists()
    sample.sample(experiment, configure.sample_options(config), tmp_path / "frozen")
    drawn = np.load(tmp_path / "frozen" / "samples" / "8-8.npy")
    assert drawn.dtype == np.uint8 and drawn.shape == (8, 8, 8, 1) and drawn.max() <= 16


@pytest.mark.slow
def test_a_vae_models_vectors_of_levels_without_order(tmp_path):
    """Five symbols, the second a function of the first: the bound falls below that of independent symbols."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 4000)
    np.save(tmp_path / "symbols.npy", np.stack([first, (2 * first + 1) % 5], axis=1).astype(np.uint8))
    data = {"data__name": "arrays", "data__path": str(tmp_path / "symbols.npy"), "data__num_levels": 5}
    changes = {"decoder": {"name": "categorical"}, "latent": {"name": "alone"}, "training__batch_size": 32}
    changes |= {"training__steps": 600, "training__checkpoint_every": 600, "training__validate_every": 600}
    changes |= {"eval__features": "pixels", "eval__num_test": 400, "training__learning_rate": 0.02}
    experiment, config, _ = run(tmp_path / "run", "digits_vae", "levels", **data, **changes)
    assert experiment.space.shape == (6,)
    likelihood = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path / "run")["likelihood"]
    bits = likelihood["bits_per_dim"]
    assert likelihood["uniform_bits_per_dim"] == pytest.approx(np.log2(5))
    # the truth is log2(5) / 2 = 1.161 for each of the two
    assert np.log2(5) / 2 - 4 * bits.stderr < bits.value < np.log2(5) - 4 * bits.stderr


@pytest.mark.slow
def test_a_finished_latent_model_can_have_a_terminal_distribution(first_stage, tmp_path):
    """Score, shares and VAE come from the other run by their names; the mixture is fitted to its latents."""
    folder, _ = first_stage
    _, _, state = run(tmp_path / "score", "digits_latent", "levels_1", init_from=str(folder))
    changes = {"init_from": str(tmp_path / "score"), "terminal": {"name": "mixture"}, "process__horizon": 0.5}
    changes |= {"training__learn": "terminal", "training__steps": 0, "training__warmup": 0}
    experiment, _, bridged = run(tmp_path / "bridge", "digits_latent", "levels_1", **changes)
    for group in (MAIN, MIXING, LATENT):
        same(bridged.ema_params[group], state.ema_params[group])
    terminal = experiment.model.terminal(bridged.ema_params)
    z = experiment.space.encode(bridged.ema_params, jax.random.key(0), experiment.data.train.x)
    xt = experiment.model.process.perturb(jax.random.key(1), z, jnp.full(len(z), 0.5)).xt
    assert float(terminal.log_prob(xt).mean()) > float(terminal.log_prob(xt + 3.0).mean())


@pytest.mark.slow
def test_inactive_channels_are_found_once_and_kept_in_the_checkpoint(first_stage, tmp_path, monkeypatch):
    """Their logit is -15, the network does not see them, and a resumed run still knows."""
    folder, vae = first_stage
    monkeypatch.setattr(kl, "active", lambda kl, least=0.1: jnp.arange(kl.shape[1]) % 2 == 0)
    changes = {"init_from": str(folder), "latent__drop_inactive": True}
    experiment, _, state = run(tmp_path, "digits_latent", "levels_1", **changes)
    np.testing.assert_array_equal(state.params[MIXING]["active"], [1, 0, 1, 0, 1, 0])
    assert np.all(np.abs(np.asarray(state.params[MIXING]["logits"])[1::2] + 15.0) < 0.1)
    monkeypatch.setattr(kl, "active", lambda kl, least=0.1: 1 / 0)
    experiment, _, state = run(tmp_path, "digits_latent", "levels_1", **changes, training__steps=10)
    assert int(state.step) == 10
    np.testing.assert_array_equal(state.ema_params[MIXING]["active"], [1, 0, 1, 0, 1, 0])
    x, t = jax.random.normal(jax.random.key(0), (3, 6)), jnp.full(3, 0.5)
    score = experiment.model.score(state.ema_params)
    moved = score(x.at[:, 1].add(2.0), t) - score(x, t)
    np.testing.assert_allclose(moved[:, 1], -2.0, rtol=1e-4)
    np.testing.assert_allclose(moved[:, 2:], 0.0, atol=1e-5)


@pytest.mark.slow
def test_the_best_checkpoints_are_kept_beside_the_newest(tmp_path):
    """By two measures that fall and rise at steps of our choice; a resumed run forgets what came after."""
    values = {"validation": {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}, "frechet": {2: 5.0, 4: 6.0, 6: 4.0, 8: 9.0}}

    def fake(name):
        steps = iter(sorted(values[name]))
        return lambda experiment: lambda params: values[name][next(steps)]

    config = config_of("digits_vae", "levels", training__best=("validation", "frechet"), training__keep=1)
    experiment = configure.experiment(config, "configs/digits_vae.py:levels")
    options = configure.train_options(config, experiment)._replace(measures={name: fake(name) for name in values})
    train.train(experiment, options, tmp_path)
    assert [workdir.newest(tmp_path, best) for best in ("", "validation", "frechet")] == [8, 4, 6]
    config.checkpoint, config.eval.num_samples = "validation", 0
    metrics = evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path)
    assert metrics["step"] == 4 and (tmp_path / "eval" / "4-validation" / "metrics.json").exists()
    # a run that resumes at step 5 knows of what was best until then: of frechet the one before, kept for a kill
    best = Best(tmp_path, values, 5)
    assert best.values == {"validation": 1.0, "frechet": 5.0}
    assert not best.offer("validation", 6, 1.5, {}) and workdir.newest(tmp_path, "frechet") == 2
    # a kill after the files and before their seal
    assert best.offer("frechet", 6, 4.0, {"a": jnp.ones(2)})
    (tmp_path / "best" / "frechet" / "6.sha256.json").unlink()
    assert Best(tmp_path, values, 7).values["frechet"] == 5.0


@pytest.mark.slow
def test_the_frechet_measure_is_that_of_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = config_of("digits_vae", "levels", training__best=("frechet",))
    experiment = configure.experiment(config, "vae")
    params = experiment.init(jax.random.key(0))
    evaluation = configure.evaluation(config, tmp_path)
    context = evaluation.context(experiment, params, tmp_path)
    samples = measure(context, evaluation.evaluators, only=("samples",)).metrics["samples"]
    options = configure.train_options(config, experiment)
    frechet = options.measures["frechet"](experiment)
    assert frechet(params) == pytest.approx(samples["model"]["frechet"].value, rel=1e-6)


def test_the_spectral_penalty_is_added_with_its_weight():
    losses = {}
    for weight in (0.0, 0.3):
        experiment, params, batch = untrained("digits_vae", "levels", latent__spectral_weight=weight)
        losses[weight], terms = experiment.objective(params, jax.random.key(5), batch, train=True, step=jnp.asarray(0))
    assert float(terms["spectral"]) > 0.1
    assert float(losses[0.3] - losses[0.0]) == pytest.approx(0.3 * float(terms["spectral"]), rel=1e-3)
