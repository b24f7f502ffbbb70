"""The terms of a VAE's bound, how many of its channels carry information, and how well it reconstructs data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.experiment import EVALUATE, READ, Experiment
from scoreflow.latent import kl
from scoreflow.metrics import mean_estimate
from scoreflow.models import LATENT
from scoreflow.models.vae import normal_log_prob
from scoreflow.runs import parallel, report
from scoreflow.types import Params

_SHOWN = 50  # reconstructions in a picture
_COMPARED = 1000  # encodings of training data whose distances are compared


def latent(context: Context) -> Results | None:
    """Terms of the bound on test data; nothing where there is no latent space."""
    if not context.options.likelihood or context.experiment.space.latent is None:
        return None
    metrics = latent_metrics(context)
    return Results({"latent": metrics}, (table_of("terms of the bound, nats", metrics),))


def latent_metrics(context: Context) -> dict[str, Any]:
    """Terms of the bound on test data in nats, and a picture of data (odd columns) with their reconstructions.

    `reconstruction` is -log p(x|z), `negative_entropy` log q(z|x) of the latents under the score prior and
    `lower_divergence` that of the others from N(0, I). `normal_divergence` is what all latents would cost under
    N(0, I), and with several groups what each of them would, those under the score prior first; `active_channels` are
    channels of these whose share of it is above 0.1 nats. `largest_distance` between two encodings is what a
    variance-exploding process has to reach.
    """
    experiment, space = context.experiment, context.experiment.space.latent
    assert space is not None
    data = np.asarray(experiment.data.test.x[: context.num_test])
    levels = np.asarray(space.quantiser.quantise(experiment.key(READ), jnp.asarray(data)))

    def solve(params, keys, x, cond):
        encoded = space.infer(params[LATENT], keys[0], x)
        each = encoded.top.log_q - normal_log_prob(encoded.top.z)
        normal, groups = kl.channel_sums(each), kl.group_sums(each, space.groups)
        terms = (encoded.reconstruction, kl.example_sums(encoded.top.log_q), encoded.lower_kl.sum(1))
        return terms, normal, jnp.concatenate([groups, encoded.lower_kl], axis=1), encoded.decoded

    keys = jax.random.split(jax.random.fold_in(experiment.key(EVALUATE), READ), len(data))
    (reconstruction, entropy, lower), normal, groups, decoded = context.in_batches(solve)(
        "latent", context.params, keys, levels
    )
    if context.folder is not None and len(experiment.data.shape) == 3 and experiment.data.shape[-1] in (1, 3):
        pairs = np.stack([space.quantiser.to_stored(jnp.asarray(levels)), decoded], axis=1)[:_SHOWN]
        pixels = report.grid(pairs.reshape(-1, *experiment.data.shape), experiment.data.num_levels, columns=10)
        report.save_png(context.folder / "reconstructions.png", pixels)
    each_group = {f"divergence_of_group_{g + 1}": mean_estimate(groups[:, g]) for g in range(groups.shape[1])}
    return {
        "reconstruction": mean_estimate(reconstruction),
        "negative_entropy": mean_estimate(entropy),
        "lower_divergence": mean_estimate(lower),
        "normal_divergence": mean_estimate(normal.sum(1) + lower),
        **(each_group if len(each_group) > 1 else {}),
        "active_channels": int(kl.active(jnp.asarray(normal)).sum()),
        "channels": normal.shape[1],
        "largest_distance": largest_distance(experiment, context.params),
    }


def largest_distance(experiment: Experiment, params: Params) -> float:
    """The largest Euclidean distance between encodings of training data."""
    data = np.asarray(experiment.data.train.x[:_COMPARED])
    encode = parallel.jit(experiment.space.encode)
    z = parallel.gather(encode(params, experiment.key(READ), data)).reshape(len(data), -1)
    square = np.sum(z.astype(np.float64) ** 2, axis=1)
    return float(np.sqrt(np.max(square[:, None] + square[None] - 2.0 * z @ z.T)))
