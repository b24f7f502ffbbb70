"""How far the terminal distribution is from the noised data at the horizon, where sampling begins with it."""

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.evaluators.context import Context, Results, Table, in_words
from scoreflow.experiment import EVALUATE
from scoreflow.fits import in_batches
from scoreflow.metrics import mean_estimate

_ROWS = 10_000  # training examples whose mean and variance are taken
_LARGE = 0.01  # units of density


def mismatch(context: Context) -> Results | None:
    """By how much a Gaussian with the data's mean and variances describes x_T better than the terminal distribution.

    It is E log N(x_T; alpha m, alpha^2 v + sigma^2) - E log p(x_T) over the test data, with m and v of every dimension
    from the training data. The expectation is at most the divergence of p from the distribution of x_T, and is near 0
    or below where the terminal distribution fits.

    Args:
      context: the model and how it is evaluated.
    """
    if not context.options.likelihood:
        return None
    metrics = {"mismatch": mean_estimate(differences(context))}
    gap, unit = metrics["mismatch"], context.unit
    large = gap.value > _LARGE + 3 * gap.stderr
    note = f"the terminal distribution is {in_words(gap)} {unit} worse at T than a Gaussian with the data's moments: "
    note += f"{context.experiment.model.family.advice}, or a larger process.horizon"
    rows = [(f"mismatch at T, {unit}", in_words(gap))]
    return Results({"likelihood": metrics}, (Table("", rows, (note,) if large else ()),))


def differences(context: Context) -> np.ndarray:
    """log N - log p at x_T of every test example, in the unit of densities, [N]."""
    experiment, model = context.experiment, context.experiment.model
    key_train, key_noise = jax.random.split(jax.random.fold_in(experiment.key(EVALUATE), 1))
    rows = in_batches(experiment.space.encode, context.params, key_train, experiment.data.train.x[:_ROWS])
    alpha = float(model.process.alpha(model.process.horizon))
    variance = float(model.process.variance(model.process.horizon))
    mean = jnp.asarray(alpha * rows.mean(0, dtype=np.float64), jnp.float32)[None]
    spread = jnp.asarray(alpha**2 * rows.var(0, dtype=np.float64) + variance, jnp.float32)[None]

    def log_ratio(params, keys, x, cond):
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        xt = alpha * x + variance**0.5 * noise
        each = -0.5 * ((xt - mean) ** 2 / spread + jnp.log(2 * jnp.pi * spread))
        return each.reshape(len(x), -1).sum(1) - model.terminal(params).log_prob(xt)

    data = context.examples()
    keys = jax.random.split(key_noise, len(data.x))
    values = context.in_batches(log_ratio)("mismatch", context.params, keys, data.x, data.cond)
    return np.asarray(values, np.float64) / context.scale
