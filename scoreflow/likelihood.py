"""Log-densities: exact for the probability-flow ODE, a bound for the SDE.

The ODE model:

    dx/dt = h(x, t) = f x - g^2 score / 2                                                                           (1)
    log p_{t_min}(x) = log terminal(x(T)) + int_{t_min}^T div h(x(t), t) dt,  x(t_min) = x                           (2)

Song et al. 2021 (arXiv 2011.13456), appendix D.2. The integral runs from data to noise: the other way round it gives
numbers that look like likelihoods and are not.

The SDE model, ending with the Gaussian decoder N(E[x_0 | x_{t_min}], (sigma / alpha)^2) at t_min (Song et al. 2021,
arXiv 2101.09258, theorem 3 and its appendix): -log p(x) is at most the sum of

    prior      -E log terminal(x_T)                                                                                 (3)
    diffusion  1/2 int g^2/sigma^2 (E |sigma score + noise|^2 - d) dt - d int f dt                                  (4)
    offset     -d log alpha + (E |sigma score + noise|^2 - d) / 2 at t_min                                          (5)

with x_t, x_T perturbed from x. In (4), d int g^2/sigma^2 dt is the fall of log-SNR and int f dt that of log alpha, so
that neither is estimated. Leaving (5) out is off by the entropy of the last noise: some 8 bits per dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow import divergence as divergences
from scoreflow import times
from scoreflow.samplers.adaptive import integrate
from scoreflow.score import ScoreFn, probability_flow
from scoreflow.sdes import Process, expand


class LogProb(NamedTuple):
    """Log-densities in nats.

    Attributes:
      logp: log p_{t_min}(x), [B]; NaN where the solve failed. `prior` + `integral`.
      prior: log-density of x(T) under the terminal law, [B].
      integral: int div h dt, [B].
      nfe: evaluations of the drift (each with its divergence), [B] int32.
      ok: whether the solve reached T, [B] bool.
      last: x(T), like x: under another terminal law, log p is that law's density there + `integral`.
    """

    logp: jax.Array
    prior: jax.Array
    integral: jax.Array
    nfe: jax.Array
    ok: jax.Array
    last: jax.Array


def _check_continuous(x: jax.Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x is {x.dtype}: a density needs continuous data, so choose a dequantisation first")


def log_prob(
    process: Process,
    score: ScoreFn,
    terminal,
    key: jax.Array,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    divergence: Callable = divergences.hutchinson,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
    in_log_snr: bool = False,
) -> LogProb:
    """Log-density of x under the ODE model (2), by an adaptive solve per example.

    Args:
      process: the forward SDE.
      score: the score function.
      terminal: the law assumed at T; its `log_prob` is used.
      key: PRNG key of the Rademacher probes, one probe per example, fixed along its trajectory; or a key for each
        example, [B], so that the result does not depend on how examples are batched.
      x: continuous data [B, ...], float.
      cond: labels [B] int32 or None.
      t_min: start of the integral; the data are taken to be x(t_min).
      divergence: `divergence.hutchinson` (unbiased) or `divergence.exact`.
      rtol, atol: tolerances on x and on the integral per dimension.
      max_steps: of the solver, per example.
      in_log_snr: whether the solver's own clock is log-SNR instead of t; the same curve, other steps.

    Raises:
      TypeError: if x is integer: a density at grey levels depends on how they are dequantised, which is the caller's
        choice (see `dequantise`).
    """
    _check_continuous(x)
    drift = probability_flow(process, score)
    size = x[0].size

    def augmented(clock, state, args):
        probe, cond = args
        t = process.inverse_log_snr(clock) if in_log_snr else clock
        velocity, trace = divergence(lambda x: drift(t, x, cond), state[0], probe)
        rate = (velocity, trace / size)
        if in_log_snr:  # d log_snr / dt = -g^2 / sigma^2
            pace = -process.variance(t) / process.diffusion_sq(t)
            rate = jax.tree.map(lambda leaf: expand(pace, leaf) * leaf, rate)
        return rate

    keys = key if key.ndim else jax.random.split(key, x.shape[0])
    probe = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(keys)
    (x_last, integral), nfe, _, ok = integrate(
        augmented,
        (x, jnp.zeros(x.shape[0], x.dtype)),
        process.log_snr(t_min) if in_log_snr else t_min,
        process.log_snr(process.horizon) if in_log_snr else process.horizon,
        (probe, cond),
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
    )
    prior = terminal.log_prob(x_last)
    integral = size * integral
    return LogProb(jnp.where(ok, prior + integral, jnp.nan), prior, integral, nfe, ok, x_last)


class Bound(NamedTuple):
    """An upper bound on -log p in nats and its terms (3) to (5), [B] each.

    Attributes:
      total: `prior` + `diffusion` + `offset`, unbiased for the bound.
      prior: of x_T under the terminal law.
      diffusion: of the path; mostly negative.
      offset: of what lies below t_min.
    """

    total: jax.Array
    prior: jax.Array
    diffusion: jax.Array
    offset: jax.Array


def bound(
    process: Process,
    score: ScoreFn,
    terminal,
    key: jax.Array,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    num_times: int = 100,
    law: Callable = times.importance,
) -> Bound:
    """Upper bound on -log p(x) of the SDE model, (3) to (5), by `num_times` times for each example.

    Args:
      key: PRNG key of times and noise, or a key for each example, [B].
      x: continuous data [B, ...], float.
      cond: labels [B] int32 or None.
      t_min: where the path ends and the decoder begins.
      num_times: evaluations of the score for each example, each with noise of its own; as many again for (5).
      law: of the times, see `times`; importance sampling keeps the variance low.

    Raises:
      TypeError: if x is integer, see `log_prob`.
    """
    _check_continuous(x)
    n, size = x.shape[0], x[0].size
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(key if key.ndim else jax.random.split(key, n))
    t, inv_density = jax.vmap(lambda key: law(process, key, num_times, t_min=t_min))(keys[:, 0])

    def perturbed(keys, t):
        """x_t [B, ...] and the noise in it, each example at its time and from its key."""
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        return expand(process.alpha(t), x) * x + expand(process.sigma(t), x) * noise, noise

    def excess(keys, t):
        """|sigma score + noise|^2 - d of each example, [B]."""
        xt, noise = perturbed(keys, t)
        error = (expand(process.sigma(t), x) * score(xt, t, cond) + noise).reshape(n, -1)
        return jnp.sum(error**2, axis=1) - size

    def at(i):
        here = jax.vmap(lambda key: jax.random.fold_in(key, i))
        pace = process.diffusion_sq(t[:, i]) / process.variance(t[:, i])
        path = 0.5 * inv_density[:, i] * pace * (excess(here(keys[:, 1]), t[:, i]) + size)
        last = 0.5 * excess(here(keys[:, 2]), jnp.full(n, t_min, x.dtype))
        prior = -terminal.log_prob(perturbed(here(keys[:, 3]), jnp.full(n, process.horizon, x.dtype))[0])
        return path, last, prior

    path, last, prior = jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(at, jnp.arange(num_times)))
    fall = process.log_snr(t_min) - process.log_snr(process.horizon)
    shrunk = process.log_alpha(process.horizon) - process.log_alpha(t_min)
    diffusion = path - size * (0.5 * fall + shrunk)
    offset = last - size * process.log_alpha(jnp.asarray(t_min, x.dtype))
    return Bound(prior + diffusion + offset, prior, diffusion, offset)
