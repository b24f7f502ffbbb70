"""Whole objectives against the same lines written out, with the same keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.models import MAIN, TERMINAL
from scoreflow.objectives import conservative, dsm, high_order, score_matching, times, weights
from scoreflow.objectives.terminal import with_terminal
from tests.truth import PROCESSES

PROCESS, T_MIN = PROCESSES["vp"], 1e-3
BATCH = {"x": jnp.arange(24.0).reshape(8, 3) / 24, "label": jnp.arange(8) % 4}
PARAMS = {MAIN: jnp.array([[1.0, 0.2, 0.0], [-0.3, 0.8, 0.1], [0.0, 0.5, 1.2]]), "encoder": jnp.float32(2.0)}
LABELS = score_matching.labels(4, label_dropout=0.5)


def score_of(params, *, train=False, key=None):
    """A linear score, moved by its labels and, as dropout would do it, by the key."""
    shift = jax.random.normal(key, (3,)) if train else jnp.zeros(3)

    def score(x, t, cond=None):
        label = 0.0 if cond is None else 0.1 * cond[:, None]
        return -(x @ params[MAIN]) / (1.0 + t[:, None]) + shift[None] + label

    return score


def encode(params, key, x):
    return params["encoder"] * x + 0.1 * jax.random.normal(key, x.shape)


PENALTY = functools.partial(conservative.quasi_conservative, coefficient=0.3, every=2)
ORDERS = functools.partial(high_order.high_order, order=3, begin=0, ramp=8)


def by_hand(params, key, *, train, step, loss, penalty, sample_times, weight):
    """Terms by name."""
    key_x, key_t, key_noise, key_label, key_network = jax.random.split(key, 5)
    x0 = encode(params, key_x, BATCH["x"])
    cond = BATCH["label"]
    if train:
        cond = jnp.where(jax.random.bernoulli(key_label, 0.5, (8,)), 4, cond)
    t, inv_density = sample_times(PROCESS, key_t, 8, t_min=T_MIN)
    score = score_of(params, train=train, key=key_network)
    extra_terms = penalty and functools.partial(penalty, step=step)
    terms = loss(PROCESS, score, key_noise, x0, t, cond, weight=weight, extra_terms=extra_terms, step=step)
    return {name: (inv_density * term).mean() for name, term in terms.items()}


@pytest.mark.parametrize(
    "loss, penalty, sample_times, weight, names",
    [
        (dsm.dsm, None, times.importance, weights.likelihood_weight, {"order1"}),
        (dsm.dsm, PENALTY, times.stratified, weights.edm_weight, {"order1", "asym"}),
        (ORDERS, PENALTY, times.uniform, weights.noise_weight, {"order1", "order2", "order2_trace", "order3", "asym"}),
    ],
)
def test_score_matching_is_the_loss_on_encoded_data_at_drawn_times(loss, penalty, sample_times, weight, names):
    """In training with dropout, hidden labels and the step; in validation without any of them."""
    chosen = {"loss": loss, "penalty": penalty, "sample_times": sample_times, "weight": weight}
    objective = score_matching.score_matching(PROCESS, score_of, encode, t_min=T_MIN, labels=LABELS, **chosen)
    key = jax.random.key(7)
    for train, step in ((True, 2), (True, 3), (False, None)):
        total, terms = objective(PARAMS, key, BATCH, train=train, step=step)
        wanted = by_hand(PARAMS, key, train=train, step=step, **chosen)
        assert wanted.keys() == names and terms.keys() == names | {"loss"}
        for name, value in wanted.items():
            np.testing.assert_array_equal(terms[name], value)
        np.testing.assert_array_equal(total, sum(wanted.values()))
        np.testing.assert_array_equal(total, terms["loss"])


def test_no_gradient_of_score_matching_reaches_the_encoder():
    objective = score_matching.score_matching(PROCESS, score_of, encode, t_min=T_MIN)
    slope = jax.grad(lambda params: objective(params, jax.random.key(0), BATCH, train=True)[0])(PARAMS)
    assert float(slope["encoder"]) == 0.0 and (slope[MAIN] != 0).all()


def test_labels_are_hidden_in_training_alone():
    """At the given share of all labels, by the number after the last class; an unlabeled network is given none."""
    many = {"label": jnp.arange(10_000) % 4}
    hidden = np.asarray(LABELS.of(many, jax.random.key(0), train=True))
    kept = hidden == many["label"]
    assert set(hidden[~kept]) == {4} and abs(kept.mean() - 0.5) < 4 * 0.5 / 100
    np.testing.assert_array_equal(LABELS.of(many, jax.random.key(0), train=False), many["label"])
    assert score_matching.UNLABELED.of(many, jax.random.key(0), train=True) is None


# ----------------------------------------------------------------------------------------------------------------------
# With a terminal distribution.


def nats(log_std, xt):
    """-log N(x_T; 0, std^2 I)."""
    return (0.5 * (xt / jnp.exp(log_std)) ** 2 + log_std + 0.5 * np.log(2 * np.pi)).sum(1)


def test_a_terminal_distribution_alone_is_fitted_to_draws_of_the_end():
    """Without another objective: the mean nats per dimension at x_T, of the same draws, and a gradient of it alone."""
    params, key = {**PARAMS, TERMINAL: jnp.float32(0.3)}, jax.random.key(5)
    objective = with_terminal(PROCESS, encode, nats)
    _, key_x, key_noise = jax.random.split(key, 3)
    xt = PROCESS.perturb(key_noise, encode(params, key_x, BATCH["x"]), jnp.full(8, PROCESS.horizon)).xt
    for train in (True, False):
        total, terms = objective(params, key, BATCH, train=train)
        np.testing.assert_array_equal(total, nats(params[TERMINAL], xt).mean() / 3)
        assert terms.keys() == {"loss", "terminal"} and terms["loss"] == terms["terminal"] == total
    slope = jax.grad(lambda params: objective(params, key, BATCH, train=True)[0])(params)
    wanted = 1.0 - (xt**2).mean() / jnp.exp(0.6)
    assert float(slope[TERMINAL]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(slope["encoder"]) == 0.0 and not slope[MAIN].any()


def test_beside_the_score_a_terminal_distribution_adds_its_nats():
    """The score's terms are those of its objective alone, and each of the two has the gradient it has alone."""
    params, key = {**PARAMS, TERMINAL: jnp.float32(0.3)}, jax.random.key(5)
    alone = with_terminal(PROCESS, encode, nats)
    matching = score_matching.score_matching(
        PROCESS, score_of, encode, t_min=T_MIN, labels=LABELS, loss=ORDERS, penalty=PENALTY
    )
    both = with_terminal(PROCESS, encode, nats, matching)
    key_score = jax.random.split(key, 3)[0]
    total, terms = both(params, key, BATCH, train=True, step=2)
    score_total, score_terms = matching(params, key_score, BATCH, train=True, step=2)
    terminal_total, _ = alone(params, key, BATCH, train=True)
    np.testing.assert_array_equal(total, score_total + terminal_total)
    assert terms == {**score_terms, "loss": total, "terminal": terminal_total}
    slope = lambda objective, key: jax.grad(lambda p: objective(p, key, BATCH, train=True, step=2)[0])(params)
    together = slope(both, key)
    np.testing.assert_allclose(together[MAIN], slope(matching, key_score)[MAIN], rtol=1e-6)
    np.testing.assert_allclose(together[TERMINAL], slope(alone, key)[TERMINAL], rtol=1e-6)
