"""What is asked of a VAE: the terms of its bound, how many channels are used, and how well it gives data back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.evaluators.density import in_batches
from scoreflow.evaluators.settings import EvalPlan
from scoreflow.experiment import EVALUATE, READ, Experiment
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.models import LATENT
from scoreflow.models.vae import normal_log_prob
from scoreflow.objectives import latent
from scoreflow.runs import parallel, report

_SHOWN = 50  # reconstructions in a picture
_APART = 1000  # encodings of training data whose distances are compared


def latent_metrics(experiment: Experiment, plan: EvalPlan, params, folder: Path) -> dict[str, Estimate | int | float]:
    """Terms of the bound on test data in nats, and a picture of data (odd columns) with their reconstructions.

    `reconstruction` is -log p(x|z), `negative_entropy` log q(z|x) of the latents under the score prior and
    `lower_divergence` that of the others from N(0, I). `normal_divergence` is what all latents would cost under
    N(0, I), and with several groups what each of them would, those under the score prior first; `active_channels` are
    channels of these whose share of it is above 0.1 nats. `largest_distance` between two encodings is what a
    variance-exploding process has to reach.
    """
    space, count = experiment.latent, plan.num_test or len(experiment.data.test.x)
    data = np.asarray(experiment.data.test.x[:count])
    levels = np.asarray(space.levels.read(experiment.key(READ), data))

    def solve(params, keys, x, cond):
        view = space.infer(params[LATENT], keys[0], x)
        each = view.top.log_q - normal_log_prob(view.top.z)
        normal, groups = latent.channel_sums(each), latent.group_sums(each, space.groups)
        terms = (view.reconstruction, latent.example_sums(view.top.log_q), view.lower_kl.sum(1))
        return terms, normal, jnp.concatenate([groups, view.lower_kl], axis=1), view.shown

    keys = jax.random.split(jax.random.fold_in(experiment.key(EVALUATE), READ), count)
    found = in_batches(solve, plan)("latent", params, keys, levels)
    (reconstruction, entropy, lower), normal, groups, shown = found
    pairs = np.stack([space.levels.write(levels), shown], axis=1)[:_SHOWN]
    source = experiment.data
    if len(source.shape) == 3 and source.shape[-1] in (1, 3):
        pixels = report.grid(pairs.reshape(-1, *source.shape), source.levels, columns=10)
        report.save_png(folder / "reconstructions.png", pixels)
    shares = {f"divergence_of_group_{g + 1}": mean_estimate(groups[:, g]) for g in range(groups.shape[1])}
    return {
        "reconstruction": mean_estimate(reconstruction),
        "negative_entropy": mean_estimate(entropy),
        "lower_divergence": mean_estimate(lower),
        "normal_divergence": mean_estimate(normal.sum(1) + lower),
        **(shares if len(shares) > 1 else {}),
        "active_channels": int(latent.active(jnp.asarray(normal)).sum()),
        "channels": normal.shape[1],
        "largest_distance": largest_distance(experiment, params),
    }


def largest_distance(experiment: Experiment, params) -> float:
    """The largest Euclidean distance between encodings of training data."""
    data = np.asarray(experiment.data.train.x[:_APART])
    z = parallel.gather(parallel.jit(experiment.encode)(params, experiment.key(READ), data)).reshape(len(data), -1)
    square = np.sum(z.astype(np.float64) ** 2, axis=1)
    return float(np.sqrt(np.max(square[:, None] + square[None] - 2.0 * z @ z.T)))
