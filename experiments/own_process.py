"""A model of one's own in forty lines: a process from a rate written here, a Linen network written here, no config.

python -m experiments.own_process          half a minute on 2 CPU cores
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow import likelihood, samplers, score, space, terminal, train
from scoreflow.models import network
from scoreflow.objectives.score_matching import score_matching
from scoreflow.processes import rates, sdes
from scoreflow.samplers import grids, rules


class Net(nn.Module):
    """(x [B, 2], log_snr [B]) -> [B, 2]."""

    @nn.compact
    def __call__(self, x, log_snr, cond, train):
        h = jnp.concatenate([x, 0.1 * log_snr[:, None]], axis=-1)
        for _ in range(3):
            h = nn.silu(nn.Dense(128)(h))
        return nn.Dense(2)(h)


def main(steps: int = 2000, samples: int = 1000) -> float:
    """Trains on two moons, samples them, and prints the log-likelihood of held-out points, which it returns."""
    angle, rng = np.linspace(0, 2 * np.pi, 4000, endpoint=False), np.random.default_rng(0)
    x = np.stack([np.cos(angle) + (angle > np.pi), np.sin(angle) + 0.5 * (angle > np.pi)], 1) - [0.5, 0.25]
    x = rng.permutation(x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    rate = rates.NumericalRate(lambda peak, t: 0.1 + peak * jnp.sin(0.5 * jnp.pi * t) ** 2, 16.0)
    process, net = sdes.VP(rate), network(Net())
    score_of = lambda params, **_: score.score_fn(process, net.apply, params, score.NOISE)
    objective = score_matching(process, score_of, space.continuous((2,)).encode, t_min=1e-4)
    batches = ({"x": x[rng.integers(3600, size=256)]} for _ in range(steps))
    params = net.init(jax.random.key(0), (1, 2))
    state = train.fit(objective, params, optax.adam(2e-3), batches, key=jax.random.key(1))
    learnt, end, grid = score_of(state.ema_params), terminal.prior(process), grids.log_snr(process, 30, t_min=1e-3)
    draw = jax.jit(functools.partial(samplers.sample, rules.HEUN, process, learnt))
    points = draw(jax.random.key(2), end.sample(jax.random.key(3), (samples, 2)), grid).x
    logp = likelihood.log_prob(process, learnt, end, jax.random.key(4), jnp.asarray(x[3600:]), t_min=1e-4).logp
    print(f"samples: mean {points.mean(0).round(2)}, log-likelihood {logp.mean():.3f} +- {logp.std() / 20:.3f} nats")
    return float(logp.mean())


if __name__ == "__main__":
    main()
