"""Optimizers: the schedule at its ends, and each group of parameters by its own rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scoreflow import optimizers
from scoreflow.models import DEQUANTISER, LATENT, MAIN, MIXING, TERMINAL
from scoreflow.optimizers import OptimizerOptions, VaeRates, grouped
from scoreflow.terminal import families

STEPS = 12
# decay and a clip that bites: a group that holds would show either
OPTIONS = OptimizerOptions(learning_rate=0.1, warmup=3, weight_decay=0.5, clip=0.7)
RULE = optimizers.optimizer(STEPS, OPTIONS)
GLOW, MIXTURE = families.glow(learning_rate=0.02), families.gaussian_mixture()


def parameters() -> dict:
    """Something in every group."""
    leaves = {MAIN: 3, DEQUANTISER: 4, TERMINAL: 5, LATENT: 6}
    params = {name: {"kernel": jax.random.normal(jax.random.key(size), (size, 2))} for name, size in leaves.items()}
    return {**params, MIXING: {"logits": jnp.full(4, -3.0), "active": jnp.array([1.0, 0.0, 1.0, 1.0])}}


def run(optimizer: optax.GradientTransformation, params, scale: float = 1.0):
    """The parameters after all steps, by gradients that are functions of the step and of each leaf alone."""
    state = optimizer.init(params)
    for step in range(STEPS):
        grads = jax.tree.map(lambda leaf, step=step: scale * jnp.cos(step + 3.0 * leaf), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def pick(params, *names):
    return {name: params[name] for name in names}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def moved(one, other) -> bool:
    return all(bool((a != b).all()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


def test_a_score_without_other_groups_has_the_rule_itself():
    params = pick(parameters(), MAIN)[MAIN]
    plain = grouped(STEPS, OPTIONS, family=families.prior())
    assert jax.tree.structure(plain.init(params)) == jax.tree.structure(RULE.init(params))
    same(run(plain, params), run(RULE, params))


@pytest.mark.parametrize("name, family", [(TERMINAL, MIXTURE), (LATENT, families.prior()), (TERMINAL, GLOW)])
def test_the_score_moves_as_with_the_plain_rule_whatever_stands_beside_it(name, family):
    """Exactly: neither the clip nor the moments know of another group."""
    params = pick(parameters(), MAIN, name)
    after = run(grouped(STEPS, OPTIONS, groups=tuple(params), family=family), params)
    same(after[MAIN], run(RULE, params[MAIN]))
    assert moved(after[MAIN], params[MAIN])


def test_groups_that_hold_do_not_move():
    """A fitted mixture, a finished VAE, the flags of channels and a finished score, under decay and any gradient."""
    params = pick(parameters(), MAIN, MIXING, TERMINAL, LATENT)
    after = run(grouped(STEPS, OPTIONS, groups=tuple(params), family=MIXTURE), params, scale=100.0)
    same(pick(after, TERMINAL, LATENT), pick(params, TERMINAL, LATENT))
    same(after[MIXING]["active"], params[MIXING]["active"])
    assert moved(pick(after, MAIN), pick(params, MAIN)) and moved(after[MIXING]["logits"], params[MIXING]["logits"])
    options = OPTIONS._replace(learn="terminal")
    finished = run(grouped(STEPS, options, groups=tuple(params), family=GLOW, rates=VaeRates()), params)
    same(pick(finished, MAIN, MIXING, LATENT), pick(params, MAIN, MIXING, LATENT))
    assert moved(finished[TERMINAL], params[TERMINAL])


def test_each_group_that_learns_has_its_own_rule():
    """The flow at the end by the published one, the VAE by its own rates; the shares of a mixed score go with it."""
    params, rates = pick(parameters(), MAIN, MIXING, TERMINAL, LATENT), VaeRates(learning_rate=0.05)
    after = run(grouped(STEPS, OPTIONS, groups=tuple(params), family=GLOW, rates=rates), params)
    same(after[TERMINAL], run(optimizers.flow_optimizer(0.02), params[TERMINAL]))
    same(after[LATENT], run(optimizers.vae_optimizer(rates, OPTIONS.warmup, STEPS), params[LATENT]))
    score = {MAIN: params[MAIN], "logits": params[MIXING]["logits"]}
    alone = run(RULE, score)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        {MAIN: after[MAIN], "logits": after[MIXING]["logits"]},
        alone,
    )


def test_a_dequantizing_flow_learns_by_the_score_s_rule_while_the_score_stays():
    params = pick(parameters(), MAIN, DEQUANTISER)
    after = run(grouped(STEPS, OPTIONS, groups=tuple(params)), params)
    same(after[MAIN], params[MAIN])
    same(after[DEQUANTISER], run(RULE, params[DEQUANTISER]))


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax"])
@pytest.mark.parametrize("schedule, last", [("cosine", 0.01), ("constant", 0.1)])
def test_the_learning_rate_grows_from_zero_and_ends_where_it_is_told(name, schedule, last):
    """A constant gradient moves Adam by the learning rate: 0 at first, then its full size, at last that of the end."""
    rates = OptimizerOptions(name, 0.1, 0.01, schedule, warmup=4, clip=0.0, eps=1e-12)
    optimizer, params = optimizers.optimizer(20, rates), jnp.ones(1)
    state, steps = optimizer.init(params), []
    for _ in range(21):
        update, state = optimizer.update(jnp.ones(1), state, params)
        steps.append(-float(update[0]))
    np.testing.assert_allclose([steps[0], steps[2], steps[4], steps[20]], [0.0, 0.05, 0.1, last], rtol=1e-4, atol=1e-8)


def test_the_clip_is_of_the_global_norm():
    """Of two leaves 3 and 4: the norm 5 is cut to 1, a smaller one is left as it is, and 0 does not clip."""
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    state = lambda clip: optimizers.optimizer(
        5, OptimizerOptions("adam", 1.0, warmup=0, clip=clip, beta1=0.0, beta2=0.0, eps=1.0)
    )
    step = lambda clip: state(clip).update(grads, state(clip).init(grads), grads)[0]
    wanted = lambda g: -g / (g + 1.0)  # without memory: g / (|g| + eps)
    np.testing.assert_allclose([step(1.0)["a"][0], step(1.0)["b"][0]], [wanted(0.6), wanted(0.8)], rtol=1e-6)
    for clip in (0.0, 6.0):
        np.testing.assert_allclose([step(clip)["a"][0], step(clip)["b"][0]], [wanted(3.0), wanted(4.0)], rtol=1e-6)
