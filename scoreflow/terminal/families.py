"""How each terminal law is had: what is learnt of it, from what, and where on the path it is valid.

The bound of a model with terminal law nu holds it apart from the score (Franzese et al. 2022, arXiv 2206.05173)

    E log p >= E log nu(x_T) - (what the score does on the way),

so nu is fitted to x_T = alpha x_0 + sigma noise by maximum likelihood, before, beside or after the score.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import terminal
from scoreflow.models.glow import Glow
from scoreflow.processes.sdes import Process
from scoreflow.terminal import mixture
from scoreflow.terminal.flow import Flow

_FLOOR = 1e-4  # least variance of a mixture of clean data, whose components could shrink onto an example
_COPIES = 4  # of each example, with noise of their own, where a mixture is fitted to x_T
_FIRST = 256  # examples of which a flow takes its first scales


class Family(NamedTuple):
    """A kind of terminal law.

    Attributes:
      law: (params, process, t) -> the law of x_t, of `process` at a time t.
      init: (key, shape [B, ...]) -> parameters before they are fitted; None where there are none.
      fit: (key, clean, process) -> parameters; clean(key) gives the training data as the model sees them, [N, ...],
        dequantised afresh. What training by gradient starts from where there is a `loss`.
      loss: (params, x [B, ...]) -> nats [B], learnt by gradient on draws of x_T; None where `fit` is all.
      anywhere: whether `law` holds at other times than the horizon that it was fitted for.
    """

    law: Callable
    init: Callable | None = None
    fit: Callable | None = None
    loss: Callable | None = None
    anywhere: bool = True


def _at(process: Process, t) -> tuple[jax.Array, jax.Array]:
    """alpha and variance of `process` at t."""
    return process.alpha(jnp.asarray(t, jnp.float32)), process.variance(jnp.asarray(t, jnp.float32))


def prior() -> Family:
    """The process's own Gaussian: nothing is learnt."""
    return Family(lambda params, process, t: terminal.prior(dataclasses.replace(process, horizon=t)))


def pushforward(pool: jax.Array) -> Family:
    """Diffused samples of any generator, [N, ...] as the model sees data."""

    def law(params, process, t):
        alpha, variance = _at(process, t)
        return terminal.Pushforward(pool, alpha, jnp.sqrt(variance))

    return Family(law)


def _mixtures(components: int, covariance: mixture.Covariance, fit_to: Callable, transport: bool) -> Family:
    """A mixture of clean data and its `transport`, or one of x_T. `fit_to`: (x, seed, floor) -> Mixture."""

    def init(key, shape):
        del key
        return vars(mixture.empty(components, int(np.prod(shape[1:])), covariance))

    def fit(key, clean, process):
        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        if transport:
            x, floor = clean(key), _FLOOR
        else:
            keys = jax.random.split(key, (_COPIES, 2))
            parts = [clean(k[0]) for k in keys]
            when = jnp.full(len(parts[0]), process.horizon, jnp.float32)
            x = np.concatenate([np.asarray(process.perturb(k[1], part, when).xt) for k, part in zip(keys, parts)])
            floor = float(process.variance(process.horizon))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), vars(fit_to(x, seed, floor)))

    def law(params, process, t):
        found = mixture.Mixture(**jax.lax.stop_gradient(params))
        return mixture.transported(found, *_at(process, t)) if transport else found

    return Family(law, init, fit, anywhere=transport)


def gaussian_mixture(
    components: int = 1, covariance: mixture.Covariance = mixture.FULL, *, transport: bool = True
) -> Family:
    """A Gaussian (1 component) or a mixture, by expectation maximization.

    Args:
      components: number of them.
      covariance: their form.
      transport: fit clean data and carry the law to any T in closed form; else fit x_T itself.
    """

    def fit_to(x, seed, floor):
        return mixture.fit(x, components=components, covariance=covariance, floor=floor, seed=seed).law

    return _mixtures(components, covariance, fit_to, transport)


def dirichlet(components: int = 20, *, transport: bool = False) -> Family:
    """scikit-learn's Dirichlet-process mixture with at most that many components, full covariances."""

    def fit_to(x, seed, floor):
        del floor  # its prior keeps covariances from collapsing
        return mixture.fit_dirichlet(x, components=components, seed=seed)

    return _mixtures(components, mixture.FULL, fit_to, transport)


def glow(resolutions: int = 2, steps: int = 8, width: int = 64, conv: Callable | None = None) -> Family:
    """A multiscale flow of x_T, learnt by gradient."""
    module = Glow(resolutions, steps, width) if conv is None else Glow(resolutions, steps, width, conv)

    def forward(params, y):
        return module.apply(params, y)

    def inverse(params, noise):
        return module.apply(params, noise, method=Glow.invert)

    def law(params, process, t):
        del process, t
        mean, std = jax.lax.stop_gradient((params["mean"], params["std"]))
        return Flow(params["flow"], mean, std, forward, inverse, module.shapes)

    def init(key, shape):
        batch = jax.random.normal(key, (8, *shape[1:]))  # any that varies: scales are its own until `fit`
        return {"flow": module.init(key, batch), "mean": jnp.zeros(()), "std": jnp.ones(())}

    def fit(key, clean, process):
        key_x, key_noise, key_init = jax.random.split(key, 3)
        x = clean(key_x)
        alpha, variance = (float(value) for value in _at(process, process.horizon))
        mean, std = alpha * float(x.mean()), float(np.sqrt(alpha**2 * x.var() + variance))
        first = jnp.asarray(x[:_FIRST])
        xt = process.perturb(key_noise, first, jnp.full(len(first), process.horizon, jnp.float32)).xt
        flow = jax.jit(module.init)(key_init, (xt - mean) / std)
        return {"flow": flow, "mean": jnp.float32(mean), "std": jnp.float32(std)}

    def loss(params, x):
        return -law(params, None, None).log_prob(x)

    return Family(law, init, fit, loss, anywhere=False)
