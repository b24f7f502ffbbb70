"""The bound of a trained model as a function of the time T at which its path ends, all T in one pass.

With nu_T the distribution assumed at T (Franzese et al. 2022, arXiv 2206.05173; Song et al. 2021, arXiv 2101.09258)

    -E log p(x) <= -E log nu_T(x_T) + path(T) + offset                                                              (1)
    path(T) = 1/2 int_{t_min}^T g^2/sigma^2 (E |sigma s + noise|^2 - E |noise|^2) dt - d log alpha(T)/alpha(t_min)  (2)

so a network that was trained on [t_min, T_max] has one integrand for all T <= T_max; how much shorter its path may be
can be read from (1). This is the gap of that network: one trained for the shorter path alone may do a little better.
The slope of (1), derived here, needs no true score S, because E |s - S|^2 and the distance to the noise differ by the
same number for any field s:

    d/dT = g^2(T)/2 (E |s + noise/sigma|^2 - E |grad log nu_T + noise/sigma|^2)                                     (3)

It holds for every distribution that the forward process carries along with T. The path should end where the network
stops being better than the terminal distribution's own score.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.divergence import inner
from scoreflow.likelihood.ode import Density
from scoreflow.objectives import times
from scoreflow.processes.sdes import Process, expand
from scoreflow.score import Score
from scoreflow.types import Key


class Profile(NamedTuple):
    """Estimates in nats for each example and horizon, [B, T], whose means are the terms of (1) and (3).

    Attributes:
      end: {name of a terminal distribution: -log nu_T(x_T)}, at the same draws of x_T for all of them.
      path: (2).
      offset: of what lies below t_min, the same for all horizons, [B].
      slope: {name of a terminal distribution: (3)}.
    """

    end: dict[str, jax.Array]
    path: jax.Array
    offset: jax.Array
    slope: dict[str, jax.Array]


def elbo_profile(
    process: Process,
    score: Score,
    terminals: dict[str, Callable[[jax.Array], Density]],
    key: Key,
    x0: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    horizons: jax.Array,
    num_times: int = 100,
    repeats: int = 4,
) -> Profile:
    """(1) to (3) at several horizons.

    Args:
      process: the forward SDE that the score was trained under.
      score: the score function.
      terminals: name -> (T -> the distribution assumed at T).
      key: PRNG key of times and noise, one for all examples.
      x0: continuous data [B, ...], float.
      cond: labels [B] int32 or None.
      t_min: where the path ends and the decoder begins.
      horizons: T, [K], increasing, at most the process's horizon.
      num_times: evaluations of the score for (2), for each example: evenly spread in log-SNR over the longest path.
      repeats: draws of x_T behind (1) and (3), for each example and horizon.
    """
    n, size = x0.shape[0], x0[0].size
    key_t, key_path, key_offset, key_end = jax.random.split(key, 4)
    draw = lambda key: times.importance(process, key, num_times, t_min=t_min)
    t, inv_density = jax.vmap(draw)(jax.random.split(key_t, n))  # [B, M], each example with times of its own

    def paired(key, t):
        """|sigma s + noise|^2 - |noise|^2 at t [B]; [B]."""
        xt, noise, sigma = process.perturb(key, x0, t)
        error = expand(sigma, x0) * score(xt, t, cond) + noise
        return inner(error, error) - inner(noise, noise)

    def at_time(inputs):
        key, t, inv_density = inputs
        rate = 0.5 * inv_density * process.diffusion_sq(t) / process.variance(t) * paired(key, t)
        return jnp.where(t[:, None] <= horizons[None], rate[:, None], 0.0)

    path = jax.lax.map(at_time, (jax.random.split(key_path, num_times), t.T, inv_density.T)).mean(0)
    shrunk = process.log_alpha(horizons) - process.log_alpha(jnp.asarray(t_min, x0.dtype))
    path = path - size * shrunk[None]

    first = jnp.full(n, t_min, x0.dtype)
    last = jax.lax.map(lambda key: paired(key, first), jax.random.split(key_offset, repeats)).mean(0)
    offset = 0.5 * last - size * process.log_alpha(jnp.asarray(t_min, x0.dtype))

    def at_horizon(inputs):
        key, horizon = inputs
        at_end = lambda key: _at_end(process, score, terminals, key, x0, horizon, cond)
        draws = jax.lax.map(at_end, jax.random.split(key, repeats))
        return jax.tree.map(lambda leaf: leaf.mean(0), draws)

    end, slope = jax.lax.map(at_horizon, (jax.random.split(key_end, len(horizons)), horizons))
    end, slope = ({name: value.T for name, value in values.items()} for values in (end, slope))
    return Profile(end, path, offset, slope)


def _at_end(
    process: Process,
    score: Score,
    terminals: dict[str, Callable[[jax.Array], Density]],
    key: Key,
    x0: jax.Array,
    horizon: jax.Array,
    cond: jax.Array | None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The first term of (1) and (3) at one horizon, from one draw of x_T for each example; [B] by name."""
    ts = jnp.full(len(x0), horizon, x0.dtype)
    xt, noise, sigma = process.perturb(key, x0, ts)
    target = noise / expand(sigma, x0)
    error = score(xt, ts, cond) + target
    end, slope = {}, {}
    for name, terminal_at in terminals.items():
        terminal = terminal_at(horizon)
        end[name] = -terminal.log_prob(xt)
        other = jax.grad(lambda x, terminal=terminal: jnp.sum(terminal.log_prob(x)))(xt) + target
        slope[name] = 0.5 * process.diffusion_sq(ts) * (inner(error, error) - inner(other, other))
    return end, slope
