"""The log-density of the probability-flow ODE, by an adaptive solve for each example.

    dx/dt = h(x, t) = f x - g^2 score / 2                                                                           (1)
    log p_{t_min}(x) = log terminal(x(T)) + int_{t_min}^T div h(x(t), t) dt,  x(t_min) = x                           (2)

Song et al. 2021 (arXiv 2011.13456), appendix D.2. The integral runs from data to noise: the other way round it gives
numbers that look like likelihoods and are not.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from scoreflow import divergence as divergences
from scoreflow.divergence import rademacher
from scoreflow.processes.sdes import Process
from scoreflow.samplers.adaptive import by_clock, integrate
from scoreflow.score import Score, probability_flow
from scoreflow.types import Key


class Density(Protocol):
    """A distribution at the horizon whose density is known, see `terminal`."""

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of x [B, ...] in nats, [B]."""
        ...


class LogProb(NamedTuple):
    """Log-densities in nats.

    Attributes:
      logp: log p_{t_min}(x), [B]; NaN where the solve failed. `prior` + `integral`.
      prior: log-density of x(T) under the terminal distribution, [B].
      integral: int div h dt, [B].
      nfe: evaluations of the drift (each with its divergence), [B] int32.
      ok: whether the solve reached T, [B] bool.
      last: x(T), like x: under another terminal distribution, log p is its log-density there + `integral`.
    """

    logp: jax.Array
    prior: jax.Array
    integral: jax.Array
    nfe: jax.Array
    ok: jax.Array
    last: jax.Array


def check_continuous(x: jax.Array) -> None:
    """Refuses integer data, which have no density.

    Raises:
      TypeError: naming the type and the way out.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype}: a density needs continuous data, so choose a dequantization first")


def probes(key: Key, x: jax.Array) -> jax.Array:
    """Random signs like x [B, ...], from one key, or from a key for each example, [B]."""
    keys = key if key.ndim else jax.random.split(key, x.shape[0])
    return jax.vmap(lambda key: rademacher(key, x.shape[1:], x.dtype))(keys)


def log_prob(
    process: Process,
    score: Score,
    terminal: Density,
    key: Key,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    divergence: divergences.Divergence = divergences.hutchinson,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
    in_log_snr: bool = False,
) -> LogProb:
    """Log-density of x under the probability-flow ODE from t_min to the horizon, by an adaptive solve per example.

    Args:
      process: the forward SDE.
      score: the score function.
      terminal: the distribution assumed at T.
      key: PRNG key of the Rademacher probes, one probe per example, fixed along its trajectory; or a key for each
        example, [B], so that the result does not depend on how examples are batched.
      x: continuous data [B, ...], float.
      cond: labels [B] int32 or None.
      t_min: start of the integral; the data are taken to be x(t_min).
      divergence: `divergence.hutchinson` (unbiased) or `divergence.exact`.
      rtol: relative tolerance on x and on the integral per dimension.
      atol: absolute tolerance on the same.
      max_steps: of the solver, per example.
      in_log_snr: whether the solver's own clock is log-SNR instead of t; the same curve, other steps.

    Raises:
      TypeError: if x is integer: a density at gray levels depends on how they are dequantised, which is the caller's
        choice (see `dequantise`).

    Examples:
      >>> import jax, jax.numpy as jnp, scoreflow
      >>> process = scoreflow.vp_linear()
      >>> score = lambda x, t, cond=None: -x  # of N(0, I), which VP leaves as it is
      >>> key, x = jax.random.key(0), jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
      >>> result = scoreflow.log_prob(process, score, scoreflow.prior(process), key, x, t_min=1e-3)
      >>> [f"{logp:.2f}" for logp in result.logp]  # -log(2 pi), and 1 less
      ['-1.84', '-2.84']
    """
    check_continuous(x)
    drift = probability_flow(process, score)
    size = x[0].size

    def augmented(t, state, args):
        probe, cond = args
        velocity, trace = divergence(lambda x: drift(t, x, cond), state[0], probe)
        return velocity, trace / size

    rate, ends = by_clock(process, augmented, t_min, process.horizon, "log_snr" if in_log_snr else "time")
    start, options = (x, jnp.zeros(x.shape[0], x.dtype)), {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    solution = integrate(rate, start, *ends, (probes(key, x), cond), **options)
    state: Any = solution.y
    x_last, integral = state[0], size * state[1]
    prior = terminal.log_prob(x_last)
    logp = jnp.where(solution.ok, prior + integral, jnp.nan)
    return LogProb(logp, prior, integral, solution.nfe, solution.ok, x_last)
