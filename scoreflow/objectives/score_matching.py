"""The objective of a score: draw times, noise the data, compare the score with the noise."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.augment import Augmentation
from scoreflow.objectives.dsm import dsm
from scoreflow.objectives.protocols import Loss, Objective, Penalty
from scoreflow.objectives.times import TimeSampler, importance
from scoreflow.objectives.weights import Weight, likelihood_weight
from scoreflow.processes import linear
from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.types import Cond, Conditioning, Fraction, Key, Params


class Labels(NamedTuple):
    """What a network is told of classes.

    Attributes:
      num_classes: number of classes; 0 where the network is given no labels.
      dropout: share of labels that are hidden in training, so that the network also learns the data of all classes.
    """

    num_classes: int = 0
    dropout: float = 0.0

    def of(self, batch: dict[str, jax.Array], key: Key, *, train: bool) -> jax.Array | None:
        """Labels [B] of a batch, some replaced by num_classes in training; None where there are none."""
        if not self.num_classes:
            return None
        label = batch["label"]
        if not (train and self.dropout):
            return label
        return jnp.where(jax.random.bernoulli(key, self.dropout, label.shape), self.num_classes, label)


UNLABELED = Labels()


def labels(num_classes: int, *, label_dropout: Fraction = 0.0) -> Labels:
    """Labels for a conditional network.

    Args:
      num_classes: number of classes.
      label_dropout: Share of labels hidden in training, which classifier-free guidance needs.
    """
    return Labels(num_classes, label_dropout)


def score_matching(
    process: Process,
    score_of: Callable[..., Score],
    encode: Callable[[Params, Key, jax.Array], jax.Array],
    *,
    loss: Loss = dsm,
    weight: Weight = likelihood_weight,
    sample_times: TimeSampler = importance,
    t_min: float,
    penalty: Penalty | None = None,
    labels: Labels = UNLABELED,
    augmentation: Augmentation | None = None,
) -> Objective:
    """A loss of the score at random times, on the data or on latents of a VAE that stays as it is.

    x0 = encode(batch); t ~ sample_times; terms = loss(score, x0, t) + penalty; mean(terms / density(t)). In training x0
    may be augmented first.

    Args:
      process: the forward SDE.
      score_of: (params, *, train, key) -> score function.
      encode: (params, key, data [B, ...] as stored) -> x [B, ...]; no gradient flows through it.
      loss: what is minimized, one number for each example and term; see `dsm` and `high_order`.
      weight: weight on the squared noise error.
      sample_times: the distribution of t.
      t_min: the time at which training begins.
      penalty: further terms at the loss's own noised data; see `conservative`.
      labels: what the network is told of classes.
      augmentation: what is done to x in training, and told to the network; None for nothing.

    Examples:
      >>> import jax, jax.numpy as jnp, scoreflow
      >>> from scoreflow import space
      >>> process = scoreflow.vp_linear()
      >>> def score_of(params, **options):  # of N(0, exp(params)^2 I)
      ...     variance = lambda t: process.alpha(t) ** 2 * jnp.exp(2 * params) + process.variance(t)
      ...     return lambda x, t, cond=None: -x / variance(t)[:, None]
      >>> objective = scoreflow.score_matching(process, score_of, space.continuous((2,)).encode, t_min=1e-3)
      >>> batch = {"x": jax.random.normal(jax.random.key(0), (4000, 2))}
      >>> right, wrong = (float(objective(p, jax.random.key(1), batch, train=True)[0]) for p in (0.0, 1.0))
      >>> right < wrong
      True
    """
    linear.check(process)

    def objective(params, key, batch, *, train, step=None):
        key_x, key_t, key_noise, key_label, key_network = jax.random.split(key, 5)
        x0 = jax.lax.stop_gradient(encode(params, key_x, batch["x"]))
        cond: Cond = labels.of(batch, key_label, train=train)
        if train and augmentation is not None:
            x0, told = augmentation.apply(jax.random.fold_in(key_x, 1), x0)
            cond = Conditioning(cond, told)
        t, inv_density = sample_times(process, key_t, x0.shape[0], t_min=t_min)
        score = score_of(params, train=train, key=key_network)
        extra_terms = None if penalty is None else functools.partial(penalty, step=step)
        terms = loss(process, score, key_noise, x0, t, cond, weight=weight, extra_terms=extra_terms, step=step)
        means = {name: jnp.mean(inv_density * term) for name, term in terms.items()}
        total = jnp.asarray(sum(means.values()))
        return total, {"loss": total, **means}

    return objective
