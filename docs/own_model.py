"""A model of one's own in forty lines: its process (a rate and a rule), its network and its data are written here.

python docs/own_model.py          a minute on 2 CPU cores; no config, no folder
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow import data, likelihood, score, space, terminal, train
from scoreflow.models import network
from scoreflow.objectives.score_matching import score_matching
from scoreflow.processes import linear, rates
from scoreflow.samplers import grids, rules, sample


@rates.pytree
class Wide(linear.Process):
    """dx = -beta/2 x dt + 2 sqrt(beta) dw, for any rate beta: noise of standard deviation 2."""

    beta: rates.Rate
    horizon: float = 1.0
    log_alpha = lambda self, t: -0.5 * self.beta.integral(0.0, t)
    variance = lambda self, t: -4.0 * jnp.expm1(-self.beta.integral(0.0, t))
    drift_coeff = lambda self, t: -0.5 * self.beta(t)
    diffusion_sq = lambda self, t: 4.0 * self.beta(t)

    def reverse_integrals(self, s, t):
        area = self.beta.integral(s, t)
        return linear.ReverseIntegrals(jnp.exp(area / 2), 8.0 * jnp.expm1(area / 2), 4.0 * jnp.expm1(area))


class Net(nn.Module):
    """The noise in x [B, 2], given log_snr [B]; there are no labels, and no dropout to train with."""

    @nn.compact
    def __call__(self, x, log_snr, cond, train):
        h = jnp.concatenate([x, 0.3 * log_snr[:, None]], axis=-1)
        return nn.Sequential([nn.Dense(128), nn.silu, nn.Dense(128), nn.silu, nn.Dense(128), nn.silu, nn.Dense(2)])(h)


steps, t_min, net, rng = 3000, 1e-3, network(Net()), np.random.default_rng(0)
keys = jax.random.split(jax.random.key(0), 5)
circle = np.exp(1j * rng.uniform(0, 2 * np.pi, (4000, 1))).view(float)
x = (circle + 0.1 * rng.standard_normal((4000, 2))).astype(np.float32)
process = Wide(rates.NumericalRate(lambda peak, t: 0.1 + peak * jnp.sin(0.5 * jnp.pi * t) ** 2, 16.0))
score_of = lambda params, *, train=False, key=None: score.score_fn(process, net.apply, params, score.NOISE)
objective = score_matching(process, score_of, space.continuous((2,)).encode, t_min=t_min)
batches = data.batches(x[:3600], size=256, steps=steps)
state = train.fit(objective, net.init(keys[0], (1, 2)), optax.adam(2e-3), batches, key=keys[1])
learned, prior = score_of(state.ema_params), terminal.prior(process)  # the averaged parameters; N(0, sigma(T)^2 I)
noise, grid = prior.sample(keys[2], (1000, 2)), grids.log_snr(process, 30, t_min=t_min)
radius = jnp.linalg.norm(sample(rules.HEUN, process, learned, keys[3], noise, grid).x, axis=1)
logp = likelihood.log_prob(process, learned, prior, keys[4], jnp.asarray(x[3600:]), t_min=t_min).logp
print(f"radius {radius.mean():.3f} ± {radius.std():.3f}, log-likelihood {logp.mean():.3f} ± {logp.std() / 20:.3f}")
