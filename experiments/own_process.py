"""A model of one's own, without a config: a process, a network and data that are written or chosen here.

    python -m experiments.own_process          half a minute on 2 CPU cores

The process is variance-preserving with the rate `beta`, which may be any smooth positive function of t: its integral,
and the inverse of that, are computed numerically. The network is a Linen module that predicts the velocity, as
`score.score_fn` expects unless it is told otherwise, and knows the time by its log-SNR. The data are two moons in the
plane. The table has the log-density of held-out points under the ODE model, and under the Gaussian with the mean and
covariance of the training points; the picture has samples beside the held-out points. The functions and the class below
have fewer than forty lines of code.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import multivariate_normal
from sklearn.datasets import make_moons

from experiments import common
from scoreflow import divergence, likelihood, score, space, terminal, train
from scoreflow.models import network
from scoreflow.objectives.score_matching import score_matching
from scoreflow.processes import rates, sdes
from scoreflow.runs import report
from scoreflow.samplers import grids, rules, sample
from scoreflow.types import Params


def beta(peak: float, t: jax.Array) -> jax.Array:
    """The rate at which signal becomes noise, at times t of any shape."""
    return 0.1 + peak * jnp.sin(0.5 * jnp.pi * t) ** 2


class Net(nn.Module):
    """The velocity at x [B, 2] and log_snr [B]; there are no labels `cond`, and no dropout to `train` with."""

    @nn.compact
    def __call__(self, x: jax.Array, log_snr: jax.Array, cond: jax.Array | None, train: bool) -> jax.Array:
        h = jnp.concatenate([x, 0.3 * log_snr[:, None]], axis=-1)
        for _ in range(3):
            h = nn.silu(nn.Dense(128)(h))
        return nn.Dense(2)(h)


PROCESS, NET, T_MIN = sdes.VP(rates.NumericalRate(beta, 16.0)), network(Net()), 1e-3


def score_of(params: Params, **unused: object) -> score.Score:
    """The score function of a network with these parameters; `train` and `key` would be for dropout."""
    return score.score_fn(PROCESS, NET.apply, params)


def fit(x: np.ndarray, steps: int) -> score.Score:
    """The score function after so many steps of Adam on batches of x [N, 2]."""
    rng = np.random.default_rng(0)
    batches = ({"x": x[rng.integers(len(x), size=256)]} for _ in range(steps))
    objective = score_matching(PROCESS, score_of, space.continuous((2,)).encode, t_min=T_MIN)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    params = NET.init(jax.random.key(0), (1, 2))
    return score_of(train.fit(objective, params, optimizer, batches, key=jax.random.key(1)).ema_params)


def log_density(learned: score.Score, x: np.ndarray) -> jax.Array:
    """Of x [N, 2] under the ODE model, in nats, [N]."""
    prior, options = terminal.prior(PROCESS), {"t_min": T_MIN, "divergence": divergence.exact}
    return likelihood.log_prob(PROCESS, learned, prior, jax.random.key(2), x, **options).logp


def main() -> None:
    args = common.arguments(__doc__, "own_process")
    moons = make_moons(4000, noise=0.1, random_state=0)[0] - np.array([0.5, 0.25])
    x, held_out = np.split(moons.astype(np.float32), [3600])
    learned = fit(x, 100 if args.fast else 3000)
    draw = jax.jit(functools.partial(sample, rules.HEUN, PROCESS, learned))
    x_init = terminal.prior(PROCESS).sample(jax.random.key(3), (400, 2))
    samples = draw(jax.random.key(4), x_init, grids.log_snr(PROCESS, 30, t_min=T_MIN)).x
    report.plot_points(args.out / "samples.png", {"held out": held_out, "samples": np.asarray(samples)}, 2.0)
    gaussian = multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(held_out)
    rows = [("model", "log-density of held-out points, nats")]
    for name, values in {"ODE model": log_density(learned, held_out), "Gaussian": gaussian}.items():
        rows.append((name, f"{np.mean(values):.3f} ± {np.std(values) / len(values) ** 0.5:.3f}"))
    common.finish(args.out, [report.table(rows)])


if __name__ == "__main__":
    main()
